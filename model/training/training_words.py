"""What training says in its log before it begins, and before an epoch."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from model.device import Precision
from model.networks.network import num_parameters
from model.runs import RunFolder, logger
from model.training.job import TrainingJob
from model.training.training_data import TrainingData
from model.training.training_state import TrainingState
from model.training.unfinished import told_unfinished
from shards.plan import EpochPlan, length_limit
from shards.settings import LoaderParams
from shards.terms import VALID_SPLIT


def tell_start(
    job: TrainingJob,
    data: TrainingData,
    state: TrainingState,
    run: RunFolder,
    precision: Precision,
    resumed_from: Path | None,
) -> None:
    """What is trained, on what, and from where; of a fresh start, whether another run waits to be gone on with."""
    logger.info("Train samples: %d", data.samples.num_rows)
    logger.info("Val samples: %d", data.valid_samples.num_rows)
    if not data.valid_samples.num_rows:
        logger.warning("no clips in split %s: no CER along the way, and the last model is taken", VALID_SPLIT)
    logger.info("Vocabulary size: %d", data.vocabulary.characters.num_tokens)
    logger.info("Total parameters: %s", f"{num_parameters(state.network):,}")
    logger.info("Device: %s, %s", state.device, precision.name)
    if data.model.standardise == "shards":
        mean, deviation = data.model.input_mean, data.model.input_std
        logger.info("Gray levels of the training shards: mean %.4f, deviation %.4f", mean, deviation)
    logger.info("To watch it: tensorboard --logdir %s", run.folder.parent)
    if resumed_from:
        progress = state.progress
        logger.info(
            "Going on from %s: epoch %d, batch %d", resumed_from, progress.epoch, progress.batches_done
        )
    elif (unfinished := told_unfinished(run, job, data)) is not None:
        logger.info(unfinished)


def tell_left_out(plan: EpochPlan, samples: pa.Table, params: LoaderParams, epoch: int) -> None:
    """How many clips take no part in the epoch, and why; nothing where all do."""
    num_frames_N = samples["num_frames"].to_numpy()
    limit = length_limit(params, epoch, int(num_frames_N.max(initial=0)))
    num_long = int(np.count_nonzero(num_frames_N[plan.left_out] > limit))
    if num_long:
        logger.info(
            "epoch %d: %d clips are left out, longer than this epoch's limit of %d frames (loader.max_frames, "
            "loader.curriculum_epochs)",
            epoch,
            num_long,
            limit,
        )
    if num_even := len(plan.left_out) - num_long:
        logger.info("epoch %d: %d clips are left out, to come out even over the ranks", epoch, num_even)
