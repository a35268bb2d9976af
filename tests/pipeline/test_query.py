"""Tests `pipeline query`: it reads views of the tables, and reports wrong SQL, missing and damaged tables."""

import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.params import PathsParams
from pipeline.query import view_files
from shards.catalogue import open_catalogue
from shards.errors import ConfigError, TableError
from tests.support.forked import ROOT, Forked
from tests.support.queried import CLIPS, ask, paths_fixture  # noqa: F401


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


def test_memory_is_capped(paths: PathsParams, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.query.MEMORY_LIMIT", "20MB")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="more than 20MB of memory"):
        ask("SELECT range FROM range(20000000) ORDER BY hash(range)", paths)
    assert not (tmp_path / ".tmp").exists()


LONG = "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE (a.range * b.range) % 7 = 3"


@pytest.mark.parametrize("sql", [LONG, "SELECT hash(a.range) FROM range(100000000000) a"])
def test_ctrl_c_ends_a_long_query_and_leaves_no_file(paths: PathsParams, sql: str) -> None:
    out = Path(paths.report) / "out.csv"
    places = [f"--set=paths.{name}={value}" for name, value in paths.model_dump().items()]
    with Forked(ROOT, ["query", sql, "--format", "csv", "--out", out, *places]) as process:
        for _ in range(200):
            if list(out.parent.glob(".out*")):
                break
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        done = process.wait(10)
    assert done.returncode == 1
    assert done.stderr.strip() == "pipeline: query: stopped"
    assert not list(out.parent.glob("*out*"))
