"""Tables that violate their schema are refused with file and column, by every way to read them."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import TableError
from shards.files import ROW_GROUP_ROWS, check_table, read_table, read_table_in_pieces
from shards.schema import SAMPLES, TABLES, TRACKS
from tests.support.catalogues import catalogue

Read = Callable[[Path, list[str]], object]
READS: dict[str, Read] = {
    "whole": lambda path, _: read_table(path, SAMPLES, "pipeline pack"),
    "pieces": lambda path, names: list(read_table_in_pieces(path, SAMPLES, "pipeline pack", names, 8)),
    "end": lambda path, _: check_table(path, SAMPLES, "pipeline pack"),
}


def written(path: Path, column: str, values: pa.Array, row_group_rows: int = ROW_GROUP_ROWS) -> Path:
    """Writes a catalogue of 20 rows with our schema version, in which another program replaced a column."""
    table = catalogue(["train"] * 20)
    table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table.replace_schema_metadata(SAMPLES.metadata), path, row_group_size=row_group_rows)
    return path


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "num_frames",
            pa.array([str(i) for i in range(20)]),
            "column num_frames has type string.*int32 is needed",
        ),
        ("num_frames", pa.array(range(20), pa.int64()), "column num_frames has type int64.*int32 is needed"),
        ("clip_size", pa.array([512.0] * 20), "column clip_size has type double.*int64 is needed"),
        ("label", pa.array(range(20)), "column label has type int64.*string is needed"),
        ("label", pa.array(["a"] * 19 + [None]), "column label is null in 1 rows"),
        ("num_frames", pa.array([None] + [9] * 19, pa.int32()), "column num_frames is null in 1 rows"),
    ],
)
def test_another_type_or_a_null_is_refused(
    tmp_path: Path, read: Read, column: str, values: pa.Array, message: str
) -> None:
    path = written(tmp_path / "samples.parquet", column, values)
    with pytest.raises(TableError, match=rf"samples\.parquet: {message}.*run `pipeline pack` again"):
        read(path, ["clip_id", column])


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_nulls_are_refused_unless_the_schema_allows_them(tmp_path: Path, read: Read) -> None:
    """Also if the file declares every column nullable, and over several row groups."""
    speakers = pa.array([None] * 20, pa.string())
    read(written(tmp_path / "good.parquet", "speaker", speakers, 6), ["clip_id", "speaker"])
    read(written(tmp_path / "declared.parquet", "label", pa.array(["a"] * 20), 6), ["clip_id", "label"])
    late = written(tmp_path / "late.parquet", "label", pa.array(["a"] * 17 + [None] * 3), 6)
    with pytest.raises(TableError, match="column label is null"):
        read(late, ["clip_id", "label"])


def test_lists_are_checked_by_type_and_pass(tmp_path: Path) -> None:
    row = {"clip_id": "a", "transform": [1.0], "frame_index": [0], "landmarked": []}
    pq.write_table(pa.Table.from_pylist([row], TRACKS), tmp_path / "tracks.parquet")
    check_table(tmp_path / "tracks.parquet", TRACKS, "pipeline crop")
    assert read_table(tmp_path / "tracks.parquet", TRACKS, "pipeline crop").to_pylist() == [row]


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_table_is_accepted(tmp_path: Path, name: str) -> None:
    schema = TABLES[name]
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    check_table(tmp_path / "empty.parquet", schema, "pipeline pack")
    assert read_table(tmp_path / "empty.parquet", schema, "pipeline pack").num_rows == 0
