"""What `shards.webdataset` and `shards.dataset` share: the rank of this process, the epoch, and padded batches.

Shapes: B clips, T frames (padded), H and W px.
"""

import os
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import distributed

from shards.errors import ConfigError, ShardError
from shards.stream import MAX_BATCH_BYTES


class PaddedBatch(TypedDict):
    """One batch; padding frames are 0. A dictionary, because DataLoader pins and webdataset maps its values."""

    video_BTHW: torch.Tensor
    """uint8"""
    num_frames_B: torch.Tensor
    """int64"""
    labels: list[str]
    clip_ids: list[str]
    audio_BTKM: NotRequired[torch.Tensor]
    """float16, log-mel vectors of the sound; only if asked for. 0 for padding and for silent clips."""
    has_audio_B: NotRequired[torch.Tensor]
    """bool"""


class SharedEpoch:
    """The number of the epoch, in memory that DataLoader workers share, also persistent ones."""

    def __init__(self) -> None:
        self._number = torch.full((), -1, dtype=torch.int64).share_memory_()

    @property
    def is_set(self) -> bool:
        return int(self._number) >= 0

    @property
    def number(self) -> int:
        return max(0, int(self._number))

    def set(self, number: int) -> None:
        if number < 0:
            raise ConfigError(f"epoch must be at least 0 (got {number})")
        self._number.fill_(number)


def rank_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Returns rank and world size: the given ones, those of torch.distributed, or of the variables of torchrun.

    Call it in the training process: DataLoader workers have no process group.
    """
    if rank is None and world_size is None:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        variables = {
            name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))
        }
        for name, value in variables.items():
            if not (value.isascii() and value.isdigit()):
                raise ConfigError(f"the variable {name} must be a number (got {value!r}); torchrun sets it")
        rank, world_size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise ConfigError(f"rank must be between 0 and world_size - 1 (got {rank} of {world_size})")
    return rank, world_size


def pad(samples: Sequence[dict[str, Any]]) -> PaddedBatch:
    """Returns samples of `shards.webdataset` as one batch; a `collation_fn` for `.batched`."""
    clips = [sample["video_THW"] for sample in samples]
    for sample in samples[1:]:
        if sample["video_THW"].shape[1:] != clips[0].shape[1:]:
            raise ShardError(
                f"clip {sample['clip_id']} in shard {sample['__url__']} has frames of "
                f"{sample['video_THW'].shape[1:]} px, clip {samples[0]['clip_id']} in shard {samples[0]['__url__']} "
                f"of {clips[0].shape[1:]} px; crop and pack all clips again with one crop.size_px"
            )
    shape = (len(clips), max(map(len, clips)), *clips[0].shape[1:])
    if np.prod(shape, dtype=np.float64) > MAX_BATCH_BYTES:
        raise ShardError(
            f"a batch of shape {shape} needs more than {MAX_BATCH_BYTES >> 30} GiB; lower batch_size"
        )
    video_BTHW = np.zeros(shape, np.uint8)
    for padded_THW, clip_THW in zip(video_BTHW, clips, strict=True):
        padded_THW[: len(clip_THW)] = clip_THW
    return PaddedBatch(
        video_BTHW=torch.from_numpy(video_BTHW),
        num_frames_B=torch.tensor([len(clip_THW) for clip_THW in clips]),
        labels=[sample["label"] for sample in samples],
        clip_ids=[sample["clip_id"] for sample in samples],
    )
