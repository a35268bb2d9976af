"""Readings as text, JSON, SubRip (SRT) and WebVTT."""

import html
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pipeline.inference.text_of_video import Segment, VideoReading
from shards.files import write_text

Format = Literal["text", "json", "srt", "vtt"]

_MARKUP = re.compile(r"<(?=[^<>]*>)|\{(?=[^{}]*\})")
"""What begins a tag, <i> or {\\an8}, where something ends it."""
_WORD_JOINER = "\u2060"
LINE_COLUMNS = 42
"""Width of a line of captions; a Han character takes two columns."""

_SUFFIXES: Mapping[Format, str] = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def rendered(reading: VideoReading, kind: Format) -> str:
    """One reading in that format, a newline at its end."""
    return _WRITERS[kind](reading)


def as_text(reading: VideoReading) -> str:
    return reading.text + "\n"


def as_json(reading: VideoReading) -> str:
    return valid_utf8(json.dumps(asdict(reading), ensure_ascii=False, indent=2, allow_nan=False)) + "\n"


def valid_utf8(text: str) -> str:
    """Bytes of file names that are no UTF-8 (Python's lone surrogates) as \\udcXX: as JSON writes them too."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def as_srt(reading: VideoReading) -> str:
    """SubRip: number, times with a comma, text, an empty line."""
    cues = [
        f"{number}\n{stamp(segment.start_s, ',')} --> {stamp(segment.end_s, ',')}\n"
        f"{_without_markup(_caption(segment.text))}\n"
        for number, segment in enumerate(_spoken(reading), start=1)
    ]
    return "\n".join(cues)


def as_vtt(reading: VideoReading) -> str:
    """WebVTT (W3C): cues, and as notes their confidence and what could not be read."""
    blocks = ["WEBVTT\n"]
    for segment in reading.segments:
        times = f"{stamp(segment.start_s, '.')} --> {stamp(segment.end_s, '.')}"
        if segment.reason is not None:
            # an arrow would end the note
            blocks.append(f"NOTE {times.replace('-->', 'to')} not read: {_one_line(segment.reason)}\n")
        elif segment.text:
            blocks.append(f"NOTE confidence {segment.confidence:.3f}\n")
            blocks.append(f"{times}\n{html.escape(_caption(segment.text), quote=False)}\n")
    return "\n".join(blocks)


_WRITERS: Mapping[Format, Callable[[VideoReading], str]] = {
    "text": as_text,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
}


def stamp(time_s: float, mark: str) -> str:
    """Hours, minutes, seconds and, behind `mark`, milliseconds."""
    milliseconds = round(max(time_s, 0.0) * 1000)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{mark}{milliseconds:03d}"


def caption_lines(text: str, columns: int = LINE_COLUMNS) -> list[str]:
    """`text` in as few lines as hold it, of like length; words of spaced scripts stay whole where they can."""
    width = sum(map(_columns, text))
    if width <= columns:
        return [text] if text else []
    target = width / -(-width // columns)
    lines, line = [], ""
    for unit in _units(text):
        if line.strip() and _width(line + unit.rstrip()) > columns:
            lines.append(line.strip())
            line = ""
        line += unit
        if _width(line) >= target:
            lines.append(line.strip())
            line = ""
    return [each for each in [*lines, line.strip()] if each]


def out_paths(videos: Mapping[Path, Path], folder: Path, suffix: str) -> dict[Path, Path]:
    """A file of its own in `folder` for each video: at its place there, with a number where two would be the same."""
    taken: set[str] = set()
    paths = {}
    for video, place in videos.items():
        path, number = folder / place.with_name(place.stem + suffix), 1
        # some file systems do not tell upper case from lower
        while str(path).casefold() in taken:
            number += 1
            path = path.with_name(f"{place.stem}-{number}{suffix}")
        taken.add(str(path).casefold())
        paths[video] = path
    return paths


def suffix_of(kind: Format) -> str:
    return _SUFFIXES[kind]


def write_reading(reading: VideoReading, kind: Format, path: Path) -> None:
    """The whole file or none."""
    write_text(path, valid_utf8(rendered(reading, kind)))


def _spoken(reading: VideoReading) -> Iterable[Segment]:
    return (segment for segment in reading.segments if segment.text)


def _caption(text: str) -> str:
    return "\n".join(caption_lines(_one_line(text)))


def _without_markup(caption: str) -> str:
    """Players obey tags, and SubRip escapes nothing: a sign that nobody sees, behind the bracket, makes it text."""
    return _MARKUP.sub(rf"\g<0>{_WORD_JOINER}", caption)


def _one_line(text: str) -> str:
    """An empty line would end a cue, an arrow begin another."""
    return " ".join(text.split()).replace("-->", "→")


def _units(text: str) -> list[str]:
    """Words with the space behind them; wide characters by themselves."""
    units: list[str] = []
    for character in text:
        last = units[-1] if units else ""
        is_in_word = last and not last.endswith(" ") and _columns(character) == _columns(last[-1]) == 1
        if is_in_word or (last and character == " "):
            units[-1] += character
        else:
            units.append(character)
    return units


def _width(text: str) -> int:
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
