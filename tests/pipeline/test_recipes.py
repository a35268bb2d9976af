"""Tests `pipeline init`: recipes are written unchanged, an edited params.yaml is kept, git sees or hides dvc.lock."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.params import load_params, recipe_text
from pipeline.project import refuse_other_recipe, show_dvc_lock, write_recipe
from recipes import FILES, RECIPES
from shards.errors import ConfigError


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_written_unchanged(recipe: str, params: Path) -> None:
    line = write_recipe(recipe, params, None, force=False)
    assert params.read_text("utf-8") == recipe_text(recipe)
    assert recipe in line


def test_every_recipe_is_known_and_in_the_help() -> None:
    import recipes

    files = Path(recipes.__file__).parent.glob("*.yaml")
    assert sorted(FILES) == sorted(path.stem for path in files)
    shown = CliRunner().invoke(app, ["init", "--help"]).output
    assert ", ".join(RECIPES) in " ".join(shown.split())


BY_VERBS = " && ".join(
    f"pipeline {verb} --params 'my own.yaml'" for verb in ("preprocess", "lm", "stats", "train", "report")
)


@pytest.mark.parametrize(
    ("recipe", "file", "advice"),
    [
        ("grid", "params.yaml", "pipeline run"),
        ("demo", "params.yaml", "pipeline demo && pipeline run"),
        # DVC reads no other file than params.yaml
        ("grid", "my own.yaml", BY_VERBS),
    ],
)
def test_the_advice_works_where_the_file_is(
    recipe: str, file: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = write_recipe(recipe, Path(file), None, force=False)
    assert line.partition("; next: ")[2] == advice
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {step.split()[1] for step in advice.split(" && ")} <= set(verbs)


@pytest.mark.parametrize(
    "root",
    ["/data/Chinese-LiPS", "my corpus", "it's here", 'a "quoted" one', "# no: comment", "唇语", "\\1 \\g<1>"],
)
def test_any_corpus_root_survives_the_file(root: str, params: Path) -> None:
    write_recipe("chinese_lips", params, root, force=False)
    assert load_params(params).corpus.root == root
    plain = yaml.safe_load(recipe_text("chinese_lips"))
    found = yaml.safe_load(params.read_text("utf-8"))
    assert found == plain | {"corpus": plain["corpus"] | {"root": root}}


@pytest.mark.parametrize(
    ("old", "new"), [("root: data/demo", "root: /mine"), ("shard_mb: 64.0", "shard_mb: 65.0")]
)
def test_an_edited_file_is_overwritten_only_by_force(old: str, new: str, params: Path) -> None:
    edited = recipe_text("demo").replace(old, new)
    assert edited != recipe_text("demo")
    params.write_text(edited, "utf-8")
    for recipe in RECIPES:
        with pytest.raises(ConfigError, match="--force"):
            write_recipe(recipe, params, None, force=False)
        assert params.read_text("utf-8") == edited
    write_recipe("grid", params, None, force=True)
    assert params.read_text("utf-8") == recipe_text("grid")


def test_a_corpus_root_is_kept_unless_it_is_given_again(params: Path) -> None:
    write_recipe("grid", params, "/mine", force=False)
    with pytest.raises(ConfigError, match=r"corpus\.root"):
        write_recipe("grid", params, None, force=False)
    with pytest.raises(ConfigError, match=r"corpus\.root"):
        write_recipe("grid", params, "/other", force=False)
    write_recipe("grid", params, "/mine", force=False)
    assert load_params(params).corpus.root == "/mine"


def test_a_recipe_replaces_another_recipe(params: Path) -> None:
    for recipe in (*RECIPES, RECIPES[0]):
        write_recipe(recipe, params, None, force=False)
        assert params.read_text("utf-8") == recipe_text(recipe)


def test_a_damaged_file_is_not_overwritten(params: Path) -> None:
    params.write_text("corpus: [", "utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml is not valid YAML"):
        write_recipe("demo", params, None, force=False)
    assert params.read_text("utf-8") == "corpus: ["


def test_the_demo_refuses_values_of_other_recipes(params: Path) -> None:
    write_recipe("demo", params, None, force=False)
    refuse_other_recipe(params, "demo")
    write_recipe("demo", params, "elsewhere", force=True)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"pipeline init --recipe demo --force"):
            refuse_other_recipe(params, "demo")
        write_recipe("grid", params, None, force=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with a committed dvc.lock."""
    if shutil.which("git") is None:
        pytest.skip("git is not there")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n", "utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "dvc.lock")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "lock")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_the_lock_of_a_demo_is_hidden_from_git_and_that_of_an_experiment_shown(repository: Path) -> None:
    lock = repository / "dvc.lock"
    show_dvc_lock(repository, shown=False)
    assert git(repository, "ls-files", "-v", "dvc.lock") == "S dvc.lock\n"
    lock.write_text("schema: '2.0'\nstages: {}\n", "utf-8")
    assert git(repository, "status", "--porcelain") == ""
    write_recipe("demo", repository / "params.yaml", None, force=False)
    assert git(repository, "ls-files", "-v", "dvc.lock") == "S dvc.lock\n"
    write_recipe("grid", repository / "params.yaml", None, force=False)
    assert git(repository, "ls-files", "-v", "dvc.lock") == "H dvc.lock\n"
    assert " M dvc.lock" in git(repository, "status", "--porcelain")


@pytest.mark.parametrize("kind", [".git", ".dvc", "neither"])
def test_missing_programs_are_not_called(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind != "neither":
        (tmp_path / kind).mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    show_dvc_lock(tmp_path, shown=False)
    show_dvc_lock(tmp_path, shown=True)


def test_without_git_dvc_gets_no_scm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".dvc").mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "dvc").write_text('#!/bin/sh\necho "$@" > called\n', "utf-8")
    (programs / "dvc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    show_dvc_lock(tmp_path, shown=False)
    assert (tmp_path / "called").read_text("utf-8") == "config --local core.no_scm true\n"
