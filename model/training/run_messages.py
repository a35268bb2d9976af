"""Log messages at the start of a training and of an epoch.

A new run may be a mistake: a folder next to it may hold an unfinished run that could be resumed.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from model.checkpoints import plan_identity_of, refuse_other_model, reported_as_modified
from model.device import Precision
from model.networks.network import num_parameters
from model.progress import Progress
from model.runs import RunFolder, logger
from model.settings import DecodeParams, ModelParams, TextParams, TrainParams
from model.text import UNKNOWN_ID
from model.training.last_checkpoint import newest_intact
from model.training.ranks import Ranks
from model.training.run_choice import Commands, run_of
from model.training.training_data import TrainingData, TrainingJob
from model.training.training_state import TrainingState, other_params
from shards.blend import groups_of
from shards.elastic_plan import ElasticPlan, PlanShape
from shards.enums import VALID_SPLIT
from shards.errors import CheckpointError, PipelineError
from shards.packs import Packs
from shards.plan import length_limit
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
    """Logs data, network, device and starting point. For a new run, also logs an unfinished run, if there is one."""
    logger.info("Train samples: %d", data.samples.num_rows)
    logger.info("Val samples: %d", data.valid_samples.num_rows)
    _log_packs(job, data)
    if not data.valid_samples.num_rows:
        logger.warning(
            "no clips in split %s: no CER is reported, and the last model becomes the best", VALID_SPLIT
        )
    _log_vocabulary(data)
    logger.info("Total parameters: %s", f"{num_parameters(state.network):,}")
    logger.info("Device: %s, %s", state.device, precision.name)
    if data.model.standardise == "shards":
        mean, deviation = data.model.input_mean, data.model.input_std
        logger.info("Gray levels of the training shards: mean %.4f, standard deviation %.4f", mean, deviation)
    if "tensorboard" in job.machine.trackers:
        logger.info("Watch the training: tensorboard --logdir %s", run.folder.parent)
    if resumed_from:
        progress = state.progress
        logger.info(
            "Resuming from %s: epoch %d, batch %d", resumed_from, progress.epoch, progress.batches_done
        )
        commands = Commands.read(run)
        if not job.resume and commands and data.shape not in commands.shapes:
            logger.info(
                "%s is an unfinished run of %s with otherwise equal parameters, so this command continues it; to start "
                "a new run instead, set another paths.runs or train.seed",
                run.folder,
                commands.shapes[-1],
            )
    elif (unfinished := unfinished_run_message(run, job, data)) is not None:
        logger.info(unfinished)


def _log_vocabulary(data: TrainingData) -> None:
    """Logs the size of each table that a head uses, and how much of the valid texts the model cannot write."""
    table, syllables = data.vocabulary.characters, data.vocabulary.syllables
    if syllables is not None:
        logger.info("Vocabulary size: %d (%s)", syllables.num_tokens, syllables.splitting)
    logger.info("Vocabulary size: %d (%s)", table.num_tokens, table.splitting)
    units = [table.encode(label) for label in data.valid_samples["label"].to_pylist()]
    num_units, num_unknown = sum(map(len, units)), sum(ids.count(UNKNOWN_ID) for ids in units)
    if num_unknown:
        logger.info(
            "%d of %d %s of the valid texts are not in the vocabulary: each is an error",
            num_unknown,
            num_units,
            table.splitting.plural,
        )


def _log_packs(job: TrainingJob, data: TrainingData) -> None:
    """Logs what train.where leaves out, and the share of each pack in an epoch."""
    for name, (num_left_out, num_clips) in job.packs.left_out.items():
        logger.info(
            "train.where leaves out %d of %d clips%s",
            num_left_out,
            num_clips,
            f" of pack {name}" if name else "",
        )
    num_frames_N = data.samples["num_frames"].to_numpy()
    kept_N = num_frames_N <= (job.loader.max_frames or num_frames_N.max())
    groups = groups_of(
        data.samples, kept_N, job.loader, job.packs.weights, job.loader.curriculum_epochs, data.usable_N
    )
    if len(groups) < 2 and not job.loader.epoch_clips:
        return
    for group in groups:
        logger.info(
            "An epoch visits %d %sclips%s (%.1f %%), which has %d",
            group.num_visits,
            "" if group.is_labelled else "unlabelled ",
            f" of pack {group.name}" if group.name else "",
            100 * group.num_visits / sum(one.num_visits for one in groups),
            len(group.row_N),
        )


def log_other_shape(plan: ElasticPlan, ours: PlanShape, theirs: PlanShape, progress: Progress) -> None:
    """Logs whether this run keeps the checkpoint's epoch plan, which has the shape `theirs`, or makes a new plan."""
    num_done = plan.windows[0].clips_before if plan.windows else plan.num_clips
    if progress.plan_shape == theirs:
        num_done += sum(w.num_clips for w in plan.windows if w.stop_step <= progress.batches_done)
        what = "its plan is kept, and these processes share the batches of each step"
    else:
        what = "each is read once, and later epochs are planned for this run"
    logger.info(
        "the checkpoint's epoch plan is for %s, this run has %s: %d of %d clips of epoch %d are left; %s",
        theirs,
        ours,
        plan.num_clips - num_done,
        plan.num_clips,
        progress.epoch,
        what,
    )


def log_left_out(plan: ElasticPlan, samples: pa.Table, params: LoaderParams, epoch: int) -> None:
    """Logs how many clips the epoch plan leaves out, and why; nothing if it uses all."""
    num_frames_N = samples["num_frames"].to_numpy()
    limit = length_limit(params, epoch, int(num_frames_N.max(initial=0)))
    num_long = int(np.count_nonzero(num_frames_N[plan.left_out] > limit))
    if num_long:
        logger.info(
            "epoch %d: %d clips are left out because they are longer than this epoch's limit of %d frames "
            "(loader.max_frames, loader.curriculum_epochs)",
            epoch,
            num_long,
            limit,
        )
    if num_even := len(plan.left_out) - num_long:
        logger.info(
            "epoch %d: %d clips are left out so that all ranks have the same number of clips", epoch, num_even
        )


def unfinished_run_message(run: RunFolder, job: TrainingJob, data: TrainingData) -> str | None:
    """Returns a message about the latest unfinished run next to `run`, its differences, and how to resume it.

    None if there is none. The message contains a command only if the command works: it is checked, up to the first
    step, with the current tables.
    """
    folders = {path.parent for path in job.runs.glob("*/*last.pt")} - {run.folder}
    for folder in sorted(folders, key=_written, reverse=True):
        try:
            found = newest_intact(RunFolder(job.runs, folder.name), mapped=True)
            assert found is not None, "last.pt or before_last.pt exists"
            state, last, _ = found
            there = plan_identity_of(state, last)
            theirs = TrainParams.model_validate(state["train_params"])
            with reported_as_modified(last):
                progress = Progress.of(state["progress"])
                changes = other_params(job, state, job.deciding_sections)
        except (CheckpointError, ValidationError):
            continue  # of another version, or modified: it cannot be resumed
        if not progress.is_over(theirs):
            ours = data.plan_identity.in_shape(there.batch_size, data.ranks.world_size)
            changes += ours.differences(there)
            if state["valid_hash"] != data.valid_hash:
                changes.append("other valid clips")
            try:
                command = _command(last, job, state, progress.epoch, there, data.ranks)
                how_to_resume = f"to resume that run: {command}"
            except (PipelineError, ValidationError) as error:
                how_to_resume = f"that run cannot be resumed: {' '.join(str(error).split())}"
            return (
                f"starting a new run, but {last.parent} is unfinished, in epoch {progress.epoch} of "
                f"{theirs.num_epochs} ({'; '.join(changes) or 'by another version of the program'}); {how_to_resume}"
            )
    return None


def _written(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.glob("*last.pt"))


def _command(
    last: Path, job: TrainingJob, state: dict[str, Any], epoch: int, there: PlanIdentity, ranks: Ranks
) -> str:
    """Returns the command that resumes `last` with its own parameters. Raises what it would raise before a step."""
    loader = there.loader | {"max_bad_fraction": job.loader.max_bad_fraction}
    theirs = replace(
        job,
        text=TextParams.model_validate(state["text_params"]),
        model=ModelParams.model_validate(state["model_params"]),
        train=TrainParams.model_validate(state["train_params"]),
        decode=DecodeParams.model_validate(state["decode_params"]),
        teacher=DecodeParams.model_validate(state.get("teacher_params", {})),
        loader=LoaderParams.model_validate(loader),
        packs=Packs(job.packs.packs, (there.blend or {}).get("where", "")),
    )
    data = TrainingData(theirs, ranks)
    data.epoch(epoch)
    own = data.plan_identity.in_shape(there.batch_size, there.world_size)
    command = f"pipeline train --params {shlex.quote(str(last.parent / 'config.yaml'))}"
    if run_of(theirs, data).folder == last.parent:
        return command
    refuse_other_model(state, data.model, data.vocabulary, theirs.train.heads, data.clips, last)
    command += f" --resume {shlex.quote(str(last))}"
    return f"{command} --accept-new-plan" if own.differences(there) else command
