"""A project of several corpora: `corpora/NAME.yaml` makes the pack NAME of train.data, and dvc.yaml has its stages.

A file of a corpus has the values that differ from params.yaml, at least corpus.root and the paths:
`pipeline ingest --config corpora/NAME.yaml`.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.command import PARAMS, STAGES
from pipeline.params import Params, load_params
from shards.errors import ConfigError
from shards.open_store import URL
from shards.schema import FURTHER_TABLES
from stages.reports.csv_tables import BY_CORPUS

CORPORA = "corpora"
"""Folder next to params.yaml, and the variable of dvc.yaml."""
OF_CORPUS = ("ingest", "crop", "pack", "stats")
"""Stages that run once for each corpus; the others read all packs."""
_PACK_TABLES = ("samples", "shards", "clips", "crops")
"""What the stages of a corpus write and training reads."""


def corpus_file(name: str, params_file: Path = PARAMS) -> Path:
    return params_file.parent / CORPORA / f"{name}.yaml"


def corpora_of(params_file: Path, values: Params) -> dict[str, Params]:
    """Returns pack → parameters of its corpus, for the packs of train.data that have a file of their corpus.

    Raises ConfigError if the file and train.data name different paths.
    """
    found = {}
    for pack in values.train.data:
        file = corpus_file(pack.name, params_file)
        if file.exists():
            found[pack.name] = load_params(params_file, config=file)
            for table in (*_PACK_TABLES, *FURTHER_TABLES):
                given, made = getattr(pack, table), getattr(found[pack.name].paths, table)
                if given and given != made:
                    raise ConfigError(
                        f"train.data: {table} of pack {pack.name} is {given}, but paths.{table} of {file} is {made}; "
                        "write the same path in both"
                    )
    return found


def commands_without_dvc(params_file: Path, values: Params) -> str:
    """Returns the commands that run all stages without DVC."""
    named = "" if params_file == PARAMS else f" --params {shlex.quote(str(params_file))}"
    configs = [
        f" --config {shlex.quote(str(corpus_file(name, params_file)))}"
        for name in corpora_of(params_file, values)
    ]
    # preprocess runs the stages up to pack
    commands = ("preprocess", *STAGES[STAGES.index("pack") + 1 :])
    return " && ".join(
        f"pipeline {command}{named}{config}"
        for command in commands
        for config in (configs if values.train.data and command in ("preprocess", *OF_CORPUS) else [""])
    )


def blended_dvc_yaml(text: str, corpora: Mapping[str, Params], values: Params) -> str:
    """Returns the dvc.yaml `text` for the packs of train.data: stages for each corpus, then one training on all."""
    project = yaml.safe_load(text)
    stages = project["stages"]
    for name in OF_CORPUS:
        # the values of a corpus instead of those of params.yaml
        stage = yaml.safe_load(
            re.sub(r"\$\{(corpus|paths)\.", r"${item.\1.", yaml.safe_dump(stages[name], sort_keys=False))
        )
        stage["cmd"] += f" --config {CORPORA}/${{key}}.yaml"
        stage["params"].append({f"{CORPORA}/${{key}}.yaml": None})  # all of its values
        stages[name] = {"foreach": f"${{{CORPORA}}}", "do": stage}
    own = {f"${{paths.{table}}}" for table in _PACK_TABLES}
    packed = [path for pack in values.train.data for table in _PACK_TABLES if (path := getattr(pack, table))]
    local = [path for path in packed if not URL.match(path)]
    for name in ("lm", "train", "report"):
        stages[name]["deps"] = [*(dep for dep in stages[name]["deps"] if dep not in own), *local]
    stages["report"]["outs"].append({f"${{paths.report}}/{BY_CORPUS}": {"persist": True}})
    for plot in project["plots"]:
        ((_, drawn),) = plot.items()
        ((file, column),) = drawn["y"].items()
        if file.startswith("stats/"):  # as dvc.yaml writes it, not paths.stats
            drawn["y"] = {
                f"{corpus.paths.stats}/{file.removeprefix('stats/')}": column for corpus in corpora.values()
            }
    project["plots"].append(
        {"cer by corpus": {"template": "bar_horizontal", "x": "cer", "y": {f"report/{BY_CORPUS}": "group"}}}
    )
    if not corpora:  # all packs exist already
        project["stages"] = {name: stage for name, stage in stages.items() if name not in OF_CORPUS}
        project["plots"] = [plot for plot in project["plots"] if next(iter(plot.values()))["y"]]
    head = (
        f"# Written by `pipeline init --dvc` for the packs of train.data and the files in {CORPORA}/.\n"
        "# After a change of their names, roots or paths run `pipeline init --dvc --force`.\n"
    )
    return head + yaml.safe_dump({"vars": [{CORPORA: _variables(corpora)}]} | project, sort_keys=False)


def _variables(corpora: Mapping[str, Params]) -> dict[str, Any]:
    """Returns the values that the stages of a corpus name in dvc.yaml."""
    tables = ("clips", "crops", "tracks", "shards", "samples", "stats")
    return {
        name: {
            "corpus": {"root": corpus.corpus.root},
            "paths": {table: getattr(corpus.paths, table) for table in tables},
        }
        for name, corpus in corpora.items()
    }
