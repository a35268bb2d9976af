"""The run folder: only one training at a time writes there, and its path may be any."""

import errno
import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from model.runs import locked_run_folder
from model.training import find_budget
from model.training.quarantine import Quarantine
from model.training.training_data import TrainingJob
from shards.errors import TrainingError
from shards.stream import BadSample
from stages.train import train
from tests.support.forked import started
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.trainings import assert_same_weights, job_in

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(12, 2))


# -- one training at a time --------------------------------------------------------------------------------


def train_and_wait(job: TrainingJob, signal_file: Path) -> None:
    """Creates `signal_file` in epoch 1, and waits there."""

    def wait_in_epoch_1(epoch: int, *_: object) -> None:
        if epoch == 1:
            signal_file.touch()
            time.sleep(DEADLINE_S)

    train(replace(job, on_batch=wait_in_epoch_1))


@contextmanager
def another_training(job: TrainingJob, signal_file: Path) -> Iterator[BaseProcess]:
    """Runs a training in another process up to the middle of epoch 1."""
    process = started(train_and_wait, job, signal_file)
    try:
        until = time.monotonic() + DEADLINE_S
        while not signal_file.exists():
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
        # commands that write nothing, or write to another folder, still work
        monkeypatch.setattr(find_budget, "_run_trial", lambda *_: (1.0, 1.0, 100.0))
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


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked_run_folder(tmp_path / "run"):
        raise ZeroDivisionError
    with (
        locked_run_folder(tmp_path / "run"),
        pytest.raises(TrainingError, match=rf"is running in {tmp_path / 'run'} .*paths\.runs"),
        locked_run_folder(tmp_path / "run"),
    ):
        pass


def test_training_continues_with_a_warning_if_the_folder_cannot_be_locked(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NFS fails this way if its server has no locks."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with caplog.at_level(logging.WARNING, "pipeline.train"):
        assert train(job_in(tmp_path, packed, num_epochs=1)).epochs == 1
    (warning,) = [message for message in caplog.messages if "cannot be locked" in message]
    assert "No locks available" in warning and str(tmp_path / "runs") in warning


# -- paths that are not UTF-8 --------------------------------------------------------------------------------


@pytest.fixture(name="latin")
def latin_fixture(tmp_path: Path) -> Path:
    """A folder with a Latin 1 name, for example from an old archive."""
    return Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))


def test_a_training_can_publish_to_a_path_that_is_not_utf8(
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


def test_a_bad_sample_at_a_path_that_is_not_utf8_is_recorded(tmp_path: Path) -> None:
    path = os.fsdecode(b"/data/caf\xe9")
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 0.5)
    assert quarantine.add(0, [(3, [BadSample("今天", "train/a.tar", f"{path} is missing")])]) == 1
    (line,) = quarantine.file.read_text("utf-8").splitlines()
    assert "今天" in line and json.loads(line)["reason"] == f"{path} is missing"
