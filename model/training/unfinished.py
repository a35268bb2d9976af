"""A run that starts afresh may be a mistake: another one of the same folder may wait to be gone on with."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.altered import altered_told
from model.checkpoints import plan_identity_of, refuse_other_model
from model.progress import Progress
from model.runs import RunFolder
from model.settings import DecodeParams, ModelParams, TextParams, TrainParams
from model.training.job import TrainingJob
from model.training.last_checkpoint import newest_whole
from model.training.ranks import Ranks
from model.training.training_data import TrainingData
from model.training.training_state import other_params, run_of
from shards.errors import CheckpointError, PipelineError
from shards.identity import PlanIdentity
from shards.settings import LoaderParams


def told_unfinished(run: RunFolder, job: TrainingJob, data: TrainingData) -> str | None:
    """A line about the latest unfinished run beside `run`: what differs, how to go on with it. None: there is none.

    A command stands there only where it works: it is tried, as far as the first step, with today's tables.
    """
    folders = {path.parent for path in job.runs.glob("*/*last.pt")} - {run.folder}
    for folder in sorted(folders, key=_written, reverse=True):
        try:
            found = newest_whole(RunFolder(job.runs, folder.name), mapped=True)
            assert found is not None, "one of the two was there"
            state, last, _ = found
            there = plan_identity_of(state, last)
            theirs = TrainParams.model_validate(state["train_params"])
            with altered_told(last):
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
