"""Tests the answers of `pipeline query`: tables, CSV, JSON and Parquet, on stdout and in files."""

import csv
import json
import sys
from io import StringIO
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.params import PathsParams
from pipeline.query import write_answer
from shards.errors import ConfigError
from tests.support import forked
from tests.support.queried import CLIPS, paths_fixture  # noqa: F401


def test_an_unknown_format_is_refused(paths: PathsParams) -> None:
    with pytest.raises(ConfigError, match="--format must be one of table, csv, json, parquet"):
        write_answer("FROM clips", paths, "xml")


@pytest.mark.parametrize("format", ["table", "csv", "json", "parquet"])
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT union_value(a := 1) AS x",
        "SELECT [union_value(a := 1)] AS x",
        "SELECT {'k': 1::UNION(a INT, b VARCHAR)} AS x FROM clips",
        "SELECT INTERVAL 99999999 YEAR AS x",
        "SELECT TIMESTAMPTZ '2024-01-01' AS x",
        "SELECT DATE '290000-01-01' AS x",
        "SELECT 'infinity'::TIMESTAMP AS x",
        "SELECT TIMETZ '12:00:00+01' AS x",
        "SELECT '0101'::BIT AS x",
        "SELECT 170141183460469231731687303715884105727::UHUGEINT AS x",
        "SELECT 'a'::ENUM('a', 'b') AS x",
        "SELECT MAP {[1]: NULL} AS x",
        "SELECT MAP {} AS x",
        "SELECT row(1, DATE '2024-01-01') AS x",
    ],
)
def test_odd_types_are_written_or_refused_with_a_message(paths: PathsParams, sql: str, format: str) -> None:
    out = Path(paths.report) / "out"
    try:
        write_answer(sql, paths, format, out)
    except ConfigError as error:
        assert str(error).startswith("query: ")
    # the fix in the message
    write_answer(f"SELECT x::VARCHAR AS x FROM ({sql})", paths, format, out)
    assert out.stat().st_size


ROWS = "FROM (VALUES ('[red]你好,\n', 1.5::DOUBLE), ('b', NULL), ('c', 'nan')) AS rows(name, value)"


def printed(sql: str, paths: PathsParams, format: str) -> str:
    """Returns what is written to a file; stdout gets the same (tested separately)."""
    out = Path(paths.report) / "out"
    write_answer(sql, paths, format, out)
    return out.read_bytes().decode()


def test_csv_and_json_are_read_back(paths: PathsParams) -> None:
    rows = list(csv.reader(StringIO(printed(ROWS, paths, "csv"), newline="")))
    assert rows == [["name", "value"], ["[red]你好,\n", "1.5"], ["b", ""], ["c", "nan"]]
    assert json.loads(printed(ROWS, paths, "json")) == [
        {"name": "[red]你好,\n", "value": 1.5},
        {"name": "b", "value": None},
        {"name": "c", "value": None},
    ]
    nested = "SELECT ['inf'::DOUBLE] AS x, {'k': [1, 2]} AS y, 1.50 AS z, sum(num_chars) AS w FROM clips"
    assert json.loads(printed(nested, paths, "json")) == [
        {"x": [None], "y": {"k": [1, 2]}, "z": 1.5, "w": 15}
    ]
    assert json.loads(printed("FROM clips WHERE false", paths, "json")) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("DATE 'infinity'", "infinity"),
        ("DATE '-infinity'", "-infinity"),
        ("DATE '0044-03-15 (BC)'", "0044-03-15 (BC)"),
        ("DATE '10000-01-01'", "10000-01-01"),
        ("TIMESTAMP '-infinity'", "-infinity"),
        ("'infinity'::TIMESTAMP_S", "infinity"),
        ("TIMESTAMPTZ 'infinity'", "infinity"),
        ("TIMESTAMP '290000-01-01'", "290000-01-01 00:00:00"),
        ("TIMESTAMP '2024-01-02 03:04:05.5'", "2024-01-02 03:04:05.5"),
        ("TIMESTAMP_NS '2024-01-01 00:00:00.123456789'", "2024-01-01 00:00:00.123456789"),
        ("TIME '24:00:00'", "24:00:00"),
        ("TIMETZ '12:00:00+01'", "12:00:00+01"),
        ("INTERVAL '1 month 3 days'", "1 month 3 days"),
        ("INTERVAL 99999999 YEAR", "99999999 years"),
        ("340282366920938463463374607431768211455::UHUGEINT", "340282366920938463463374607431768211455"),
        (r"'\xAA\x00b'::BLOB", r"\xAA\x00b"),
        ("'0101'::BIT", "0101"),
        ("'a'::ENUM('a', 'b')", "a"),
        ("union_value(a := DATE 'infinity')", "infinity"),
    ],
)
def test_a_value_that_python_lacks_is_the_same_text_in_all_formats(
    paths: PathsParams, value: str, text: str
) -> None:
    """Infinite dates became the last of Python's years, months 30 days, the largest UHUGEINT -1."""
    sql = f"SELECT {value} AS x, [{value}] AS l, {{'a\"b': {value}}} AS s, 1 AS n ORDER BY n"
    (row,) = json.loads(printed(sql, paths, "json"))
    assert row == {"x": text, "l": [text], "s": {'a"b': text}, "n": 1}
    ((x, listed, *_),) = list(csv.reader(StringIO(printed(sql, paths, "csv"), newline="")))[1:]
    assert x == text and text in listed.replace("\\\\", "\\")
    assert f"│ {text} " in printed(f"SELECT {value} AS x", paths, "table")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("170141183460469231731687303715884105727::HUGEINT", "170141183460469231731687303715884105727"),
        ("(-1)::HUGEINT", "-1"),
        ("18446744073709551615::UBIGINT", "18446744073709551615"),
        ("-0.5::DOUBLE", "-0.5"),
    ],
)
def test_numbers_stay_numbers_in_lists_too(paths: PathsParams, value: str, text: str) -> None:
    sql = f"SELECT {value} AS x, [{value}] AS l"
    assert printed(sql, paths, "json") == f'[\n{{"x": {text}, "l": [{text}]}}\n]\n'
    assert printed(sql, paths, "csv") == f"x,l\n{text},[{text}]\n"


@pytest.mark.parametrize(
    "value", ["340282366920938463463374607431768211455::UHUGEINT", "'0101'::BIT", "TIMETZ '12:00:00+01'"]
)
def test_parquet_has_text_for_values_that_arrow_would_lose(
    paths: PathsParams, tmp_path: Path, value: str
) -> None:
    out = tmp_path / "out.parquet"
    write_answer(f"SELECT {value} AS x, [{value}] AS l, DATE 'infinity' AS d", paths, "parquet", out)
    text = value.split("::")[0].removeprefix("TIMETZ ").strip("'")
    found = duckdb.read_parquet(str(out)).select("x, l, d::VARCHAR")
    assert found.fetchall() == [(text, [text], "infinity")]


def test_parquet_is_read_back_and_the_same_twice(paths: PathsParams) -> None:
    first = Path(paths.report) / "first.parquet"
    write_answer("SELECT *, [num_chars] AS l FROM clips ORDER BY clip_id", paths, "parquet", first)
    expected = pa.table(CLIPS | {"l": [[3], [5], [7]]})
    assert pq.read_table(first).to_pydict() == expected.to_pydict()
    again = first.with_name("again.parquet")
    write_answer("SELECT *, [num_chars] AS l FROM clips ORDER BY clip_id", paths, "parquet", again)
    assert first.read_bytes() == again.read_bytes()
    write_answer("FROM clips WHERE false", paths, "parquet", again)
    assert pq.read_table(again).schema.names == list(CLIPS)


@pytest.mark.parametrize("format", ["json", "parquet"])
def test_two_columns_with_one_name_are_refused(paths: PathsParams, format: str) -> None:
    with pytest.raises(ConfigError, match="share a name; rename one with AS"):
        printed("SELECT 1 AS a, 2 AS a", paths, format)
    assert not (Path(paths.report) / "out").exists()


def test_a_column_that_parquet_cannot_hold_is_refused(paths: PathsParams) -> None:
    with pytest.raises(ConfigError, match=r"Parquet cannot hold a column .*cast it"):
        printed("SELECT INTERVAL 1 DAY AS x", paths, "parquet")


@pytest.mark.parametrize("format", ["csv", "json", "parquet", "table"])
def test_a_query_that_fails_halfway_keeps_the_previous_file(paths: PathsParams, format: str) -> None:
    out = Path(paths.report) / "out"
    out.write_text("former")
    half_way = "SELECT CASE WHEN range < 100000 THEN range ELSE error('late') END AS x FROM range(200000)"
    with pytest.raises(ConfigError, match="late"):
        write_answer(half_way, paths, format, out)
    assert out.read_text() == "former"
    assert not list(out.parent.glob(".out*"))


def test_an_answer_does_not_overwrite_a_table(paths: PathsParams) -> None:
    before = Path(paths.clips).read_bytes()
    link = Path(paths.report) / "link"
    link.hardlink_to(paths.clips)
    for out in (Path(paths.clips), link, Path(paths.report) / "." / "predictions.parquet"):
        with pytest.raises(ConfigError, match="is one of the tables"):
            write_answer("SELECT 1 AS a", paths, "parquet", out)
    assert Path(paths.clips).read_bytes() == before


def test_a_printed_table_shows_values_as_they_are(
    paths: PathsParams, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    write_answer(ROWS, paths)
    text = capfdbinary.readouterr().out.decode()
    assert "[red]你好" in text and "1.5" in text
    write_answer("FROM clips", paths, "parquet")
    assert pq.read_table(pa.BufferReader(capfdbinary.readouterr().out)).num_rows == 3


def test_parquet_is_not_for_a_terminal(paths: PathsParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(ConfigError, match="choose a file with --out"):
        write_answer("FROM clips", paths, "parquet")


def test_a_long_table_is_cut_with_a_note(paths: PathsParams, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("SELECT range AS n FROM range(31003)", paths, "table")
    assert " 999 " in text and "1000" not in text
    assert "30003 more rows" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_rows(paths: PathsParams) -> None:
    """150,000 more rows of 800 characters are 120 MB. 50,000 rows are five batches, more than are in memory at once."""
    program = """
import sys
from pathlib import Path
from shards.machine import status_mb
from pipeline.params import PathsParams
from pipeline.query import write_answer
sql = f"SELECT lpad(range::VARCHAR, 800, 'x') AS x FROM range({sys.argv[2]})"
write_answer(sql, PathsParams(), "json", Path(sys.argv[1]))
print(status_mb("VmHWM"))
"""
    peaks_mb = []
    for count in (50_000, 200_000):
        done = forked.python(program, Path(paths.report) / "x.csv", str(count), folder=Path(paths.report))
        assert done.returncode == 0, done.stderr
        peaks_mb.append(float(done.stdout))
    assert peaks_mb[1] - peaks_mb[0] < 40, peaks_mb


def test_a_table_in_a_file_wraps_no_value(paths: PathsParams) -> None:
    """No search finds an id that is wrapped over two lines."""
    ids = [f"{letter * 60}" for letter in "abc"]
    table = printed("SELECT " + ", ".join(f"'{one}' AS {one[:1]}" for one in ids), paths, "table")
    assert all(one in table for one in ids)
