"""What a batch tells that is tried before the first step: which number of threads is fastest, what a frame costs."""

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
    """Sets torch's threads, on a CPU. Processes that share a machine share its cores, and nothing is tried."""
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
        state.threads, told = fastest_threads(
            state.network, lambda network: step.batch_loss_B(network, batch, state.progress.epoch).sum()
        )
        logger.info(told)
    torch.set_num_threads(state.threads)


def flops_per_frame_if_known(step: TrainingStep, stream: ShardStream) -> float:
    """As `flops_per_frame`, of the first batch that holds a clip; 0 where what the device can do is unknown."""
    if peak_flops_per_s(step.state.device) is None:
        return 0.0
    return flops_per_frame(step, _read(step, stream), step.state.progress.epoch)


def flops_per_frame(step: TrainingStep, batch: ClipBatch, epoch: int) -> float:
    """Operations of forward and backward for a frame that enters the network, tried on the batch's first clip."""
    alone = part(batch, 0, 1)  # which fits where the whole would not
    # longer or shorter than the clip: played at another speed, padded to a bucket
    video_BCTYX, *_ = training_input(alone, step.job, step.data, epoch, step.state.device)
    flops = flops_of_step(step.state.network, lambda network: step.batch_loss_B(network, alone, epoch).sum())
    return flops / video_BCTYX.shape[2]


def _read(step: TrainingStep, stream: ShardStream) -> ClipBatch:
    """The first batch of the epoch that holds a clip."""
    plan = step.data.epoch(step.state.progress.epoch)
    return next(batch for batch in stream.batches(plan.batches) if batch.clip_ids)
