"""Chooses the run folder of a command: its own, or the folder of an unfinished run that it continues.

The first command names the run. A command with another number of processes continues it, and so does a command with
another batch size but the same global batch. `commands.json` in the run folder has the shapes: no checkpoint is read.
"""

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from model.runs import RunFolder, run_fingerprint
from model.training.training_data import TrainingData, TrainingJob
from shards.elastic_plan import PlanShape
from shards.errors import CheckpointError
from shards.files import sha256_of, write_json


class Commands(BaseModel):
    """The commands that have trained in a run folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: str
    """Fingerprint of everything but the shapes."""
    shapes: tuple[PlanShape, ...]
    """Number of processes, batch size and accumulation steps of each command, the first one first."""
    is_finished: bool = False

    @classmethod
    def read(cls, run: RunFolder) -> "Commands | None":
        """Returns the commands of a run; None if it has none, or if the file is damaged."""
        try:
            return cls.model_validate_json(run.commands.read_bytes())
        except (OSError, ValidationError):
            return None

    def includes(self, shape: PlanShape) -> bool:
        """Returns whether a command of this shape continues the run. A finished run is not continued in a new shape."""
        if self.is_finished:
            return shape in self.shapes
        return any(
            shape[1:] == other[1:] or shape.global_batch == other.global_batch for other in self.shapes
        )


def run_of(job: TrainingJob, data: TrainingData) -> RunFolder:
    """Returns the folder of the run that `job` starts or continues.

    It is the run of the same parameters and shape, if there is one; else the latest run of the same parameters whose
    `Commands.includes` accepts this shape; else a new run. With `job.resume`, no run of another shape is continued.
    Raises CheckpointError if train.init_from is missing.
    """
    own = RunFolder(job.runs, _fingerprint(job, data, data.shape))
    if job.resume or _has_checkpoint(own):
        return own
    parameters, found = parameters_of(job, data), []
    for path in job.runs.glob(f"*/{own.commands.name}"):
        run = RunFolder(job.runs, path.parent.name)
        commands = Commands.read(run)
        is_ours = commands and commands.parameters == parameters and commands.includes(data.shape)
        if is_ours and _has_checkpoint(run):
            found.append(run)
    return max(found, key=lambda run: run.commands.stat().st_mtime, default=own)


def parameters_of(job: TrainingJob, data: TrainingData) -> str:
    """Returns a fingerprint of all parameters and clips of a training, but not of its shape."""
    return _fingerprint(job, data, PlanShape(1, 1, 1))


def record_command(run: RunFolder, job: TrainingJob, data: TrainingData, is_finished: bool) -> None:
    """Adds this command to the commands of the run."""
    commands, parameters = Commands.read(run), parameters_of(job, data)
    shapes = commands.shapes if commands and commands.parameters == parameters else ()
    shapes = (*(shape for shape in shapes if shape != data.shape), data.shape)
    write_json(
        run.commands, Commands(parameters=parameters, shapes=shapes, is_finished=is_finished).model_dump()
    )


def _fingerprint(job: TrainingJob, data: TrainingData, shape: PlanShape) -> str:
    init_from = Path(job.train.init_from)
    if job.train.init_from and not init_from.is_file():
        raise CheckpointError(f"train.init_from: {init_from} is missing")
    init_hash = _sha256_of(init_from, init_from.stat().st_mtime_ns) if job.train.init_from else ""
    if job.train.self_training.is_on and job.teacher.lm_weight and job.lm.is_file():
        init_hash += _sha256_of(job.lm, job.lm.stat().st_mtime_ns)
    batches = {"batch_size": shape.batch_size, "accumulation_steps": shape.accumulation_steps}
    sections = job.deciding_sections | {"train": job.train.model_copy(update=batches)}
    return run_fingerprint(
        sections=tuple(sections.values()),
        plan_hash=data.plan_identity.in_shape(shape.batch_size, shape.world_size).hash,
        valid_hash=data.valid_hash,
        init_hash=init_hash,
    )


@cache
def _sha256_of(path: Path, _mtime_ns: int) -> str:
    """Returns the hash of a large file, which is needed several times."""
    return sha256_of(path)


def _has_checkpoint(run: RunFolder) -> bool:
    return run.last.exists() or run.before_last.exists()
