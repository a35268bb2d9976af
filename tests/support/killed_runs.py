"""Trainings in processes of their own that note each step they take, and die where a test wants it."""

import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal
from unittest.mock import patch

import torch

from model import checkpoints
from model.decoding.reader import LipReader
from model.training import step
from model.training.job import TrainingJob
from model.training.step import StepFigures, TrainingStep
from shards.errors import Interrupted
from shards.stream import ClipBatch
from stages import train

STEPS = "steps.jsonl"
INTERRUPTED = 7
_PROCESSES = multiprocessing.get_context("forkserver")
# imported once for all of them: seconds each
_PROCESSES.set_forkserver_preload([__name__, "torch._dynamo", "torch.utils.tensorboard"])


@dataclass(frozen=True)
class Kill:
    """At the `number`th time, from 1, that the process comes to that place."""

    place: Literal["step", "piece", "write", "rename", "validation"]
    """After a step, before anything knows of it; after a piece of a window; with half of a checkpoint written;
    between the two renames of last.pt; while valid is read."""
    number: int
    by: signal.Signals = signal.SIGKILL


def run(job: TrainingJob, folder: Path, death: Kill | None = None, save_every_s: float = -1) -> int:
    """Trains in a process of its own; gives its exit status. Its steps are noted in `folder`."""
    process = _PROCESSES.Process(target=_train, args=(job, folder / STEPS, death, save_every_s))
    # Python 3.11's fork server forgets sys.path, and would import torch anew for every process
    with patch.dict(os.environ, {"PYTHONPATH": str(Path(__file__).parents[2])}):
        process.start()
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / STEPS).read_text().splitlines()]


def _train(job: TrainingJob, notes: Path, death: Kill | None, save_every_s: float) -> None:
    notes.parent.mkdir(parents=True, exist_ok=True)
    dies = _Killer(death)
    train.SAVE_EVERY_S = save_every_s

    class NotedStep(TrainingStep):
        def __call__(self, window: Sequence[ClipBatch], epoch: int, epochs_done: float) -> StepFigures:
            figures = super().__call__(window, epoch, epochs_done)
            with notes.open("a") as file:
                print(json.dumps(_note(self, window, figures)), file=file)
            dies.at("step")
            return figures

        def _piece_backward(self, *arguments: Any) -> torch.Tensor:
            losses = super()._piece_backward(*arguments)
            dies.at("piece")
            return losses

    step.TrainingStep = NotedStep
    dies.before(LipReader, "decode", "validation")
    save, rename = torch.save, Path.replace

    def torn_save(state: dict[str, Any], file: BinaryIO) -> None:
        if dies.is_next("write"):
            whole = io.BytesIO()
            save(state, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
        dies.at("write")
        save(state, file)

    def torn_rename(path: Path, target: Path) -> Path:
        # the former last.pt has its new name already
        if Path(target).name == "last.pt" and not Path(target).exists() and path.name.endswith(".tmp"):
            dies.at("rename")
        return rename(path, target)

    checkpoints.torch.save = torn_save
    Path.replace = torn_rename
    try:
        train.train(job)
    except Interrupted:
        os._exit(INTERRUPTED)


class _Killer:
    def __init__(self, death: Kill | None) -> None:
        self.death, self.times = death, {}  # type: ignore[var-annotated]

    def is_next(self, place: str) -> bool:
        return self.death is not None and (place, self.times.get(place, 0) + 1) == (
            self.death.place,
            self.death.number,
        )

    def at(self, place: str) -> None:
        dies_now = self.is_next(place)
        self.times[place] = self.times.get(place, 0) + 1
        if dies_now:
            assert self.death is not None
            os.kill(os.getpid(), self.death.by)

    def before(self, owner: type, name: str, place: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def dying(*args: Any) -> Any:
            self.at(place)
            return inner(*args)

        setattr(owner, name, dying)


def _note(taken: TrainingStep, window: Sequence[ClipBatch], figures: StepFigures) -> dict[str, Any]:
    """Where the step stood, all that it was given, and all that it left; floats to the last bit."""
    state = taken.state
    kept = state.average.network if state.average else state.network
    return {
        "position": [state.progress.epoch, state.progress.batches_done],
        "clips": [batch.clip_ids for batch in window],
        "video": _digest([batch.video_BTHW for batch in window]),
        "loss": figures.loss_sum.hex(),
        "gradient_norm": figures.gradient_norm.hex(),
        "rate": [group["lr"].hex() for group in state.optimizer.param_groups],
        "random": _digest([torch.get_rng_state()]),
        "weights": _digest(state.network.state_dict().values()),
        "average": _digest(kept.state_dict().values()),
    }


def _digest(tensors: Any) -> str:
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def job_in_folder(job: TrainingJob, folder: Path) -> TrainingJob:
    """The same training in another folder."""
    return replace(job, runs=folder / "runs", checkpoints=folder / "checkpoints", logs=folder / "logs")
