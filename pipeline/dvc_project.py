"""Runs the stages of dvc.yaml with DVC in any folder: a checkout or a user's own folder, with git or without."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import shards
from pipeline.command import PARAMS, STAGES
from pipeline.params import load_params
from shards.errors import ConfigError
from shards.files import write_text
from shards.open_store import open_store

VERSIONS = "code_versions.yaml"
"""The versions of the code, by name: parameters in a user's dvc.yaml. In a checkout, the Python files are."""
_CODE_FILE = re.compile(r"^( +- )([\w/]+\.py):\n +- (\w+)$", re.MULTILINE)
"""A stage's dependence on a version in a Python file."""
_CONFIG = """# No git, no usage reports, no update checks.
[core]
    no_scm = true
    analytics = false
    check_update = false
"""


def write_dvc_files(folder: Path, *, force: bool = False) -> list[str]:
    """Makes `folder` a project for `dvc repro`; returns the names of the written files.

    Writes dvc.yaml, code_versions.yaml and, outside of a DVC project, .dvc/config for use without git. Raises
    ConfigError if another dvc.yaml is there and `force` is false.
    """
    files = {
        "dvc.yaml": _CODE_FILE.sub(rf"\1{VERSIONS}:\n          - \3", _dvc_yaml()),
        VERSIONS: _versions(),
    }
    former = folder / "dvc.yaml"
    if former.exists() and not force and former.read_text("utf-8") != files["dvc.yaml"]:
        raise ConfigError(
            f"{former} was edited or is from another version; move it away, or overwrite it with --force"
        )
    if not any((at / ".dvc").is_dir() for at in (folder.absolute(), *folder.absolute().parents)):
        files |= {".dvc/config": _CONFIG, ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n"}
    for name, text in files.items():
        write_text(folder / name, text)
    return list(files)


def run_stages(folder: Path, arguments: Sequence[str]) -> int:
    """Runs `dvc repro ARGUMENTS` in `folder`, which becomes a DVC project if it has no dvc.yaml; returns its exit code.

    First brings code_versions.yaml up to date, so that stages that another version of the code made run again. Raises
    ConfigError if the shards are remote, because DVC would delete them.
    """
    values = load_params(folder / PARAMS)
    if open_store(values.paths.shards, values.machine).is_remote:
        after = " && ".join(f"pipeline {stage}" for stage in STAGES[STAGES.index("pack") + 1 :])
        raise ConfigError(
            f"paths.shards is {values.paths.shards}, and DVC would delete it before it runs pack; use "
            f"`pipeline preprocess && {after}`"
        )
    if not (folder / "dvc.yaml").exists():
        write_dvc_files(folder)
    elif (folder / VERSIONS).exists():
        write_text(folder / VERSIONS, _versions())
    # DVC starts the stages by name, and this environment need not be activated
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "dvc", "repro", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, check=False).returncode


def _dvc_yaml() -> str:
    return (resources.files("recipes") / "dvc.yaml").read_text("utf-8")


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
