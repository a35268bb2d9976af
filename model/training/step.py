"""One optimiser step over a window of batches, normalised by all its characters on all ranks.

`set_up` prepares a step for the trainer, the search for a frame budget and the benchmarks.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from model.device import Precision, tune
from model.losses import LossParams, joint_loss_B
from model.networks.sound_head import SoundLoss, sound_loss
from model.runs import logger
from model.training import schedule
from model.training.augment import training_input
from model.training.compiling import compile_parts
from model.training.fine_tuning import to_training_mode
from model.training.out_of_memory import MEMORY_ERRORS, MicroBatches, is_out_of_memory, padded_frames
from model.training.ranks import SINGLE_PROCESS, Ranks, StopSignals
from model.training.training_data import TrainingData, TrainingJob
from model.training.training_state import TrainingState
from shards.errors import Interrupted, TrainingError
from shards.files import fingerprint
from shards.sound import VECTORS_A_FRAME
from shards.stream import ClipBatch

BLACK_FRAMES = 8
MOMENTUM = 0.1
"""Of all BatchNorms: torch's default."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """The figures of a step: over all ranks, except `skipped`."""

    loss_sum: float
    """Nats, over all characters of the window; 0 if the step was not taken."""
    num_chars: float
    """Each label with its weight; 0 if the step was not taken."""
    num_clips: int
    gradient_norm: float
    """Before clipping; infinite if float16 overflowed."""
    learning_rate: float
    skipped: tuple[str, ...] = ()
    """Clips of this rank that prevented the step: those with a non-finite loss, else all of the window."""
    was_taken: bool = True
    """False, on all ranks, if a loss or the gradient is not finite. Then the state is the same as before the step.

    After an overflow of float16, the scaler lowers its scale: this counts as taken.
    """
    audio_loss_sum: float = 0.0
    """Nats, over the sound tokens of the window; of clips that are played faster or slower, as many as at speed 1."""
    audio_right: float = 0.0
    """Sound tokens that were found the most likely."""
    audio_tokens: float = 0.0


class TrainingStep:
    """Runs optimiser steps on the state of a training."""

    def __init__(
        self,
        job: TrainingJob,
        data: TrainingData,
        state: TrainingState,
        precision: Precision,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.job, self.data, self.state, self.precision, self.ranks = job, data, state, precision, ranks
        self.loss_params = LossParams.of(job.train)
        self._heard: list[torch.Tensor] = []
        """Sums over the sound tokens of each micro-batch of a window: loss, right tokens."""
        self.micro_batches = MicroBatches()
        self.stop = StopSignals()
        """Set by the trainer; checked between two micro-batches of a window."""

    def __call__(
        self, window: Sequence[ClipBatch], epoch: int, epochs_done: float, num_batches: int = 0
    ) -> StepFigures:
        """Runs one step over the batches of `window`, in which at least one rank has a clip.

        `epochs_done` is the position of the window's middle; it determines the learning rate. `num_batches` is the
        number of batches of a rank of the plan, if `window` has another number. All ranks must call this together. If
        memory runs out, the window is repeated in micro-batches. Raises TrainingError if memory runs out with several
        ranks, which may be exchanging gradients at that moment, or for a single clip.

        Raises Interrupted if a single process is asked to stop before its last micro-batch, since a window of a large
        network takes minutes on a CPU. Then the state is the same as before the window.
        """
        state = self.state
        rate = schedule.learning_rate(self.job.train, epochs_done)
        state.set_learning_rate(rate)
        num_batches = num_batches or len(window)
        window = [batch for batch in window if batch.clip_ids]  # in the other batches, all samples are bad
        chars = sum(self.data.num_chars(batch) for batch in window)
        clip_ids = tuple(clip_id for batch in window for clip_id in batch.clip_ids)
        tokens = float(sum(int(num_tokens(batch).sum()) for batch in window))
        num_chars, num_clips, audio_tokens = self.ranks.sum([chars, len(clip_ids), tokens])
        statistics = _RunningStatistics(state.network, int(num_clips))
        # distributed training averages the gradients of the ranks; multiplied by their number, it is the sum
        share = self.ranks.world_size / num_chars if num_chars else 0.0
        audio_share = self.job.train.audio_weight * self.ranks.world_size / (audio_tokens or 1.0)
        if window:
            losses = self._backward(window, epoch, (share, audio_share), statistics)
        else:
            self._backward([black_clip(self.data)], epoch, (0.0, 0.0), statistics)
            statistics.restart()
            losses = []
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.trained.parameters(), self.job.train.gradient_clip)
        heard_2 = torch.stack(self._heard).sum(dim=0) if self._heard else norm.new_zeros(2)
        # the only place where the step waits for the device
        norm_value, audio_loss, audio_right, *loss_N = torch.cat(
            [norm.detach()[None], heard_2, *losses]
        ).tolist()
        bad = tuple(c for c, loss in zip(clip_ids, loss_N, strict=True) if not math.isfinite(loss))
        loss_sum, num_bad, *heard = self.ranks.sum(
            [math.fsum(loss_N) if not bad else 0.0, len(bad), audio_loss, audio_right]
        )
        if num_bad or (not math.isfinite(norm_value) and not self._is_overflow()):
            skipped = bad if num_bad else clip_ids
            _log_skipped(skipped, len(clip_ids), epoch, "loss" if num_bad else "gradient")
            self._leave_out()
            return StepFigures(0.0, 0, int(num_clips), norm_value, rate, skipped, was_taken=False)
        statistics.update(self.ranks, num_batches)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if math.isfinite(norm_value):
            state.after_step()
        return StepFigures(
            *(loss_sum, num_chars, int(num_clips), norm_value, rate),
            audio_loss_sum=heard[0],
            audio_right=heard[1],
            audio_tokens=audio_tokens,
        )

    def batch_loss_B(self, network: nn.Module, batch: ClipBatch, epoch: int) -> torch.Tensor:
        """Returns nats per clip (B,), of the labels."""
        return self.losses(network, batch, epoch)[0]

    def losses(
        self, network: nn.Module, batch: ClipBatch, epoch: int
    ) -> tuple[torch.Tensor, SoundLoss | None]:
        """Returns the loss of each label (B,), and that of the sound if `network` has a sound head."""
        video_BCTYX, num_frames_B, targets = training_input(
            batch, self.job, self.data, epoch, self.state.device
        )
        with self.precision.autocast(self.state.device):
            outputs = network(
                video_BCTYX, num_frames_B, targets, schedule.teacher_forcing(self.job.train, epoch)
            )
            loss_B = joint_loss_B(outputs, targets, self.loss_params)
        if outputs.sound_logits_BJV is None:
            return loss_B, None
        return loss_B, sound_loss(outputs.sound_logits_BJV, targets.sound_BJ)

    # -- the gradient ----------------------------------------------------------------------------------

    def _backward(
        self,
        window: Sequence[ClipBatch],
        epoch: int,
        shares: tuple[float, float],
        statistics: "_RunningStatistics",
    ) -> list[torch.Tensor]:
        """Adds the gradient of the losses of `window`; returns the losses of labels, nats, on the device.

        `shares` multiply the losses of labels and of sound.
        """
        progress = self.state.progress
        self.micro_batches.max_frames = progress.piece_frames
        while True:
            losses: list[torch.Tensor] = []
            self._heard = []
            pieces = [piece for batch in window for piece in self.micro_batches.pieces(batch)]
            try:
                for piece in pieces:
                    if self.stop.requested and self.ranks.world_size == 1:
                        raise Interrupted("stopped between two micro-batches of a window")
                    is_last = len(losses) + 1 == len(pieces)
                    losses.append(self._piece_backward(piece, epoch, shares, is_last))
                    statistics.add(len(piece.clip_ids))
                return losses
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                self._make_smaller(pieces[len(losses)], error)
                progress.piece_frames = self.micro_batches.max_frames
            except Interrupted:
                self._take_back(statistics)
                raise
            # after the except block: as long as the error exists, its traceback keeps tensors alive
            self._take_back(statistics)
            if self.state.device.type == "cuda":
                torch.cuda.empty_cache()

    def _take_back(self, statistics: "_RunningStatistics") -> None:
        """Undoes the effects of a part of a window."""
        self.state.optimizer.zero_grad(set_to_none=True)
        statistics.restart()

    def _piece_backward(
        self, piece: ClipBatch, epoch: int, shares: tuple[float, float], is_last: bool
    ) -> torch.Tensor:
        learner, ranks = self.state.learner, self.ranks
        # dropout and scheduled sampling depend on the clips, not on the rank or on earlier steps
        torch.manual_seed(int(fingerprint(self.job.train.seed, epoch, piece.rows[0])[:16], 16))
        with contextlib.nullcontext() if is_last else ranks.unsynchronised(learner):
            loss_B, sound = self.losses(learner, piece, epoch)
            total = loss_B.sum() * shares[0]
            if sound:
                tokens_B = num_tokens(piece).to(loss_B.device, non_blocking=True)
                heard = torch.stack([(tokens_B * mean_B).sum() for mean_B in sound])
                self._heard.append(heard.detach())
                # also without a token: all ranks need a gradient of the head
                total = total + heard[0] * shares[1]
            self.state.scaler.scale(total).backward()
        return loss_B.detach()

    def _make_smaller(self, piece: ClipBatch, error: BaseException) -> None:
        if self.ranks.world_size > 1:
            learnt = [p for p in self.state.network.parameters() if p.requires_grad]
            gradients_mb = sum(p.numel() * p.element_size() for p in learnt) / 1e6
            raise TrainingError(
                f"out of memory in {len(piece.clip_ids)} clips, {padded_frames(piece)} padded frames, on rank "
                f"{self.ranks.rank}; the other ranks wait for its gradient, so the batch cannot be split. "
                "Lower loader.frame_budget below what `pipeline train --find-budget` finds for one process: "
                f"with several processes, each stores its gradients twice, {gradients_mb:,.0f} MB more ({error})"
            ) from error
        self.micro_batches.shrink(piece, error)

    # -- non-finite values -------------------------------------------------------------------------------

    def _is_overflow(self) -> bool:
        """Returns whether a smaller scale of float16's gradients may help."""
        return bool(self.state.scaler.get_scale() > 1)

    def _leave_out(self) -> None:
        """Restores the state before the window."""
        state = self.state
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.update(state.scaler.get_scale())  # resets the overflow that it has seen


def _log_skipped(skipped: Sequence[str], num_clips: int, epoch: int, what: str) -> None:
    if skipped:  # else another rank logs it
        logger.warning(
            "epoch %d: the %s is not finite for %s: skipped the step over %d clips, without a change of weights or "
            "statistics; check these clips (`pipeline query`), or lower train.learning_rate",
            epoch,
            what,
            ", ".join(skipped),
            num_clips,
        )


def num_tokens(batch: ClipBatch) -> torch.Tensor:
    """Returns the sound tokens of each clip (B,), before its speed is changed; 0 for a silent clip."""
    if batch.has_audio_B is None:
        return torch.zeros(len(batch.clip_ids))
    return VECTORS_A_FRAME * batch.num_frames_B * batch.has_audio_B


class _RunningStatistics:
    """BatchNorm's running statistics: after a window, they move towards the mean over its clips on all ranks.

    So they do not depend on the number of ranks, or on which rank has which batch. The network's buffers keep the
    values from before the window until `update`.
    """

    def __init__(self, network: nn.Module, num_clips: int) -> None:
        self._num_clips = num_clips
        # counters of batches, which nothing uses, keep their values
        self._buffers = list(network.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        pairs = zip(self._buffers, self._kept, strict=True)
        floats = [(buffer, kept) for buffer, kept in pairs if buffer.is_floating_point()]
        self._floats, self._kept_floats = [buffer for buffer, _ in floats], [kept for _, kept in floats]
        self._change = [torch.zeros_like(kept) for kept in self._kept_floats]

    @torch.no_grad()
    def add(self, num_clips: int) -> None:
        """Adds the change by a micro-batch, after its backward: autograd does not allow a change before it."""
        if self._floats:
            change = torch._foreach_sub(self._floats, self._kept_floats)
            torch._foreach_add_(self._change, change, alpha=num_clips / self._num_clips)
            torch._foreach_copy_(self._buffers, self._kept)

    @torch.no_grad()
    def restart(self) -> None:
        """Forgets the changes of this window."""
        if self._floats:
            torch._foreach_zero_(self._change)
            torch._foreach_copy_(self._buffers, self._kept)

    @torch.no_grad()
    def update(self, ranks: Ranks, num_batches: int) -> None:
        """Moves the statistics as far as `num_batches` batches one after another would. All ranks must call it."""
        if self._floats:
            far = (1 - (1 - MOMENTUM) ** num_batches) / MOMENTUM
            change_N = torch.cat([change.flatten() for change in self._change])
            ranks.add_up(change_N)
            parts = change_N.split([change.numel() for change in self._change])
            change = [part.view_as(kept) for part, kept in zip(parts, self._kept_floats, strict=True)]
            torch._foreach_add_(self._floats, change, alpha=far)


def black_clip(data: TrainingData) -> ClipBatch:
    """Returns a batch for a rank without clips, so that it takes part in the exchange of gradients."""
    frames_BTHW = torch.zeros((1, BLACK_FRAMES, *data.crop_HW), dtype=torch.uint8)
    return ClipBatch(frames_BTHW, torch.tensor([BLACK_FRAMES]), ("black",), ("",), (-1,))


def set_up(
    job: TrainingJob, data: TrainingData, device: torch.device, ranks: Ranks = SINGLE_PROCESS
) -> TrainingStep:
    """Returns the step of `job` with fresh weights from train.seed, in training mode. Tunes the whole process.

    All ranks get equal weights. Raises ConfigError if train.compile is set and this machine cannot compile.
    """
    precision = Precision.choose(job.train.mixed_precision, device)
    tune(device, precision, same_lengths=job.train.compile)
    torch.manual_seed(job.train.seed)
    state = TrainingState(job, device, precision, data, ranks)
    if job.train.compile:
        compile_parts(state.network, device)
    to_training_mode(state.network, job.train)
    return TrainingStep(job, data, state, precision, ranks)
