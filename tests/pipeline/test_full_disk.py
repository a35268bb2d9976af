"""Tests training on a full disk: a real, small disk."""

import re
from pathlib import Path

import pytest

from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.small_disk import python_on_small_disk
from tests.support.trainings import assert_same_weights, job_in

FULL = """
import subprocess, sys
from pathlib import Path
from model.checkpoints import load_checkpoint
from model.training.last_checkpoint import load_last
from model.runs import RunFolder
from stages.train import train
import stages.train
from shards.errors import MachineError
from tests.support.packed import Packed
from tests.support.trainings import job_in

stages.train.SAVE_EVERY_S = -1
place, packed, where = Path(sys.argv[1]), Packed.at(Path(sys.argv[2])), sys.argv[3]
steps = []
job = job_in(place, packed, ema_decay=0.9)
job = type(job)(**{**vars(job), "on_batch": lambda epoch, done, *_: steps.append((epoch, done))})
if where == "elsewhere":
    job = type(job)(**{**vars(job), "runs": place.parent / "runs"})
try:
    train(job)
except MachineError as error:
    print(error, flush=True)
else:
    sys.exit("it was not full")
(folder,) = job.runs.iterdir()
assert not list(folder.glob(".*.tmp")), "a partial file was left"
state, path = load_last(RunFolder(job.runs, folder.name))
position = state["progress"]["epoch"], state["progress"]["batches_done"]
print("kept", path.name, position, len(steps), flush=True)
subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
assert train(job).epochs == 3
load_checkpoint(job.checkpoints / "best_model.pt")
subprocess.run(["cp", "-r", str(job.checkpoints), sys.argv[4]], check=True)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(12, 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, packed: Packed) -> Path:
    """The checkpoints of a run with enough space."""
    folder = tmp_path_factory.mktemp("whole")
    train(job_in(folder, packed, ema_decay=0.9))
    return folder / "checkpoints"


@pytest.mark.usefixtures("on_small_disk")
@pytest.mark.parametrize("where", ["runs", "elsewhere"])
def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, packed: Packed, whole: Path, where: str
) -> None:
    """On the disk of the run, or only of the published files. With more space the same command resumes."""
    size = (whole / "checkpoint_epoch_2.pt").stat().st_size
    small, kept = tmp_path / "small", tmp_path / "kept"
    done = python_on_small_disk(small, str(int(1.5 * size)), FULL, small, packed.samples.parent, where, kept)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr
    message, resumed = done.stdout.splitlines()
    assert re.search(r"the disk is full: \S+ cannot be written \(\d+\.\d MB needed\)", message)
    if where == "runs":
        assert "/last.pt cannot" in message and resumed.startswith("kept last.pt")
        needed = float(re.findall(r"(\d+\.\d) MB", message)[0])
        assert needed == pytest.approx(size / 1e6, rel=0.3)
    else:
        assert f"{small}/checkpoints/" in message
    for name in ("best_model.pt", "checkpoint_epoch_2.pt"):
        assert_same_weights(whole / name, kept / name)
