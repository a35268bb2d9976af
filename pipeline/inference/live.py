"""`pipeline live`: reads a camera while it films, or a file at its own speed.

One thread captures pictures and never waits. The other tracks the face and reads; if it is late, pictures are dropped
and counted. The current segment is read again and again, and its text becomes final when the mouth rests or the
segment has the longest length of a clip. Latency is the time from the capture of the last picture that a text is read
from until the text is shown.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from model.decoding.result import ClipReader
from pipeline.inference.capture import Capture, capturing, stopped_by_signals
from pipeline.inference.readers import open_reader
from pipeline.inference.text_of_video import JoinedReadings, Segment
from pipeline.params import Params
from shards.safe_text import one_line
from stages.mouths.landmarker import NATIVE_LOG, face_finder, native_stderr_to
from stages.mouths.long_video import MouthStream
from stages.mouths.mouth_pictures import WholePictures
from stages.mouths.pieces import Piece
from stages.videos.media import Source
from stages.videos.picture import SourceFrame

READ_EVERY_S = 0.6
"""The current segment is read again when it has grown by this much: about the length that the face tracker
completes at once."""

KEPT_BYTES = 600_000_000
"""Memory for the gray pictures of a segment: 20 s of 720p at 30 frames/s."""


@dataclass
class LiveSummary:
    """Counts, texts and latencies of a live run."""

    num_captured: int = 0
    num_dropped: int = 0
    settled: list[Segment] = field(default_factory=list)
    num_gaps: int = 0
    """Segments that could not be read; neighbours with the same reason count as one."""
    text: str = ""
    settled_latency_s: list[float] = field(default_factory=list)
    shown_latency_s: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.num_captured} pictures, {self.num_dropped} dropped; {len(self.settled)} segments read, "
            f"{self.num_gaps} could not be read",
        ]
        for what, latencies_s in (
            ("preliminary text", self.shown_latency_s),
            ("final text", self.settled_latency_s),
        ):
            if latencies_s:
                lines.append(f"latency of {what}: {_spread(latencies_s)}")
        return "\n".join(lines)


def _spread(latencies_s: list[float]) -> str:
    median_s, late_s = np.percentile(latencies_s, [50, 95])
    return f"median {median_s:.2f} s, 95 % within {late_s:.2f} s ({len(latencies_s)} readings)"


def run_live(
    source: int | Path,
    models: Sequence[Path],
    params: Params,
    seconds: float,
    as_json: bool,
    adapter: Path | None = None,
) -> LiveSummary:
    """Reads until the source ends, `seconds` (0: no limit) have passed, or Ctrl-C; prints the text and a summary.

    Raises CheckpointError, MachineError if the camera cannot be opened, ClipRejected if the file cannot.
    """
    native_stderr_to(Path(params.machine.cache_dir) / NATIVE_LOG)
    reader = open_reader(models, params, adapter)
    output = _LiveOutput(as_json)
    summary = LiveSummary()
    # a second Ctrl-C drops the text that is not final, but still prints the summary
    with (
        capturing(source, params, seconds) as capture,
        suppress(KeyboardInterrupt),
        stopped_by_signals(capture.stop_soon),
    ):
        read_live(capture, reader, params, summary, output)
    summary.num_captured, summary.num_dropped = capture.num_captured, capture.num_dropped
    if capture.error is None or summary.num_captured:
        output.end(summary)
    if capture.error is not None:
        raise capture.error
    return summary


def read_live(
    capture: Capture, reader: ClipReader, params: Params, summary: LiveSummary, output: "_LiveOutput"
) -> None:
    """Tracks the face and reads until the capture ends; fills `summary` meanwhile."""
    joined = JoinedReadings(params.crop.target_fps)
    captured_s: dict[float, float] = {}
    with face_finder(params.crop.landmarker, params.crop.max_faces) as find:
        stream = MouthStream(
            Source(Path("live picture")),
            find,
            params.crop,
            params.inference,
            WholePictures(KEPT_BYTES),
            live=True,
        )

        def settle(pieces: Iterator[Piece]) -> None:
            for piece in pieces:
                # also if no face is seen for hours, so that memory does not grow
                for time_s in [t for t in captured_s if t < piece.start_s]:
                    del captured_s[time_s]
                if piece.is_rest or joined.covers(piece):
                    continue
                if piece.mouth is None:
                    num_known = len(joined.segments)
                    gap = joined.add_gap(piece)
                    if gap is not None:
                        is_new = len(joined.segments) > num_known
                        summary.num_gaps += is_new
                        output.unread(replace(gap, start_s=max(gap.start_s, piece.start_s)), is_new)
                    continue
                segment = joined.add(piece, reader.read_clip(piece.mouth.clip_THW, params.decode))
                latency_s = time.monotonic() - _captured_before(captured_s, piece.end_s)
                summary.settled_latency_s.append(latency_s)
                summary.settled.append(segment)
                output.settled(segment, latency_s)
            summary.text = joined.text

        read_until_s = 0.0
        for index, captured in enumerate(capture.pictures()):
            captured_s[captured.time_s] = captured.captured_s
            settle(stream.add(SourceFrame(index, captured.time_s, captured.picture, captured.orientation)))
            begin_s, end_s = stream.open_s
            if end_s - max(begin_s, read_until_s) < READ_EVERY_S or capture.num_waiting > capture.room // 2:
                continue
            read_until_s = end_s
            piece = stream.open_piece()
            if piece is None or piece.mouth is None:
                continue
            text = reader.read_clip(piece.mouth.clip_THW, params.decode).text
            latency_s = time.monotonic() - _captured_before(captured_s, piece.end_s)
            summary.shown_latency_s.append(latency_s)
            output.preliminary(text, latency_s)
        if captured_s:
            settle(stream.end())


def _captured_before(captured_s: dict[float, float], time_s: float) -> float:
    """Returns the time of capture of the last picture before `time_s`."""
    return captured_s[max(t for t in captured_s if t < time_s)]


class _LiveOutput:
    """Prints final text on stdout; on a terminal also preliminary text, in a line that changes."""

    def __init__(self, as_json: bool, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._as_json = as_json
        self._line = 0

    def preliminary(self, text: str, latency_s: float) -> None:
        if not self._as_json and self._out.isatty():
            self._clear()
            self._write(f"\x1b[2m... {text} ({latency_s:.1f} s)\x1b[0m")
            self._line = 1

    def settled(self, segment: Segment, latency_s: float) -> None:
        self._clear()
        if self._as_json:
            fields = {"start_s": segment.start_s, "end_s": segment.end_s, "text": segment.text.strip()}
            fields |= {"confidence": segment.confidence, "latency_s": latency_s, "reason": None}
            self._write(json.dumps(fields, ensure_ascii=False) + "\n")
        else:
            self._write(
                f"{segment.start_s:7.2f} to {segment.end_s:6.2f} s  {segment.text.strip()}  "
                f"({100 * (segment.confidence or 0):.0f} %, {latency_s:.1f} s)\n"
            )

    def unread(self, gap: Segment, is_new: bool) -> None:
        """Prints every gap as JSON; as text only the start of one, since an empty chair gives gaps without end."""
        self._clear()
        if self._as_json:
            fields = {"start_s": gap.start_s, "end_s": gap.end_s, "text": "", "reason": gap.reason}
            self._write(json.dumps(fields, ensure_ascii=False) + "\n")
        elif is_new:
            reason = one_line(gap.reason)
            print(f"{gap.start_s:7.2f} to {gap.end_s:6.2f} s  not read: {reason}", file=sys.stderr)  # noqa: T201

    def end(self, summary: LiveSummary) -> None:
        self._clear()
        print(summary, file=sys.stderr)  # noqa: T201

    def _clear(self) -> None:
        if self._line:
            self._write("\r\x1b[K")
            self._line = 0

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
