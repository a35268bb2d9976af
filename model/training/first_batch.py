"""What a batch tells that is tried before the first step: which number of threads is fastest, what a frame costs."""

import torch

from model.device import fastest_threads
from model.runs import logger
from model.training.batch_input import training_input
from model.training.epoch_figures import flops_of_step, peak_flops_per_s
from model.training.out_of_memory import part
from model.training.step import TrainingStep
from model.training.training_data import TrainingData
from model.training.training_state import TrainingState
from shards.cores import usable_cores
from shards.stream import ClipBatch, ShardStream


class FirstBatch:
    """A training step on the first batch that holds a clip, tried on a copy of the network."""

    def __init__(
        self, data: TrainingData, state: TrainingState, step: TrainingStep, stream: ShardStream
    ) -> None:
        self._data, self._state, self._step, self._stream = data, state, step, stream

    def choose_threads(self) -> None:
        """Sets torch's threads, on a CPU. Processes that share a machine share its cores, and nothing is tried."""
        state, ranks = self._state, self._data.ranks
        if state.device.type != "cpu":
            return
        if not state.threads and ranks.world_size > 1:
            state.threads = max(1, usable_cores() // ranks.local_size)
        if not state.threads and usable_cores() == 1:
            state.threads = 1
        if not state.threads:
            batch = self._read()
            logger.info("timing a training step with 1 and %d threads", usable_cores())
            state.threads, told = fastest_threads(
                state.network,
                lambda network: self._step.batch_loss_B(network, batch, state.progress.epoch).sum(),
            )
            logger.info(told)
        torch.set_num_threads(state.threads)

    def flops_a_frame(self) -> float:
        """Operations of forward and backward for a padded frame; 0 where what the device can do is unknown."""
        if peak_flops_per_s(self._state.device) is None:
            return 0.0
        return flops_a_frame(self._step, self._read(), self._state.progress.epoch)

    def _read(self) -> ClipBatch:
        plan = self._data.epoch(self._state.progress.epoch)
        return next(batch for batch in self._stream.batches(plan.batches) if batch.clip_ids)


def flops_a_frame(step: TrainingStep, batch: ClipBatch, epoch: int) -> float:
    """Operations of forward and backward for a frame that enters the network, tried on the batch's first clip."""
    alone = part(batch, 0, 1)  # which fits where the whole would not
    # longer or shorter than the clip: played at another speed, padded to a bucket
    video_BCTYX, *_ = training_input(alone, step.job, step.data, epoch, step.state.device)
    flops = flops_of_step(step.state.network, lambda network: step.batch_loss_B(network, alone, epoch).sum())
    return flops / video_BCTYX.shape[2]
