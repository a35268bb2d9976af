"""The inputs and the result of a training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.settings import DecodeParams, ModelParams, TextParams, TrainParams
from shards.settings import LoaderParams, MachineParams, Section
from shards.store import ShardStore

OnBatch = Callable[[int, int, int, float], None]
"""Called with (epoch, batches done, batches of the epoch, mean loss per character so far)."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that one training needs."""

    samples: Path
    shards: ShardStore
    runs: Path
    checkpoints: Path
    logs: Path
    text: TextParams
    model: ModelParams
    train: TrainParams
    loader: LoaderParams
    decode: DecodeParams
    machine: MachineParams
    config_text: str
    """The effective configuration, saved next to the weights."""
    resume: Path | None = None
    accept_new_plan: bool = False
    """Resume from `resume` even if it used another epoch plan than this run."""
    on_batch: OnBatch | None = None

    @property
    def deciding_sections(self) -> dict[str, Section]:
        """The parameters, apart from those of the epoch plan, that determine the weights and the best model."""
        return {"model": self.model, "text": self.text, "train": self.train, "decode": self.decode}


@dataclass(frozen=True)
class TrainingSummary:
    epochs: int
    best_epoch: int
    best_val_cer: float | None
    """None if nothing was validated."""
    num_parameters: int
    seconds: float
    already_done: bool
