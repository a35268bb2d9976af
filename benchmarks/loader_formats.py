"""Readers of the loader benchmark for the formats of other libraries: litdata's chunks and lhotse's Shar.

Both are optional (`pip install litdata lhotse`). Each reader writes the clips in its format first, if they are not
there yet. All batches are in stored order.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader_material import CROP_FPS, SHARD_MB, Material
from benchmarks.loader_peers import BATCH_SIZE, Batch, Reader, padded, tall_jpeg
from shards.stream import read_sample

PEERS = {"litdata": ("raw", "jpeg"), "lhotse": ("raw",)}
"""Packages, and the codecs that their formats can hold."""


def installed_peers() -> dict[str, tuple[str, ...]]:
    return {name: codecs for name, codecs in PEERS.items() if find_spec(name) is not None}


def litdata(material: Material, codec: str, _: int) -> Reader:
    """Returns litdata's StreamingDataset over local chunks: arrays of its own format, or JPEGs decoded by OpenCV."""
    from litdata import StreamingDataset

    folder = material.peer("litdata", codec)
    if not folder.exists():
        _write_litdata(material, codec, folder)
    dataset = StreamingDataset(str(folder))

    def clips() -> Iterator[tuple[np.ndarray, str, str]]:
        for sample in dataset:
            clip = sample["clip"]
            yield tall_jpeg(clip) if codec == "jpeg" else clip, sample["clip_id"], sample["label"]

    return lambda _: _batches(clips())


def lhotse_shar(material: Material, codec: str, _: int) -> Reader:
    """Returns a CutSet over Shar: a tar of .npy arrays per shard next to its gzipped JSON lines."""
    from lhotse import CutSet

    assert codec == "raw", "Shar holds arrays as .npy"
    folder = material.peer("lhotse", codec)
    if not folder.exists():
        _write_shar(material, folder)
    cuts = CutSet.from_shar(in_dir=str(folder))

    def clips() -> Iterator[tuple[np.ndarray, str, str]]:
        for cut in cuts:
            yield cut.load_mouth(), cut.id, cut.supervisions[0].text

    return lambda _: _batches(clips())


def _batches(clips: Iterable[tuple[np.ndarray, str, str]]) -> Iterator[Batch]:
    batch: list[tuple[np.ndarray, str, str]] = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == BATCH_SIZE:
            yield padded(*zip(*batch, strict=True))
            batch = []
    if batch:
        yield padded(*zip(*batch, strict=True))


def _write_litdata(material: Material, codec: str, folder: Path) -> None:
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes=f"{SHARD_MB:.0f}MB")
    for number, row in enumerate(_stored_order(material, codec)):
        clip: Any = material.payload(codec, row) if codec == "jpeg" else _clip(material, row)
        cache[number] = {"clip": clip, "clip_id": row["clip_id"], "label": row["label"]}
    cache.done()
    cache.merge()


def _write_shar(material: Material, folder: Path) -> None:
    from lhotse import MonoCut, SupervisionSegment
    from lhotse.shar import SharWriter

    folder.mkdir(parents=True)
    rows = _stored_order(material, "raw")
    a_shard = max(1, round(len(rows) * SHARD_MB * 1e6 / sum(row["clip_size"] for row in rows)))
    with SharWriter(str(folder), fields={"mouth": "numpy"}, shard_size=a_shard) as writer:
        for row in rows:
            clip_id, seconds = row["clip_id"], row["num_frames"] / CROP_FPS
            label = SupervisionSegment(clip_id, clip_id, 0, seconds, text=row["label"])
            cut = MonoCut(clip_id, 0, seconds, channel=0, supervisions=[label])
            clip_THW = _clip(material, row)
            writer.write(cut.attach_tensor("mouth", clip_THW, frame_shift=1 / CROP_FPS, temporal_dim=0))


def _stored_order(material: Material, codec: str) -> list[dict[str, Any]]:
    table = material.samples(codec).sort_by([("shard", "ascending"), ("sample_offset", "ascending")])
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _clip(material: Material, row: Mapping[str, Any]) -> np.ndarray:
    return read_sample(material.store("raw"), row)[0]
