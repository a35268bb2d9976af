"""Where training stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.runs import Curve
from model.settings import TrainParams


@dataclass
class Progress:
    """Where training stands: saved in every checkpoint, beside weights and optimiser. The same on all ranks."""

    epoch: int = 0
    """The epoch that runs, from 0; after an epoch's end, the next one."""
    batches_done: int = 0
    """In that epoch; always at the end of an accumulation window."""
    loss_sum: float = 0.0
    chars_seen: int = 0
    clips_seen: int = 0
    gradient_norm_sum: float = 0.0
    """Over the steps of this epoch."""
    steps_in_epoch: int = 0
    """That were taken, with a finite norm."""
    bad_clips: int = 0
    """Left out of this epoch's batches so far."""
    bad_clips_before: int = 0
    """Left out of the epochs before, a clip once for each of them."""
    seconds: float = 0.0
    wait_s: float = 0.0
    best_val_cer: float = float("inf")
    best_val_loss: float = float("inf")
    best_epoch: int = -1
    validations_since_best: int = 0
    """Without a lower CER than before."""
    steps: int = 0
    """Windows that were taken: those left out are not counted, overflows of float16, which change nothing, are."""
    skipped_steps: int = 0
    """Left out because the loss or its gradient was not finite."""
    skipped_in_a_row: list[str] = field(default_factory=list)
    """The clips of each step left out since the last one that was taken."""
    piece_frames: int | None = None
    """Padded frames of the pieces that batches are cut into since memory ran out; None: they stay whole."""
    total_s: float = 0.0
    curves: list[Curve] = field(default_factory=list)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Progress":
        """That of a checkpoint, where it lacks none but newer fields. TypeError naming what is of another kind."""
        progress = cls(**values)
        for name, fresh in vars(cls()).items():
            value, kind = getattr(progress, name), type(fresh)
            if name == "piece_frames":
                kind = int if value is not None else kind
            if not isinstance(value, (int, float) if kind is float else kind):
                raise TypeError(f"progress.{name} is {value!r}")
        return progress

    @property
    def bad_readings(self) -> int:
        """Left out of all epochs: what the weights have not learnt from."""
        return self.bad_clips_before + self.bad_clips

    @property
    def mean_loss(self) -> float:
        """Nats a character, over the steps of this epoch."""
        return self.loss_sum / max(self.chars_seen, 1)

    def stopped_early(self, train: TrainParams) -> bool:
        """Whether training ended for want of a better CER."""
        return 0 < train.patience <= self.validations_since_best

    def is_over(self, train: TrainParams) -> bool:
        """Whether there is no epoch left to train."""
        return self.epoch >= train.num_epochs or self.stopped_early(train)

    def record_validation(self, loss: float, cer: float) -> bool:
        """Whether the model is the best so far; of equals the later one is, which has learnt more."""
        self.best_val_loss = min(self.best_val_loss, loss)
        self.validations_since_best = 0 if cer < self.best_val_cer else self.validations_since_best + 1
        is_best = cer <= self.best_val_cer
        self.best_val_cer = min(self.best_val_cer, cer)
        return is_best

    def next_epoch(self) -> None:
        self.bad_clips_before = self.bad_readings
        self.epoch += 1
        self.restart_epoch()

    def restart_epoch(self) -> None:
        """Back to the first batch of `epoch`."""
        self.total_s += self.seconds
        self.batches_done = 0
        self.loss_sum, self.chars_seen, self.clips_seen, self.bad_clips = 0.0, 0, 0, 0
        self.gradient_norm_sum, self.steps_in_epoch = 0.0, 0
        self.seconds, self.wait_s = 0.0, 0.0
