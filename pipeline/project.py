"""A user's project folder: params.yaml from a recipe, and the stages of dvc.yaml, run with DVC.

Overwrites an edited params.yaml only if asked to. DVC runs in any folder: a checkout or a user's own folder, with git
or without.
"""

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

import shards
from pipeline.blend_project import CORPORA, blended_dvc_yaml, commands_without_dvc, corpora_of, corpus_file
from pipeline.command import PARAMS, verbosity
from pipeline.params import Params, check, load_params, parse_yaml, read_mapping, recipe_text
from recipes import RECIPES
from shards.errors import ConfigError, Interrupted
from shards.files import write_text
from shards.open_store import open_store

_log = logging.getLogger(__name__)

DRAWN = ("demo", "blend")
"""Recipes whose corpora `pipeline demo` draws."""
_ROOT_LINE = re.compile(r"^(  root: )(\S+)", re.MULTILINE)
VERSIONS = "code_versions.yaml"
"""The versions of the code, by name: parameters in a user's dvc.yaml. In a checkout, the Python files are."""
_CODE_FILE = re.compile(r"^( +- )([\w/]+\.py):\n +- (\w+)$", re.MULTILINE)
"""A stage's dependence on a version in a Python file."""
_CONFIG = "[core]\n    analytics = false\n    check_update = false\n"


def write_recipe(recipe: str, params_file: Path, corpus_root: str | None, force: bool) -> str:
    """Writes the recipe with `corpus_root` as corpus.root; returns a line with the result and the next commands.

    Raises ConfigError if `params_file` was edited and `force` is false.
    """
    text = recipe_text(recipe)
    if corpus_root is not None:
        if recipe == "blend":
            raise ConfigError(
                "--corpus-root: recipe blend has a root for each corpus; write them into corpora/*.yaml"
            )
        text = _ROOT_LINE.sub(lambda match: match[1] + _quoted(corpus_root), text, count=1)
    written = parse_yaml(text, recipe)
    values = check(written, recipe)
    if params_file.exists() and not force and _is_edited(params_file, written):
        raise ConfigError(
            f"{params_file} was edited: it differs from every recipe, for example in corpus.root. "
            "Move it away, or overwrite it with --force"
        )
    files = {params_file: text}
    if recipe == "blend":
        corpora = {corpus_file(Path(file.name).stem, params_file): file for file in _corpus_files()}
        files |= {path: file.read_text("utf-8") for path, file in corpora.items()}
        for path in corpora:
            if path.exists() and not force and path.read_text("utf-8") != files[path]:
                raise ConfigError(f"{path} was edited; move it away, or overwrite it with --force")
    for path, written_text in files.items():
        write_text(path, written_text)
    if recipe != "demo":
        show_dvc_lock(params_file.parent, shown=True)
    place = (
        f"corpora in {params_file.parent / CORPORA}"
        if recipe == "blend"
        else f"corpus in {values.corpus.root}"
    )
    return f"{params_file}: recipe {recipe}, {place}; next: {_next(recipe, params_file, values)}"


def _corpus_files() -> list[Traversable]:
    """Returns the files of the corpora of recipe blend."""
    return sorted((resources.files("recipes") / "blend").iterdir(), key=lambda file: file.name)


def _next(recipe: str, params_file: Path, values: Params) -> str:
    """Returns the next commands: `pipeline run`, or the commands without DVC for another params file."""
    named = "" if params_file == PARAMS else f" --params {shlex.quote(str(params_file))}"
    steps = [f"pipeline demo{named}"] if recipe in DRAWN else []
    steps.append(commands_without_dvc(params_file, values) if named else "pipeline run")
    return " && ".join(steps)


def refuse_other_recipe(params_file: Path, *recipes: str) -> None:
    """Raises ConfigError if the values of `params_file` are not exactly those of one of the recipes."""
    found, recipe = read_mapping(params_file), recipes[0]
    if found not in [parse_yaml(recipe_text(recipe), recipe) for recipe in recipes]:
        raise ConfigError(
            f"{params_file} is not the recipe {recipe}; nothing was changed. Copy the file if you need it, then run "
            f"`pipeline init --recipe {recipe} --force`"
        )


def _is_edited(params_file: Path, to_write: Mapping[str, Any]) -> bool:
    """Returns whether the file differs from every recipe and from `to_write`."""
    found = read_mapping(params_file)
    recipes = [parse_yaml(recipe_text(recipe), recipe) for recipe in RECIPES]
    return found not in [*recipes, to_write]


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "''") + "'"


def show_dvc_lock(folder: Path, *, shown: bool) -> None:
    """Shows dvc.lock of `folder` to git, or hides it: the hashes of a demo differ between machines.

    Without a git repository, this sets DVC's option core.no_scm instead. It calls only programs that are on PATH:
    without `git` nothing shows in a status, and without `dvc` nothing reads the option.
    """
    if not (folder / ".git").exists():
        if (folder / ".dvc").is_dir() and shutil.which("dvc"):
            subprocess.run(["dvc", "config", "--local", "core.no_scm", "true"], cwd=folder, check=True)
        return
    if not shutil.which("git"):
        return
    flag = "--no-skip-worktree" if shown else "--skip-worktree"
    # fails if dvc.lock is not tracked; then there is nothing to show or hide
    subprocess.run(["git", "update-index", flag, "dvc.lock"], cwd=folder, check=False, capture_output=True)


def write_dvc_files(folder: Path, *, force: bool = False) -> list[str]:
    """Makes `folder` a project for `dvc repro`; returns the names of the written files.

    Writes dvc.yaml (for the packs of train.data in params.yaml), code_versions.yaml and, outside of a DVC project,
    .dvc/config, which also serves without git.
    Raises ConfigError if another dvc.yaml is there and `force` is false.
    """
    former = folder / "dvc.yaml"
    files = {"dvc.yaml": _portable_dvc_yaml(folder), VERSIONS: _versions()}
    if former.exists() and not force and former.read_text("utf-8") != files["dvc.yaml"]:
        differing = _differing_stages(former)
        raise ConfigError(
            f"{former} was edited, or is from another version or for other packs"
            + (f" (stages {', '.join(differing)} differ)" if differing else "")
            + "; move it away, or overwrite it with `pipeline init --dvc --force`"
        )
    if not _has_above(folder, ".dvc"):
        no_git = "" if _has_above(folder, ".git") else "    no_scm = true\n"
        files |= {".dvc/config": _CONFIG + no_git, ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n"}
    for name, text in files.items():
        write_text(folder / name, text)
    return list(files)


def run_stages(folder: Path, arguments: Sequence[str]) -> int:
    """Runs `dvc repro ARGUMENTS` in `folder`, which becomes a DVC project if it is none; returns DVC's exit code.

    First brings code_versions.yaml up to date, so that stages that another version of the code made run again. Raises
    ConfigError if DVC cannot run the stages here, and Interrupted after SIGINT or SIGTERM, when all has ended.
    """
    params_file = folder / PARAMS
    values = load_params(params_file)
    corpora = corpora_of(params_file, values)
    for name, made in corpora.items() if values.train.data else [("", values)]:
        file = corpus_file(name) if name else PARAMS
        if open_store(made.paths.shards, made.machine).is_remote:
            raise ConfigError(
                f"paths.shards is {made.paths.shards}, and DVC does not manage remote shards; use "
                f"`{commands_without_dvc(PARAMS, values)}`"
            )
        if not Path(folder, made.corpus.root).exists():
            raise ConfigError(
                f"corpus.root: {made.corpus.root} does not exist; correct it in {file}, or draw the demo corpus with "
                "`pipeline demo`"
            )
    dvc_yaml = folder / "dvc.yaml"
    if dvc_yaml.exists():
        _refuse_other_project(dvc_yaml, bool(values.train.data))
    if not dvc_yaml.exists() or not _has_above(folder, ".dvc"):
        write_dvc_files(folder)
    elif (folder / VERSIONS).exists():
        write_text(folder / VERSIONS, _versions())
        if differing := _differing_stages(dvc_yaml):
            _log.warning(
                "%s was edited, or is from another version: stages %s differ from those of this version, so DVC may "
                "miss a change; `pipeline init --dvc --force` replaces the file",
                *(dvc_yaml, ", ".join(differing)),
            )
    return _run_dvc(folder, ["repro", *arguments])


def _refuse_other_project(dvc_yaml: Path, is_blend: bool) -> None:
    """Raises ConfigError if a dvc.yaml lacks stages of this project, or is for other packs than train.data names."""
    found, ours = read_mapping(dvc_yaml), yaml.safe_load(_portable_dvc_yaml(dvc_yaml.parent))
    stages = found.get("stages") or {}
    fix = "use another folder, or replace it with `pipeline init --dvc --force`"
    if not ours["stages"].keys() <= stages.keys():
        raise ConfigError(f"{dvc_yaml} is of another project: it lacks stages of this one; {fix}")
    has_packs = found.get("vars") == ours.get("vars") and set(ours["stages"]["train"]["deps"]) <= set(
        stages["train"].get("deps", ())
    )
    if (is_blend or "foreach" in stages["ingest"]) and not has_packs:
        raise ConfigError(f"{dvc_yaml} is for other packs than those of train.data; {fix}")


def _differing_stages(dvc_yaml: Path) -> list[str]:
    """Returns the stages of this version that a dvc.yaml lacks or has in another form."""
    ours = yaml.safe_load(_portable_dvc_yaml(dvc_yaml.parent))["stages"]
    theirs = read_mapping(dvc_yaml).get("stages")
    return [name for name, stage in ours.items() if not isinstance(theirs, dict) or theirs.get(name) != stage]


def _run_dvc(folder: Path, arguments: Sequence[str]) -> int:
    # DVC starts the stages by name, and this environment need not be activated
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    options = ["--quiet"] * (not verbosity.shows_progress) + ["--verbose"] * verbosity.shows_tracebacks
    environment = os.environ | {"PATH": path} | verbosity.as_environment()
    received: list[int] = []
    # a session of its own: each signal reaches DVC and its stage once, and both end before this process
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments, *options],
        cwd=folder,
        env=environment,
        start_new_session=True,
    ) as dvc:

        def forward(number: int, _: object) -> None:
            received.append(number)
            with suppress(ProcessLookupError):
                os.killpg(dvc.pid, signal.SIGINT)

        former = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = dvc.wait()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
    if received:
        raise Interrupted("run: stopped. Finished work is kept; run the same command again to continue")
    return code


def _has_above(folder: Path, name: str) -> bool:
    return any((at / name).exists() for at in (folder.absolute(), *folder.absolute().parents))


def _portable_dvc_yaml(folder: Path) -> str:
    """Returns dvc.yaml for a folder without the code: it names code_versions.yaml instead of Python files."""
    text = _CODE_FILE.sub(rf"\1{VERSIONS}:\n          - \3", _dvc_yaml())
    values = load_params(folder / PARAMS)
    return blended_dvc_yaml(text, corpora_of(folder / PARAMS, values), values) if values.train.data else text


def _dvc_yaml() -> str:
    # a link to dvc.yaml, which is outside of all packages; DVC would read another file of that name as well
    return (resources.files("pipeline") / "dvc_stages.yaml").read_text("utf-8")


def _versions() -> str:
    """Returns code_versions.yaml with every version that dvc.yaml names, as in the installed code."""
    code = Path(shards.__file__).parents[1]
    named = {(name, file) for _, file, name in _CODE_FILE.findall(_dvc_yaml())}
    lines = ["# Versions of the installed code. `pipeline run` brings this file up to date."]
    for name, file in sorted(named):
        version = re.search(rf"^{name} = (\d+)$", (code / file).read_text("utf-8"), re.MULTILINE)
        assert version is not None, f"{file} defines {name}"
        lines.append(f"{name}: {version[1]}")
    return "\n".join(lines) + "\n"
