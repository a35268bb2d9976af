"""Tests `pipeline query`: it reads views of the tables and nothing else."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.params import PathsParams
from pipeline.query import query, rows_of, view_files, write_answer
from shards.catalogue import open_catalogue
from shards.errors import ConfigError, TableError

CLIPS = {"clip_id": ["a", "b", "c"], "split": ["train", "train", "test"], "num_chars": [3, 5, 7]}


@pytest.fixture
def paths(tmp_path: Path) -> PathsParams:
    # a name that is special in SQL and in globs
    folder = tmp_path / "o'dd [a]*"
    folder.mkdir()
    pq.write_table(pa.table(CLIPS), folder / "clips.parquet")
    pq.write_table(pa.table({"clip_id": ["c"], "cer": [0.5]}), folder / "predictions.parquet")
    names = ("clips", "crops", "tracks", "samples")
    return PathsParams(**{name: str(folder / f"{name}.parquet") for name in names}, report=str(folder))


def ask(sql: str, paths: PathsParams) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    return query(
        sql, paths, lambda answer: (answer.columns, [r for b in answer.batches() for r in rows_of(answer, b)])
    )


def test_views_are_read_and_joined(paths: PathsParams) -> None:
    grouped = ask("SELECT split, count(*) AS clips FROM clips GROUP BY split ORDER BY split", paths)
    assert grouped == (("split", "clips"), [("test", 1), ("train", 2)])
    joined = ask("SELECT split, avg(cer) FROM predictions JOIN clips USING (clip_id) GROUP BY ALL", paths)
    assert joined[1] == [("test", 0.5)]
    assert ask("DESCRIBE clips", paths)[1][0][:2] == ("clip_id", "VARCHAR")
    assert ask("FROM clips WHERE false", paths) == (tuple(CLIPS), [])
    kinds = ask("SELECT sum(num_chars), {'a': [1]}, MAP {'k': 2}, 1.50, INTERVAL 1 DAY FROM clips", paths)[1][
        0
    ]
    assert [type(value).__name__ for value in kinds] == ["int", "dict", "dict", "Decimal", "timedelta"]
    assert kinds[:3] == (15, {"a": [1]}, {"k": 2})


@pytest.mark.parametrize(
    ("view", "verb"), [("crops", "crop"), ("tracks", "crop"), ("samples", "pack"), ("Crops", "crop")]
)
def test_a_view_without_its_file_names_the_verb(paths: PathsParams, view: str, verb: str) -> None:
    with pytest.raises(TableError, match=rf"{view.lower()}.parquet is missing; run `pipeline {verb}`"):
        ask(f"SELECT * FROM clips JOIN {view} USING (clip_id)", paths)


def test_a_damaged_table_is_named(paths: PathsParams) -> None:
    Path(paths.crops).write_bytes(b"partial")
    with pytest.raises(
        TableError, match=r"crops.parquet is not a readable Parquet file .*run `pipeline crop`"
    ):
        ask("FROM clips", paths)


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
def test_wrong_sql_is_a_config_error_with_duckdbs_message(paths: PathsParams, sql: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        ask(sql, paths)


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
    # every other way to a file
    "DESCRIBE '{other}'",
    "SUMMARIZE '{other}'",
    "FROM sniff_csv('{other}')",
    "FROM read_blob('{other}')",
    "FROM read_json('{other}')",
    "FROM parquet_metadata('{clips}')",
    "FROM read_parquet('file://{clips}')",
    "FROM read_text('/proc/self/environ')",
    "FROM query('FROM {other}')",
    "FROM query('COPY clips TO {new}')",
    "FROM query_table('{other}')",
    "FROM query_table(['{other}'])",
    "FROM read_csv('|cat {other}')",
    "FROM (FROM (WITH x AS (COPY clips TO '{new}' (use_tmp_file false)) FROM x))",
    "PREPARE p AS COPY clips TO '{new}'",
    "IMPORT DATABASE '{folder}'",
    "LOAD '{other}'",
    "ATTACH '{other}' (TYPE sqlite)",
    "CREATE TABLE t AS FROM '{other}'",
    "CALL enable_logging(storage='file', storage_path='{new}')",
    # DuckDB's own names of the tables: only those, and read-only
    "FROM read_parquet('catalogue://tracks')",
    "FROM read_text('catalogue://{other}')",
    "FROM read_text('catalogue://clips/../../{other}')",
    "FROM glob('catalogue://*')",
    "COPY clips TO 'catalogue://clips' (FORMAT parquet, use_tmp_file false)",
    "WITH x AS (COPY (SELECT 1) TO 'catalogue://clips' (FORMAT parquet, use_tmp_file false)) FROM x",
    "WITH x AS (COPY (SELECT 1) TO 'catalogue://clips') FROM x",
    "ATTACH 'catalogue://clips' AS other",
    # extensions, the network, secrets, the environment
    "FROM 's3://bucket/x.parquet'",
    "FROM sqlite_scan('{other}', 'x')",
    "FROM st_read('{other}')",
    "FROM read_xlsx('{other}')",
    "CALL load_aws_credentials()",
    "CREATE SECRET s (TYPE s3)",
    "SELECT getenv('PATH')",
    # settings, and other ways to change something
    "SET threads = 64",
    "SET SESSION memory_limit = '1TB'",
    "RESET allowed_paths",
    "PRAGMA memory_limit = '1TB'",
    "CALL pragma_version()",
    "WITH x AS (DELETE FROM clips RETURNING *) FROM x",
    "CREATE OR REPLACE VIEW clips AS SELECT 1",
]


def fill(sql: str, paths: PathsParams, folder: Path) -> str:
    names = {"other": folder / "other.csv", "new": folder / "new", "clips": paths.clips, "folder": folder}
    return sql.format(**{name: str(path).replace("'", "''") for name, path in names.items()})


@pytest.mark.parametrize("sql", HOSTILE)
def test_a_query_reaches_no_file_and_no_setting(paths: PathsParams, tmp_path: Path, sql: str) -> None:
    (tmp_path / "other.csv").write_text("secret\n1\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError):
        ask(fill(sql, paths, tmp_path), paths)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("sql", [sql for sql in HOSTILE if "{" in sql or "catalogue:" in sql])
def test_the_connection_itself_is_locked(paths: PathsParams, tmp_path: Path, sql: str) -> None:
    """Without the check that a query is one SELECT: the locked settings must be enough."""
    (tmp_path / "other.csv").write_text("secret\n1\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with open_catalogue(view_files(paths)) as connection, pytest.raises(duckdb.Error):
        connection.execute(fill(sql, paths, tmp_path)).fetchall()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_settings_are_locked_and_python_variables_unreachable(paths: PathsParams) -> None:
    own_table = pa.table({"secret": [1]})
    with open_catalogue(view_files(paths)) as connection:
        with pytest.raises(duckdb.InvalidInputException, match="locked"):
            connection.execute("SET memory_limit = '1TB'")
        with pytest.raises(duckdb.CatalogException, match="own_table"):
            connection.execute("FROM own_table")
        assert connection.execute("SELECT current_setting('temp_directory')").fetchall() == [("",)]
    assert own_table.num_rows == 1


def test_threads_that_share_a_table_read_it_correctly(tmp_path: Path) -> None:
    """Many row groups and columns, so that DuckDB's threads seek and read in one file at the same time."""
    numbers = pa.array(range(200_000))
    columns = {f"c{i}": numbers for i in range(8)} | {"text": numbers.cast(pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2_000)
    with open_catalogue({"t": (tmp_path / "t.parquet", "x")}) as connection:
        sums = ", ".join(f"sum(c{i})" for i in range(8))
        found = connection.execute(f"SELECT {sums}, count(DISTINCT text) FROM t").fetchall()
    assert found == [(*[199_999 * 100_000] * 8, 200_000)]


def test_a_table_replaced_during_a_query_is_read_unchanged(paths: PathsParams) -> None:
    with open_catalogue(view_files(paths)) as connection:
        other = Path(paths.clips).with_name("other")
        pq.write_table(pa.table({"clip_id": ["z"]}), other)
        other.replace(paths.clips)
        assert connection.execute("SELECT clip_id FROM clips ORDER BY 1").fetchall() == [
            ("a",),
            ("b",),
            ("c",),
        ]


@pytest.mark.parametrize("places", [slice(4, 60), slice(30, 34), slice(4, 8)])
def test_damage_within_a_table_names_the_file(paths: PathsParams, places: slice) -> None:
    pq.write_table(
        pa.table({"clip_id": [f"clip {i}" for i in range(1_000)]}), paths.clips, compression="zstd"
    )
    payload = bytearray(Path(paths.clips).read_bytes())
    payload[places] = b"\xff" * len(payload[places])
    Path(paths.clips).write_bytes(payload)
    with pytest.raises(TableError, match=r"(?s)clips.parquet is damaged .*run `pipeline ingest` again"):
        ask("SELECT clip_id FROM clips", paths)


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


def test_memory_is_capped(paths: PathsParams, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.query.MEMORY_LIMIT", "20MB")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="more than 20MB of memory"):
        ask("SELECT range FROM range(20000000) ORDER BY hash(range)", paths)
    assert not (tmp_path / ".tmp").exists()


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


LONG = "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE (a.range * b.range) % 7 = 3"


@pytest.mark.parametrize("sql", [LONG, "SELECT hash(a.range) FROM range(100000000000) a"])
def test_ctrl_c_ends_a_long_query_and_leaves_no_file(paths: PathsParams, sql: str) -> None:
    out = Path(paths.report) / "out.csv"
    places = [f"--set=paths.{name}={value}" for name, value in paths.model_dump().items()]
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "query",
        sql,
        "--format",
        "csv",
        "--out",
        str(out),
        *places,
    ]
    # a background job of a shell, and its children, would ignore Ctrl-C
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        for _ in range(200):
            if list(out.parent.glob(".out*")):
                break
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert errors.decode().strip() == "pipeline: query: stopped"
    assert not list(out.parent.glob("*out*"))


def test_memory_does_not_grow_with_the_rows(paths: PathsParams) -> None:
    """500,000 rows of 800 characters are 400 MB. 50,000 rows are five batches, more than are in memory at once."""
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
    for count in (50_000, 500_000):
        done = subprocess.run(
            [sys.executable, "-c", program, str(Path(paths.report) / "x.csv"), str(count)],
            capture_output=True, check=True, cwd=paths.report,
        )  # fmt: skip
        peaks_mb.append(float(done.stdout))
    assert peaks_mb[1] - peaks_mb[0] < 40, peaks_mb


def test_a_table_in_a_file_wraps_no_value(paths: PathsParams) -> None:
    """No search finds an id that is wrapped over two lines."""
    ids = [f"{letter * 60}" for letter in "abc"]
    table = printed("SELECT " + ", ".join(f"'{one}' AS {one[:1]}" for one in ids), paths, "table")
    assert all(one in table for one in ids)
