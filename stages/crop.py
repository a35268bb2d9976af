"""Stage crop: writes one row to the ledger (crops.parquet) for every clip, and its mouth clip to the cache."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards import schema
from shards.files import Progress, read_table, table_from_rows, write_table
from shards.schema import Reason, Status
from shards.settings import MachineParams
from stages.clips.clip_work import Clip, CropWork
from stages.clips.executors import run_clips
from stages.clips.ledger import Part, ledger_mark, mark_of
from stages.mouths.landmarker import NATIVE_LOG
from stages.settings import CorpusParams, CropParams


@dataclass(frozen=True, slots=True)
class CropSummary:
    """The numbers of ok and rejected clips."""

    num_ok: int
    rejected: Mapping[str, int]
    num_from_cache: int
    num_damaged: int
    source_frames: int
    frames_made: int
    """Source frames of the clips that were cropped now, not read from the cache."""
    seconds: float

    def __str__(self) -> str:
        total = self.num_ok + sum(self.rejected.values())
        rate = f", {self.frames_made / self.seconds:.0f} frames/s" if self.frames_made else ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejected.items()))
        num_retried = sum(self.rejected.get(reason, 0) for reason in (Reason.CRASHED, Reason.TIMEOUT))
        damaged = f" ({self.num_damaged} damaged entries were replaced)" if self.num_damaged else ""
        retry = (
            f"; run `pipeline crop` again to retry the {num_retried} crashed or timeout"
            if num_retried
            else ""
        )
        return (
            f"{self.num_ok} of {total} clips ok, rejected: {reasons or 'none'}; {self.num_from_cache} from the "
            f"cache{damaged}, {self.source_frames:,} source frames, {self.seconds:.0f} s{rate}{retry}"
        )


def crop(
    corpus: CorpusParams,
    crop: CropParams,
    machine: MachineParams,
    clips_path: Path,
    crops_path: Path,
    tracks_path: Path,
    on_progress: Progress | None = None,
    part: Part | None = None,
) -> CropSummary:
    """Writes crops.parquet and tracks.parquet, in the order of clips.parquet: one row for each clip, ok or rejected.

    With a `part`, crops only its share of the clips, and writes them to separate tables next to these, for
    `ledger.merge`. It first removes such tables of an earlier run, so that a killed job leaves none. crops.parquet
    is written last: if it exists, tracks.parquet is of the same run.
    Clips finished earlier come from the cache. A clip on which a process dies or hangs becomes `crashed` or `timeout`,
    and the run continues. Raises TableError where clips.parquet is missing, MachineError where mediapipe cannot run
    or a disk is full.
    """
    start = time.monotonic()
    rows = read_table(clips_path, schema.CLIPS, "pipeline ingest").to_pylist()
    clips = [_clip(row, corpus) for row in (rows if part is None else part.take(rows))]
    crops_schema, tracks_schema = schema.CROPS, schema.TRACKS
    if part is None:
        crops_schema = crops_schema.with_metadata(crops_schema.metadata | ledger_mark(rows, crop))
    else:
        crops_path, tracks_path = part.path(crops_path), part.path(tracks_path)
        part_mark = mark_of(clips_path, crop)
        crops_schema, tracks_schema = (
            table.with_metadata(table.metadata | part_mark) for table in (crops_schema, tracks_schema)
        )
        for path in (crops_path, tracks_path):
            path.unlink(missing_ok=True)
    cache_folder = Path(machine.cache_dir)
    # jobs of a Slurm array share the cache, and each its own log
    native_log = cache_folder / NATIVE_LOG if part is None else part.path(cache_folder / NATIVE_LOG)
    work = CropWork(crop, cache_folder, machine.share)
    done = run_clips(work, clips, machine, crop.timeout_s, native_log, on_progress)
    crop_rows = [done[clip.clip_id].crop_row for clip in clips]
    track_rows = [row for clip in clips if (row := done[clip.clip_id].track_row) is not None]
    # if the run is killed between the two, the ledger is missing, and pack reports it
    crops_path.unlink(missing_ok=True)
    write_table(tracks_path, table_from_rows(track_rows, tracks_schema), tracks_schema)
    write_table(crops_path, table_from_rows(crop_rows, crops_schema), crops_schema)
    return CropSummary(
        num_ok=sum(row["status"] == Status.OK for row in crop_rows),
        rejected=Counter(row["reason"] for row in crop_rows if row["status"] == Status.REJECTED),
        num_from_cache=sum(result.from_cache for result in done.values()),
        num_damaged=sum(result.num_damaged for result in done.values()),
        source_frames=sum(row["source_frames"] or 0 for row in crop_rows),
        frames_made=sum(
            result.crop_row["source_frames"] or 0 for result in done.values() if not result.from_cache
        ),
        seconds=time.monotonic() - start,
    )


def _clip(row: Mapping[str, Any], corpus: CorpusParams) -> Clip:
    return Clip(
        row["clip_id"],
        corpus.root,
        row["media"],
        row["media_kind"],
        row["label"],
        row["num_chars"],
        row["start_s"],
        row["end_s"],
        corpus.media_kind,
        corpus.follow_links,
        row["split"],
        corpus.unlabelled,
    )
