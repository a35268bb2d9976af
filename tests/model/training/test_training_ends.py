"""What ends a training early: a CER that does not improve, steps without a finite loss, signals."""

import logging
import math
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints import load_checkpoint
from model.networks.sound_head import SoundLoss
from model.progress import Progress
from model.runs import RunFolder, training_log
from model.training.ranks import StopSignals
from model.training.step import StepFigures, TrainingStep
from shards.errors import CheckpointError, ConfigError, TrainingError
from shards.plan import plan_epoch
from shards.samples import read_samples
from shards.settings import LoaderParams
from stages.train import train
from tests.support.forked import Forked
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.trainings import TRAIN, assert_same_weights, job_in


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips())


def test_training_ends_when_the_cer_does_not_improve(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    """With a tiny learning rate, only the batch statistics change."""
    job = job_in(tmp_path, packed, num_epochs=40, learning_rate=1e-12, patience=2, valid_every=2)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        summary = train(job)
    (last,) = (tmp_path / "runs").glob("*/last.pt")
    cers = [curve["val_cer"] for curve in load_checkpoint(last)["progress"]["curves"][::2]]
    assert len(cers) >= 3 and min(cers[-2:]) >= min(cers[:-2])
    for number in range(1, len(cers) - 1):
        assert min(cers[number - 1 : number + 1]) < min([2.0, *cers[: number - 1]])
    epoch = summary.epochs - 1
    assert epoch == 2 * (len(cers) - 1) < 39
    assert "2 validations without a better CER than" in caplog.text
    assert (tmp_path / f"checkpoints/checkpoint_epoch_{epoch}.pt").exists()
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline.train"):
        again = train(job)
    assert again.already_done and again.epochs == summary.epochs
    assert f"already finished: {summary.epochs} epochs, stopped early" in caplog.text


def test_patience_counts_validations_since_the_best() -> None:
    progress, params = Progress(), TRAIN.model_copy(update={"patience": 2})
    cers = (0.9, 0.8, 0.8, 0.7, 0.75, 0.7)
    bests, ends = zip(
        *((progress.record_validation(1.0, cer), progress.stopped_early(params)) for cer in cers), strict=True
    )
    assert bests == (True, True, True, True, False, True)
    assert ends == (False,) * 5 + (True,)
    assert not progress.stopped_early(TRAIN)


class Poisoned(TrainingStep):
    """A step whose losses are NaN in some windows."""

    windows: frozenset[int] = frozenset()
    num_windows = 0

    def __call__(self, *arguments: Any) -> StepFigures:
        Poisoned.num_windows += 1
        return super().__call__(*arguments)

    def losses(self, network, batch, epoch: int) -> tuple[torch.Tensor, SoundLoss | None]:
        loss_B, sound = super().losses(network, batch, epoch)
        return loss_B * float("nan") if Poisoned.num_windows in self.windows else loss_B, sound


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    def poison(windows: set[int]) -> None:
        monkeypatch.setattr(Poisoned, "windows", frozenset(windows))
        monkeypatch.setattr(Poisoned, "num_windows", 0)
        monkeypatch.setattr("model.training.step.TrainingStep", Poisoned)

    return poison


def test_three_steps_in_a_row_without_a_finite_loss_end_training_with_their_clips(
    tmp_path: Path, packed: Packed, poisoned: Callable[[set[int]], None]
) -> None:
    poisoned({2, 3, 4})
    plan = plan_epoch(read_samples(packed.samples, "train"), LoaderParams(frame_budget=200), 4, 0)
    ids = read_samples(packed.samples, "train")["clip_id"].to_pylist()
    windows = [[ids[row] for batch in plan.batches[n : n + 2] for row in batch] for n in (2, 4)]
    with pytest.raises(TrainingError, match="3 steps in a row had no finite loss") as caught:
        train(job_in(tmp_path, packed))
    for window in windows:
        assert ", ".join(window) in str(caught.value)


def test_skipped_steps_are_counted_and_a_taken_step_resets_the_row(
    tmp_path: Path, packed: Packed, poisoned: Callable[[set[int]], None]
) -> None:
    poisoned({1, 2, 4, 5})
    train(job_in(tmp_path, packed))
    state = load_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_2.pt")
    progress = state["progress"]
    assert (progress["skipped_steps"], progress["skipped_in_a_row"]) == (4, [])
    assert progress["steps"] == Poisoned.num_windows - 4
    assert [curve["skipped"] for curve in progress["curves"]] == [2, 2, 0]
    assert all(math.isfinite(curve["train_loss"]) for curve in progress["curves"])
    assert "2 steps skipped" in (tmp_path / "logs/training.log").read_text()


# -- signals ---------------------------------------------------------------------------------------------


TRAIN_SLOWLY = """
import os, sys, time, pathlib
from dataclasses import replace
from shards.settings import MachineParams
from shards.errors import Interrupted
from tests.support.packed import Packed
from tests.support.trainings import job_in
from stages.train import train
def print_position(epoch, done, total, loss):
    print(epoch, done, flush=True)
    time.sleep(0.3)
os.setsid()
folder, packed = pathlib.Path(sys.argv[1]), Packed.at(pathlib.Path(sys.argv[2]))
machine = MachineParams(threads=1, device='cpu', num_workers=2)
try:
    train(replace(job_in(folder, packed, num_epochs=2), on_batch=print_position, machine=machine))
except Interrupted as error:
    sys.exit(f'interrupted: {error}')
"""


def test_ctrl_c_to_the_process_group_stops_and_resuming_is_exact_with_loader_threads(
    tmp_path: Path, packed: Packed
) -> None:
    """Sent like a terminal does, while threads read ahead."""
    train(job_in(tmp_path / "whole", packed, num_epochs=2))
    process = Forked(tmp_path, [tmp_path / "stopped", packed.samples.parent], source=TRAIN_SLOWLY)
    while "0 4\n" not in process.output()[0] and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    done = process.wait(60)
    assert done.returncode == 1, done.stderr
    assert "interrupted: stopped in epoch 0" in done.stderr, done.stderr
    train(job_in(tmp_path / "stopped", packed, num_epochs=2))
    name = "checkpoints/best_model.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "stopped" / name)


def test_sigterm_twice_is_one_stop_but_ctrl_c_twice_interrupts_at_once() -> None:
    """The batch system sends SIGTERM to every process, and torchrun sends it again to its processes."""
    stop = StopSignals()
    with stop.handlers():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_rejected_training_keeps_the_published_log(tmp_path: Path, packed: Packed) -> None:
    job = job_in(tmp_path, packed, num_epochs=1)
    job.logs.mkdir(parents=True)
    (job.logs / "training.log").write_text("of the previous run", "utf-8")
    job.checkpoints.mkdir(parents=True)
    (job.checkpoints / "best_model.pt").write_bytes(b"of somebody else")
    with pytest.raises(CheckpointError, match=r"best_model\.pt was not published by this program"):
        train(job)
    (job.checkpoints / "published.json").write_text("{}", "utf-8")
    with pytest.raises(CheckpointError, match=r"published\.json is damaged .*: remove it"):
        train(job)
    assert (job.logs / "training.log").read_text("utf-8") == "of the previous run"
    assert (job.checkpoints / "best_model.pt").read_bytes() == b"of somebody else"


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_the_published_log_replaces_nothing_but_a_file(tmp_path: Path, kind: str) -> None:
    log, notes = tmp_path / "training.log", tmp_path / "notes.txt"
    notes.write_text("mine", "utf-8")
    if kind == "link":
        log.symlink_to(notes)
    else:
        os.mknod(log, 0o600 | (stat.S_IFIFO if kind == "pipe" else stat.S_IFCHR), os.makedev(1, 3))
    before = log.lstat()
    with pytest.raises(ConfigError, match=r"training\.log is a link, device or pipe: remove it"):  # noqa: SIM117
        with training_log(RunFolder(tmp_path / "runs", "a"), tmp_path):
            raise AssertionError("not reached")
    assert notes.read_text("utf-8") == "mine" and log.lstat() == before
