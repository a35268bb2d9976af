"""Base of every params section, and the sections that `shards` owns."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """One section of params.yaml: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _refuse_unusable(cls, value: Any) -> Any:
        """What no file name, table or random generator can take, whatever the key's own limits are."""
        if isinstance(value, str):
            if "\0" in value:
                raise ValueError("it holds a NUL character, which no name or table can hold")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("it is no valid Unicode text") from None
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("it is beyond 64 bits")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("it is not finite")
        elif isinstance(value, list | tuple):
            for item in value:
                cls._refuse_unusable(item)
        return value


class PackParams(Section):
    """How mouth clips become tar shards."""

    codec: Literal["raw", "jpeg", "h264", "ffv1"] = Field(
        "raw", description="how the mouth clip is stored: raw (.npy), jpeg (.jpg), h264 (.mp4), ffv1 (.mkv)"
    )
    jpeg_quality: int = Field(90, ge=50, le=100, description="codec jpeg: quality of libjpeg")
    h264_crf: int = Field(18, ge=1, le=40, description="codec h264: constant rate factor; lower is better")
    shard_mb: float = Field(
        256, gt=0, le=65_536, description="a shard is closed when it passes this size, MB"
    )
    seed: int = Field(0, ge=0, description="order of the samples within a split")


class LoaderParams(Section):
    """What decides the order and make-up of batches: part of the plan hash, but for `max_bad_fraction`."""

    seed: int = Field(0, ge=0, description="order of epochs, and augmentation")
    frame_budget: int = Field(8_000, gt=0, description="padded frames in a batch, at most")
    max_frames: int = Field(
        0, ge=0, description="longer clips are left out of training epochs, counted; 0: none"
    )
    curriculum_epochs: int = Field(
        0, ge=0, description="epochs over which the longest clip rises to max_frames; 0: all from the start"
    )
    curriculum_frames: int = Field(100, gt=0, description="longest clip of the first of those epochs, frames")
    window_shards: int = Field(16, gt=0, description="shards whose samples are shuffled together, for a rank")
    max_bad_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of an epoch's clips that may be damaged and are then left out, counted; 0: none may",
    )


class MachineParams(Section):
    """What may differ between machines: nothing in here changes a result by more than rounding."""

    workers: int = Field(0, ge=0, description="processes that crop, threads that pack; 0: one a core")
    executor: Literal["local", "ray"] = Field(
        "local", description="what hands clips to processes: this machine, or a Ray cluster"
    )
    ray_address: str = Field(
        "", description="Ray cluster, auto or host:port; empty: start one on this machine"
    )
    num_workers: int = Field(2, ge=0, description="loader threads; 0: load in the trainer's own thread")
    prefetch: int = Field(4, gt=0, description="batches each loader thread keeps ready")
    shard_cache_gb: float = Field(
        50.0, gt=0, description="disk for shards fetched from a remote paths.shards, GB"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int = Field(
        0, ge=0, description="CPU threads of a training step; 0: times a step and takes the faster"
    )
    cache_dir: str = Field(".cache/pipeline", description="landmarks and mouth clips, found by content")
    share: str = Field(
        "",
        description="fsspec URL that mirrors the cache for other machines, e.g. s3://bucket/cache; empty: none",
    )
