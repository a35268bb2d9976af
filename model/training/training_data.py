"""The inputs and the result of a training: its job, and the clips of train and valid with their batches."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.decoding.registry import chosen_decoder, used_settings
from model.losses import refuse_unspellable
from model.networks.sound_head import SoundTokens
from model.settings import DecodeParams, ModelParams, TextParams, TrainParams
from model.text import describe_stored_normaliser
from model.training.pseudo_labels import PseudoLabels
from model.training.ranks import SINGLE_PROCESS, Ranks
from model.vocabulary import Vocabulary
from shards.blend import IS_LABELLED, packs_of
from shards.elastic_plan import ElasticPlan, PlanShape, Segment, plan_segments
from shards.enums import VALID_SPLIT
from shards.errors import ConfigError, ShardError, TrainingError
from shards.files import Shown, check_table, not_shown
from shards.open_shards import OpenShards
from shards.packs import Pack, Packs
from shards.plan import plan_scoring, shard_numbers
from shards.sample_reader import read_sample_of
from shards.samples import STREAM_COLUMNS, samples_hash
from shards.schema import SAMPLES
from shards.settings import LoaderParams, MachineParams, Section
from shards.stream import ClipBatch, ShardStream

OnBatch = Callable[[int, int, int, float], None]
"""Called with (epoch, batches done, batches of the epoch, mean loss per character so far)."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that one training needs."""

    packs: Packs
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
    teacher: DecodeParams = field(default_factory=DecodeParams)
    """How `train.self_training` reads the unlabelled clips."""
    lm: Path = Path("data/lm.arpa")
    """The language model of `teacher`, if it uses one."""
    resume: Path | None = None
    accept_new_plan: bool = False
    """Resume from `resume` even if it used another epoch plan than this run."""
    on_batch: OnBatch | None = None
    shown: Shown = not_shown
    """Shows the progress of other work than the steps."""

    @property
    def deciding_sections(self) -> dict[str, Section]:
        """The parameters that determine the weights and the best model, apart from those of the epoch plan."""
        train = self.train.model_copy(update={"data": (), "where": ""})
        sections = {"model": self.model, "text": self.text, "train": train, "decode": self.decode}
        return sections | ({"teacher": self.teacher} if train.self_training.is_on else {})


@dataclass(frozen=True)
class TrainingSummary:
    epochs: int
    best_epoch: int
    best_val_cer: float | None
    """None if nothing was validated."""
    num_parameters: int
    seconds: float
    already_done: bool


def teacher_of(train: TrainParams, decode: DecodeParams) -> DecodeParams:
    """Returns how train.self_training reads: of `decode` only what its decoder uses, so the rest changes no run.

    Raises ConfigError if the trained heads cannot write labels with that decoder.
    """
    if not train.self_training.is_on:
        return DecodeParams()
    try:
        params = decode.model_copy(update={"decoder": train.self_training.decoder})
        name = chosen_decoder(params, train.heads)
    except ConfigError as error:
        raise ConfigError(f"train.self_training.decoder: {error}") from error
    if name == "syllables":
        raise ConfigError(
            "train.self_training.decoder: syllables writes pinyin, which is no label; set it to pinyin and "
            "decode.lm_weight above 0, or learn characters (train.syllable_weight below 1)"
        )
    return DecodeParams(**used_settings(name, params, train.heads))


class TrainingData:
    """The samples of train and valid, and the batches of this rank.

    Raises TrainingError if `job` cannot be trained on them.
    """

    def __init__(self, job: TrainingJob, ranks: Ranks = SINGLE_PROCESS) -> None:
        self._job, self.ranks = job, ranks
        job.text.refuse_other_heads(job.train.heads)
        if job.train.self_training.is_on and not job.loader.unlabelled_share:
            raise ConfigError(
                "train.self_training labels the clips of split unlabelled, but loader.unlabelled_share is 0; set it to "
                "their share of an epoch, e.g. 0.5, or train.self_training.start_epoch to null"
            )
        _refuse_unlike_normalisers(job.packs)
        # other columns of the table would stay in memory during the whole training
        has_sound = job.train.audio_weight > 0
        columns = [*STREAM_COLUMNS, *(["audio_sha256"] if has_sound else [])]
        self.samples = job.packs.read_training(columns, job.loader)
        if has_sound and self.samples["audio_sha256"].null_count == len(self.samples):
            raise TrainingError(
                f"train.audio_weight is {job.train.audio_weight:g}, but no training clip has sound in its pack; set "
                "pack.audio to true and run `pipeline pack`, or set train.audio_weight to 0"
            )
        has_valid = VALID_SPLIT in job.packs.splits
        self.valid_samples = job.packs.read(VALID_SPLIT) if has_valid else SAMPLES.empty_table()
        """Empty if no valid clips are packed."""
        _refuse_confidence(self.samples)
        self.fps, self.crop_HW = self._clip_properties()
        if job.model.window_px > self.crop_px:
            raise TrainingError(
                f"model.window_px {job.model.window_px} is larger than the packed crops ({self.crop_px} px); lower it"
            )
        labelled = self.samples.filter(pa.array(self.is_labelled_N))
        labels = labelled["label"].chunks
        self.vocabulary = Vocabulary.of_labels(
            (label for chunk in labels for label in chunk.to_pylist()),
            "syllables" in job.train.heads,
            job.text,
        )
        self.has_ctc = bool({"ctc", "syllables"} & set(job.train.heads))
        if self.has_ctc:
            for table in (labelled, self.valid_samples):
                refuse_unspellable(table, self.vocabulary, job.model.temporal_stride)
        self.model = job.model
        """The trainer sets its pixel statistics (model/training/pixel_statistics.py)."""
        self.pseudo_labels: PseudoLabels | None = None
        """Set at the start of an epoch (model/training/self_training.py)."""
        self.sound_tokens: SoundTokens | None = None
        """The trainer sets them if train.audio_weight is above 0 (model/training/sound_tokens.py)."""
        self.plan_identity = job.packs.plan_identity(job.loader, job.train.batch_size, ranks.world_size)
        if job.train.self_training.is_on:  # see usable_N
            blend = {**(self.plan_identity.blend or {}), "self_training": True}
            self.plan_identity = replace(self.plan_identity, blend=blend)
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

    @cached_property
    def valid_hash(self) -> str:
        """Hash of the valid clips, which choose the best model."""
        return samples_hash(self.valid_samples)

    @cached_property
    def is_labelled_N(self) -> np.ndarray:
        """False for clips of split unlabelled, whose labels are hidden."""
        if IS_LABELLED.name not in self.samples.column_names:
            return np.ones(self.samples.num_rows, bool)
        return self.samples[IS_LABELLED.name].to_numpy()

    @property
    def usable_N(self) -> np.ndarray | None:
        """Whether an epoch may visit each clip; None: all. With self-training, clips that have some label or sound."""
        if not self._job.train.self_training.is_on:
            return None
        usable_N = self.is_labelled_N.copy()
        if self.pseudo_labels is not None:
            usable_N[list(self.pseudo_labels.texts)] = True
        if self._job.train.audio_weight > 0:
            usable_N |= self.samples["audio_sha256"].is_valid().to_numpy()
        return usable_N

    @cached_property
    def _weight_N(self) -> np.ndarray | None:
        """Weight of each clip's label in the loss; None if all count fully."""
        column = self.samples["confidence"]
        if column.null_count == len(column) and self.is_labelled_N.all():
            return None
        return np.where(self.is_labelled_N, column.fill_null(1.0).to_numpy(), np.float32(0))

    def labels_of(self, batch: ClipBatch) -> tuple[tuple[str, ...], np.ndarray]:
        """Returns the labels that the clips are trained on, and the weight of each label in the loss (B,).

        A clip of weight 0, such as an unlabelled one, has the label "".
        """
        if self._weight_N is None:
            return batch.labels, np.ones(len(batch.labels), np.float32)
        row_B = np.array(batch.rows) % len(self._weight_N)
        weight_B = self._weight_N[row_B]
        labels = [label if weight else "" for label, weight in zip(batch.labels, weight_B, strict=True)]
        if self.pseudo_labels is not None:
            for clip, row in enumerate(row_B.tolist()):
                # a negative row is a black clip (model/training/step.py)
                if row in self.pseudo_labels.texts and batch.rows[clip] >= 0:
                    labels[clip], weight_B[clip] = (
                        self.pseudo_labels.texts[row],
                        self.pseudo_labels.weights[row],
                    )
        return tuple(labels), weight_B

    def num_chars(self, batch: ClipBatch) -> float:
        """Returns the characters of the labels, each label with its weight."""
        labels, weight_B = self.labels_of(batch)
        return float(np.dot(weight_B, [len(label) for label in labels]))

    @property
    def shape(self) -> PlanShape:
        """The shape of a plan for these processes and parameters."""
        train = self._job.train
        return PlanShape(self.ranks.world_size, train.batch_size, train.accumulation_steps)

    def epoch(self, number: int, shape: PlanShape | None = None, done: Sequence[Segment] = ()) -> ElasticPlan:
        """Returns this process's part of an epoch, whose plan has another shape if the run started with another."""
        job, ranks = self._job, self.ranks
        return plan_segments(
            self.samples,
            job.loader,
            number,
            shape or self.shape,
            done,
            ranks.world_size,
            ranks.rank,
            job.train.batch_size,
            job.packs.weights,
            self.usable_N,
        )

    def streams(self, pin_memory: bool) -> tuple[ShardStream, ShardStream]:
        """Returns the streams of train and valid. Train skips bad samples if max_bad_fraction > 0, valid never."""
        job = self._job
        quarantine = job.loader.max_bad_fraction > 0
        return (
            ShardStream(
                *(job.packs.store, self.samples, job.machine, pin_memory, quarantine, self.crop_HW),
                audio=job.train.audio_weight > 0,
            ),
            ShardStream(job.packs.store, self.valid_samples, job.machine, pin_memory, False, self.crop_HW),
        )

    def _clip_properties(self) -> tuple[float, tuple[int, int]]:
        """Returns frame rate and frame size. Raises TrainingError if they differ between packs."""
        (names, pack_N), shard_N = packs_of(self.samples), shard_numbers(self.samples)
        found: dict[str, tuple[float, tuple[int, int]]] = {}
        for number, name in enumerate(names):
            row_N = np.flatnonzero(pack_N == number)
            clip_THW, metadata = self._first_sample(row_N[_shards_first(shard_N[row_N])])
            found[name] = (float(str(metadata["fps"])), (clip_THW.shape[1], clip_THW.shape[2]))
        (first, properties), *others = found.items()
        for name, other in others:
            if other != properties:
                raise TrainingError(
                    f"pack {name} has clips of {_shown(other)}, pack {first} of {_shown(properties)}; crop and pack "
                    "them with the same crop.target_fps and crop.size_px"
                )
        return properties

    def _first_sample(self, row_N: np.ndarray) -> tuple[np.ndarray, dict[str, object]]:
        """Returns the first clip of these rows and its metadata.

        If bad samples are allowed, returns the first good sample: tries at most one more than may be bad.
        """
        num_allowed = int(self._job.loader.max_bad_fraction * len(row_N))
        shards = OpenShards(self._job.packs.store)
        tried = row_N[: num_allowed + 1].tolist()
        for row in tried:
            try:
                return read_sample_of(shards, self.samples.slice(row, 1).to_pylist()[0])
            except ShardError:
                if row == tried[-1]:
                    raise
        raise AssertionError("a split has samples")


def _shown(properties: tuple[float, tuple[int, int]]) -> str:
    fps, (height, width) = properties
    return f"{height}x{width} px at {fps:g} frames/s"


def _refuse_confidence(samples: pa.Table) -> None:
    """Raises TrainingError if a confidence is not within 0..1, or if no label counts."""
    confidence_N = samples["confidence"].fill_null(1.0).to_numpy()
    wrong_N = np.flatnonzero(~((confidence_N >= 0) & (confidence_N <= 1)))  # also NaN
    if len(wrong_N):
        clip_id = samples["clip_id"][int(wrong_N[0])].as_py()
        raise TrainingError(
            f"clip {clip_id}: confidence must be between 0 and 1 (got {confidence_N[wrong_N[0]]:g}; clips with such "
            f"values: {len(wrong_N)}); correct the corpus table, then run `pipeline ingest` and `pipeline pack`"
        )
    if not confidence_N.any():
        raise TrainingError(
            "every training clip has confidence 0, so no label would be learnt; raise some, or leave them out"
        )


def _refuse_unlike_normalisers(packs: Packs) -> None:
    """Raises TrainingError if the labels of the packs were normalised in different ways."""
    if not packs.is_blend:
        return
    first, *others = packs.packs
    normaliser = _normaliser_of(first)
    for pack in others:
        if (other := _normaliser_of(pack)) != normaliser:
            raise TrainingError(
                f"the labels of pack {pack.name} and pack {first.name} are normalised differently ({other}; "
                f"{normaliser}); run ingest and pack of both with the same section text of params.yaml"
            )


def _normaliser_of(pack: Pack) -> str | None:
    check_table(pack.samples, SAMPLES, "pipeline pack")
    return describe_stored_normaliser(pq.read_schema(pack.samples).metadata, pack.samples)


def _shards_first(shard_N: np.ndarray) -> np.ndarray:
    """Returns the numbers of all rows: the first of each shard, then the others, both in the order of the table."""
    firsts = np.sort(np.unique(shard_N, return_index=True)[1])
    return np.concatenate([firsts, np.delete(np.arange(len(shard_N)), firsts)])
