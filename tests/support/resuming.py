"""Trainings that stop where a test needs it."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.device import Precision
from model.training.training_data import TrainingData, TrainingJob
from model.training.training_state import TrainingState
from shards.errors import Interrupted
from stages.train import train
from tests.support.packed import Packed
from tests.support.trainings import job_in

Position = tuple[int, int]
"""Epoch, and batches done in it."""


def state_of(job: TrainingJob) -> TrainingState:
    """Returns the state of a training before its first step."""
    torch.manual_seed(job.train.seed)
    return TrainingState(job, torch.device("cpu"), Precision(None), TrainingData(job))


def stopping_at(job: TrainingJob, epoch: int, batches_done: int) -> TrainingJob:
    """Returns the same job, which sends itself SIGTERM at this position."""

    def stop(now: int, done: int, *_: float) -> None:
        if (now, done) == (epoch, batches_done):
            os.kill(os.getpid(), signal.SIGTERM)

    return replace(job, on_batch=stop)


def stopped_in(folder: Path, packed: Packed) -> Path:
    """Returns the checkpoint of a run that was stopped in the middle of epoch 1."""
    with pytest.raises(Interrupted, match="epoch 1 after 2 batches"):
        train(stopping_at(job_in(folder, packed), 1, 2))
    return last_of(folder)


def last_of(folder: Path) -> Path:
    """Returns the last checkpoint of the only run in a folder."""
    (last,) = (folder / "runs").glob("*/last.pt")
    return last


def copied(stopped: Path, folder: Path) -> Path:
    """Copies the folder of a stopped run, and returns the last checkpoint of the copy."""
    return last_of(shutil.copytree(stopped, folder))


MEASURED = ("seconds", "wait_s", "total_s", "clips_per_s", "data_wait", "peak_memory_mb")
"""Figures that depend on time or on the operating system."""


def assert_same_state(ours: Any, theirs: Any, where: str = "") -> None:
    """Asserts that both are bit-identical, except for measured figures."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours.keys() - set(MEASURED):
            assert_same_state(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same_state(*pair, f"{where}/{number}")
    else:
        assert ours == theirs, where
