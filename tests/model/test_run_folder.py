"""The folder of a run: one training at a time writes there, whatever the folder is called."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

import pytest

from model.runs import locked_run_folder
from model.training import find_budget
from model.training.job import TrainingJob
from model.training.quarantine import Quarantine
from shards.errors import TrainingError
from shards.stream import BadSample
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.trainings import assert_same_weights, job_in

DEADLINE_S = 60.0
_PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(12, 2))


# -- one at a time -----------------------------------------------------------------------------------------


def train_and_linger(job: TrainingJob, place: Path) -> None:
    """Says where it stands, and stays there."""

    def tell(epoch: int, *_: object) -> None:
        if epoch == 1:
            place.touch()
            time.sleep(DEADLINE_S)

    train(replace(job, on_batch=tell))


@contextmanager
def another_training(job: TrainingJob, place: Path) -> Iterator[BaseProcess]:
    """In a process of its own, in the midst of epoch 1."""
    process = _PROCESSES.Process(target=train_and_linger, args=(job, place))
    with patch.dict(os.environ, {"PYTHONPATH": str(Path(__file__).parents[2])}):
        process.start()
    try:
        until = time.monotonic() + DEADLINE_S
        while not place.exists():
            assert process.is_alive() and time.monotonic() < until
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.join()


def test_a_second_training_is_refused_until_the_first_is_dead(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path, packed)
    with another_training(job, tmp_path / "here") as first:
        (folder,) = (tmp_path / "runs").iterdir()
        log, names = (folder / "training.log").read_bytes(), sorted(path.name for path in folder.iterdir())
        for second in (job, replace(job, resume=folder / "last.pt")):
            with pytest.raises(TrainingError, match=rf"in {folder} \(process {first.pid} of .*paths\.runs"):
                train(second)
        assert (folder / "training.log").read_bytes() == log
        assert sorted(path.name for path in folder.iterdir()) == names
        # what writes nothing there, or writes elsewhere, goes on
        monkeypatch.setattr(find_budget, "_tried", lambda *_: (1.0, 1.0, 100.0))
        assert find_budget.find_budget(job, 100.0).fits_all
        elsewhere = replace(job_in(tmp_path / "b", packed), resume=folder / "last.pt")
        assert train(elsewhere).epochs == 3
        os.kill(first.pid or 0, signal.SIGKILL)
        first.join()
        assert train(job).epochs == 3
    train(job_in(tmp_path / "c", packed))
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / name, tmp_path / "c" / name)
    assert (tmp_path / "logs/training.log").read_text().count("Epoch 0: ") == 1


def test_the_lock_is_let_go_of_by_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked_run_folder(tmp_path / "run"):
        raise ZeroDivisionError
    with (
        locked_run_folder(tmp_path / "run"),
        pytest.raises(TrainingError, match="another training .* is running"),
        locked_run_folder(tmp_path / "run"),
    ):
        pass


def test_where_nothing_can_be_locked_that_is_said_and_training_goes_on(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As NFS answers whose server keeps no locks."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with caplog.at_level(logging.WARNING, "pipeline.train"):
        assert train(job_in(tmp_path, packed, num_epochs=1)).epochs == 1
    (told,) = [message for message in caplog.messages if "cannot be locked" in message]
    assert "No locks available" in told and str(tmp_path / "runs") in told


# -- a path that is no UTF-8 ---------------------------------------------------------------------------------


@pytest.fixture(name="latin")
def latin_fixture(tmp_path: Path) -> Path:
    """A folder whose name is Latin 1, as of an old archive."""
    return Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))


def test_what_a_training_publishes_may_stand_under_any_path(
    tmp_path: Path, latin: Path, packed: Packed
) -> None:
    job = replace(job_in(latin, packed, num_epochs=1), runs=tmp_path / "runs")
    assert train(job).epochs == 1
    further = replace(job_in(latin, packed, num_epochs=2), runs=tmp_path / "runs")
    train(replace(further, resume=latin / "checkpoints/checkpoint_epoch_0.pt"))
    assert r"caf\udce9/checkpoints" in (latin / "logs/training.log").read_text("utf-8")


def test_a_path_that_tensorboard_cannot_write_is_refused_before_the_first_step(
    latin: Path, packed: Packed
) -> None:
    steps: list[object] = []
    with pytest.raises(TrainingError, match=r"paths\.runs: .*caf.*set paths\.runs"):
        train(replace(job_in(latin, packed), on_batch=lambda *done: steps.append(done)))
    assert not steps


def test_a_bad_sample_under_a_path_that_is_no_utf8_is_noted(tmp_path: Path) -> None:
    path = os.fsdecode(b"/data/caf\xe9")
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 0.5)
    assert quarantine.add(0, 3, [[BadSample("今天", "train/a.tar", f"{path} is missing")]]) == 1
    (line,) = quarantine.file.read_text("utf-8").splitlines()
    assert "今天" in line and json.loads(line)["reason"] == f"{path} is missing"
