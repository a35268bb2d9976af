"""Batches that do not fit into memory, in pieces that do: the gradient of a sum is the sum of gradients."""

from dataclasses import replace

import torch

from model.runs import logger
from shards.errors import TrainingError
from shards.stream import ClipBatch

MEMORY_ERRORS = (RuntimeError, MemoryError)
"""What running out of memory is raised as: torch.OutOfMemoryError is a RuntimeError, as the CPU's is."""

_MEMORY_MESSAGES = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive\n",  # oneDNN, of the code that it writes; of other faults it says more
)
"""Of which one stands in a RuntimeError that is about memory: torch has a class for its GPU allocator alone."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(told in f"{error}\n" for told in _MEMORY_MESSAGES)


class MicroBatches:
    """Cuts batches into pieces: none until memory runs out, then of at most as many padded frames as fitted.

    What fitted is remembered, so that memory does not run out again at every step; by Progress, too, so that a
    run that goes on cuts as it would have cut.
    """

    def __init__(self) -> None:
        self.max_frames: int | None = None
        """Padded frames of a piece of several clips; None: batches stay whole."""

    def pieces(self, batch: ClipBatch) -> list[ClipBatch]:
        """`batch`, or its halves, or theirs, in order of its clips; one of a single clip is not cut."""
        num_clips = len(batch.clip_ids)
        if self.max_frames is None or padded_frames(batch) <= self.max_frames or num_clips < 2:
            return [batch]
        middle = (num_clips + 1) // 2
        return [*self.pieces(part(batch, 0, middle)), *self.pieces(part(batch, middle, num_clips))]

    def shrink(self, piece: ClipBatch, error: BaseException) -> None:
        """Cuts pieces like `piece`, which ended in `error`, in two from here on. TrainingError where it is one clip."""
        num_clips, longest = len(piece.clip_ids), longest_frames(piece)
        if num_clips < 2:
            raise TrainingError(
                f"memory is too small for a training step on clip {piece.clip_ids[0]} alone, {longest} frames; "
                f"leave clips as long out with loader.max_frames, or take a smaller model.preset ({error})"
            ) from error
        self.max_frames = (num_clips + 1) // 2 * longest
        logger.warning(
            "out of memory in %d clips, %d padded frames: batches are taken in pieces of at most %d from here on, "
            "in the same steps; `pipeline train --find-budget` finds the loader.frame_budget that fits",
            num_clips,
            padded_frames(piece),
            self.max_frames,
        )


def longest_frames(batch: ClipBatch) -> int:
    return int(batch.video_BTHW.shape[1])


def padded_frames(batch: ClipBatch) -> int:
    return len(batch.clip_ids) * longest_frames(batch)


def part(batch: ClipBatch, first: int, stop: int) -> ClipBatch:
    """Some of a batch's clips, padded to the longest of them; its memory is the batch's."""
    num_frames_B = batch.num_frames_B[first:stop]
    return replace(
        batch,
        video_BTHW=batch.video_BTHW[first:stop, : int(num_frames_B.max())],
        num_frames_B=num_frames_B,
        clip_ids=batch.clip_ids[first:stop],
        labels=batch.labels[first:stop],
        rows=batch.rows[first:stop],
        bad=(),
    )
