"""What a training is asked to do, where it stands, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.settings import DecodeParams, ModelParams, TextParams, TrainParams
from shards.settings import LoaderParams, MachineParams, Section
from shards.store import ShardStore

OnBatch = Callable[[int, int, int, float], None]
"""Called with (epoch, batches done, batches of the epoch, mean loss a character so far)."""


@dataclass(frozen=True)
class TrainingJob:
    """All that one training needs."""

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
    """The effective configuration, saved beside the weights."""
    resume: Path | None = None
    accept_new_plan: bool = False
    """Go on from `resume` though it followed another epoch plan than this run's."""
    on_batch: OnBatch | None = None

    @property
    def deciding_sections(self) -> dict[str, Section]:
        """The parameters that, beside those of the plan, decide what is learnt and which model is taken."""
        return {"model": self.model, "text": self.text, "train": self.train, "decode": self.decode}


@dataclass(frozen=True)
class TrainingSummary:
    epochs: int
    best_epoch: int
    best_val_cer: float | None
    """None where nothing was validated that it could be chosen by."""
    num_parameters: int
    seconds: float
    already_done: bool
