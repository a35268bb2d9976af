"""Streams the batches of a plan out of the tar shards. The set is never in memory.

Threads read, not processes: reading a file and decoding a picture leave the interpreter to others, and a thread
fills the batch where the consumer takes it. Shapes: B clips, T frames (padded), H and W px.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from shards.errors import ShardError
from shards.open_shards import OpenShard, OpenShards
from shards.reading_threads import ReadingThreads
from shards.sample_reader import (
    CatalogueRow,
    SampleRows,
    holds_clip,
    raw_frame_size,
    read_clip,
    read_raw_into,
    read_sample,
)
from shards.settings import MachineParams
from shards.store import ShardStore

__all__ = ["BadSample", "ClipBatch", "ShardStream", "read_sample"]

MAX_BATCH_BYTES = 1 << 33


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that a stream with quarantine left out of its batch."""

    clip_id: str
    shard: str
    reason: str


@dataclass(frozen=True, slots=True)
class ClipBatch:
    """One batch as the stream hands it over; padding frames are 0. B is 0 where all of its samples are bad."""

    video_BTHW: torch.Tensor
    """uint8; the stream fills its memory anew when nobody holds the tensor any more."""
    num_frames_B: torch.Tensor
    """int64"""
    clip_ids: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[int, ...]
    """Row numbers in the split's samples table."""
    bad: tuple[BadSample, ...] = ()


class ShardStream:
    """Reads planned batches of one split; its threads live on from epoch to epoch.

    With `quarantine` a bad sample is left out of its batch and told there; else it is a ShardError. A shard that
    cannot be reached is a MachineError always. `frame_HW` is the size that every frame must have; None: that of
    the first clip of its batch.
    """

    def __init__(
        self,
        store: ShardStore,
        samples: pa.Table,
        machine: MachineParams,
        pin_memory: bool = False,
        quarantine: bool = False,
        frame_HW: tuple[int, int] | None = None,
    ) -> None:
        self._store = store
        self._reader = _BatchReader(store, samples, pin_memory, quarantine, frame_HW)
        self._num_ahead = machine.num_workers * machine.prefetch
        self._threads = ReadingThreads(machine.num_workers) if machine.num_workers else None

    def batches(self, batches: Sequence[np.ndarray], first_step: int = 0) -> Iterator[ClipBatch]:
        """`batches` from number `first_step` on, in order, whatever the number of threads.

        Raises ShardError, unless with quarantine, at the batch that holds the bad sample. May be left at any time.
        """
        batches = batches[first_step:]
        self._store.expect(self._reader.table.shards_of(batches))
        self._reader.shards.try_again()
        buffers = _Buffers()
        if self._threads is None:
            return (self._reader.read(batch, buffers, _never) for batch in batches)
        return _read_ahead(self._threads, self._num_ahead, self._reader, batches, buffers)


def _read_ahead(
    threads: ReadingThreads,
    num_ahead: int,
    reader: "_BatchReader",
    batches: Sequence[np.ndarray],
    buffers: "_Buffers",
) -> Iterator[ClipBatch]:
    left, must_end = threading.Event(), threads.must_end

    def is_unwanted() -> bool:
        return left.is_set() or must_end.is_set()

    waiting: deque[Future[ClipBatch]] = deque()
    try:
        for batch in batches:
            waiting.append(threads.submit(reader.read, batch, buffers, is_unwanted))
            if len(waiting) > num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        left.set()
        for future in waiting:
            future.cancel()


def _never() -> bool:
    return False


class _Buffers:
    """Memory of batches, used again when a batch is gone: a fresh page costs more than to fill it.

    Batches of 66 MB of raw clips: 13,800 clips/s into used memory, 2,600 into what malloc maps anew.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 of that shape, its content undefined."""
        num_bytes = int(np.prod(shape))
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(num_bytes, np.uint8)
        if len(buffer) < num_bytes:
            buffer = np.empty(num_bytes, np.uint8)
        array = buffer[:num_bytes].reshape(shape)
        # the tensor made of it keeps the array, and whoever uses its memory keeps the tensor's
        weakref.finalize(array, self._free.append, buffer).atexit = False
        return array


class _Found(NamedTuple):
    """A clip on its way into a batch."""

    row_number: int
    row: CatalogueRow
    shard: OpenShard
    clip_THW: np.ndarray | None
    """None: raw pixels, to be read straight into the batch."""


class _BatchReader:
    """Reads whole batches, from any thread."""

    def __init__(
        self,
        store: ShardStore,
        samples: pa.Table,
        pin_memory: bool,
        quarantine: bool,
        frame_HW: tuple[int, int] | None,
    ) -> None:
        self.table, self.shards, self._store = SampleRows(samples), OpenShards(store), store
        self._pin_memory, self._quarantine, self._frame_HW = pin_memory, quarantine, frame_HW

    def read(self, rows: np.ndarray, buffers: _Buffers, is_unwanted: Callable[[], bool]) -> ClipBatch:
        """The batch of these row numbers; raises CancelledError between two clips where it is unwanted."""
        bad: list[BadSample] = []
        found: list[_Found] = []
        frame_HW = self._frame_HW
        for number, row in zip(rows.tolist(), self.table.rows(rows), strict=True):
            if is_unwanted():
                raise CancelledError
            try:
                clip, frame_HW = self._find(number, row, frame_HW)
            except ShardError as error:
                self._set_aside(row, error, bad)
            else:
                found.append(clip)
        video_BTHW = self._allocate(found, frame_HW or (0, 0), buffers)
        filled_BTHW, read = video_BTHW.numpy(), list[_Found]()
        for clip in found:
            if is_unwanted():
                raise CancelledError
            padded_THW = filled_BTHW[len(read)]
            try:
                self._fill(padded_THW[: clip.row.num_frames], clip)
            except ShardError as error:
                self._set_aside(clip.row, error, bad)
            else:
                padded_THW[clip.row.num_frames :] = 0
                read.append(clip)
        if len(read) < len(found):
            longest = max((clip.row.num_frames for clip in read), default=0)
            video_BTHW = video_BTHW[: len(read), :longest].contiguous()
        num_frames_B = torch.tensor([clip.row.num_frames for clip in read], dtype=torch.int64)
        return ClipBatch(
            video_BTHW,
            num_frames_B.pin_memory() if self._pin_memory else num_frames_B,
            tuple(clip.row.clip_id for clip in read),
            tuple(self.table.label(clip.row_number) for clip in read),
            tuple(clip.row_number for clip in read),
            tuple(bad),
        )

    def _find(
        self, number: int, row: CatalogueRow, frame_HW: tuple[int, int] | None
    ) -> tuple[_Found, tuple[int, int]]:
        """The clip, decoded unless it is raw, and the frame size of the batch."""
        shard = self.shards[row.shard]
        if row.codec == "raw":
            frame_HW = frame_HW or raw_frame_size(shard, row)
            if (
                frame_HW
                and holds_clip(shard, row)
                and row.num_frames * frame_HW[0] * frame_HW[1] < row.clip_size
            ):
                return _Found(number, row, shard, None), frame_HW
        clip_THW = self._read_clip(shard, row)
        return _Found(number, row, shard, clip_THW), self._same_size(clip_THW, row, frame_HW)

    def _fill(self, frames_THW: np.ndarray, clip: _Found) -> None:
        if clip.clip_THW is not None:
            frames_THW[...] = clip.clip_THW
        elif not read_raw_into(frames_THW, clip.shard, clip.row):
            clip_THW = self._read_clip(clip.shard, clip.row)
            self._same_size(clip_THW, clip.row, frames_THW.shape[1:])
            frames_THW[...] = clip_THW

    def _read_clip(self, shard: OpenShard, row: CatalogueRow) -> np.ndarray:
        return self.shards.read(shard, lambda shard: read_clip(shard, row))

    def _allocate(
        self, found: Sequence[_Found], frame_HW: tuple[int, int], buffers: _Buffers
    ) -> torch.Tensor:
        longest = max((clip.row.num_frames for clip in found), default=0)
        shape = (len(found), longest, *frame_HW)
        # each clip lies in a file long enough for it, or is decoded; padding alone can still blow a batch up
        if np.prod(shape, dtype=np.float64) > MAX_BATCH_BYTES:
            raise ShardError(
                f"a batch of {len(found)} clips, the longest {longest} frames of {frame_HW} px, would take more than "
                f"{MAX_BATCH_BYTES >> 30} GiB; lower loader.frame_budget or train.batch_size"
            )
        if self._pin_memory:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)  # torch keeps such memory itself
        return torch.from_numpy(buffers.take(shape))

    def _same_size(
        self, clip_THW: np.ndarray, row: CatalogueRow, frame_HW: tuple[int, ...] | None
    ) -> tuple[int, int]:
        height, width = clip_THW.shape[1:]
        if frame_HW not in (None, (height, width)):
            raise ShardError(
                f"clip {row.clip_id} in shard {self._store.place(row.shard)} has frames of {(height, width)} px, the "
                f"others {frame_HW}; pack them again with one crop.size_px"
            )
        return height, width

    def _set_aside(self, row: CatalogueRow, error: ShardError, bad: list[BadSample]) -> None:
        if not self._quarantine:
            raise error
        bad.append(BadSample(row.clip_id, row.shard, str(error)))
