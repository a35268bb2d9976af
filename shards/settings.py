"""Base of every params section, and the sections that `shards` owns."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One section of params.yaml: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PackParams(Section):
    """How mouth clips become tar shards."""

    codec: Literal["raw"] = Field("raw", description="how the mouth clip is stored: raw (.npy)")
    shard_mb: float = Field(
        256, gt=0, le=65_536, description="a shard is closed when it passes this size, MB"
    )
    seed: int = Field(0, ge=0, description="order of the samples within a split")


class LoaderParams(Section):
    """What decides the order and make-up of batches: part of the plan hash."""

    seed: int = Field(0, ge=0, description="order of epochs, and augmentation")
    frame_budget: int = Field(8_000, gt=0, description="padded frames in a batch, at most")
    max_frames: int = Field(
        0, ge=0, description="longer clips are left out of training epochs, counted; 0: none"
    )
    window_shards: int = Field(16, gt=0, description="shards whose samples are shuffled together")


class MachineParams(Section):
    """What may differ between machines: nothing in here changes a result by more than rounding."""

    workers: int = Field(0, ge=0, description="processes that crop; 0: one a core")
    executor: Literal["local", "ray"] = Field(
        "local", description="what hands clips to processes: this machine, or a Ray cluster"
    )
    ray_address: str = Field(
        "", description="Ray cluster, auto or host:port; empty: start one on this machine"
    )
    num_workers: int = Field(0, ge=0, description="loader processes; 0: load in the trainer's process")
    prefetch: int = Field(4, gt=0, description="batches each loader process keeps ready")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int = Field(
        0, ge=0, description="CPU threads of a training step; 0: times a step and takes the faster"
    )
    cache_dir: str = Field(".cache/pipeline", description="landmarks and mouth clips, found by content")
    share: str = Field(
        "",
        description="fsspec URL that mirrors the cache for other machines, e.g. s3://bucket/cache; empty: none",
    )
