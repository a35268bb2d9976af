"""Tests that `pipeline query` reaches no other file, no network and no setting."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from pipeline.params import PathsParams
from pipeline.query import view_files
from shards.catalogue import open_catalogue
from shards.errors import ConfigError
from tests.support.queried import ask, paths_fixture  # noqa: F401

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
