"""Stage pack: mouth clips become tar shards and their catalogue, samples.parquet."""

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import schema
from shards.codec import clip_extension, encode_clip
from shards.errors import ShardError, TableError
from shards.files import Progress, read_table, sha256_of, table_from_rows, write_json, write_table
from shards.schema import MediaKind, Status
from shards.settings import MachineParams, PackParams
from shards.tar import shard_writer
from stages.cache import ClipCache
from stages.crop import resolve_media
from stages.cropping import crop_video, render_from_track
from stages.settings import CorpusParams, CropParams

_OURS = re.compile(r"[A-Za-z0-9_-]+-\d{6}\.tar|index\.json")


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What was packed; `num_rendered` clips were not in the cache any more and were cut again."""

    samples_by_split: Mapping[str, int]
    num_shards: int
    num_bytes: int
    num_rendered: int

    def __str__(self) -> str:
        counts = ", ".join(f"{split} {count}" for split, count in self.samples_by_split.items())
        rendered = f", {self.num_rendered} cut again" if self.num_rendered else ""
        return f"{counts} samples in {self.num_shards} shards, {self.num_bytes / 1e6:.0f} MB{rendered}"


def pack(
    corpus: CorpusParams,
    crop: CropParams,
    pack: PackParams,
    machine: MachineParams,
    clips_path: Path,
    crops_path: Path,
    tracks_path: Path,
    shards_folder: Path,
    samples_path: Path,
    on_progress: Progress | None = None,
) -> PackSummary:
    """Writes `<split>/<split>-000000.tar`…, `<split>/index.json` and samples.parquet: same input, same bytes.

    Clips of a split are shuffled by `pack.seed`, so that a shard mixes speakers. Shards of a former pack are
    removed. Raises ShardError where something else lies in the folder, TableError where the tables do not
    belong together.
    """
    clips = {
        row["clip_id"]: row for row in read_table(clips_path, schema.CLIPS, "pipeline ingest").to_pylist()
    }
    crops = read_table(crops_path, schema.CROPS, "pipeline crop").to_pylist()
    tracks = read_table(tracks_path, schema.TRACKS, "pipeline crop")
    if [row["clip_id"] for row in crops] != list(clips):
        raise TableError(f"{crops_path} is not of the clips in {clips_path}; run `pipeline crop` again")
    source = _Clips(corpus, crop, machine, clips, tracks)
    usable = [row for row in crops if row["status"] == Status.OK]
    _clear(shards_folder)
    rows: list[dict[str, Any]] = []
    shards: list[Path] = []
    for split in dict.fromkeys(clips[row["clip_id"]]["split"] for row in crops):
        of_split = _shuffled(
            [row for row in usable if clips[row["clip_id"]]["split"] == split], split, pack.seed
        )
        made = []
        for path, sample_rows in _write_split(of_split, split, source, crop, pack, shards_folder):
            made.append((path, len(sample_rows)))
            rows += sample_rows
            if on_progress:
                on_progress(len(rows), len(usable))
        _write_index(shards_folder / split, split, made, len(of_split))
        shards += [path for path, _ in made]
    assert len(rows) == len(usable), f"{len(usable)} clips in, {len(rows)} samples out"
    write_table(samples_path, table_from_rows(rows, schema.SAMPLES), schema.SAMPLES)
    counts = {row["split"]: 0 for row in clips.values()}
    for row in rows:
        counts[row["split"]] += 1
    return PackSummary(counts, len(shards), sum(path.stat().st_size for path in shards), source.num_rendered)


class _Clips:
    """Mouth clips from the cache; cut again by the same code where they are gone."""

    def __init__(
        self,
        corpus: CorpusParams,
        crop: CropParams,
        machine: MachineParams,
        clips: Mapping[str, Any],
        tracks: Any,
    ) -> None:
        self.root, self.params, self.clips = Path(corpus.root), crop, clips
        self.cache = ClipCache(Path(machine.cache_dir))
        self.tracks = tracks
        self.track_row = {clip_id: i for i, clip_id in enumerate(tracks["clip_id"].to_pylist())}
        self.num_rendered = 0

    def read(self, crop_row: Mapping[str, Any]) -> NDArray[np.uint8]:
        clip_THW = self.cache.read_clip(crop_row["clip_key"])
        if clip_THW is None:
            self.num_rendered += 1
            clip_THW = self._render(crop_row["clip_id"])
        if len(clip_THW) != crop_row["num_frames"]:
            raise TableError(
                f"clip {crop_row['clip_id']} has {len(clip_THW)} frames, its ledger says {crop_row['num_frames']}; "
                "run `pipeline crop` again"
            )
        return clip_THW

    def _render(self, clip_id: str) -> NDArray[np.uint8]:
        clip = self.clips[clip_id]
        path = resolve_media(self.root, clip["media"])
        if clip["media_kind"] == MediaKind.MOUTH:
            return crop_video(path, MediaKind.MOUTH, self.params).clip_THW
        track = self.tracks.slice(self.track_row[clip_id], 1).to_pylist()[0]
        transform_T23 = np.array(track["transform"], np.float32).reshape(-1, 2, 3)
        return render_from_track(path, transform_T23, np.array(track["frame_index"], np.int32), self.params)


def _shuffled(rows: Sequence[dict[str, Any]], split: str, seed: int) -> list[dict[str, Any]]:
    """A seeded order that does not depend on the table's."""
    ordered = sorted(rows, key=lambda row: str(row["clip_id"]))
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    return [ordered[i] for i in rng.permutation(len(ordered))]


def _write_split(
    crop_rows: Sequence[dict[str, Any]],
    split: str,
    source: _Clips,
    crop: CropParams,
    pack: PackParams,
    shards_folder: Path,
) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Each finished shard of a split, with the rows of its samples."""
    waiting = list(reversed(crop_rows))
    number = 0
    while waiting:
        name = f"{split}/{split}-{number:06d}.tar"
        rows = []
        with shard_writer(shards_folder / name) as shard:
            while waiting and shard.num_bytes < pack.shard_mb * 1e6:
                crop_row = waiting.pop()
                clip = source.clips[crop_row["clip_id"]]
                payload = encode_clip(source.read(crop_row), pack.codec)
                metadata = {
                    "clip_id": clip["clip_id"],
                    "codec": pack.codec,
                    "fps": crop.target_fps,
                    "label": clip["label"],
                    "num_frames": crop_row["num_frames"],
                    "speaker": clip["speaker"],
                    "split": split,
                    "topic": clip["topic"],
                }
                described = json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode()
                place = shard.add(clip["clip_id"], (clip_extension(pack.codec), payload), ("json", described))
                rows.append(
                    {
                        "clip_id": clip["clip_id"],
                        "split": split,
                        "shard": name,
                        "sample_offset": place.sample_offset,
                        "sample_size": place.sample_size,
                        "clip_offset": place.clip_offset,
                        "clip_size": place.clip_size,
                        "sha256": hashlib.sha256(payload).hexdigest(),
                        "codec": pack.codec,
                        "num_frames": crop_row["num_frames"],
                        "num_chars": clip["num_chars"],
                        "label": clip["label"],
                        "speaker": clip["speaker"],
                        "topic": clip["topic"],
                    }
                )
        yield shards_folder / name, rows
        number += 1


def _write_index(folder: Path, split: str, shards: Sequence[tuple[Path, int]], num_samples: int) -> None:
    described = [
        {"name": path.name, "num_samples": count, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path, count in shards
    ]
    write_json(folder / "index.json", {"split": split, "num_samples": num_samples, "shards": described})


def _clear(shards_folder: Path) -> None:
    """Removes a former pack; refuses to touch what is not one."""
    if not shards_folder.exists():
        return
    files = [path for path in sorted(shards_folder.rglob("*")) if not path.is_dir()]
    foreign = [
        path for path in files if not _OURS.fullmatch(path.name) or path.parent.parent != shards_folder
    ]
    if foreign:
        raise ShardError(f"{foreign[0]} is no shard of a former pack; move it out of {shards_folder}")
    for path in files:
        path.unlink()
