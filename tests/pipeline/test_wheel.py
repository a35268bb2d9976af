"""Tests the built wheel outside of the checkout: it is complete, and `pipeline run` works in an empty folder.

The wheel is run once. Tests of `pipeline run` and `pipeline init --dvc` run the same code, of the checkout.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.project import VERSIONS
from tests.support import forked
from tests.support.dvc_stages import dvc
from tests.support.forked import Forked
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


def quick(folder: Path, *arguments: str) -> str:
    """Runs the command of the checkout in a forked process."""
    done = forked.pipeline(folder, arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def small_corpus(folder: Path, run: Callable[..., str]) -> None:
    (folder / "corpus").mkdir()
    lines = ["clip_id,split,media,text"]
    for number in range(3):
        write_mouth(folder / "corpus" / f"m{number}.mp4", 12 + number, seed=number)
        lines.append(f"m{number},train,m{number}.mp4,好")
    (folder / "corpus" / "clips.csv").write_text("\n".join(lines) + "\n", "utf-8")
    run(folder, "init", "--recipe", "table", "--corpus-root", "corpus")


def test_run_in_an_empty_folder_runs_what_changed_and_nothing_else(installed: Path, tmp_path: Path) -> None:
    small_corpus(tmp_path, partial(pipeline, installed))
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats" / "notes.md").write_text("mine")
    first = pipeline(installed, tmp_path, "run", "stats")
    for stage in ("ingest", "crop", "pack", "stats"):
        assert f"> pipeline {stage}" in first
    assert (tmp_path / "stats" / "qc.html").is_file()
    assert (tmp_path / "stats" / "notes.md").read_text() == "mine"
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


SLOW = """
import os, sys, time
if sys.orig_argv[-1] == "ingest" and sys.orig_argv[-2].endswith("pipeline"):
    open("started", "w").write(str(os.getpid()))
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_with_its_stage(tmp_path: Path, number: signal.Signals) -> None:
    """The signal is sent to one process only, as a batch system does."""
    small_corpus(tmp_path, quick)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    paths = os.pathsep.join([str(tmp_path / "slow"), str(ROOT)])
    with Forked(tmp_path, ["run", "ingest"], environment={"PYTHONPATH": paths}) as run:
        while not (tmp_path / "started").is_file() or not (tmp_path / "started").read_text():
            assert run.poll() is None, run.output()
            time.sleep(0.05)
        run.send_signal(number)
        done = run.wait(60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("pipeline: run: stopped.")
    assert not psutil.pid_exists(int((tmp_path / "started").read_text()))
    assert "> pipeline ingest" in quick(tmp_path, "run", "ingest")


def refused(folder: Path, *arguments: str) -> str:
    """Returns the message of a command that is refused."""
    done = forked.pipeline(folder, arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def test_another_project_is_refused_and_a_copied_one_repaired(tmp_path: Path) -> None:
    small_corpus(tmp_path, quick)
    (tmp_path / "dvc.yaml").write_text("stages: {mine: {cmd: touch ran}}\n", "utf-8")
    assert "is of another project" in refused(tmp_path, "run")
    assert not (tmp_path / "ran").exists()
    # params.yaml was edited, and init --dvc keeps it
    params = (tmp_path / "params.yaml").read_text("utf-8") + "# mine\n"
    (tmp_path / "params.yaml").write_text(params.replace("num_epochs: ", "num_epochs: 1"), "utf-8")
    (tmp_path / "dvc.yaml").unlink()
    kept = (tmp_path / "params.yaml").read_text("utf-8")
    quick(tmp_path, "init", "--dvc")
    assert (tmp_path / "params.yaml").read_text("utf-8") == kept
    shutil.rmtree(tmp_path / ".dvc")
    assert "> pipeline ingest" in quick(tmp_path, "run", "ingest")


def _code_files() -> list[str]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"].values()
    return [file for stage in stages for item in stage["params"] if isinstance(item, dict) for file in item]


def test_the_checkout_has_one_dvc_yaml() -> None:
    """DVC reads every file of this name; the wheel's is a link of another name."""
    named = ["git", "ls-files", "dvc.yaml", "*/dvc.yaml"]
    assert subprocess.run(named, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "dvc.yaml\n"


def test_init_makes_a_project_for_dvc(tmp_path: Path) -> None:
    made = quick(tmp_path, "init", "--recipe", "grid", "--dvc")
    assert "dvc.yaml, code_versions.yaml, .dvc/config" in made
    listed = dvc(tmp_path, "stage", "list")
    assert [line.split()[0] for line in listed.splitlines()] == list(
        yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    )
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", "utf-8")
    assert "--force" in refused(tmp_path, "init", "--recipe", "grid", "--dvc")
    assert (tmp_path / "dvc.yaml").read_text("utf-8") == "stages: {}\n"


def test_the_wheel_has_the_corpora_of_the_recipe_blend(installed: Path, tmp_path: Path) -> None:
    pipeline(installed, tmp_path, "init", "--recipe", "blend")
    assert {file.name for file in (tmp_path / "corpora").iterdir()} == {
        "demo_a.yaml",
        "demo_b.yaml",
        "grid.yaml",
    }


def test_remote_shards_are_not_given_to_dvc(tmp_path: Path) -> None:
    quick(tmp_path, "init", "--recipe", "grid")
    params = (tmp_path / "params.yaml").read_text("utf-8")
    changed = params.replace("shards: data/shards", "shards: s3://bucket/pack")
    assert changed != params
    (tmp_path / "params.yaml").write_text(changed, "utf-8")
    message = refused(tmp_path, "run")
    assert "s3://bucket/pack" in message and "pipeline preprocess && pipeline lm" in message
    assert not (tmp_path / "dvc.yaml").exists()
