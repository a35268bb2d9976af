"""One optimiser step over a window of batches, normalised by all its characters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model import schedule
from model.batch_input import training_input
from model.device import Precision
from model.job import TrainingJob
from model.losses import LossParams, joint_loss_B
from model.network import LipNetwork
from model.training_data import TrainingData
from model.training_state import TrainingState
from shards.errors import TrainingError
from shards.stream import ClipBatch


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What a step came to."""

    loss_sum: float
    """Nats, over all characters of the window."""
    num_chars: int
    num_clips: int
    gradient_norm: float
    """Before it was clipped."""
    learning_rate: float


class TrainingStep:
    """Steps the state of a training."""

    def __init__(
        self, job: TrainingJob, data: TrainingData, state: TrainingState, precision: Precision
    ) -> None:
        self.job, self.data, self.state, self.precision = job, data, state, precision
        self.loss_params = LossParams.of(job.train)

    def __call__(self, window: Sequence[ClipBatch], epoch: int, epochs_done: float) -> StepFigures:
        """One step over the batches of `window`, of which at least one holds a clip.

        `epochs_done` is the place of the window's middle, by which the learning rate goes.
        """
        train, state = self.job.train, self.state
        rate = schedule.learning_rate(train, epochs_done)
        state.set_learning_rate(rate)
        num_chars = sum(len(label) for batch in window for label in batch.labels)
        loss_sum, num_clips = 0.0, 0
        for batch in window:
            if not batch.clip_ids:
                continue  # all of its samples are bad
            loss_B = self.batch_loss_B(state.network, batch, epoch)
            if not torch.isfinite(loss_B).all():
                bad = [c for c, ok in zip(batch.clip_ids, torch.isfinite(loss_B), strict=True) if not ok]
                raise TrainingError(
                    f"the loss is not finite for {', '.join(bad)} in epoch {epoch}; look at these clips "
                    "(`pipeline query`), or lower train.learning_rate"
                )
            state.scaler.scale(loss_B.sum() / num_chars).backward()
            loss_sum += float(loss_B.detach().sum())
            num_clips += len(batch.clip_ids)
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), train.gradient_clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.stepped()
        return StepFigures(loss_sum, num_chars, num_clips, float(norm), rate)

    def batch_loss_B(self, network: LipNetwork, batch: ClipBatch, epoch: int) -> torch.Tensor:
        """Nats a clip (B,)."""
        video_BCTYX, num_frames_B, targets = training_input(
            batch, self.job, self.data, epoch, self.state.device
        )
        with self.precision.autocast(self.state.device):
            outputs = network(
                video_BCTYX, num_frames_B, targets, schedule.teacher_forcing(self.job.train, epoch)
            )
            return joint_loss_B(outputs, targets, self.loss_params)
