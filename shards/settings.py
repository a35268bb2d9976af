"""Base class of all sections of params.yaml, and the sections of `shards`."""

import math
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """One section of params.yaml: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    LATER_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys that older hashes and tables do not have."""

    def recorded(self) -> dict[str, Any]:
        """Returns the values as JSON for hashes, tables and checkpoints, without later keys that have their default.

        So a new key does not change the fingerprints of older runs or the bytes of older tables.
        """
        fields = type(self).model_fields
        unset = {key for key in self.LATER_KEYS if getattr(self, key) == fields[key].default}
        return self.model_dump(mode="json", exclude=unset)

    @field_validator("*")
    @classmethod
    def _refuse_unusable(cls, value: Any) -> Any:
        """Refuses values that no file name, table or random generator can use, for every key."""
        if isinstance(value, str):
            if "\0" in value:
                raise ValueError("it contains a NUL character, which names and tables cannot contain")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("it is not valid Unicode text") from None
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("it does not fit 64 bits")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("it is not finite")
        elif isinstance(value, list | tuple):
            for item in value:
                cls._refuse_unusable(item)
        return value


class PackParams(Section):
    """How `pack` writes mouth clips to tar shards."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset(("audio",))

    codec: Literal["raw", "jpeg", "h264", "ffv1"] = Field(
        "raw", description="codec of stored mouth clips: raw (.npy), jpeg (.jpg), h264 (.mp4), ffv1 (.mkv)"
    )
    jpeg_quality: int = Field(90, ge=50, le=100, description="quality of codec jpeg")
    h264_crf: int = Field(18, ge=1, le=40, description="constant rate factor of codec h264; lower is better")
    audio: bool = Field(
        False, description="also pack the sound of each clip, as log-mel vectors in step with its frames"
    )
    shard_mb: float = Field(256, gt=0, le=65_536, description="size after which a shard is closed, MB")
    seed: int = Field(0, ge=0, description="seed for the order of samples in a split")


class LoaderParams(Section):
    """Order and composition of batches: part of the hash of the epoch plan, except `max_bad_fraction`."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset(
        ("mix", "epoch_clips", "temperature", "unlabelled_share")
    )

    seed: int = Field(0, ge=0, description="seed for the order of epochs and for augmentation")
    frame_budget: int = Field(8_000, gt=0, description="maximum number of padded frames in a batch")
    max_frames: int = Field(0, ge=0, description="training skips and counts longer clips; 0: no limit")
    curriculum_epochs: int = Field(
        0, ge=0, description="epochs until the length limit reaches max_frames; 0: no curriculum"
    )
    curriculum_frames: int = Field(100, gt=0, description="length limit in the first of these epochs, frames")
    window_shards: int = Field(
        16, gt=0, description="number of shards that are shuffled together, for each rank"
    )
    mix: Literal["batch", "epoch"] = Field(
        "batch",
        description="several packs: batch mixes them in a batch, epoch gives each batch one pack's clips",
    )
    epoch_clips: int = Field(
        0,
        ge=0,
        description="clips of an epoch; 0: every clip of the largest pack once, of the others by their shares",
    )
    temperature: float = Field(
        1.0,
        ge=1,
        le=100,
        description="packs without weights: a pack's share is its clips ** (1 / temperature); 1: by size",
    )
    unlabelled_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of an epoch's clips that have no label (split unlabelled); 0: none are read",
    )
    max_bad_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of clips of an epoch that may be damaged; they are skipped and counted; 0: none",
    )


class DataPack(Section):
    """One pack of `train.data`."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,40}$", description="name of the corpus in messages and reports"
    )
    samples: str = Field(min_length=1, description="samples.parquet of the pack")
    shards: str = Field(min_length=1, description="folder or URL of its shards")
    clips: str = Field("", description="its clips.parquet, for train.where and the report")
    crops: str = Field("", description="its crops.parquet, for train.where and the report")
    audit: str = Field("", description="its audit.parquet (pipeline audit), for train.where")
    sound: str = Field("", description="its sound.parquet (pipeline sync), for train.where")
    weight: float = Field(
        0, ge=0, description="share of an epoch relative to the other packs; 0 for all: by size"
    )
    train: tuple[str, ...] = Field(("train",), description="splits of the pack to train on; empty: none")
    valid: tuple[str, ...] = Field(("valid",), description="splits to validate on")
    test: tuple[str, ...] = Field(("test",), description="splits to report")
    unlabelled: tuple[str, ...] = Field(
        ("unlabelled",), description="splits without labels, for loader.unlabelled_share"
    )

    @model_validator(mode="after")
    def _splits_have_one_use(self) -> "DataPack":
        named = [*self.train, *self.valid, *self.test, *self.unlabelled]
        if twice := sorted({split for split in named if named.count(split) > 1}):
            raise ValueError(
                f"split {twice[0]} has two of the uses train, valid, test and unlabelled; name it once"
            )
        return self

    @field_validator("samples", "clips", "crops", "audit", "sound")
    @classmethod
    def _is_local(cls, path: str) -> str:
        if "://" in path:
            raise ValueError(f"{path} must be a local file; only shards may be a URL")
        return path


class MachineParams(Section):
    """Values that may differ between machines; they change results by rounding at most."""

    workers: int = Field(
        0, ge=0, description="number of processes of crop and threads of pack; 0: one for each core"
    )
    executor: Literal["local", "ray"] = Field(
        "local", description="where clips are processed: on this machine or on a Ray cluster"
    )
    ray_address: str = Field(
        "", description="address of the Ray cluster, auto or host:port; empty: start one on this machine"
    )
    num_workers: int = Field(2, ge=0, description="number of loader threads; 0: load in the main thread")
    prefetch: int = Field(4, gt=0, description="batches that each loader thread loads ahead")
    shard_cache_gb: float = Field(
        50.0, gt=0, description="disk space for shards of a remote paths.shards, GB"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int = Field(
        0, ge=0, description="CPU threads of a training step; 0: measure a step and use the fastest number"
    )
    cache_dir: str = Field(
        ".cache/pipeline", description="folder of cached landmarks and mouth clips, keyed by content"
    )
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "swanlab"], ...] = Field(
        ("tensorboard",), description="where training logs its figures, in addition to logs/curves.csv"
    )
    share: str = Field(
        "",
        description="fsspec URL of a cache shared with other machines, for example s3://bucket/cache; empty: none",
    )
