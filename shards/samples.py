"""Reads the rows of a split of samples.parquet and hashes them, in pieces that fit in memory."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.errors import ConfigError
from shards.files import read_table_in_pieces

HASHED_COLUMNS = (
    *("clip_id", "sha256", "num_frames", "label", "shard", "sample_offset"),
    *("confidence", "audio_sha256"),
)
"""Columns that decide the order of an epoch and its content."""
PLAN_COLUMNS = ("clip_id", "num_frames", "shard")
"""Columns that `plan_epoch` and `plan_scoring` read."""
STREAM_COLUMNS = (
    *("clip_id", "label", "shard", "codec", "num_frames"),
    *("sample_offset", "sample_size", "clip_offset", "clip_size", "confidence"),
)
"""Columns for planning and for reading clips with their labels."""
_PIECE_ROWS = 1 << 16
_MADE_BY = "pipeline pack"


def read_samples(samples_path: Path, split: str, columns: Sequence[str] = schema.SAMPLES.names) -> pa.Table:
    """Returns the rows of one split in the order of the table; raises ConfigError if there are none."""
    pieces = list(sample_pieces(samples_path, split, columns))
    fields = [schema.SAMPLES.field(name) for name in columns]
    return pa.Table.from_batches(pieces, pa.schema(fields, schema.SAMPLES.metadata))


def sample_pieces(
    samples_path: Path, split: str, columns: Sequence[str] = HASHED_COLUMNS
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of one split in the order of the table, some ten thousand at a time.

    Raises ConfigError if there are none, TableError if the file is missing, damaged or has another schema version.
    """
    wanted = list(dict.fromkeys([*columns, "split"]))
    found: set[str] = set()
    for piece in read_table_in_pieces(samples_path, schema.SAMPLES, _MADE_BY, wanted, _PIECE_ROWS):
        of_split = pc.equal(piece["split"], split)
        num_rows = of_split.true_count
        if num_rows < piece.num_rows:
            found.update(piece["split"].unique().to_pylist())
            piece = piece.filter(of_split)
        if num_rows:
            found.add(split)
            yield piece.select(list(columns))
    if split not in found:
        raise ConfigError(
            f"{samples_path} has no samples of split '{split}'; it has {', '.join(sorted(found))}"
        )


def splits_of(samples_path: Path) -> set[str]:
    """Returns the splits that have samples."""
    pieces = read_table_in_pieces(samples_path, schema.SAMPLES, _MADE_BY, ["split"], _PIECE_ROWS)
    return {split for piece in pieces for split in piece["split"].unique().to_pylist()}


def samples_hash(samples: pa.Table | Iterable[pa.RecordBatch]) -> str:
    """Returns the hex sha256 of `HASHED_COLUMNS` in table order: equal rows give equal hashes.

    An optional column counts only if a value is known, so tables from before that column have the same hash.

    Chunks, slices and dictionary encoding do not change it. Also accepts the pieces of a table, so that only one
    piece must be in memory.
    """
    columns = {name: _ColumnHash(schema.is_optional(schema.SAMPLES.field(name))) for name in HASHED_COLUMNS}
    for piece in samples.to_batches(_PIECE_ROWS) if isinstance(samples, pa.Table) else samples:
        for name, column_hash in columns.items():
            if name in piece.schema.names or not column_hash.is_optional:
                column_hash.add(piece[name])
    whole = hashlib.sha256()
    for name, column_hash in columns.items():
        if column_hash.is_known or not column_hash.is_optional:
            whole.update(name.encode() + column_hash.digest())
    return whole.hexdigest()


def without_null(value: Any) -> Any:
    """Returns `value` as in the JSON of a sample: an unknown value (None) is an empty string.

    Readers that build batches reject a field that is null in some samples and text in others.
    """
    return "" if value is None else value


class _ColumnHash:
    """Hashes one column, chunk by chunk: the lengths of all strings in one stream, all bytes in another.

    Two streams, so that chunks do not change the hash; lengths, because "ab", "c" must differ from "a", "bc".
    """

    def __init__(self, is_optional: bool) -> None:
        self.is_optional = is_optional
        self._lengths, self._values = hashlib.sha256(), hashlib.sha256()
        self.is_known = False
        """Whether any value is known."""

    def add(self, column: pa.Array) -> None:
        self.is_known |= column.null_count < len(column)
        if pa.types.is_floating(column.type):
            self._values.update(column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype("<f8").data)
            return
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if self.is_optional and pa.types.is_string(column.type):
            column = column.fill_null("")
        assert column.null_count == 0, "the schema allows no nulls in columns of texts and counts"
        if pa.types.is_integer(column.type):
            self._values.update(np.ascontiguousarray(column.to_numpy(), "<i8").data)
        elif len(column):
            column = column.cast(pa.large_string())
            _, offsets, text = column.buffers()
            offset_N = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
            self._lengths.update(np.diff(offset_N).astype("<i8").data)
            if text is not None:
                self._values.update(memoryview(text)[offset_N[0] : offset_N[-1]])

    def digest(self) -> bytes:
        return self._lengths.digest() + self._values.digest()
