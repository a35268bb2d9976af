"""Strict CSV: every record with its line, or an error that names file and line."""

import codecs
import csv
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path

from shards.errors import CorpusError

# as spreadsheets of other languages write them
_OTHER_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'", "，": "'，'"}


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`, without a byte order mark.

    Raises CorpusError where it is missing, or with the line of the first byte that is no UTF-8.
    """
    try:
        # by hand: with utf-8-sig the error would count its bytes from behind the mark
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is no UTF-8; convert the file to UTF-8 first"
        ) from error


def read_csv(
    path: Path, check_header: Callable[[Sequence[str]], str | None]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (`file:line`, record) for each row below the header; values are as they stand in the file.

    Spaces around column names do not count. `check_header` gives what is wrong with the column names, or
    None. Blank lines are passed over. Raises CorpusError for a wrong header, a row of another number of
    fields, or broken quoting.
    """
    # strict: a stray quote would otherwise swallow the rows up to the next one
    reader = csv.reader(StringIO(read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = [name.strip() for name in fields]
                if problem := check_header(header):
                    raise CorpusError(f"{where}: {problem}{_hint(header)}")
                continue
            if len(fields) != len(header):
                raise CorpusError(
                    f"{where}: {len(fields)} fields where the header has {len(header)}; "
                    f'a field with a comma or a line break in it needs "quotes"'
                )
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise CorpusError(f"{path}:{line}: {error}; check the quotes of this row") from error
    if header is None:
        raise CorpusError(f"{path}:1: the file is empty; it needs a header")


def _hint(header: Sequence[str]) -> str:
    """Names in one field: they are separated by something else."""
    other = next((mark for mark in _OTHER_SEPARATORS if len(header) == 1 and mark in header[0]), None)
    return (
        "" if other is None else f"; its names are separated by {_OTHER_SEPARATORS[other]}; it must be commas"
    )
