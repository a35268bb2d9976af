"""Input of `python -m benchmarks.loader`: mouth clips of real videos in every codec, and as mp4 files.

<folder>/cache                       the cache of crop, which makes a second run fast
<folder>/{clips,crops,tracks}.parquet
<folder>/packs/<codec>/shards, samples.parquet
<folder>/mp4/<clip_id>.mp4           96x96 H.264, one file per clip
<folder>/peers/<library>-<codec>     formats of other libraries, written by their readers
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.material import encode_h264, videos_of
from shards import schema
from shards.enums import TRAIN_SPLIT
from shards.errors import ConfigError
from shards.files import HASH_BLOCK_BYTES, read_table, table_from_rows, write_table
from shards.samples import read_samples
from shards.schema import Status
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.clips.clip_source import ClipSource
from stages.crop import crop
from stages.pack import pack
from stages.settings import CorpusParams, CropParams

CODECS = ("raw", "jpeg", "h264", "ffv1")
SHARD_MB = 64.0
CROP_FPS = CropParams().target_fps
LABEL_CHARS = 6
"""A label is the start of the file name: for a GRID clip its sentence, one character per word."""


@dataclass(frozen=True)
class Material:
    """The same clips in every format, in one folder."""

    folder: Path

    def store(self, codec: str) -> FolderStore:
        return FolderStore(self.folder / "packs" / codec / "shards")

    def samples_path(self, codec: str) -> Path:
        return self.folder / "packs" / codec / "samples.parquet"

    def samples(self, codec: str) -> pa.Table:
        return read_samples(self.samples_path(codec), TRAIN_SPLIT)

    def shards(self, codec: str) -> list[Path]:
        """Returns the tars of a codec, in order."""
        store = self.store(codec)
        return [store.folder / name for name in store.names() if name.endswith(".tar")]

    def peer(self, library: str, codec: str) -> Path:
        """Returns the folder for the clips in the format of another library."""
        return self.folder / "peers" / f"{library}-{codec}"

    def payload(self, codec: str, row: Mapping[str, Any]) -> bytes:
        """Returns the encoded clip of a row of `samples`."""
        with self.store(codec).local(row["shard"]).open("rb") as file:
            file.seek(row["clip_offset"])
            return file.read(row["clip_size"])

    def mp4(self, clip_id: str) -> Path:
        return self.folder / "mp4" / f"{clip_id}.mp4"

    def mp4s(self) -> list[Path]:
        return sorted((self.folder / "mp4").iterdir())


def prepare(folders: Sequence[Path], out: Path, num_clips: int) -> Material:
    """Crops `num_clips` videos, equally many of each folder, and writes the clips in every format.

    Each run writes everything again, except the cached crops, so that no file comes from older code. Raises
    ConfigError if a folder has no video or no clip could be cropped.
    """
    material = Material(out / "material")
    material.folder.mkdir(parents=True, exist_ok=True)
    corpus, crop_params = CorpusParams(root="/"), CropParams()
    machine = MachineParams(cache_dir=str(material.folder / "cache"))
    clips_path, crops_path, tracks_path = (
        material.folder / f"{name}.parquet" for name in ("clips", "crops", "tracks")
    )
    share = -(-num_clips // len(folders))
    videos = [video for folder in folders for video in videos_of(folder, share)][:num_clips]
    rows = [_clip_row(number, video.absolute()) for number, video in enumerate(videos)]
    write_table(clips_path, table_from_rows(rows, schema.CLIPS), schema.CLIPS)
    summary = crop(corpus, crop_params, machine, clips_path, crops_path, tracks_path)
    if not summary.num_ok:
        names = ", ".join(map(str, folders))
        raise ConfigError(f"no clip of {names} could be cropped: {summary}; choose other videos")
    for codec in CODECS:
        pack(
            corpus=corpus,
            crop=crop_params,
            pack=PackParams.model_validate({"codec": codec, "shard_mb": SHARD_MB}),
            machine=machine,
            clips_path=clips_path,
            crops_path=crops_path,
            tracks_path=tracks_path,
            store=material.store(codec),
            samples_path=material.samples_path(codec),
        )
    for name in ("mp4", "peers"):
        shutil.rmtree(material.folder / name, ignore_errors=True)
    source = ClipSource(
        corpus,
        crop_params,
        machine,
        {row["clip_id"]: row for row in rows},
        lambda: read_table(tracks_path, schema.TRACKS, "bench"),
    )
    for row in read_table(crops_path, schema.CROPS, "bench").to_pylist():
        if row["status"] == Status.OK:
            _write_mp4(material.mp4(row["clip_id"]), source.read(row))
    return material


def warm(paths: Sequence[Path]) -> None:
    """Reads files once, so that they are in the page cache."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(HASH_BLOCK_BYTES):
                pass


def _write_mp4(path: Path, clip_THW: np.ndarray) -> None:
    height, width = clip_THW.shape[1:]
    encode_h264(path, (np.repeat(frame[..., None], 3, axis=2) for frame in clip_THW), width, height, "medium")


def _clip_row(number: int, path: Path) -> dict[str, Any]:
    label = "".join(filter(str.isalnum, path.stem))[:LABEL_CHARS] or "x"
    row: dict[str, Any] = dict.fromkeys(schema.CLIPS.names)
    return row | {
        "clip_id": f"{number:05d}",
        "split": TRAIN_SPLIT,
        "speaker": path.parent.name,
        "media": str(path).lstrip("/"),
        "text": label,
        "label": label,
        "num_chars": len(label),
    }
