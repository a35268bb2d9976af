"""Measures the first batch before training: the fastest number of threads, and the operations per frame."""

import torch

from model.device import fastest_threads
from model.runs import logger
from model.training.batch_input import training_input
from model.training.epoch_figures import flops_of_step, peak_flops_per_s
from model.training.out_of_memory import part
from model.training.step import TrainingStep
from shards.machine import usable_cores
from shards.stream import ClipBatch, ShardStream


def choose_threads(step: TrainingStep, stream: ShardStream) -> None:
    """Sets torch's number of threads on a CPU. Several processes share the cores, without a measurement."""
    state, ranks = step.state, step.ranks
    if state.device.type != "cpu":
        return
    if not state.threads and ranks.world_size > 1:
        state.threads = max(1, usable_cores() // ranks.local_size)
    if not state.threads and usable_cores() == 1:
        state.threads = 1
    if not state.threads:
        batch = _read(step, stream)
        logger.info("timing a training step with 1 and %d threads", usable_cores())
        state.threads, message = fastest_threads(
            state.network, lambda network: step.batch_loss_B(network, batch, state.progress.epoch).sum()
        )
        logger.info(message)
    torch.set_num_threads(state.threads)


def flops_per_frame_if_known(step: TrainingStep, stream: ShardStream) -> float:
    """Returns `flops_per_frame` of the first batch with a clip; 0 if the peak speed of the device is unknown."""
    if peak_flops_per_s(step.state.device) is None:
        return 0.0
    return flops_per_frame(step, _read(step, stream), step.state.progress.epoch)


def flops_per_frame(step: TrainingStep, batch: ClipBatch, epoch: int) -> float:
    """Returns the operations of forward and backward per input frame, counted on the batch's first clip."""
    first_clip = part(batch, 0, 1)  # fits into memory, even if the batch does not
    # the input may be longer or shorter than the clip: another speed, padding to a bucket
    video_BCTYX, *_ = training_input(first_clip, step.job, step.data, epoch, step.state.device)
    flops = flops_of_step(
        step.state.network, lambda network: step.batch_loss_B(network, first_clip, epoch).sum()
    )
    return flops / video_BCTYX.shape[2]


def _read(step: TrainingStep, stream: ShardStream) -> ClipBatch:
    """Returns the first batch of the epoch that has a clip."""
    plan = step.data.epoch(step.state.progress.epoch)
    return next(batch for batch in stream.batches(plan.batches) if batch.clip_ids)
