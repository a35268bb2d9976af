"""Text of others' making (a corpus, a file's name, a checkpoint), made harmless where people look at it."""

import csv
import logging
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

_JOINERS = "\u200c\u200d"
"""They shape letters (Persian has one in many words) and hide nothing."""
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|infinity)", re.ASCII | re.IGNORECASE)


def is_control(character: str) -> bool:
    """Whether it steers a terminal or turns the direction of what stands beside it, rather than being seen."""
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def one_line(text: object) -> str:
    r"""`text` as it can be printed in a line, whatever characters are in it: a newline as \n, ESC as \x1b."""
    plain = str(text)
    return plain if plain.isprintable() else "".join(map(_shown, plain))


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii") if is_control(character) else character


def message_lines(text: object) -> str:
    """A message of ours, in which nothing foreign begins a line: those after the first begin with two spaces."""
    return "\n  ".join(map(one_line, str(text).split("\n  ")))


def indented_lines(text: object) -> str:
    """Another program's message of several lines, to stand in one of ours."""
    return str(text).replace("\n", "\n  ")


class LogFormatter(logging.Formatter):
    """Formats as `logging.Formatter`, with no foreign text in a line's beginning, or steering the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = message_lines(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"  {one_line(line)}" for line in super().formatException(ei).split("\n"))


def csv_cell(value: Any) -> Any:
    """`value` for a CSV that a spreadsheet may open, in which no text is run as a formula (OWASP, CSV injection).

    Text that begins as a formula gets an apostrophe in front, numbers stay. Where a cell begins with apostrophes and
    then one of = + - @, a tab or a line break, a program takes one apostrophe away, and has the text again.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def write_csv_rows(out: TextIO, rows: Iterable[Iterable[Any]]) -> None:
    """Writes rows of `csv_cell`s, each ended by a line feed."""
    csv.writer(_LineFeeds(out), lineterminator="\r\n").writerows(map(csv_cell, row) for row in rows)


class _LineFeeds:
    """Ends a row as we do. For `csv` it ends with both breaks, since that quotes the breaks of its own end alone."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, row: str, /) -> None:
        self._out.write(row[:-2] + "\n")
