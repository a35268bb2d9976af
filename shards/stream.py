"""Streams the batches of a plan out of the tar shards. The set is never in memory.

Shapes: B clips, T frames (padded), H and W px.
"""

import io
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from webdataset.tariterators import tar_file_iterator

from shards.codec import clip_extension, decode_clip
from shards.errors import ShardError
from shards.settings import MachineParams
from shards.store import ShardStore


@dataclass(frozen=True, slots=True)
class ClipBatch:
    """One batch as the loader hands it over; padding frames are 0."""

    video_BTHW: torch.Tensor
    """uint8"""
    num_frames_B: torch.Tensor
    """int64"""
    clip_ids: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[int, ...]
    """Row numbers in the split's samples table."""

    def pin_memory(self) -> "ClipBatch":
        return ClipBatch(
            self.video_BTHW.pin_memory(),
            self.num_frames_B.pin_memory(),
            self.clip_ids,
            self.labels,
            self.rows,
        )


def read_sample(store: ShardStore, row: dict[str, object]) -> tuple[np.ndarray, dict[str, object]]:
    """The clip (uint8, T×H×W) and the metadata of one row of samples.parquet.

    Reads just the sample's bytes of its tar. Raises ShardError naming shard and clip where the file is
    missing or cut, or what stands there is not that sample.
    """
    path, clip_id = store.local(str(row["shard"])), str(row["clip_id"])
    payload, metadata = read_payload(path, row)
    try:
        clip_THW = decode_clip(payload, str(row["codec"]), int(str(row["num_frames"])))
    except ValueError as error:
        raise ShardError(f"{path}: clip {clip_id} cannot be decoded: {error}") from error
    return clip_THW, metadata


def read_payload(path: Path, row: dict[str, object]) -> tuple[bytes, dict[str, object]]:
    """The clip's stored bytes and the metadata of one row; raises ShardError as `read_sample` does."""
    clip_id, size = str(row["clip_id"]), int(row["sample_size"])  # type: ignore[call-overload]
    advice = "run `pipeline pack` again"
    try:
        with path.open("rb") as file:
            file.seek(int(row["sample_offset"]))  # type: ignore[call-overload]
            sample_bytes = file.read(size)
    except OSError as error:
        raise ShardError(f"shard {path} cannot be read ({error}); {advice}") from error
    if len(sample_bytes) < size:
        raise ShardError(
            f"shard {path} is cut: clip {clip_id} should end at byte {size} of its sample; {advice}"
        )
    try:
        members = {m["fname"]: m["data"] for m in tar_file_iterator(io.BytesIO(sample_bytes))}
    except Exception as error:
        # webdataset and tarfile raise what the damage makes them meet; all of it means one thing here
        raise ShardError(
            f"shard {path}: the sample of clip {clip_id} is damaged ({error}); {advice}"
        ) from error
    clip_name, json_name = f"{clip_id}.{clip_extension(str(row['codec']))}", f"{clip_id}.json"
    if set(members) != {clip_name, json_name}:
        raise ShardError(
            f"shard {path}: where clip {clip_id} should stand are {sorted(members)}; the shard and "
            f"samples.parquet are of different packs: {advice}"
        )
    metadata = json.loads(members[json_name])
    if "fps" not in metadata:
        raise ShardError(f"shard {path}: the metadata of clip {clip_id} lacks 'fps'; {advice}")
    return members[clip_name], metadata


class ShardStream:
    """Reads planned batches of one split; loader processes live on from epoch to epoch."""

    def __init__(
        self, store: ShardStore, samples: pa.Table, machine: MachineParams, pin_memory: bool = False
    ) -> None:
        self._planned = _PlannedBatches()
        self._loader = DataLoader(
            _Clips(store, samples),
            batch_sampler=self._planned,
            collate_fn=collate,
            num_workers=machine.num_workers,
            prefetch_factor=machine.prefetch if machine.num_workers else None,
            persistent_workers=machine.num_workers > 0,
            # spawned, since a forked copy of a process with OpenMP threads may hang
            multiprocessing_context="spawn" if machine.num_workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals,
            # its own: a loader draws a seed for its workers at every start, and from torch's global random
            # state that would make a resumed run differ from an undisturbed one
            generator=torch.Generator(),
        )

    def batches(self, batches: Sequence[np.ndarray], first_step: int = 0) -> Iterator[ClipBatch]:
        """`batches` from number `first_step` on, in order, whatever the number of loader processes."""
        self._planned.batches = batches[first_step:]
        return iter(self._loader)


def _ignore_signals(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole group: the trainer answers them, and ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True, slots=True)
class _Clip:
    clip_THW: np.ndarray
    record: dict[str, object]
    row: int


class _Clips(Dataset[_Clip]):
    """Row number i of the samples table, read when asked for."""

    def __init__(self, store: ShardStore, samples: pa.Table) -> None:
        self.store, self.samples = store, samples

    def __getitem__(self, row: int) -> _Clip:
        record = self.samples.slice(row, 1).to_pylist()[0]
        return _Clip(read_sample(self.store, record)[0], record, row)


class _PlannedBatches(Sampler[list[int]]):
    """Hands the loader the row numbers of each batch of the epoch at hand."""

    def __init__(self) -> None:
        self.batches: Sequence[np.ndarray] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def collate(clips: Sequence[_Clip]) -> ClipBatch:
    """Pads the clips with zeros to the longest; ShardError where they differ in height or width."""
    num_frames_B = torch.tensor([len(clip.clip_THW) for clip in clips])
    height, width = clips[0].clip_THW.shape[1:]
    video_BTHW = torch.zeros((len(clips), int(num_frames_B.max()), height, width), dtype=torch.uint8)
    for padded_THW, clip in zip(video_BTHW, clips, strict=True):
        if clip.clip_THW.shape[1:] != (height, width):
            raise ShardError(
                f"clips {clips[0].record['clip_id']} and {clip.record['clip_id']} differ in size: "
                f"{(height, width)} and {clip.clip_THW.shape[1:]} px; pack them again with one crop.size_px"
            )
        padded_THW[: len(clip.clip_THW)] = torch.from_numpy(clip.clip_THW)
    return ClipBatch(
        video_BTHW,
        num_frames_B,
        tuple(str(clip.record["clip_id"]) for clip in clips),
        tuple(str(clip.record["label"]) for clip in clips),
        tuple(clip.row for clip in clips),
    )
