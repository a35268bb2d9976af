"""Splits batches that do not fit into memory into micro-batches: the gradient of a sum is the sum of gradients."""

from dataclasses import replace

import torch

from model.runs import logger
from shards.errors import TrainingError
from shards.stream import ClipBatch

MEMORY_ERRORS = (RuntimeError, MemoryError)
"""Raised when memory runs out: torch.OutOfMemoryError and the error of the CPU are RuntimeErrors."""

_MEMORY_MESSAGES = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive\n",  # oneDNN, for generated code; its other errors have a longer message
)
"""A RuntimeError about memory contains one of these: torch has a class only for errors of its GPU allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether `error` means that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in f"{error}\n" for text in _MEMORY_MESSAGES)


class MicroBatches:
    """Splits batches into micro-batches, once memory has run out, with at most as many padded frames as fit.

    The limit is remembered, so that memory does not run out at every step. Progress stores it too, so that a resumed
    run splits batches like an uninterrupted run.
    """

    def __init__(self) -> None:
        self.max_frames: int | None = None
        """Most padded frames of a micro-batch of several clips; None: batches are not split."""

    def pieces(self, batch: ClipBatch) -> list[ClipBatch]:
        """Returns `batch`, halved until the parts fit, in the order of its clips. A single clip is not split."""
        num_clips = len(batch.clip_ids)
        if self.max_frames is None or padded_frames(batch) <= self.max_frames or num_clips < 2:
            return [batch]
        middle = (num_clips + 1) // 2
        return [*self.pieces(part(batch, 0, middle)), *self.pieces(part(batch, middle, num_clips))]

    def shrink(self, piece: ClipBatch, error: BaseException) -> None:
        """Lowers the limit so that micro-batches like `piece`, which raised `error`, are halved from now on.

        Raises TrainingError if `piece` is a single clip.
        """
        num_clips, longest = len(piece.clip_ids), longest_frames(piece)
        if num_clips < 2:
            raise TrainingError(
                f"out of memory in a training step on the single clip {piece.clip_ids[0]}, {longest} frames; exclude "
                f"clips of this length with loader.max_frames, or choose a smaller model.preset ({error})"
            ) from error
        self.max_frames = (num_clips + 1) // 2 * longest
        logger.warning(
            "out of memory in %d clips, %d padded frames: batches are now split into parts of at most %d padded "
            "frames; the steps stay the same. `pipeline train --find-budget` finds a loader.frame_budget that fits",
            num_clips,
            padded_frames(piece),
            self.max_frames,
        )


def longest_frames(batch: ClipBatch) -> int:
    return int(batch.video_BTHW.shape[1])


def padded_frames(batch: ClipBatch) -> int:
    return len(batch.clip_ids) * longest_frames(batch)


def part(batch: ClipBatch, first: int, stop: int) -> ClipBatch:
    """Returns some clips of a batch, padded to the longest of them. It shares the memory of `batch`."""
    num_frames_B = batch.num_frames_B[first:stop]
    return replace(
        batch,
        video_BTHW=batch.video_BTHW[first:stop, : int(num_frames_B.max())],
        num_frames_B=num_frames_B,
        clip_ids=batch.clip_ids[first:stop],
        labels=batch.labels[first:stop],
        rows=batch.rows[first:stop],
        bad=(),
        audio_BTKM=None
        if batch.audio_BTKM is None
        else batch.audio_BTKM[first:stop, : int(num_frames_B.max())],
        has_audio_B=None if batch.has_audio_B is None else batch.has_audio_B[first:stop],
    )
