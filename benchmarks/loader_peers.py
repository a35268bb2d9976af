"""Readers of the same clips, ours and others, which all return the same padded uint8 batches.

Shapes: B clips, T frames (padded), H and W px.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import shards
from benchmarks.loader_material import Material
from shards.enums import TRAIN_SPLIT
from shards.loading import PaddedBatch as PublicBatch
from shards.plan import plan_epoch
from shards.settings import LoaderParams, MachineParams
from shards.store import ShardStore
from shards.stream import ShardStream, read_sample

BATCH_SIZE = 16
PREFETCH = 4
NUM_EPOCHS = 8
"""Epochs of different order, planned before the measurement starts."""


class PaddedBatch(Protocol):
    """The batch of every reader."""

    @property
    def video_BTHW(self) -> torch.Tensor:
        """uint8, padded with 0."""

    @property
    def num_frames_B(self) -> torch.Tensor: ...
    @property
    def clip_ids(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> tuple[str, ...]: ...


Reader = Callable[[int], Iterator[PaddedBatch]]
"""Makes one pass over all clips; the argument is the epoch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch of another reader."""

    video_BTHW: torch.Tensor
    num_frames_B: torch.Tensor
    clip_ids: tuple[str, ...]
    labels: tuple[str, ...]


def ours(material: Material, codec: str, num_workers: int) -> Reader:
    """Returns our stream, read by `num_workers` threads, or by the consumer's thread if 0."""
    machine = MachineParams(num_workers=num_workers, prefetch=PREFETCH)
    stream = ShardStream(material.store(codec), material.samples(codec), machine)
    epochs = _epochs(material, codec)
    return lambda epoch: stream.batches(epochs[epoch % NUM_EPOCHS])


def plain_webdataset(material: Material, codec: str, _: int) -> Reader:
    """Returns webdataset in this process: shards and samples in order, no shuffling, its decoders of .npy and .json.

    For .jpg it uses OpenCV, the fastest decoder to gray pixels that we know.
    """
    import webdataset

    urls = [str(path) for path in material.shards(codec)]
    extension = {"raw": "npy", "jpeg": "jpg"}[codec]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=False)
        .decode(webdataset.handle_extension("jpg", tall_jpeg))
        .to_tuple(extension, "__key__", "json")
        .batched(BATCH_SIZE, collation_fn=_from_webdataset)
    )
    return lambda _: iter(dataset)


def shards_webdataset(material: Material, codec: str, _: int) -> Reader:
    """Returns `shards.webdataset` in this process, in the order of the shards."""
    batches = shards.webdataset(material.store(codec).folder, TRAIN_SPLIT, batch_size=BATCH_SIZE)
    return lambda _: map(_from_public, batches)


def shards_dataset(material: Material, codec: str, _: int) -> Reader:
    """Returns `shards.dataset` in this process, without reading threads, as in a worker of DataLoader."""
    batches = shards.dataset(
        material.samples_path(codec),
        material.store(codec).folder,
        TRAIN_SPLIT,
        batch_size=BATCH_SIZE,
        frame_budget=_frame_budget(material, codec),
        machine=MachineParams(num_workers=0),
    )

    def read(epoch: int) -> Iterator[Batch]:
        batches.set_epoch(epoch % NUM_EPOCHS)
        return map(_from_public, batches)

    return read


def opencv_mp4(material: Material, codec: str, _: int) -> Reader:
    """Reads one video file per clip with cv2.VideoCapture, like the older trainer, in the order of our plan."""
    table = material.samples(codec)
    clip_ids, labels = table["clip_id"].to_pylist(), table["label"].to_pylist()
    epochs = _epochs(material, codec)

    def read(epoch: int) -> Iterator[Batch]:
        for rows in epochs[epoch % NUM_EPOCHS]:
            clips = [_opencv_clip(str(material.mp4(clip_ids[row]))) for row in rows]
            yield padded(clips, [clip_ids[row] for row in rows], [labels[row] for row in rows])

    return read


def process(material: Material, codec: str, _: int) -> Reader:
    """Returns torch's DataLoader with one worker process around our `read_sample`: the alternative to our threads."""
    batches = [batch.tolist() for batch in _epochs(material, codec)[0]]
    loader = DataLoader(
        _Samples(material.store(codec), material.samples(codec).to_pylist()),
        batch_sampler=batches,
        collate_fn=_collate_samples,
        num_workers=1,
        prefetch_factor=PREFETCH,
        persistent_workers=True,
        # a forked copy of a process with OpenMP threads may hang
        multiprocessing_context="spawn",
    )
    return lambda _: iter(loader)


def readinto(material: Material, codec: str, _: int) -> Reader:
    """Reads pixels directly into one reused buffer, the machine's limit. A batch is valid until the next one."""
    return _readinto(material, codec, reuse=True)


def readinto_fresh(material: Material, codec: str, _: int) -> Reader:
    """Reads into a new tensor for each batch, as a loader must if its batches stay valid."""
    return _readinto(material, codec, reuse=False)


OWN_FORMATS: Mapping[str, Callable[[Material, str, int], Reader]] = {
    "ours": ours,
    "webdataset": plain_webdataset,
    "shards_webdataset": shards_webdataset,
    "shards_dataset": shards_dataset,
    "mp4": opencv_mp4,
    "process": process,
    "readinto": readinto,
    "readinto_fresh": readinto_fresh,
}


def padded(clips: Sequence[np.ndarray], clip_ids: Sequence[str], labels: Sequence[str]) -> Batch:
    """Puts the clips, uint8 T×H×W, into one tensor; sets only the padding to 0."""
    num_frames = [len(clip_THW) for clip_THW in clips]
    video_BTHW = np.empty((len(clips), max(num_frames), *clips[0].shape[1:]), np.uint8)
    for padded_THW, clip_THW in zip(video_BTHW, clips, strict=True):
        padded_THW[: len(clip_THW)] = clip_THW
        padded_THW[len(clip_THW) :] = 0
    return Batch(torch.from_numpy(video_BTHW), torch.tensor(num_frames), tuple(clip_ids), tuple(labels))


def _epochs(material: Material, codec: str) -> list[tuple[np.ndarray, ...]]:
    samples = material.samples(codec)
    params = LoaderParams(frame_budget=_frame_budget(material, codec))
    return [plan_epoch(samples, params, BATCH_SIZE, epoch).batches for epoch in range(NUM_EPOCHS)]


def _frame_budget(material: Material, codec: str) -> int:
    return BATCH_SIZE * int(material.samples(codec)["num_frames"].to_numpy().max())


def _from_public(batch: PublicBatch) -> Batch:
    return Batch(batch["video_BTHW"], batch["num_frames_B"], tuple(batch["clip_ids"]), tuple(batch["labels"]))


def tall_jpeg(payload: bytes) -> np.ndarray:
    tall = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert tall is not None, "a clip of the benchmark is not a picture"
    side = tall.shape[1]
    assert side < tall.shape[0] and tall.shape[0] % side == 0, "the benchmark reads clips of one column"
    return tall.reshape(-1, side, side)


def _from_webdataset(samples: Sequence[tuple[np.ndarray, str, dict[str, Any]]]) -> Batch:
    clips, clip_ids, metadata = zip(*samples, strict=True)
    return padded(clips, clip_ids, [fields["label"] for fields in metadata])


def _opencv_clip(path: str) -> np.ndarray:
    capture = cv2.VideoCapture(path)
    frames = []
    while True:
        has_frame, frame_HWC = capture.read()
        if not has_frame:
            break
        frames.append(cv2.cvtColor(frame_HWC, cv2.COLOR_BGR2GRAY))
    capture.release()
    return np.stack(frames)


class _Samples(Dataset[tuple[np.ndarray, str, str]]):
    def __init__(self, store: ShardStore, rows: list[dict[str, Any]]) -> None:
        self.store, self.rows = store, rows

    def __getitem__(self, number: int) -> tuple[np.ndarray, str, str]:
        row = self.rows[number]
        return read_sample(self.store, row)[0], row["clip_id"], row["label"]


def _collate_samples(samples: Sequence[tuple[np.ndarray, str, str]]) -> Batch:
    return padded(*zip(*samples, strict=True))


def _readinto(material: Material, codec: str, reuse: bool) -> Reader:
    assert codec == "raw", "only raw pixels can be read without decoding"
    rows, store = material.samples(codec).to_pylist(), material.store(codec)
    epochs = _epochs(material, codec)
    paths = {name: store.local(name) for name in sorted({row["shard"] for row in rows})}
    side = read_sample(store, rows[0])[0].shape[1]
    buffer_BTHW = np.empty((BATCH_SIZE, max(row["num_frames"] for row in rows), side, side), np.uint8)

    def read(epoch: int) -> Iterator[Batch]:
        with ExitStack() as stack:
            files = {name: stack.enter_context(path.open("rb", buffering=0)) for name, path in paths.items()}
            for numbers in epochs[epoch % NUM_EPOCHS]:
                chosen = [rows[number] for number in numbers.tolist()]
                num_frames = [row["num_frames"] for row in chosen]
                shape = (len(chosen), max(num_frames), side, side)
                video_BTHW = buffer_BTHW[: shape[0], : shape[1]] if reuse else np.empty(shape, np.uint8)
                for padded_THW, row in zip(video_BTHW, chosen, strict=True):
                    pixels_THW = padded_THW[: row["num_frames"]]
                    file = files[row["shard"]]
                    file.seek(row["clip_offset"] + row["clip_size"] - pixels_THW.nbytes)
                    file.readinto(pixels_THW.data)
                    padded_THW[row["num_frames"] :] = 0
                ids, labels = (tuple(row[name] for row in chosen) for name in ("clip_id", "label"))
                yield Batch(torch.from_numpy(video_BTHW), torch.tensor(num_frames), ids, labels)

    return read
