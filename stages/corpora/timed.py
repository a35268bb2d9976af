"""Reads transcripts with times: GRID's .align, SubRip .srt, WebVTT .vtt, Praat .TextGrid, and the .txt of LRS.

These parsers are strict: subtitle libraries skip what they do not understand, and a skipped cue would be speech
without its text.
"""

import html
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from shards.errors import CorpusError

MAX_BYTES = 10_000_000
MAX_UTTERANCES = 20_000
"""A word every 30 ms for ten minutes; more cannot be the transcript of one video."""

_ALIGN_UNITS_PER_S = 25_000
_SILENCE = frozenset({"", "sil", "sp", "<sil>", "<eps>"})

LRS_WORDS = "WORD START END ASDSCORE"
_LRS_WORD = re.compile(r"(\S+) (\d{1,6}(?:\.\d+)?) (\d{1,6}(?:\.\d+)?)(?: \S+)?", re.ASCII)

# start and end in 1/25,000 s, word
_ALIGNED = re.compile(r"\s*(\d{1,12})\s+(\d{1,12})\s+(\S+)\s*", re.ASCII)
_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_CUE_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?", re.ASCII)
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
# Praat reads strings, separate numbers and flags, and skips the rest, in its long and short form
_PRAAT = re.compile(
    # possessive: backtracking within a string finds nothing, and would store every character
    r'"((?:[^"]++|"")*+)"|(?<!\S)(-?\d{1,12}(?:\.\d{1,20})?(?:[eE][-+]?\d{1,3})?)(?!\S)|(<\w+>)|(!.*)|(")'
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """A word, or a cue of several; `line` of its file, for messages."""

    start_s: float
    end_s: float
    text: str
    line: int


def parse_timed(name: str, payload: bytes) -> list[Utterance]:
    """Returns the spoken words or cues of a transcript, in order, without silence; `name` has a known extension.

    Raises CorpusError, naming file and line, where it is malformed, or times decrease.
    """
    text = _decoded(name, payload)
    utterances: list[Utterance] = []
    last: Utterance | None = None
    for utterance in PARSERS[PurePosixPath(name).suffix.lower()](name, text):
        if utterance.start_s > utterance.end_s:
            raise CorpusError(
                f"{name}:{utterance.line}: {utterance.text[:40]!r} ends at {utterance.end_s:g} s, before its start"
            )
        if last is not None and utterance.start_s < last.start_s:
            raise CorpusError(
                f"{name}:{utterance.line}: {utterance.text[:40]!r} begins before line "
                f"{last.line}; sort them by time"
            )
        if len(utterances) >= MAX_UTTERANCES:
            raise CorpusError(
                f"{name}:{utterance.line}: more than {MAX_UTTERANCES} words or cues in one video"
            )
        last = utterance
        utterances.append(utterance)
    return utterances


def parse_align(name: str, text: str) -> Iterator[Utterance]:
    """Lines of start, end and word, times in 1/25,000 s."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _ALIGNED.fullmatch(line)
        if match is None:
            raise CorpusError(
                f"{name}:{number}: {line[:80]!r} must be start, end and word, for example 23750 29500 bin"
            )
        start, end, word = match.groups()
        if int(start) > int(end):
            raise CorpusError(f"{name}:{number}: {word!r} ends at {end}, before its start {start}")
        if word not in _SILENCE:
            yield Utterance(int(start) / _ALIGN_UNITS_PER_S, int(end) / _ALIGN_UNITS_PER_S, word, number)


def _parse_cues(name: str, text: str) -> Iterator[Utterance]:
    """SubRip and WebVTT: blocks of an optional name, a line of times, and text up to a blank line."""
    is_vtt = name.lower().endswith(".vtt")
    for number, block in _blocks(text):
        if is_vtt and block[0].split()[0] in ("WEBVTT", "NOTE", "STYLE", "REGION"):
            continue
        at = next((i for i, line in enumerate(block[:2]) if _CUE_TIMES.fullmatch(line)), None)
        if at is None:
            raise CorpusError(
                f"{name}:{number}: {block[0][:80]!r} must begin a cue, with its number or its times, for example "
                "00:00:01,500 --> 00:00:04,000"
            )
        match = _CUE_TIMES.fullmatch(block[at])
        assert match is not None, "checked above"
        start_s, end_s = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        words = _TAG.sub("", " ".join(line.strip() for line in block[at + 1 :]))
        words = " ".join((html.unescape(words) if is_vtt else words).split())
        if words:
            yield Utterance(start_s, end_s, words, number + at)


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and lines of each block of lines that are not blank."""
    block: list[str] = []
    lines = text.splitlines()
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []


def _seconds(groups: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = groups
    assert minutes and seconds and fraction, "only hours may be missing"
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction) / 10 ** len(fraction)


def _parse_textgrid(name: str, text: str) -> Iterator[Utterance]:
    """The tier whose name ends in `word` or `words`, or the only interval tier; empty intervals are silence."""
    tokens = _PraatTokens(name, text)
    if (tokens.string(), tokens.string()) != ("ooTextFile", "TextGrid"):
        raise CorpusError(
            f'{name}:1: a TextGrid begins with File type = "ooTextFile", Object class = "TextGrid"'
        )
    tokens.number(), tokens.number()
    tiers: dict[str, list[Utterance]] = {}
    for _ in range(tokens.count()):
        kind, tier = tokens.string(), tokens.string()
        tokens.number(), tokens.number()
        utterances = []
        for _ in range(tokens.count()):
            start_s = tokens.number()
            end_s = start_s if kind == "TextTier" else tokens.number()
            line = tokens.line
            utterances.append(Utterance(start_s, end_s, " ".join(tokens.string().split()), line))
        if kind == "IntervalTier":
            tiers[tier] = utterances
    named = [tier for tier in tiers if tier.strip().lower().endswith(("word", "words"))] or list(tiers)
    if len(named) != 1:
        raise CorpusError(
            f"{name}:{tokens.line}: one of the interval tiers must be named words (got {', '.join(tiers) or 'none'})"
        )
    yield from (utterance for utterance in tiers[named[0]] if utterance.text not in _SILENCE)


class _PraatTokens:
    """Returns the strings and numbers of a Praat text file one by one, and checks their kind."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.line = name, 1
        self._text, self._place = text, 0
        self._matches = (
            match for match in _PRAAT.finditer(text) if match[1] is not None or match[2] or match[5]
        )

    def _next(self, group: int, wanted: str) -> str:
        match = next(self._matches, None)
        if match is not None:
            self.line += self._text.count("\n", self._place, match.start())
            self._place = match.start()
            if match[group] is not None:
                return match[group]
        found = "the end of the file" if match is None else match[0][:40]
        raise CorpusError(f"{self.name}:{self.line}: {wanted} expected, found {found}")

    def string(self) -> str:
        return self._next(1, "a text in quotes").replace('""', '"')

    def number(self) -> float:
        value = float(self._next(2, "a number"))
        if not -1e-3 <= value <= 1e6:
            raise CorpusError(f"{self.name}:{self.line}: {value:g} is not a time of a video in seconds")
        return value

    def count(self) -> int:
        value = self.number()
        if value != int(value):
            raise CorpusError(f"{self.name}:{self.line}: {value:g} must be a whole number")
        return int(value)


def _parse_lrs(name: str, text: str) -> Iterator[Utterance]:
    """LRS2 and LRS3: below the line LRS_WORDS a word, its start and end in seconds, and a score."""
    above, header, below = text.partition(LRS_WORDS)
    if not header:
        raise CorpusError(f"{name}:1: a text with times has a line {LRS_WORDS}, and the words below it")
    for number, line in enumerate(below.split("\n"), start=above.count("\n") + 1):
        if not line.strip():
            continue
        match = _LRS_WORD.fullmatch(line.strip())
        if match is None:
            raise CorpusError(
                f"{name}:{number}: {line[:80]!r} must be a word, its start and end, for example HELLO 0.12 0.48 7.1"
            )
        yield Utterance(float(match[2]), float(match[3]), match[1], number)


PARSERS: Mapping[str, Callable[[str, str], Iterator[Utterance]]] = {
    ".align": parse_align,
    ".textgrid": _parse_textgrid,
    ".srt": _parse_cues,
    ".vtt": _parse_cues,
    ".txt": _parse_lrs,
}
"""By extension, lower case; if one video has several, the first in this order is read."""


def _decoded(name: str, payload: bytes) -> str:
    # Praat writes UTF-16 where a text is not ASCII
    encoding = "utf-16" if payload[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return payload.decode(encoding)
    except UnicodeDecodeError as error:
        line = payload[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"{name}:{line}: this is not {encoding[:6].upper()}; convert the file to UTF-8 first"
        ) from error
