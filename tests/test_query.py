"""`pipeline query`: views over the tables, and nothing else within reach."""

import csv
import json
from io import StringIO
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.params import PathsParams
from pipeline.query import QueryResult, connect, print_result, run_query
from shards.errors import ConfigError, TableError

CLIPS = {"clip_id": ["a", "b", "c"], "split": ["train", "train", "test"], "num_chars": [3, 5, 7]}


@pytest.fixture
def paths(tmp_path: Path) -> PathsParams:
    # a name that SQL and globbing would each misread
    folder = tmp_path / "o'dd [a]*"
    folder.mkdir()
    pq.write_table(pa.table(CLIPS), folder / "clips.parquet")
    pq.write_table(pa.table({"clip_id": ["c"], "cer": [0.5]}), folder / "predictions.parquet")
    names = ("clips", "crops", "tracks", "samples")
    return PathsParams(**{name: str(folder / f"{name}.parquet") for name in names}, report=str(folder))


def test_views_are_read_and_joined(paths: PathsParams) -> None:
    result = run_query("SELECT split, count(*) AS clips FROM clips GROUP BY split ORDER BY split", paths)
    assert result == QueryResult(("split", "clips"), [("test", 1), ("train", 2)])
    joined = run_query(
        "SELECT split, avg(cer) FROM predictions JOIN clips USING (clip_id) GROUP BY ALL", paths
    )
    assert joined.rows == [("test", 0.5)]
    assert run_query("DESCRIBE clips", paths).rows[0][:2] == ("clip_id", "VARCHAR")
    assert run_query("FROM clips WHERE false", paths) == QueryResult(tuple(CLIPS), [])


@pytest.mark.parametrize(
    ("view", "verb"), [("crops", "crop"), ("tracks", "crop"), ("samples", "pack"), ("Crops", "crop")]
)
def test_a_view_without_its_file_names_the_verb(paths: PathsParams, view: str, verb: str) -> None:
    with pytest.raises(TableError, match=rf"{view.lower()}.parquet is missing; `pipeline {verb}` makes it"):
        run_query(f"SELECT * FROM clips JOIN {view} USING (clip_id)", paths)


def test_a_damaged_table_is_named(paths: PathsParams) -> None:
    Path(paths.crops).write_bytes(b"torso")
    with pytest.raises(TableError, match=r"crops.parquet is no readable Parquet file .*run `pipeline crop`"):
        run_query("FROM clips", paths)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM clips", "nothing"),
        ("FROM nowhere", "nowhere"),
        ("", "must be one SELECT"),
        ("SELECT 1; SELECT 2", "must be one SELECT"),
        ("SELECT 'x'::INTEGER", "convert"),
        ("SELECT ?", "parameter"),
    ],
)
def test_wrong_sql_is_a_config_error_with_duckdbs_words(paths: PathsParams, sql: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        run_query(sql, paths)


HOSTILE = [
    "FROM '{other}'",
    "FROM read_csv('{other}')",
    "SELECT * FROM read_text('{other}')",
    "SELECT * FROM glob('{folder}/*')",
    "FROM read_parquet('https://localhost/x.parquet')",
    "COPY clips TO '{new}'",
    "WITH x AS (COPY clips TO '{new}' (use_tmp_file false)) FROM x",
    "WITH x AS (COPY (SELECT 1) TO '{clips}' (use_tmp_file false)) FROM x",
    "EXPLAIN ANALYZE COPY clips TO '{new}'",
    "ATTACH '{new}'",
    "EXPORT DATABASE '{new}'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "PRAGMA enable_profiling",
    "DROP VIEW clips",
    "CREATE TABLE t AS SELECT 1",
    "FROM paths",
    "FROM sql",
]


def fill(sql: str, paths: PathsParams, folder: Path) -> str:
    names = {"other": folder / "other.csv", "new": folder / "new", "clips": paths.clips, "folder": folder}
    return sql.format(**{name: str(path).replace("'", "''") for name, path in names.items()})


@pytest.mark.parametrize("sql", HOSTILE)
def test_no_file_and_no_setting_is_within_reach(paths: PathsParams, tmp_path: Path, sql: str) -> None:
    (tmp_path / "other.csv").write_text("secret\n1\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError):
        run_query(fill(sql, paths, tmp_path), paths)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("sql", [sql for sql in HOSTILE if "{" in sql])
def test_the_connection_itself_is_shut_off(paths: PathsParams, tmp_path: Path, sql: str) -> None:
    """Without the check that a query is one SELECT: the lock alone must hold."""
    (tmp_path / "other.csv").write_text("secret\n1\n")
    duckdb_errors = "Permission Error|Catalog Error|Binder Error|IO Error"
    with connect(paths) as connection, pytest.raises(Exception, match=duckdb_errors):
        connection.execute(fill(sql, paths, tmp_path)).fetchall()
    assert not (tmp_path / "new").exists()


def test_settings_are_locked_and_python_variables_out_of_reach(paths: PathsParams) -> None:
    own_table = pa.table({"secret": [1]})
    with connect(paths) as connection:
        with pytest.raises(duckdb.InvalidInputException, match="locked"):
            connection.execute("SET memory_limit = '1TB'")
        with pytest.raises(duckdb.CatalogException, match="own_table"):
            connection.execute("FROM own_table")
        assert connection.execute("SELECT current_setting('temp_directory')").fetchall() == [("",)]
    assert own_table.num_rows == 1


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="known are table, csv, json"):
        printed(RESULT, "xml")


def test_memory_is_capped(paths: PathsParams, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.query.MEMORY_LIMIT", "20MB")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="more than 20MB of memory"):
        run_query("SELECT range FROM range(20000000) ORDER BY hash(range)", paths)
    assert not (tmp_path / ".tmp").exists()


RESULT = QueryResult(("name", "value"), [("[red]你好,\n", 1.5), ("b", None), ("c", float("nan"))])


def printed(result: QueryResult, format: str) -> str:
    out = StringIO()
    print_result(result, format, out)
    return out.getvalue()


def test_csv_and_json_are_read_back() -> None:
    rows = list(csv.reader(StringIO(printed(RESULT, "csv"), newline="")))
    assert rows == [["name", "value"], ["[red]你好,\n", "1.5"], ["b", ""], ["c", "nan"]]
    assert json.loads(printed(RESULT, "json")) == [
        {"name": "[red]你好,\n", "value": 1.5},
        {"name": "b", "value": None},
        {"name": "c", "value": None},
    ]
    nested = QueryResult(("x",), [([float("inf"), {"k": (1, 2)}],)])
    assert json.loads(printed(nested, "json")) == [{"x": [None, {"k": [1, 2]}]}]


def test_decimals_are_numbers_in_json(paths: PathsParams) -> None:
    assert json.loads(printed(run_query("SELECT 1.50 AS x", paths), "json")) == [{"x": 1.5}]


def test_json_refuses_two_columns_of_one_name() -> None:
    with pytest.raises(ConfigError, match="share a name; rename one with AS"):
        printed(QueryResult(("a", "a"), [(1, 2)]), "json")


def test_a_printed_table_shows_values_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(RESULT, "table")
    assert "[red]你好" in text and "1.5" in text
    print_result(RESULT)
    assert "[red]你好" in capsys.readouterr().out


def test_a_long_table_is_cut_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(QueryResult(("n",), [(i,) for i in range(1_003)]), "table")
    assert " 999 " in text and "1001" not in text
    assert "3 more rows" in capsys.readouterr().err
