"""Reads CSV strictly: every record with its line, or an error that names file and line."""

import codecs
import csv
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import zip_longest
from pathlib import Path

from shards.errors import CorpusError
from shards.pipes import refuse_pipe

_log = logging.getLogger(__name__)

# as spreadsheets of other languages write them
_OTHER_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'", "，": "'，'"}

# first bytes of files that people keep tables in
_OTHER_FILES = {
    b"PK\x03\x04": "an Excel workbook or another zip",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "packed by gzip",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ\0": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"PAR1": "a Parquet file without the extension .parquet",
}


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of `path`, without a byte order mark.

    Raises CorpusError where the file is missing or of another kind, or with the line of the first byte that is not
    UTF-8.
    """
    refuse_pipe(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    return decoded(path, raw)


def decoded(path: Path, raw: bytes) -> str:
    """Returns the text of the content of `path`. Raises CorpusError like `read_text`."""
    # not utf-8-sig: the position in its errors does not count the mark
    raw = raw.removeprefix(codecs.BOM_UTF8)
    if other := next((_OTHER_FILES[first] for first in _OTHER_FILES if raw.startswith(first)), None):
        raise CorpusError(f"{path} is {other}, which cannot be read; save it as a plain text file in UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; convert the file to UTF-8 first"
        ) from error


def read_csv(
    path: Path, check_header: Callable[[Sequence[str]], str | None], required: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (`file:line`, record) for each row below the header; values are unchanged.

    Ignores spaces around column names, and columns that have neither a name nor a value. `check_header` returns what
    is wrong with the column names, or None. Skips blank lines. Also skips, and logs, rows of empty fields and a
    repeated header (tables joined by `cat`). A row may lack its last fields, which are then empty, except those of the
    columns `required` (none given: all of the header); this is logged too. Raises CorpusError for a wrong header,
    another header below the first, a wrong number of fields in a row, or broken quoting.
    """
    # joined files contain byte order marks
    text = re.sub(r"^\ufeff+", "", read_text(path), flags=re.MULTILINE)
    # strict: a stray quote would otherwise swallow the rows up to the next one
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line, num_empty, num_repeated, num_short = 1, 0, 0, 0
    try:
        for fields in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not any(field.strip() for field in fields):
                num_empty += bool(fields)
                continue
            if header is None:
                header = _names(fields)
                if problem := check_header([name for name in header if name]):
                    raise CorpusError(f"{where}: {problem}{_hint(header)}")
                required = required or header
            elif _folded(names := _names(fields)) == _folded(header):
                num_repeated += 1
            elif len({*_folded(names)} & {*_folded(required)}) > 1:
                raise CorpusError(
                    f"{where}: a second table begins here, with the header {','.join(names)}; save each table "
                    "as its own file, or use the same columns in the same order"
                )
            else:
                num_short += len(fields) < len(header)
                yield where, _record(header, fields, where, required)
    except csv.Error as error:
        raise CorpusError(f"{path}:{line}: {error}; check the quotes of this row") from error
    if header is None:
        raise CorpusError(f"{path}:1: the file is empty; it needs a header")
    if num_empty or num_repeated:
        _log.warning("%s: %d empty rows and %d repeated headers are skipped", path, num_empty, num_repeated)
    if num_short:
        _log.warning("%s: %d rows lack their last fields, which are treated as empty", path, num_short)


def _names(fields: Sequence[str]) -> list[str]:
    """Returns the column names without the empty ones that spreadsheets add at the end."""
    names = [name.strip() for name in fields]
    while names and not names[-1]:
        names.pop()
    return names


def _folded(names: Sequence[str]) -> list[str]:
    return [name.casefold() for name in names]


def _record(
    header: Sequence[str], fields: Sequence[str], where: str, required: Sequence[str]
) -> dict[str, str]:
    lacking = [name for name in header[len(fields) :] if name in required]
    if lacking or any(field.strip() for field in fields[len(header) :]):
        raise CorpusError(
            f"{where}: {len(fields)} fields where the header has {len(header)}; "
            f'put a field with a comma or a line break into "quotes"'
            + (f"; an empty {', '.join(lacking)} needs its comma too" if lacking else "")
        )
    for number, (name, field) in enumerate(zip(header, fields, strict=False), start=1):
        if not name and field.strip():
            raise CorpusError(
                f"{where}: {field[:40]!r} is in column {number}, which has no name; name the column in the header, or "
                "clear it"
            )
    return {name: field for name, field in zip_longest(header, fields[: len(header)], fillvalue="") if name}


def _hint(header: Sequence[str]) -> str:
    """Returns a hint where all names are in one field: another separator than the comma."""
    other = next((mark for mark in _OTHER_SEPARATORS if len(header) == 1 and mark in header[0]), None)
    return (
        "" if other is None else f"; its names are separated by {_OTHER_SEPARATORS[other]}; it must be commas"
    )
