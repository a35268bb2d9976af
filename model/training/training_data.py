"""The inputs and the result of a training: its job, and the clips of train and valid with their batches."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from model.losses import refuse_unspellable
from model.settings import DecodeParams, ModelParams, TextParams, TrainParams
from model.training.ranks import SINGLE_PROCESS, Ranks
from model.vocabulary import Vocabulary
from shards.enums import TRAIN_SPLIT, VALID_SPLIT
from shards.errors import ShardError, TrainingError
from shards.open_shards import OpenShards
from shards.plan import EpochPlan, plan_epoch, plan_identity, plan_scoring
from shards.sample_reader import read_sample_of
from shards.samples import STREAM_COLUMNS, read_samples, sample_pieces, samples_hash, splits_of
from shards.schema import SAMPLES
from shards.settings import LoaderParams, MachineParams, Section
from shards.store import ShardStore
from shards.stream import ShardStream

OnBatch = Callable[[int, int, int, float], None]
"""Called with (epoch, batches done, batches of the epoch, mean loss per character so far)."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that one training needs."""

    samples: Path
    shards: ShardStore
    runs: Path
    checkpoints: Path
    logs: Path
    text: TextParams
    model: ModelParams
    train: TrainParams
    loader: LoaderParams
    decode: DecodeParams
    machine: MachineParams
    config_text: str
    """The effective configuration, saved next to the weights."""
    resume: Path | None = None
    accept_new_plan: bool = False
    """Resume from `resume` even if it used another epoch plan than this run."""
    on_batch: OnBatch | None = None

    @property
    def deciding_sections(self) -> dict[str, Section]:
        """The parameters, apart from those of the epoch plan, that determine the weights and the best model."""
        return {"model": self.model, "text": self.text, "train": self.train, "decode": self.decode}


@dataclass(frozen=True)
class TrainingSummary:
    epochs: int
    best_epoch: int
    best_val_cer: float | None
    """None if nothing was validated."""
    num_parameters: int
    seconds: float
    already_done: bool


class TrainingData:
    """The samples of train and valid, and the batches of this rank.

    Raises TrainingError if `job` cannot be trained on them.
    """

    def __init__(self, job: TrainingJob, ranks: Ranks = SINGLE_PROCESS) -> None:
        self._job, self.ranks = job, ranks
        # other columns of the table would stay in memory during the whole training
        self.samples = read_samples(job.samples, TRAIN_SPLIT, STREAM_COLUMNS)
        has_valid = VALID_SPLIT in splits_of(job.samples)
        self.valid_samples = read_samples(job.samples, VALID_SPLIT) if has_valid else SAMPLES.empty_table()
        """Empty if no valid clips are packed."""
        first_THW, metadata = self._first_sample()
        self.fps = float(str(metadata["fps"]))
        self.crop_HW: tuple[int, int] = first_THW.shape[1:]
        if job.model.window_px > self.crop_px:
            raise TrainingError(
                f"model.window_px {job.model.window_px} is larger than the packed crops ({self.crop_px} px); lower it"
            )
        labels = self.samples["label"].chunks
        self.vocabulary = Vocabulary.of_labels(
            (label for chunk in labels for label in chunk.to_pylist()), "syllables" in job.train.heads
        )
        if {"ctc", "syllables"} & set(job.train.heads):
            for table in (self.samples, self.valid_samples):
                refuse_unspellable(table, self.vocabulary, job.model.temporal_stride)
        self.model = job.model
        """The trainer sets its pixel statistics (model/training/pixel_statistics.py)."""
        self.plan_identity = plan_identity(
            sample_pieces(job.samples, TRAIN_SPLIT), job.loader, job.train.batch_size, ranks.world_size
        )
        self.valid_batches = plan_scoring(self.valid_samples, job.loader, job.train.batch_size)
        """Batches of all ranks."""

    def without_tables(self, job: TrainingJob) -> "TrainingData":
        """Returns a copy for a process that reads no clips, with a `job` that may have no shards."""
        bare = copy.copy(self)
        bare._job = job
        bare.samples, bare.valid_samples = (
            table.schema.empty_table() for table in (self.samples, self.valid_samples)
        )
        bare.valid_batches = ()
        return bare

    @property
    def crop_px(self) -> int:
        return self.crop_HW[0]

    @property
    def clips(self) -> dict[str, float]:
        """Properties of the clips that a checkpoint stores."""
        return {"fps": self.fps, "crop_px": self.crop_px}

    @property
    def valid_hash(self) -> str:
        """Hash of the valid clips, which choose the best model."""
        return samples_hash(self.valid_samples)

    def epoch(self, number: int) -> EpochPlan:
        job, ranks = self._job, self.ranks
        return plan_epoch(
            self.samples, job.loader, job.train.batch_size, number, ranks.world_size, ranks.rank
        )

    def num_clips(self, plan: EpochPlan) -> int:
        """Returns the number of clips in all ranks' batches of an epoch."""
        return self.samples.num_rows - len(plan.left_out)

    def streams(self, pin_memory: bool) -> tuple[ShardStream, ShardStream]:
        """Returns the streams of train and valid. Train skips bad samples if max_bad_fraction > 0, valid never."""
        job = self._job
        quarantine = job.loader.max_bad_fraction > 0
        return (
            ShardStream(job.shards, self.samples, job.machine, pin_memory, quarantine, self.crop_HW),
            ShardStream(job.shards, self.valid_samples, job.machine, pin_memory, False, self.crop_HW),
        )

    def _first_sample(self) -> tuple[np.ndarray, dict[str, object]]:
        """Returns the first clip and its metadata.

        If bad samples are allowed, returns the first good sample: tries the first sample of each shard, then the
        others, at most one more than may be bad.
        """
        num_allowed = int(self._job.loader.max_bad_fraction * len(self.samples))
        shards = OpenShards(self._job.shards)
        rows_N = _shards_first(self.samples)[: num_allowed + 1]
        for row in rows_N.tolist():
            try:
                return read_sample_of(shards, self.samples.slice(row, 1).to_pylist()[0])
            except ShardError:
                if row == rows_N[-1]:
                    raise
        raise AssertionError("a split has samples")


def _shards_first(samples: pa.Table) -> np.ndarray:
    """Returns all row numbers: the first of each shard, then the others, both in the order of the table."""
    shards = samples["shard"].combine_chunks().dictionary_encode().indices.to_numpy()
    firsts = np.sort(np.unique(shards, return_index=True)[1])
    return np.concatenate([firsts, np.delete(np.arange(len(samples)), firsts)])
