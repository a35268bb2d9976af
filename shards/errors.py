"""Every error a user may meet, drawn once. Each names its subject (clip, file, key) and the mend.

    PipelineError (ValueError)
    ├── ConfigError         params.yaml, --set, --config, a flag: exit code 2
    ├── CorpusError         the transcript tables are untrue: wrong header, doubled id, broken encoding
    ├── TableError          a Parquet table is missing, damaged or of another schema version; a language model too
    ├── ShardError          a tar shard or a sample in it is missing, damaged or refused
    ├── CheckpointError     a checkpoint is damaged, or of another model, vocabulary or plan
    ├── TrainingError       training cannot start or go on (no clips, non-finite loss)
    ├── Interrupted         SIGTERM or Ctrl-C; the position was saved
    ├── MachineError        the machine lacks something: a system library, memory, disk, the way to a bucket
    │   └── DiskError       a file cannot be written: the disk is full, or nobody may write there
    └── ClipRejected        one clip cannot be used; becomes a row of the ledger, never ends a run

Broken invariants of our own are `assert`s, not errors of this tree.
"""

from shards.enums import Reason


class PipelineError(ValueError):
    """Base of the tree. `str(error)` is one message a person can act on."""


class ConfigError(PipelineError):
    """A configuration value is wrong; the message names key, value and allowed range."""


class CorpusError(PipelineError):
    """The corpus tables themselves are untrue; the message names file and line."""


class TableError(PipelineError):
    """A Parquet table (or a language model's table of n-grams) is missing, damaged, or of another schema version."""


class ShardError(PipelineError):
    """A shard or a sample of it is missing, damaged or refused; names the shard and the clips it costs."""


class CheckpointError(PipelineError):
    """A checkpoint is damaged or does not fit; names the difference."""


class TrainingError(PipelineError):
    """Training cannot start or go on."""


class Interrupted(PipelineError):
    """SIGTERM or Ctrl-C came, and the position was saved; no fault, but the run is not finished."""


class MachineError(PipelineError):
    """The machine lacks something a stage needs, a way to its shards included; the message names what mends it."""


class DiskError(MachineError):
    """A file cannot be written; names it. Its cause is the OSError."""


class ClipRejected(PipelineError):
    """One clip cannot be used: a reason of the closed enum and a detail a person understands."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
