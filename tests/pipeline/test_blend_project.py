"""Tests a project of several corpora: recipe blend, its dvc.yaml, and one command from videos to a report for all."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.blend_project import OF_CORPUS
from pipeline.command import STAGES
from pipeline.demo import corpus
from pipeline.demo.plan import CorpusSize
from pipeline.params import load_params, recipe_text
from shards.files import read_table
from shards.schema import FURTHER_TABLES, PREDICTIONS
from tests.support.dvc_stages import ROOT, SMALL, declared, dvc
from tests.support.in_process import pipeline

NAMES = ("demo_a", "demo_b")


def run(folder: Path, *command: str, code: int = 0) -> str:
    done = pipeline(folder, command)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = yaml.safe_load(file.read_text("utf-8"))
    change(values)
    file.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    said = run(tmp_path, "init", "--recipe", "blend", "--dvc")
    assert "recipe blend, corpora in corpora; next: pipeline demo && pipeline run" in said
    return tmp_path


def test_one_command_goes_from_the_videos_of_all_corpora_to_a_report(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(corpus.build_demo_corpus, size=CorpusSize((1, 2), (1, 1), (1, 2)))
    monkeypatch.setattr(corpus, "build_demo_corpus", small)
    drawn = json.loads(run(project, "demo", "--set", "machine.workers=1", "--json"))
    assert [one["corpus"] for one in drawn] == [f"data/corpora/{name}" for name in NAMES]
    texts = [(project / one["corpus"] / "meta_train.csv").read_bytes() for one in drawn]
    assert texts[0] != texts[1], "the corpora have different seeds"
    edit(
        project / "params.yaml",
        lambda values: [values[section].update(changes) for section, changes in SMALL.items()],
    )
    dvc(project, "repro")
    metrics = json.loads((project / "report/metrics.json").read_text("utf-8"))
    found = {name: (one["num_clips"], one["num_rejected"]) for name, one in metrics["corpora"].items()}
    assert found == {"demo_a": (2, 0), "demo_b": (2, 0)}
    assert all(one["blind_cer"] is not None for one in metrics["corpora"].values())
    rows = read_table(project / "report/predictions.parquet", PREDICTIONS, "pipeline report").to_pylist()
    assert [row["clip_id"].partition("/")[0] for row in rows] == ["demo_a", "demo_a", "demo_b", "demo_b"]
    assert all(row["gender"] and row["age"] for row in rows), "facts of the tables of every pack"
    assert "val_cer_demo_b" in (project / "logs/curves.csv").read_text("utf-8")
    assert (project / "report/by_corpus.csv").exists() and (project / "stats/demo_b/qc.html").exists()
    assert json.loads(dvc(project, "status", "--json")) == {}
    # only a change of its values makes a corpus again
    edit(project / "corpora/demo_b.yaml", lambda values: values.update(crop={"max_faces": 2}))
    changed = json.loads(dvc(project, "status", "--json"))
    assert sorted(changed) == sorted(f"{stage}@demo_b" for stage in OF_CORPUS)


def test_a_dvc_yaml_of_an_older_version_is_named_with_its_stages(tmp_path: Path) -> None:
    run(tmp_path, "init", "--recipe", "demo", "--dvc")
    (tmp_path / "data/demo").mkdir(parents=True)
    edit(tmp_path / "dvc.yaml", lambda values: values["stages"]["lm"]["params"].remove("text"))
    again = ("init", "--recipe", "demo", "--dvc")
    assert "was edited, or is from another version or for other packs (stages lm differ)" in run(
        tmp_path, *again, code=2
    )
    # a dry run of a stage that does not exist: only what `run` says before DVC counts
    said = pipeline(tmp_path, ("run", "--dry", "nothing")).stderr
    assert "is from another version: stages lm differ from those of this version" in said
    run(tmp_path, *again, "--force")
    said = pipeline(tmp_path, ("run", "--dry", "nothing")).stderr
    assert "another version" not in said


def test_the_recipe_is_the_demo_with_two_corpora() -> None:
    blend, demo = (yaml.safe_load(recipe_text(name)) for name in ("blend", "demo"))
    assert [pack["name"] for pack in blend["train"].pop("data")] == list(NAMES)
    assert (blend["corpus"].pop("root"), demo["corpus"].pop("root")) == ("data/corpora", "data/demo")
    assert demo["train"].pop("data") == [] and blend == demo


def test_each_corpus_has_the_stages_of_a_single_one(project: Path) -> None:
    blend = yaml.safe_load((project / "dvc.yaml").read_text("utf-8"))
    (variables,) = blend["vars"]
    assert tuple(blend["stages"]) == STAGES
    for name in NAMES:
        params = load_params(project / "params.yaml", config=project / f"corpora/{name}.yaml")
        single = declared(params.model_dump())
        for stage in OF_CORPUS:
            text = yaml.safe_dump(blend["stages"][stage]["do"]).replace("${key}", name)
            for section in ("corpus", "paths"):
                for key, value in variables["corpora"][name][section].items():
                    text = text.replace(f"${{item.{section}.{key}}}", value)
            ours = yaml.safe_load(text)
            assert blend["stages"][stage]["foreach"] == "${corpora}"
            assert ours["cmd"] == f"pipeline {stage} --config corpora/{name}.yaml"
            assert set(ours["deps"]) == single[stage].deps
            assert {path for out in ours["outs"] for path in out} == single[stage].outs
            assert {item for item in ours["params"] if isinstance(item, str)} == single[stage].params
            files = [item for item in ours["params"] if not isinstance(item, str)]
            versions = {constant for _, constant in single[stage].constants}
            assert {name for item in files for name in item.get("code_versions.yaml", ())} == versions
            assert {f"corpora/{name}.yaml": None} in files, "any of its values makes the corpus again"
    packed = {f"data/packs/{name}/{table}" for name in NAMES for table in ("samples.parquet", "shards")}
    tables = {f"data/packs/{name}/{table}.parquet" for name in NAMES for table in ("clips", "crops")}
    for stage in ("lm", "train", "report"):
        others = {dep for dep in blend["stages"][stage]["deps"] if not dep.startswith("${")}
        assert others == packed | tables


def test_each_corpus_has_all_tables_of_its_own(project: Path) -> None:
    packs = load_params(project / "params.yaml").train.data
    for pack in packs:
        paths = load_params(project / "params.yaml", config=project / f"corpora/{pack.name}.yaml").paths
        assert {name: getattr(paths, name) for name in FURTHER_TABLES} == {
            name: getattr(pack, name) for name in FURTHER_TABLES
        }
    edit(project / "corpora/demo_b.yaml", lambda values: values["paths"].update(sound="data/sound.parquet"))
    assert "train.data: sound of pack demo_b is data/packs/demo_b/sound.parquet, but paths.sound of " in run(
        project, "run", code=2
    )
    asked = run(project, "qc", "--config", "corpora/demo_b.yaml", code=1)
    assert "data/packs/demo_b/c" in asked and "pipeline ingest" in asked


def test_a_dvc_yaml_for_other_packs_is_refused(project: Path) -> None:
    for name in NAMES:
        (project / "data/corpora" / name).mkdir(parents=True)
    before = (project / "corpora/demo_a.yaml").read_text("utf-8")
    (project / "elsewhere").mkdir()
    edit(project / "corpora/demo_a.yaml", lambda values: values["corpus"].update(root="elsewhere"))
    fix = "is for other packs than those of train.data; use another folder, or replace it with `pipeline init --dvc"
    assert fix in run(project, "run", code=2)
    (project / "corpora/demo_a.yaml").write_text(before, "utf-8")
    edit(project / "params.yaml", lambda values: values["train"]["data"].pop())
    assert fix in run(project, "run", code=2)
    edit(project / "params.yaml", lambda values: values["train"].update(data=[]))
    edit(project / "params.yaml", lambda values: values["corpus"].update(root="elsewhere"))
    assert fix in run(project, "run", code=2)


def test_packs_that_exist_already_are_only_read(project: Path) -> None:
    """Here of demo_a alone; demo_b is made in the project."""
    (project / "corpora/demo_a.yaml").unlink()
    edit(
        project / "params.yaml", lambda values: values["train"]["data"][0].update(shards="s3://bucket/demo_a")
    )
    run(project, "init", "--dvc", "--force")
    stages = dvc(project, "stage", "list", "--name-only").split()
    assert [name for name in stages if "@" in name] == [f"{stage}@demo_b" for stage in OF_CORPUS]
    deps = yaml.safe_load((project / "dvc.yaml").read_text("utf-8"))["stages"]["train"]["deps"]
    assert "data/packs/demo_a/samples.parquet" in deps and not [dep for dep in deps if "s3:" in dep]
    (project / "corpora/demo_b.yaml").unlink()
    run(project, "init", "--dvc", "--force")
    assert dvc(project, "stage", "list", "--name-only").split() == ["lm", "train", "report"]


def test_a_corpus_must_be_where_train_data_says(project: Path) -> None:
    edit(project / "corpora/demo_b.yaml", lambda values: values["paths"].update(crops="other.parquet"))
    said = run(project, "run", code=2)
    assert "crops of pack demo_b is data/packs/demo_b/crops.parquet, but paths.crops of " in said
    assert "corpora/demo_b.yaml is other.parquet; write the same path in both" in said


def test_missing_and_remote_corpora_are_named(project: Path) -> None:
    assert "data/corpora/demo_a does not exist; correct it in corpora/demo_a.yaml" in run(
        project, "run", code=2
    )
    remote = "s3://bucket/demo_a"
    edit(project / "corpora/demo_a.yaml", lambda values: values["paths"].update(shards=remote))
    edit(project / "params.yaml", lambda values: values["train"]["data"][0].update(shards=remote))
    said = run(project, "run", code=2)
    first, *_, last = re.findall(r"pipeline [a-z]+[^&`]*", said.partition(remote)[2])
    assert first.strip() == "pipeline preprocess --config corpora/demo_a.yaml" and last == "pipeline report"


def test_edited_files_of_corpora_are_kept(project: Path) -> None:
    edited = (project / "corpora/demo_a.yaml").read_text("utf-8") + "# mine\n"
    (project / "corpora/demo_a.yaml").write_text(edited, "utf-8")
    assert "corpora/demo_a.yaml was edited" in run(project, "init", "--recipe", "blend", code=2)
    assert (project / "corpora/demo_a.yaml").read_text("utf-8") == edited
    run(project, "init", "--recipe", "blend", "--force")
    assert (project / "corpora/demo_a.yaml").read_text("utf-8") != edited
    said = run(project, "init", "--recipe", "blend", "--corpus-root", "/data", code=2)
    assert "recipe blend has a root for each corpus" in said


def test_grid_is_a_third_corpus_of_the_recipe(project: Path) -> None:
    text = (project / "params.yaml").read_text("utf-8")
    with_grid = re.sub(r"^    # ?([- ] )", r"    \1", text, flags=re.MULTILINE)
    assert with_grid != text
    (project / "params.yaml").write_text(with_grid, "utf-8")
    run(project, "init", "--dvc", "--force")
    stages = dvc(project, "stage", "list", "--name-only").split()
    assert [name for name in stages if name.endswith("@grid")] == [f"{stage}@grid" for stage in OF_CORPUS]


def test_the_guide_blends_chinese_lips_with_cmlr_in_twenty_lines(tmp_path: Path) -> None:
    section = (ROOT / "docs/data.md").read_text("utf-8").partition("## Several corpora\n")[2]
    (written, commands) = re.findall(r"^```(?:yaml)?\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[:2]
    assert written.count("\n") + commands.count("\n") <= 20
    run(tmp_path, "init", "--recipe", "chinese_lips")
    for name, text in re.findall(r"^# (\S+\.yaml).*\n((?:(?!# ).*\n)+)", written, re.MULTILINE):
        if name == "params.yaml":
            before = (tmp_path / name).read_text("utf-8")
            text = re.sub(r"^  data: \[\].*\n", text, before, flags=re.MULTILINE)
            assert text != before
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    run(tmp_path, "init", "--dvc")
    stages = dvc(tmp_path, "stage", "list", "--name-only").split()
    assert {f"{stage}@{name}" for stage in OF_CORPUS for name in ("chinese_lips", "cmlr")} < set(stages)
    assert (
        load_params(tmp_path / "params.yaml", config=tmp_path / "corpora/cmlr.yaml").corpus.root
        == "/data/CMLR"
    )


def test_other_files_of_parameters_are_used_by_verbs(tmp_path: Path) -> None:
    said = run(tmp_path, "init", "--recipe", "blend", "--params", "my own.yaml")
    steps = said.strip().partition("; next: ")[2].split(" && ")
    of_both = [f"--params 'my own.yaml' --config corpora/{name}.yaml" for name in NAMES]
    assert steps[:4] == [
        "pipeline demo --params 'my own.yaml'",
        *(f"pipeline preprocess {options}" for options in of_both),
        "pipeline lm --params 'my own.yaml'",
    ]
    assert steps[-1] == "pipeline report --params 'my own.yaml'" and len(steps) == 8
