"""Tests the built wheel outside of the checkout: it is complete, and `pipeline run` works in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from pipeline.dvc_project import VERSIONS
from tests.support.videos import write_mouth

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
    ]
    # setuptools writes next to its sources
    source = folder / "source"
    git = ["git", "ls-files", "-z", "pipeline", "stages", "shards", "model", "recipes", "dvc.yaml"]
    files = subprocess.run(git, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    for name in (*files, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([*build, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def pipeline(installed: Path, folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_run_in_an_empty_folder_runs_what_changed_and_nothing_else(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    lines = ["clip_id,split,media,text"]
    for number in range(3):
        write_mouth(tmp_path / "corpus" / f"m{number}.mp4", 12 + number, seed=number)
        lines.append(f"m{number},train,m{number}.mp4,好")
    (tmp_path / "corpus" / "clips.csv").write_text("\n".join(lines) + "\n", "utf-8")
    pipeline(installed, tmp_path, "init", "--recipe", "table", "--corpus-root", "corpus")
    first = pipeline(installed, tmp_path, "run", "stats")
    for stage in ("ingest", "crop", "pack", "stats"):
        assert f"> pipeline {stage}" in first
    assert (tmp_path / "stats" / "qc.html").is_file()
    assert "> pipeline" not in pipeline(installed, tmp_path, "run", "stats")
    versions = yaml.safe_load((tmp_path / VERSIONS).read_text("utf-8"))
    for name, value in versions.items():
        assert f"\n{name} = {value}\n" in "".join(
            (installed / file).read_text("utf-8") for file in _code_files() if (installed / file).is_file()
        )
    # another version of the code runs its stage again, and what reads its result if that changed
    pack = installed / "stages" / "pack.py"
    text = pack.read_text("utf-8")
    pack.write_text(text.replace("\nPACK_VERSION = ", "\nPACK_VERSION = 9"), "utf-8")
    again = pipeline(installed, tmp_path, "run", "pack")
    pack.write_text(text, "utf-8")
    assert "> pipeline pack" in again
    assert "> pipeline crop" not in again
    lock = (tmp_path / "dvc.lock").read_text("utf-8")
    assert f"PACK_VERSION: 9{versions['PACK_VERSION']}" in lock


def _code_files() -> list[str]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"].values()
    return [file for stage in stages for item in stage["params"] if isinstance(item, dict) for file in item]


def test_init_makes_a_project_for_dvc(installed: Path, tmp_path: Path) -> None:
    made = pipeline(installed, tmp_path, "init", "--recipe", "grid", "--dvc")
    assert "dvc.yaml, code_versions.yaml, .dvc/config" in made
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in status.stdout.splitlines()] == list(
        yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    )
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", "utf-8")
    refused = subprocess.run(
        [sys.executable, "-m", "pipeline", "init", "--recipe", "grid", "--dvc"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    assert (tmp_path / "dvc.yaml").read_text("utf-8") == "stages: {}\n"


def test_remote_shards_are_not_given_to_dvc(installed: Path, tmp_path: Path) -> None:
    pipeline(installed, tmp_path, "init", "--recipe", "grid")
    params = (tmp_path / "params.yaml").read_text("utf-8")
    changed = params.replace("shards: data/shards", "shards: s3://bucket/pack")
    assert changed != params
    (tmp_path / "params.yaml").write_text(changed, "utf-8")
    refused = subprocess.run(
        [sys.executable, "-m", "pipeline", "run"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (refused.returncode, "s3://bucket/pack" in refused.stderr) == (2, True)
    assert "pipeline preprocess && pipeline lm" in refused.stderr
    assert not (tmp_path / "dvc.yaml").exists()
