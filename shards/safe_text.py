"""Makes foreign text (of a corpus, a file name, a checkpoint) safe to show in terminals and spreadsheets."""

import csv
import logging
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

_JOINERS = "\u200c\u200d"
"""They join letters (many Persian words have one) and hide nothing."""
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|infinity)", re.ASCII | re.IGNORECASE)


def is_control(character: str) -> bool:
    """Returns whether the character controls a terminal or changes the text direction instead of being visible."""
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def one_line(text: object) -> str:
    r"""Returns `text` in one printable line, with control characters escaped: a newline as \n, ESC as \x1b."""
    plain = str(text)
    return plain if plain.isprintable() else "".join(map(_shown, plain))


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii") if is_control(character) else character


def message_lines(text: object) -> str:
    """Returns one of our messages so that foreign text cannot begin a line: further lines begin with two spaces."""
    return "\n  ".join(map(one_line, str(text).split("\n  ")))


def indented_lines(text: object) -> str:
    """Indents the lines of a foreign message, to be part of one of ours."""
    return str(text).replace("\n", "\n  ")


class LogFormatter(logging.Formatter):
    """Formats as `logging.Formatter`; foreign text cannot begin a line or control the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = message_lines(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"  {one_line(line)}" for line in super().formatException(ei).split("\n"))


def csv_cell(value: Any) -> Any:
    """Returns `value` for a CSV file so that a spreadsheet runs no text as a formula (OWASP, CSV injection).

    Text that begins like a formula gets a leading apostrophe, numbers stay. To restore the text, a program removes
    one apostrophe if a cell begins with apostrophes followed by one of = + - @, a tab or a line break.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def write_csv_rows(out: TextIO, rows: Iterable[Iterable[Any]]) -> None:
    """Writes rows of `csv_cell` values, each with a line feed at its end."""
    csv.writer(_LineFeeds(out), lineterminator="\r\n").writerows(map(csv_cell, row) for row in rows)


class _LineFeeds:
    """Writes rows with a line feed only. `csv` uses CR LF, because it quotes only the characters of its own row end."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, row: str, /) -> None:
        self._out.write(row[:-2] + "\n")
