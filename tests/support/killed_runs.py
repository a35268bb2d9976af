"""Trainings in separate processes that record each step and are killed where a test needs it."""

import io
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch

from model import checkpoints
from model.decoding.reader import LipReader
from model.training import step
from model.training.step import StepFigures, TrainingStep
from model.training.training_data import TrainingJob
from shards.errors import Interrupted
from shards.stream import ClipBatch
from stages import train
from tests.support.forked import started

STEPS = "steps.jsonl"
INTERRUPTED = 7


@dataclass(frozen=True)
class Kill:
    """Kills the process when it reaches `place` for the `number`th time (from 1)."""

    place: Literal["step", "piece", "write", "rename", "validation"]
    """After a step, before it is recorded; after a micro-batch of a window; with half of a checkpoint written; between
    the two renames of last.pt; during validation."""
    number: int
    by: signal.Signals = signal.SIGKILL


def run(job: TrainingJob, folder: Path, kill: Kill | None = None, save_every_s: float = -1) -> int:
    """Trains in a separate process; returns its exit status. Its steps are recorded in `folder`."""
    process = started(_train, job, folder / STEPS, kill, save_every_s)
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / STEPS).read_text().splitlines()]


def _train(job: TrainingJob, record: Path, kill: Kill | None, save_every_s: float) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    killer = _Killer(kill)
    train.SAVE_EVERY_S = save_every_s

    class RecordedStep(TrainingStep):
        def __call__(self, window: Sequence[ClipBatch], *arguments: Any) -> StepFigures:
            figures = super().__call__(window, *arguments)
            with record.open("a") as file:
                print(json.dumps(_entry(self, window, figures)), file=file)
            killer.reach("step")
            return figures

        def _piece_backward(self, *arguments: Any) -> torch.Tensor:
            losses = super()._piece_backward(*arguments)
            killer.reach("piece")
            return losses

    step.TrainingStep = RecordedStep
    killer.before(LipReader, "decode", "validation")
    save, rename = torch.save, Path.replace

    def interrupted_save(state: dict[str, Any], file: BinaryIO) -> None:
        if killer.is_next("write"):
            complete = io.BytesIO()
            save(state, complete)
            file.write(complete.getvalue()[: complete.tell() // 2])
            file.flush()
        killer.reach("write")
        save(state, file)

    def interrupted_rename(path: Path, target: Path) -> Path:
        # the previous last.pt has already been renamed
        if Path(target).name == "last.pt" and not Path(target).exists() and path.name.endswith(".tmp"):
            killer.reach("rename")
        return rename(path, target)

    checkpoints.torch.save = interrupted_save
    Path.replace = interrupted_rename
    try:
        train.train(job)
    except Interrupted:
        os._exit(INTERRUPTED)


class _Killer:
    def __init__(self, kill: Kill | None) -> None:
        self.kill, self.times = kill, {}  # type: ignore[var-annotated]

    def is_next(self, place: str) -> bool:
        return self.kill is not None and (place, self.times.get(place, 0) + 1) == (
            self.kill.place,
            self.kill.number,
        )

    def reach(self, place: str) -> None:
        is_now = self.is_next(place)
        self.times[place] = self.times.get(place, 0) + 1
        if is_now:
            assert self.kill is not None
            os.kill(os.getpid(), self.kill.by)

    def before(self, owner: type, name: str, place: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any) -> Any:
            self.reach(place)
            return inner(*args)

        setattr(owner, name, wrapped)


def _entry(taken: TrainingStep, window: Sequence[ClipBatch], figures: StepFigures) -> dict[str, Any]:
    """Returns the position of the step, its inputs and its results, with exact floats."""
    state = taken.state
    kept = state.average.network if state.average else state.network
    return {
        "position": [state.progress.epoch, state.progress.batches_done],
        "clips": [batch.clip_ids for batch in window],
        "video": _digest([batch.video_BTHW for batch in window]),
        "loss": figures.loss_sum.hex(),
        "gradient_norm": figures.gradient_norm.hex(),
        "rate": [group["lr"].hex() for group in state.optimizer.param_groups],
        "weights": _digest(state.network.state_dict().values()),
        "average": _digest(kept.state_dict().values()),
    }


def _digest(tensors: Any) -> str:
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def job_in_folder(job: TrainingJob, folder: Path) -> TrainingJob:
    """Returns the same job in another folder."""
    return replace(job, runs=folder / "runs", checkpoints=folder / "checkpoints", logs=folder / "logs")
