"""What training says in its log before it begins, and before an epoch.

A run that starts afresh may be a mistake: another one of the same folder may wait to be gone on with.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from model.checkpoint_errors import reported_as_modified
from model.checkpoints import plan_identity_of, refuse_other_model
from model.device import Precision
from model.networks.network import num_parameters
from model.progress import Progress
from model.runs import RunFolder, logger
from model.settings import DecodeParams, ModelParams, TextParams, TrainParams
from model.training.job import TrainingJob
from model.training.last_checkpoint import newest_intact
from model.training.ranks import Ranks
from model.training.training_data import TrainingData
from model.training.training_state import TrainingState, other_params, run_of
from shards.enums import VALID_SPLIT
from shards.errors import CheckpointError, PipelineError
from shards.plan import EpochPlan, length_limit
from shards.plan_identity import PlanIdentity
from shards.settings import LoaderParams


def log_start(
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
    elif (unfinished := unfinished_run_message(run, job, data)) is not None:
        logger.info(unfinished)


def log_left_out(plan: EpochPlan, samples: pa.Table, params: LoaderParams, epoch: int) -> None:
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


def unfinished_run_message(run: RunFolder, job: TrainingJob, data: TrainingData) -> str | None:
    """A line about the latest unfinished run beside `run`: what differs, how to go on with it. None: there is none.

    A command stands there only where it works: it is tried, as far as the first step, with today's tables.
    """
    folders = {path.parent for path in job.runs.glob("*/*last.pt")} - {run.folder}
    for folder in sorted(folders, key=_written, reverse=True):
        try:
            found = newest_intact(RunFolder(job.runs, folder.name), mapped=True)
            assert found is not None, "one of the two was there"
            state, last, _ = found
            there = plan_identity_of(state, last)
            theirs = TrainParams.model_validate(state["train_params"])
            with reported_as_modified(last):
                progress = Progress.of(state["progress"])
                told = other_params(job, state, job.deciding_sections)
        except (CheckpointError, ValidationError):
            continue  # of another version, or altered: nothing goes on from it
        if not progress.is_over(theirs):
            told += data.plan_identity.differences(there)
            if state["valid_hash"] != data.valid_hash:
                told.append("other valid clips")
            try:
                go_on = (
                    f"to go on with that one: {_command(last, job, state, progress.epoch, there, data.ranks)}"
                )
            except (PipelineError, ValidationError) as error:
                go_on = f"it cannot be gone on with: {' '.join(str(error).split())}"
            return (
                f"a fresh run starts, though {last.parent} stands unfinished in epoch {progress.epoch} of "
                f"{theirs.num_epochs} "
                f"({'; '.join(told) or 'by another version of the program'}); {go_on}"
            )
    return None


def _written(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.glob("*last.pt"))


def _command(
    last: Path, job: TrainingJob, state: dict[str, Any], epoch: int, there: PlanIdentity, ranks: Ranks
) -> str:
    """Goes on from `last` by its own parameters; raises what that would raise before its first step."""
    loader = there.loader | {"max_bad_fraction": job.loader.max_bad_fraction}
    theirs = replace(
        job,
        text=TextParams.model_validate(state["text_params"]),
        model=ModelParams.model_validate(state["model_params"]),
        train=TrainParams.model_validate(state["train_params"]),
        decode=DecodeParams.model_validate(state["decode_params"]),
        loader=LoaderParams.model_validate(loader),
    )
    data = TrainingData(theirs, ranks)
    data.epoch(epoch)
    command = f"pipeline train --params {shlex.quote(str(last.parent / 'config.yaml'))}"
    if run_of(theirs, data).folder == last.parent:
        return command
    refuse_other_model(state, data.model, data.vocabulary, theirs.train.heads, data.clips, last)
    command += f" --resume {shlex.quote(str(last))}"
    return f"{command} --accept-new-plan" if data.plan_identity.differences(there) else command
