"""Writes readings as text, SubRip (SRT), WebVTT, and in the formats of timed_text.py."""

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pipeline.inference.text_of_video import Segment, VideoReading
from pipeline.inference.timed_text import Word, as_ctm, as_elan, as_json, as_textgrid, words_of
from shards.files import write_text

Format = Literal["text", "json", "srt", "vtt", "karaoke", "ctm", "textgrid", "elan"]

_MARKUP = re.compile(r"<(?=[^<>]*>)|\{(?=[^{}]*\})")
"""The opening bracket of a tag, <i> or {\\an8}, if the tag is closed."""
_WORD_JOINER = "\u2060"
LINE_COLUMNS = 42
"""Width of a caption line; a Han character takes two columns."""

_SUFFIXES: Mapping[Format, str] = {
    "text": ".txt",
    "json": ".json",
    "srt": ".srt",
    "vtt": ".vtt",
    "karaoke": ".vtt",
    "ctm": ".ctm",
    "textgrid": ".TextGrid",
    "elan": ".eaf",
}
TIMED: Sequence[Format] = ("karaoke", "ctm", "textgrid", "elan")
"""Formats with the times of words, for which a model needs a CTC head."""


def rendered(reading: VideoReading, kind: Format) -> str:
    """Returns the reading in the format `kind`, with a newline at the end."""
    return _WRITERS[kind](reading)


def as_text(reading: VideoReading) -> str:
    return reading.text + "\n"


def valid_utf8(text: str) -> str:
    """Returns `text` with the bytes of file names that are not UTF-8 (lone surrogates) as \\udcXX, as in JSON."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def as_srt(reading: VideoReading) -> str:
    """Returns SubRip: number, times with a comma, text, an empty line."""
    cues = [
        f"{number}\n{stamp(segment.start_s, ',')} --> {stamp(segment.end_s, ',')}\n"
        f"{_without_markup(_caption(segment.text))}\n"
        for number, segment in enumerate(_spoken(reading), start=1)
    ]
    return "\n".join(cues)


def as_karaoke(reading: VideoReading) -> str:
    """Returns WebVTT with the time of each word inside the cues."""
    return as_vtt(reading, has_word_times=True)


def as_vtt(reading: VideoReading, has_word_times: bool = False) -> str:
    """Returns WebVTT (W3C): cues, with notes for their confidence and for the segments that could not be read."""
    blocks = ["WEBVTT\n"]
    for segment in reading.segments:
        times = f"{stamp(segment.start_s, '.')} --> {stamp(segment.end_s, '.')}"
        if segment.reason is not None:
            # an arrow would end the note
            blocks.append(f"NOTE {times.replace('-->', 'to')} not read: {_one_line(segment.reason)}\n")
        elif segment.text:
            blocks.append(f"NOTE confidence {segment.confidence:.3f}\n")
            caption, words = _caption(segment.text), words_of(segment) if has_word_times else ()
            blocks.append(f"{times}\n{with_word_times(caption, words)}\n")
    return "\n".join(blocks)


_WRITERS: Mapping[Format, Callable[[VideoReading], str]] = {
    "text": as_text,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
    "karaoke": as_karaoke,
    "ctm": as_ctm,
    "textgrid": as_textgrid,
    "elan": as_elan,
}


def stamp(time_s: float, mark: str) -> str:
    """Returns hours, minutes, seconds and, after `mark`, milliseconds."""
    milliseconds = round(max(time_s, 0.0) * 1000)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{mark}{milliseconds:03d}"


def caption_lines(text: str, columns: int = LINE_COLUMNS) -> list[str]:
    """Returns `text` in as few lines as possible, of similar length, without splitting words separated by spaces."""
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
    return [line for line in [*lines, line.strip()] if line]


def out_paths(videos: Mapping[Path, Path], folder: Path, suffix: str) -> dict[Path, Path]:
    """Returns a separate file in `folder` for each video: at its place, with a number if two would be the same."""
    taken: set[str] = set()
    paths = {}
    for video, place in videos.items():
        path, number = folder / place.with_name(place.stem + suffix), 1
        # some file systems do not distinguish upper and lower case
        while str(path).casefold() in taken:
            number += 1
            path = path.with_name(f"{place.stem}-{number}{suffix}")
        taken.add(str(path).casefold())
        paths[video] = path
    return paths


def suffix_of(kind: Format) -> str:
    return _SUFFIXES[kind]


def write_reading(reading: VideoReading, kind: Format, path: Path) -> None:
    """Writes the whole file or nothing."""
    write_text(path, valid_utf8(rendered(reading, kind)))


def with_word_times(caption: str, words: Sequence[Word]) -> str:
    """Returns the text of a WebVTT cue in which each word but the first has its time, for players to highlight it.

    `caption` has the same characters as `words`, apart from spaces and line ends.
    """
    starts_s: dict[int, float] = {}
    place = 0
    for word in words:
        starts_s[place] = word.start_s
        place += len("".join(_one_line(word.text).split()))
    marked, place = "", 0
    for character in caption:
        if not character.isspace():
            marked += f"<{stamp(starts_s[place], '.')}>" if place and place in starts_s else ""
            place += 1
        marked += html.escape(character, quote=False)
    return marked


def _spoken(reading: VideoReading) -> Iterable[Segment]:
    return (segment for segment in reading.segments if segment.text)


def _caption(text: str) -> str:
    return "\n".join(caption_lines(_one_line(text)))


def _without_markup(caption: str) -> str:
    """Adds an invisible character after the bracket of each tag: players obey tags, and SubRip has no escapes."""
    return _MARKUP.sub(rf"\g<0>{_WORD_JOINER}", caption)


def _one_line(text: str) -> str:
    """Joins the lines and replaces arrows: an empty line would end a cue, an arrow would start another."""
    return " ".join(text.split()).replace("-->", "→")


def _units(text: str) -> list[str]:
    """Splits into words, each with the space after it, and single wide characters."""
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
