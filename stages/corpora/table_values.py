"""Times and ages as people's tables hold them: texts, spreadsheets' numbers, and the types of Parquet."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import CorpusError

# a column of ages with gaps may have become floating point
_AGE = re.compile(r"(\d{1,3})(\.0*)?", re.ASCII)
_SECONDS = re.compile(r"(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][-+]?\d{1,3})?", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d{1,30})?)", re.ASCII)
_MAX_S = 1e9
_UNKNOWN = frozenset({"", "nan", "nat", "none", "null", "na", "n/a", "<na>"})
"""What programs write where a number is not known."""

_UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def time_s(name: str, text: str, where: str) -> float | None:
    """Seconds, rounded to microseconds: what programs compute is off by the last bit. Raises CorpusError."""
    if text.casefold() in _UNKNOWN:
        return None
    value: float | None = None
    if _SECONDS.fullmatch(text):
        value = float(text)
    elif match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = int(match[1] or 0), int(match[2]), float(match[3].replace(",", "."))
        if seconds < 60 and (minutes < 60 or match[1] is None):
            value = hours * 3600 + minutes * 60 + seconds
    if value is None or value >= _MAX_S:
        raise CorpusError(
            f"{where}: {name} {text[:40]!r} is no time; write seconds, as 72.5, or hours:minutes:seconds, as "
            "00:01:12.500, or leave it empty at the video's own start or end"
        )
    return round(value, 6)


def age(text: str, where: str) -> int | None:
    if text.casefold() in _UNKNOWN:
        return None
    if (match := _AGE.fullmatch(text)) is None:
        raise CorpusError(
            f"{where}: age {text[:40]!r} is no number of years; leave it empty where it is not known"
        )
    return int(match[1])


def is_time(kind: pa.DataType) -> bool:
    """Whether values of a Parquet type are times since the video's start, or nothing but numbers and texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    known = (
        *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null),
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_time, pa.types.is_duration),
    )
    return any(is_it(kind) for is_it in known)


def as_texts(column: pa.Array) -> pa.Array:
    """A Parquet column as the texts that a CSV would hold: durations in seconds, and nothing for a NaN."""
    if pa.types.is_duration(column.type):
        counts = column.cast(pa.int64()).cast(pa.float64(), safe=False)
        column = pc.divide(counts, float(_UNITS_PER_S[column.type.unit]))
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return column.cast(pa.string())
