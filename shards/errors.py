"""All errors that a user may see. Each names its subject (clip, file, key) and the fix.

    PipelineError (ValueError)
    ├── ConfigError         params.yaml, --set, --config, a flag: exit code 2
    ├── CorpusError         the transcript tables are wrong: header, duplicate id, broken encoding
    ├── TableError          a Parquet table is missing, damaged or has another schema version; a language model too
    ├── ShardError          a tar shard or a sample in it is missing, damaged or refused
    ├── CheckpointError     a checkpoint is damaged, or has another model, vocabulary or epoch plan
    ├── TrainingError       training cannot start or continue (no clips, non-finite loss)
    ├── Interrupted         SIGTERM or Ctrl-C; the state was saved
    ├── MachineError        the machine lacks something: a system library, memory, disk, access to a bucket
    │   └── DiskError       a file cannot be written: the disk is full, or the user has no permission
    └── ClipRejected        one clip cannot be used; it becomes a row of crops.parquet and never ends a run

Broken invariants of our own code are `assert`s, not errors of this tree.
"""

from shards.enums import Reason


class PipelineError(ValueError):
    """Base class. `str(error)` is one message that a user can act on."""


class ConfigError(PipelineError):
    """A configuration value is wrong; the message names key, value and allowed range."""


class CorpusError(PipelineError):
    """The corpus tables are wrong; the message names file and line."""


class TableError(PipelineError):
    """A Parquet table (or a language model's table of n-grams) is missing, damaged, or has another schema version."""


class ShardError(PipelineError):
    """A shard or a sample in it is missing, damaged or refused; the message names the shard and the lost clips."""


class CheckpointError(PipelineError):
    """A checkpoint is damaged or does not fit; the message names the difference."""


class TrainingError(PipelineError):
    """Training cannot start or continue."""


class Interrupted(PipelineError):
    """SIGTERM or Ctrl-C stopped the run after its state was saved; not a failure, but the run is not finished."""


class MachineError(PipelineError):
    """The machine lacks something that a stage needs, for example access to its shards; the message names the fix."""


class DiskError(MachineError):
    """A file cannot be written; the message names it. `__cause__` is the OSError."""


class ClipRejected(PipelineError):
    """One clip cannot be used: a reason of the closed enum and a readable detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
