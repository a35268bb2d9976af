"""The progress of a training: a position in the epoch plan, and figures so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.runs import Curve
from model.settings import TrainParams
from shards.elastic_plan import PlanShape, Segment


@dataclass
class Progress:
    """The progress of a training, saved in every checkpoint. It is the same on all ranks."""

    epoch: int = 0
    """The current epoch, from 0; after the end of an epoch, the next one."""
    batches_done: int = 0
    """Batches of each rank done in that epoch, over all segments; always at the end of an accumulation window."""
    shape: list[int] = field(default_factory=list)
    """Shape of the epoch plan: ranks, batch size, accumulation steps. Other processes may take its batches."""
    segments: list[list[int]] = field(default_factory=list)
    """Earlier segments of that epoch, if it was planned again: their shape and their number of batches of each rank."""
    loss_sum: float = 0.0
    chars_seen: float = 0.0
    clips_seen: int = 0
    gradient_norm_sum: float = 0.0
    """Sum over the steps of this epoch."""
    steps_in_epoch: int = 0
    """Steps taken in this epoch with a finite gradient norm."""
    audio_loss_sum: float = 0.0
    """Nats, over the sound tokens of this epoch."""
    audio_right: float = 0.0
    """Sound tokens of this epoch that the sound head found the most likely."""
    audio_tokens: float = 0.0
    """Sound tokens of this epoch."""
    bad_clips: int = 0
    """Clips left out of this epoch's batches so far."""
    bad_clips_before: int = 0
    """Clips left out of earlier epochs; a clip counts once for each epoch."""
    seconds: float = 0.0
    wait_s: float = 0.0
    process_s: float = 0.0
    """`seconds` of all processes of this epoch together."""
    best_val_cer: float = float("inf")
    best_val_loss: float = float("inf")
    best_epoch: int = -1
    validations_since_best: int = 0
    """Validations since the last one with a lower CER."""
    steps: int = 0
    """Optimiser steps. Skipped steps do not count; float16 overflows, which change no weights, do."""
    skipped_steps: int = 0
    """Steps skipped because the loss or its gradient was not finite."""
    skipped_in_a_row: list[str] = field(default_factory=list)
    """The clips of each step skipped since the last optimiser step."""
    piece_frames: int | None = None
    """Padded frames of a micro-batch since memory ran out; None: batches are not split."""
    total_s: float = 0.0
    labels_epoch: int = -1
    """The epoch at whose start the pseudo labels in use were made (model/training/self_training.py); -1: none."""
    labels_sha256: str = ""
    """Of their file."""
    curves: list[Curve] = field(default_factory=list)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Progress":
        """Returns a checkpoint's progress, with defaults for missing fields. Raises TypeError naming a wrong one."""
        progress = cls(**values)
        for name, fresh in vars(cls()).items():
            value, kind = getattr(progress, name), type(fresh)
            if name == "piece_frames":
                kind = int if value is not None else kind
            if not isinstance(value, (int, float) if kind is float else kind):
                raise TypeError(f"progress.{name} is {value!r}")
        lists = [(progress.shape, 3)] if progress.shape else []
        for numbers, length in lists + [(segment, 4) for segment in progress.segments]:
            is_right = isinstance(numbers, list) and len(numbers) == length
            if not is_right or not all(isinstance(number, int) and number > 0 for number in numbers):
                raise TypeError(f"progress.shape or progress.segments has {numbers!r}")
        return progress

    def recorded(self) -> dict[str, Any]:
        """Returns the values for a checkpoint, without those of pseudo labels and of sound if there are none."""
        without = set() if self.labels_sha256 else {"labels_epoch", "labels_sha256"}
        return {
            name: value
            for name, value in vars(self).items()
            if name not in without and (value or not name.startswith("audio_"))
        }

    @property
    def plan_shape(self) -> PlanShape:
        return PlanShape(*self.shape)

    @property
    def done(self) -> list[Segment]:
        """Returns the earlier segments of this epoch."""
        return [Segment(PlanShape(*shape), num_steps) for *shape, num_steps in self.segments]

    def plan_again(self, shape: PlanShape) -> None:
        """Plans what is left of this epoch, and later epochs, in another shape."""
        if num_steps := self.batches_done - sum(segment.num_steps for segment in self.done):
            self.segments.append([*self.shape, num_steps])
        self.shape = list(shape)

    @property
    def bad_readings(self) -> int:
        """Returns the number of clips left out in all epochs, so the weights have not learnt from them."""
        return self.bad_clips_before + self.bad_clips

    @property
    def mean_loss(self) -> float:
        """Returns the mean loss over the steps of this epoch, in nats per character."""
        return self.loss_sum / max(self.chars_seen, 1)

    def stopped_early(self, train: TrainParams) -> bool:
        """Returns whether training ended because the CER did not improve."""
        return 0 < train.patience <= self.validations_since_best

    def is_over(self, train: TrainParams) -> bool:
        """Returns whether no epoch is left to train."""
        return self.epoch >= train.num_epochs or self.stopped_early(train)

    def record_validation(self, loss: float, cer: float) -> bool:
        """Records a validation; returns whether the model is the best so far. Of equal models the later is the best."""
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
        """Goes back to the first batch of `epoch`."""
        self.total_s += self.seconds
        self.batches_done, self.segments = 0, []
        self.loss_sum, self.chars_seen, self.clips_seen, self.bad_clips = 0.0, 0.0, 0, 0
        self.audio_loss_sum, self.audio_right, self.audio_tokens = 0.0, 0.0, 0.0
        self.gradient_norm_sum, self.steps_in_epoch = 0.0, 0
        self.seconds, self.wait_s, self.process_s = 0.0, 0.0, 0.0
