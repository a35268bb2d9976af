"""Stage pack: mouth clips become tar shards and their catalogue, samples.parquet."""

import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import schema
from shards.codec import clip_extension, encode_clip
from shards.errors import ShardError, TableError
from shards.files import Progress, json_bytes, read_table, sha256_of, table_from_rows, write_table
from shards.schema import Status
from shards.settings import MachineParams, PackParams
from shards.store import ShardStore
from shards.tar import shard_writer
from stages.clip_source import ClipSource
from stages.corpora.transcript import split_rank
from stages.settings import CorpusParams, CropParams

# the last part is what a pack that was killed leaves behind
_OURS = re.compile(
    r"[A-Za-z0-9_-]+/([A-Za-z0-9_-]+-\d{6}\.tar|index\.json|\.[A-Za-z0-9_-]+(-\d{6}\.tar|\.json)\..*\.tmp)"
)


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
    store: ShardStore,
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
    source = ClipSource(corpus, crop, machine, clips, lambda: tracks)
    usable = [row for row in crops if row["status"] == Status.OK]
    _clear(store, samples_path)
    rows: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    splits = sorted({clip["split"] for clip in clips.values()}, key=split_rank)
    for split in splits:
        of_split = _shuffled(
            [row for row in usable if clips[row["clip_id"]]["split"] == split], split, pack.seed
        )
        made: dict[str, int] = {}
        for row in _write_split(of_split, split, source, crop, pack, store):
            rows.append(row)
            made[row["shard"]] = made.get(row["shard"], 0) + 1
            if on_progress:
                on_progress(len(rows), len(usable))
        shards += _write_index(store, split, made)
    assert len(rows) == len(usable), f"{len(usable)} clips in, {len(rows)} samples out"
    write_table(samples_path, table_from_rows(rows, schema.SAMPLES), schema.SAMPLES)
    counts = Counter(row["split"] for row in rows)
    by_split = {split: counts[split] for split in splits}
    return PackSummary(by_split, len(shards), sum(shard["bytes"] for shard in shards), source.num_rendered)


def _shuffled(rows: Sequence[dict[str, Any]], split: str, seed: int) -> list[dict[str, Any]]:
    """A seeded order that does not depend on the table's."""
    ordered = sorted(rows, key=lambda row: str(row["clip_id"]))
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    return [ordered[i] for i in rng.permutation(len(ordered))]


def _write_split(
    crop_rows: Sequence[dict[str, Any]],
    split: str,
    source: ClipSource,
    crop: CropParams,
    pack: PackParams,
    store: ShardStore,
) -> Iterator[dict[str, Any]]:
    """Writes the shards of a split; gives the row of each sample as it is written."""
    waiting = list(reversed(crop_rows))
    number = 0
    while waiting:
        name = f"{split}/{split}-{number:06d}.tar"
        with store.writing(name) as file, shard_writer(file) as shard:
            while waiting and shard.num_bytes < pack.shard_mb * 1e6:
                crop_row = waiting.pop()
                clip = source.clips[crop_row["clip_id"]]
                payload = encode_clip(source.read(crop_row), pack)
                # what the sample itself and samples.parquet both tell
                shared = {field: clip[field] for field in ("clip_id", "label", "speaker", "topic")} | {
                    "split": split,
                    "num_frames": crop_row["num_frames"],
                    "codec": pack.codec,
                }
                described = json.dumps(
                    shared | {"fps": crop.target_fps}, ensure_ascii=False, sort_keys=True
                ).encode()
                place = shard.add(clip["clip_id"], (clip_extension(pack.codec), payload), ("json", described))
                yield (
                    shared
                    | asdict(place)
                    | {
                        "shard": name,
                        "sha256": hashlib.sha256(payload).hexdigest(),
                        "num_chars": clip["num_chars"],
                    }
                )
        number += 1


def _write_index(store: ShardStore, split: str, made: Mapping[str, int]) -> list[dict[str, Any]]:
    """Last of the split: a folder without it is not a whole pack. Gives what it says of each shard."""
    described = []
    for name, count in made.items():
        path = store.local(name)
        described.append(
            {
                "name": Path(name).name,
                "num_samples": count,
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
        )
    index = {"split": split, "num_samples": sum(made.values()), "shards": described}
    with store.writing(f"{split}/index.json") as file:
        file.write(json_bytes(index))
    return described


def _clear(store: ShardStore, samples_path: Path) -> None:
    """Removes a former pack and its catalogue; refuses to touch what is not one."""
    names = store.names()
    foreign = [name for name in names if not _OURS.fullmatch(name)]
    if foreign:
        raise ShardError(
            f"{store.place(foreign[0])} is no shard of a former pack; move it out of {store.place('')}"
        )
    # the catalogue and the index first: new shards under an old catalogue would be read without a word
    samples_path.unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: not name.endswith("/index.json")):
        store.remove(name)
