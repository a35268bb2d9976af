"""Writes a recipe as params.yaml; overwrites an edited file only if asked to."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.command import PARAMS, STAGES
from pipeline.params import check, parse_yaml, read_mapping, recipe_text
from recipes import RECIPES
from shards.errors import ConfigError
from shards.files import write_text

_ROOT_LINE = re.compile(r"^(  root: )(\S+)", re.MULTILINE)


def write_recipe(recipe: str, params_file: Path, corpus_root: str | None, force: bool) -> str:
    """Writes the recipe with `corpus_root` as corpus.root; returns a line with the result and the next commands.

    Raises ConfigError if `params_file` was edited and `force` is false.
    """
    text = recipe_text(recipe)
    if corpus_root is not None:
        text = _ROOT_LINE.sub(lambda match: match[1] + _quoted(corpus_root), text, count=1)
    written = parse_yaml(text, recipe)
    values = check(written, recipe)
    if params_file.exists() and not force and _is_edited(params_file, written):
        raise ConfigError(
            f"{params_file} was edited: it differs from every recipe, for example in corpus.root. "
            "Move it away, or overwrite it with --force"
        )
    write_text(params_file, text)
    if recipe != "demo":
        show_dvc_lock(params_file.parent, shown=True)
    return (
        f"{params_file}: recipe {recipe}, corpus in {values.corpus.root}; next: {_next(recipe, params_file)}"
    )


def _next(recipe: str, params_file: Path) -> str:
    """Returns the next commands: `pipeline run`, which reads only params.yaml of its folder, or the verbs."""
    named = "" if params_file == PARAMS else f" --params {shlex.quote(str(params_file))}"
    steps = [f"pipeline demo{named}"] if recipe == "demo" else []
    if named:
        # preprocess runs the stages up to pack
        after = STAGES[STAGES.index("pack") + 1 :]
        steps += [f"pipeline {verb}{named}" for verb in ("preprocess", *after)]
    else:
        steps.append("pipeline run")
    return " && ".join(steps)


def refuse_other_recipe(params_file: Path, recipe: str) -> None:
    """Raises ConfigError if the values of `params_file` are not exactly those of the recipe."""
    found = read_mapping(params_file)
    if found != parse_yaml(recipe_text(recipe), recipe):
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
