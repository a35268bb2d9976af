"""`pipeline label`: writes the texts of videos to a table that `corpus.kind: table` reads, for a person to correct.

The rows of each video are appended to `TABLE.partial.jsonl` when it is read, so that an interrupted run loses at most
one video. The first line identifies model and settings, each other line holds a video and its rows.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from shards.files import atomic_file, fingerprint, sha256_of
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
    models: Sequence[Path],
    params: Params,
    table: Path,
    root: Path | None,
    split: str,
    on_progress: Callable[[int, int], None],
    adapter: Path | None = None,
) -> LabelSummary:
    """Writes one row for each part of each video that can be read; prints why others cannot.

    Does not read again the videos that an interrupted run of the same model and settings has read. `root` is the
    corpus.root of the table, by default its folder: videos are named relative to it. Raises ConfigError where the table
    exists, since a person may have corrected it, where a video is not below the root, and where an interrupted run had
    another model or settings; Interrupted at Ctrl-C and SIGTERM; and what `open_reader` raises.
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
    finished: dict[str, Any] = {}
    num_unread = num_read = 0
    partial = table.with_name(table.name + ".partial.jsonl")
    try:
        with terminable():
            reader = open_reader(models, params, adapter)
            finished = _finished_videos(partial, _identity(models, params, adapter))
            for done, video in enumerate(videos, start=1):
                state = _state_of(video)
                if finished.get(media[video], {}).get("state") != state:
                    reading, found = _read(video, reader, params)
                    _print_unread(reading)
                    # a video that cannot be read is tried again by the next run
                    num_unread += reading.reason is not None
                    finished[media[video]] = {"media": media[video], "state": state, "rows": found}
                    if reading.reason is None:
                        _append(partial, finished[media[video]])
                num_read = done - num_unread
                on_progress(done, len(videos))
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; {partial} has the texts of {num_read} of {len(videos)} videos: the same command continues"
            if num_read
            else "stopped before a video was read"
        ) from None
    rows: list[dict[str, object]] = []
    for video in videos:
        name = _name_of(media[video], rows)
        rows += [
            {"clip_id": f"{name}_{number:03d}", "media": media[video], "split": split} | row
            for number, row in enumerate(finished[media[video]]["rows"])
        ]
    _write(table, rows)
    partial.unlink(missing_ok=True)
    seconds = sum(float(str(row["end"])) - float(str(row["start"])) for row in rows)
    return LabelSummary(table, len(videos), num_unread, len(rows), seconds)


def _identity(models: Sequence[Path], params: Params, adapter: Path | None) -> str:
    """Returns a hash of what the texts depend on, apart from the videos."""
    lm = Path(params.paths.lm)
    return fingerprint(
        *map(sha256_of, [*models, *([adapter] if adapter else [])]),
        sha256_of(lm) if params.decode.lm_weight and lm.exists() else "",
        *(section.recorded() for section in (params.decode, params.crop, params.inference)),
    )


def _state_of(video: Path) -> list[int]:
    """Returns size and time of change: a video that differs is read again."""
    try:
        status = video.stat()
    except OSError:
        return []  # reading it gives the reason
    return [status.st_size, status.st_mtime_ns]


def _finished_videos(partial: Path, identity: str) -> dict[str, Any]:
    """Returns what an interrupted run has read, by the name of the video; begins the partial file if there is none.

    An incomplete last line is removed: the process was killed while it wrote. Raises ConfigError if another model or
    other settings wrote the file.
    """
    content = partial.read_bytes() if partial.exists() else b""
    complete, _, rest = content.rpartition(b"\n")
    if rest:
        os.truncate(partial, len(content) - len(rest))
    if not complete:
        _append(partial, {"identity": identity})
        return {}
    try:
        first, *lines = map(json.loads, complete.splitlines())
        found = {line["media"]: line for line in lines}
        if first["identity"] == identity:
            return found
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{partial} is damaged ({error}); remove it to read all videos again") from error
    if not found:
        partial.unlink()
        return _finished_videos(partial, identity)
    raise ConfigError(
        f"{partial} has texts of an interrupted run with another model or other settings (decode, crop, inference); "
        "repeat that command, choose another --out, or remove the file"
    )


def _append(partial: Path, line: Mapping[str, object]) -> None:
    with partial.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


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
