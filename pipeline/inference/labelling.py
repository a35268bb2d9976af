"""`pipeline label`: writes the texts of videos to a table that `corpus.kind: table` reads, for a person to correct."""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from model.decoding.result import ClipReader
from pipeline.command import check_writable, terminable
from pipeline.inference.captions import valid_utf8
from pipeline.inference.readers import open_reader
from pipeline.inference.text_of_video import Segment, VideoReading, read_video
from pipeline.params import Params
from shards.errors import ConfigError, Interrupted
from shards.files import atomic_file
from shards.safe_text import one_line
from stages.corpora.transcript import relative_media
from stages.mouths.landmarker import NATIVE_LOG, native_stderr_to
from stages.videos.video import read_header

_OTHERS = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 100
"""A clip id has at most 120 characters: room for a hash and the number of the part."""
_FIRST_COLUMNS = ("clip_id", "media", "split", "start", "end", "text", "confidence")
_DIGITS = 4
"""Of confidences and shares in the table."""


@dataclass(frozen=True, slots=True)
class LabelSummary:
    table: Path
    num_videos: int
    num_unread: int
    num_clips: int
    seconds: float
    """Duration of these clips."""

    def __str__(self) -> str:
        unread = f", {self.num_unread} could not be read (see above)" if self.num_unread else ""
        return f"{self.num_clips} clips of {self.num_videos - self.num_unread} videos, {self.seconds:.0f} s{unread}"


def label_videos(
    videos: Sequence[Path],
    model: Path,
    params: Params,
    table: Path,
    root: Path | None,
    split: str,
    on_progress: Callable[[int, int], None],
) -> LabelSummary:
    """Writes one row for each part of each video that can be read; prints why others cannot.

    `root` is the corpus.root of the table, by default its folder: videos are named relative to it. Raises ConfigError
    where the table exists, since a person may have corrected it, or a video is not below the root; Interrupted, after
    writing the rows so far, at Ctrl-C and SIGTERM; and what `open_reader` raises.
    """
    root = table.parent if root is None else root
    if table.exists():
        raise ConfigError(
            f"--out {table} exists, and may hold corrections; choose another file, or remove it"
        )
    if table.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError(f"--out {table}: the name must end in .csv or .parquet")
    media = {video: _media_of(video, root) for video in videos}
    check_writable(table.parent)
    native_stderr_to(Path(params.machine.cache_dir) / NATIVE_LOG)
    rows: list[dict[str, object]] = []
    num_unread = done = 0
    is_stopped = False
    try:
        with terminable():
            reader = open_reader(model, params)
            for video in videos:
                reading, found = _read(video, reader, params)
                _print_unread(reading)
                num_unread += reading.reason is not None
                name = _name_of(media[video], rows)
                rows += [
                    {"clip_id": f"{name}_{number:03d}", "media": media[video], "split": split} | row
                    for number, row in enumerate(found)
                ]
                done += 1
                on_progress(done, len(videos))
    except KeyboardInterrupt:
        is_stopped = True
    _write(table, rows)
    if is_stopped:
        raise Interrupted(f"stopped; {table} has the clips of the first {done} of {len(videos)} videos")
    seconds = sum(float(str(row["end"])) - float(str(row["start"])) for row in rows)
    return LabelSummary(table, len(videos), num_unread, len(rows), seconds)


def _media_of(video: Path, root: Path) -> str:
    """Returns the name of a video in the table."""
    try:
        media = relative_media(str(video.absolute()), root)
        media.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{one_line(video)}: the name is not valid Unicode; rename the video") from None
    if Path(media).is_absolute():
        raise ConfigError(
            f"{video} is not below {root}, so a corpus of the table would not find it; write --out into a folder above "
            "all videos, or name that folder with --root"
        )
    return media


def _name_of(media: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Returns the start of the clip ids of a video: its path, with a hash if that is not one of a clip id."""
    path = str(Path(media).with_suffix("")).replace("/", "-")
    name = _OTHERS.sub("_", path)[:_LONGEST_NAME]
    if name != path or any(str(row["clip_id"]).rpartition("_")[0] == name for row in rows):
        name += f"-{hashlib.sha256(media.encode()).hexdigest()[:8]}"
    return name


def _read(video: Path, reader: ClipReader, params: Params) -> tuple[VideoReading, list[dict[str, object]]]:
    """Returns the reading of a video and the rows of its parts that could be read."""
    reading = read_video(video, reader, params)
    if reading.reason is not None:
        return reading, []
    # a table counts from the first picture, a player from the start of the sound
    begin_s = read_header(video).start_s
    return reading, [_row(segment, begin_s) for segment in reading.segments if segment.reason is None]


def _row(segment: Segment, begin_s: float) -> dict[str, object]:
    row: dict[str, object] = {
        "start": round(max(0.0, segment.start_s - begin_s), 6),
        "end": round(segment.end_s - begin_s, 6),
        "text": segment.text,
        "confidence": None if segment.confidence is None else round(segment.confidence, _DIGITS),
    }
    for number, candidate in enumerate(segment.candidates, start=1):
        row |= {f"candidate_{number}": candidate.text, f"share_{number}": round(candidate.share, _DIGITS)}
    return row


def _print_unread(reading: VideoReading) -> None:
    if reading.reason is not None:
        typer.echo(one_line(f"{reading.path}: {reading.reason}"), err=True)
    for gap in reading.gaps:
        span = f"{gap.start_s:.2f} to {gap.end_s:.2f} s"
        typer.echo(one_line(f"{reading.path}: {span} not read: {gap.reason}"), err=True)


def _write(table: Path, rows: Sequence[Mapping[str, object]]) -> None:
    columns = list(dict.fromkeys([*_FIRST_COLUMNS, *(name for row in rows for name in row)]))
    with atomic_file(table) as file:
        if table.suffix.lower() == ".parquet":
            kinds = {name: pa.float64() for name in columns if not _is_text(name)}
            values = {
                name: pa.array([row.get(name) for row in rows], kinds.get(name, pa.string()))
                for name in columns
            }
            pq.write_table(pa.table(values), file)
        else:
            # spreadsheets read a CSV as UTF-8 only with a byte order mark
            file.write(_csv(columns, rows).encode("utf-8-sig"))


def _is_text(column: str) -> bool:
    return column in ("clip_id", "media", "split", "text") or column.startswith("candidate_")


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(dict(_readable(row)) for row in rows)
    return text.getvalue()


def _readable(row: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in row.items():
        yield name, valid_utf8(value) if isinstance(value, str) else value
