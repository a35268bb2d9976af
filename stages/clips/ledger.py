"""The ledger (crops.parquet): the hash of its inputs, and its parts.

With the hash, later stages reject it for other clips. The crop stage can run in several jobs (a Slurm array): each job
crops its share, then `merge` joins the parts.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from shards import schema
from shards.enums import UNLABELLED_SPLIT
from shards.errors import ConfigError, TableError
from shards.files import fingerprint, read_table, sha256_of, write_table
from shards.schema import SCHEMA_VERSION, Status
from stages.mouths.cropping import CODE_VERSION
from stages.mouths.landmarks import TRACK_VERSION
from stages.settings import CropParams

_CLIPS, _CUT = b"clips", b"cut"
_DECIDING = ("clip_id", "media", "media_kind", "start_s", "end_s", "label")
"""The columns that the crop stage uses. Not only ids: two lines of a corpus may exchange their videos."""
_MARK = b"part_of"
_NUMBERS = re.compile(r"\.part-(\d+)-of-(\d+)$")

_T = TypeVar("_T")


def ledger_mark(clips: Iterable[Mapping[str, Any]], crop: CropParams) -> dict[bytes, bytes]:
    """Returns metadata of a ledger of the rows `clips` of clips.parquet, in this order, cut by `crop`."""
    digest = hashlib.sha256()
    for row in clips:
        # of the splits only this one decides: its clips need no label
        unlabelled = [UNLABELLED_SPLIT] if row["split"] == UNLABELLED_SPLIT else []
        digest.update(json.dumps([row[name] for name in _DECIDING] + unlabelled).encode() + b"\n")
    return {_CLIPS: digest.hexdigest().encode(), _CUT: _cut(crop).encode()}


def refuse_other_ledger(
    metadata: Mapping[bytes, bytes] | None,
    clips: Iterable[Mapping[str, Any]],
    crop: CropParams,
    clips_path: Path,
    crops_path: Path,
) -> None:
    """Raises TableError where the ledger at `crops_path`, with this `metadata`, is of other clips, or names none.

    Also where they were cropped at another frame rate, which the pixels do not show, or another size.
    """
    stored = metadata or {}
    again = "run `pipeline crop` again (unchanged clips come from the cache)"
    if _CLIPS not in stored or _CUT not in stored:
        raise TableError(
            f"{crops_path} was written by an earlier version, without a hash of its clips; {again}"
        )
    expected = ledger_mark(clips, crop)
    if stored[_CLIPS] != expected[_CLIPS]:
        raise TableError(
            f"{crops_path} was not made from {clips_path}: ids, videos, times or labels of clips differ; {again}"
        )
    if stored[_CUT] != expected[_CUT]:
        raise TableError(
            f"the clips of {crops_path} were cut at {stored[_CUT].decode()}, but crop.target_fps and crop.size_px say "
            f"{_cut(crop)}; restore these settings, or {again}"
        )


def _cut(crop: CropParams) -> str:
    return f"{crop.target_fps:g} frames/s, {crop.size_px} px"


@dataclass(frozen=True, slots=True)
class Merged:
    """The number of parts and clips that `merge` joined."""

    num_jobs: int
    num_clips: int
    num_ok: int

    def __str__(self) -> str:
        return f"{self.num_ok} of {self.num_clips} clips ok, joined from {self.num_jobs} parts"


@dataclass(frozen=True, slots=True)
class Part:
    """One job of `num_jobs`: every `num_jobs`-th clip, so that no job gets all the long ones of one speaker."""

    index: int
    num_jobs: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.num_jobs:
            raise ConfigError(
                f"--job-index must be 0 to {self.num_jobs - 1} with --num-jobs {self.num_jobs} (got {self.index})"
            )

    def take(self, rows: Sequence[_T]) -> Sequence[_T]:
        return rows[self.index :: self.num_jobs]

    def path(self, whole: Path) -> Path:
        """Returns the path of this part of the file `whole`, in the same folder."""
        return whole.with_name(f"{whole.stem}.part-{self.index:04}-of-{self.num_jobs:04}{whole.suffix}")


def mark_of(clips_path: Path, crop: CropParams) -> dict[bytes, bytes]:
    """Returns the schema metadata of a part: parts with equal marks belong to one ledger, on any machine."""
    values = crop.model_dump(mode="json", exclude={"timeout_s"})
    versions = (CODE_VERSION, TRACK_VERSION, SCHEMA_VERSION)
    return {_MARK: fingerprint("part", sha256_of(clips_path), values, *versions).encode()}


def merge(
    crop: CropParams, clips_path: Path, crops_path: Path, tracks_path: Path, num_jobs: int | None = None
) -> Merged:
    """Joins the parts into the tables that one job would have written, byte for byte, and removes them.

    Without `num_jobs`, the names of the parts give it. Raises TableError where a part is missing, was made from another
    clips.parquet or other parameters, or its two tables are of different runs; then nothing is written or removed.
    If a merge is killed while it removes parts, the next one names the jobs to run again, which use the cache.
    """
    clips = read_table(clips_path, schema.CLIPS, "pipeline ingest").to_pylist()
    clip_ids = [row["clip_id"] for row in clips]
    num_jobs = num_jobs or _find_num_jobs(crops_path)
    parts = [Part(index, num_jobs) for index in range(num_jobs)]
    _refuse_missing(parts, crops_path, tracks_path)
    mark = mark_of(clips_path, crop)[_MARK]
    place = {clip_id: i for i, clip_id in enumerate(clip_ids)}
    _refuse_unpaired(parts, crops_path, tracks_path)
    crops = _joined([part.path(crops_path) for part in parts], schema.CROPS, mark, place)
    tracks = _joined([part.path(tracks_path) for part in parts], schema.TRACKS, mark, place)
    if crops["clip_id"].to_pylist() != clip_ids:
        raise TableError(
            f"the parts of {crops_path} do not hold every clip of {clips_path} exactly once; run `pipeline crop` again"
        )
    # as in crop: if the ledger exists, the tracks are of the same run
    crops_path.unlink(missing_ok=True)
    write_table(tracks_path, tracks, schema.TRACKS)
    marked = schema.CROPS.with_metadata(schema.CROPS.metadata | ledger_mark(clips, crop))
    write_table(crops_path, crops, marked)
    for part in parts:
        # last: the next --merge reads the number of jobs from the name of the ledger's part
        part.path(tracks_path).unlink()
        part.path(crops_path).unlink()
    return Merged(num_jobs, len(crops), crops["status"].to_pylist().count(Status.OK))


def _find_num_jobs(crops_path: Path) -> int:
    names = crops_path.parent.glob(f"{crops_path.stem}.part-*{crops_path.suffix}")
    found = sorted({int(numbers[2]) for name in names if (numbers := _NUMBERS.search(name.stem))})
    if not found:
        raise TableError(
            f"no parts of {crops_path} found in its folder; make them with `pipeline crop --job-index 0 --num-jobs N` "
            "and so on (a finished --merge has removed them)"
        )
    if len(found) > 1:
        raise TableError(
            f"{crops_path} has parts of {' and of '.join(map(str, found))} jobs; choose one number with --num-jobs, "
            "or remove the other parts"
        )
    return found[0]


def _refuse_missing(parts: Sequence[Part], crops_path: Path, tracks_path: Path) -> None:
    missing = [
        part for part in parts if not (part.path(crops_path).exists() and part.path(tracks_path).exists())
    ]
    if missing:
        raise TableError(
            f"{len(missing)} of {len(parts)} parts are missing ({_some([m.path(crops_path) for m in missing])}); "
            f"run first: pipeline crop --num-jobs {len(parts)} --job-index "
            + ", ".join(str(part.index) for part in missing)
        )


def _refuse_unpaired(parts: Sequence[Part], crops_path: Path, tracks_path: Path) -> None:
    """Raises TableError where a part's tracks are not of its ok face clips: one table is then of an older run."""
    for part in parts:
        crops = read_table(part.path(crops_path), schema.CROPS, "pipeline crop")
        tracks = read_table(part.path(tracks_path), schema.TRACKS, "pipeline crop")
        rows = crops.select(["clip_id", "status", "track_key"]).to_pylist()
        followed = [row["clip_id"] for row in rows if row["status"] == Status.OK and row["track_key"]]
        if tracks["clip_id"].to_pylist() != followed:
            raise TableError(
                f"{part.path(tracks_path)} does not match {part.path(crops_path)}; run again: "
                f"pipeline crop --num-jobs {part.num_jobs} --job-index {part.index}"
            )


def _joined(paths: Sequence[Path], table: pa.Schema, mark: bytes, place: Mapping[str, int]) -> pa.Table:
    """Returns the rows of all parts in the order of clips.parquet."""
    tables = [read_table(path, table, "pipeline crop") for path in paths]
    foreign = [
        path for path, part in zip(paths, tables, strict=True) if part.schema.metadata.get(_MARK) != mark
    ]
    if foreign:
        raise TableError(
            f"{_some(foreign)}: made from another clips.parquet, with other crop parameters or by another version; "
            "run these jobs again (unchanged clips come from the cache)"
        )
    joined = pa.concat_tables([part.cast(table) for part in tables])
    places = [place.get(clip_id, -1) for clip_id in joined["clip_id"].to_pylist()]
    # in one chunk, as one job writes it: the pages of the file depend on it
    return joined.take(pa.array(np.argsort(places, kind="stable"))).combine_chunks()


def _some(paths: Sequence[Path]) -> str:
    names = [str(path) for path in paths]
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:4])} and {len(names) - 4} more"
