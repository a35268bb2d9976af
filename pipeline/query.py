"""SQL over the tables: read-only views of the Parquet files, without access to other files or the network."""

import csv
import json
import math
import re
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import duckdb
import pyarrow as pa
import pyarrow.dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.params import PathsParams
from shards.errors import ConfigError, TableError

FORMATS = ("table", "csv", "json")

MEMORY_LIMIT = "2GB"
MAX_PRINTED_ROWS = 1_000
_MISSING_TABLE = re.compile(r"Table with name (\w+) does not exist")


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Columns in the order of the SELECT, and one tuple of Python values a row."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def view_files(paths: PathsParams) -> dict[str, tuple[Path, str]]:
    """View → its Parquet file and the command that makes it."""
    return {
        "clips": (Path(paths.clips), "pipeline ingest"),
        "crops": (Path(paths.crops), "pipeline crop"),
        "tracks": (Path(paths.tracks), "pipeline crop"),
        "samples": (Path(paths.samples), "pipeline pack"),
        "predictions": (Path(paths.report) / "predictions.parquet", "pipeline report"),
    }


def connect(paths: PathsParams) -> duckdb.DuckDBPyConnection:
    """An in-memory connection with a view for each table that exists, and access to nothing else.

    Raises TableError where a file is no readable Parquet table.
    """
    # Arrow opens the files, so DuckDB needs no right to any. With views over read_parquet and allowed_paths,
    # `WITH x AS (COPY … TO 'clips.parquet' (use_tmp_file false)) SELECT …` would overwrite the table.
    connection = duckdb.connect(":memory:")
    for view, (file, verb) in view_files(paths).items():
        if not file.is_file():
            continue
        try:
            connection.register(view, pyarrow.dataset.dataset(file, format="parquet"))
        except (pa.ArrowInvalid, OSError) as error:
            raise TableError(f"{file} is no readable Parquet file ({error}); run `{verb}` again") from error
    connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
    # without it a large query would spill to a folder in the working directory
    connection.execute("SET temp_directory = ''")
    # this also keeps SQL from naming Python variables of this process as tables
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def run_query(sql: str, paths: PathsParams) -> QueryResult:
    """The result of one SELECT (also FROM, WITH, DESCRIBE, SUMMARIZE, SHOW) over the views.

    Raises ConfigError with DuckDB's message where the SQL is wrong, TableError naming the verb to run where
    it names a table that is not made yet.
    """
    with connect(paths) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise ConfigError(
                    f"query must be one SELECT statement (DESCRIBE clips lists the columns of a view): {sql}"
                )
            connection.execute(statements[0])
            columns = tuple(column[0] for column in connection.description or ())
            return QueryResult(columns, connection.fetchall())
        except duckdb.CatalogException as error:
            named = _MISSING_TABLE.search(str(error))
            file, verb = view_files(paths).get(named[1].lower() if named else "", (None, ""))
            if file is None or file.is_file():
                raise ConfigError(f"query: {error}") from error
            raise TableError(f"{file} is missing; `{verb}` makes it") from error
        except duckdb.OutOfMemoryException as error:
            raise ConfigError(
                f"query needs more than {MEMORY_LIMIT} of memory; aggregate or LIMIT it: {error}"
            ) from error
        except duckdb.Error as error:
            raise ConfigError(f"query: {error}") from error


def print_result(result: QueryResult, format: str = "table", file: TextIO | None = None) -> None:
    """Writes the result to `file` (default: stdout).

    `table` shows the first MAX_PRINTED_ROWS rows and counts the rest on stderr, `csv` and `json` (a list of
    objects) write all; values that are not finite are null in JSON. Raises ConfigError for another
    format than FORMATS, and where JSON would lose a column because another has its name.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format: '{format}' is not allowed; known are {', '.join(FORMATS)}")
    out = file or sys.stdout
    if format == "csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(result.columns)
        writer.writerows(result.rows)
    elif format == "json":
        if len(set(result.columns)) < len(result.columns):
            raise ConfigError(
                f"query: two columns of {', '.join(result.columns)} share a name; rename one with AS"
            )
        rows = [dict(zip(result.columns, map(_json_value, row), strict=True)) for row in result.rows]
        out.write(json.dumps(rows, ensure_ascii=False, indent=2, default=str) + "\n")
    else:
        _print_table(result, out)


def _print_table(result: QueryResult, out: TextIO) -> None:
    table = Table()
    for index, column in enumerate(result.columns):
        numeric = bool(result.rows) and isinstance(result.rows[0][index], int | float)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in result.rows[:MAX_PRINTED_ROWS]:
        # Text: a value such as [red] is no markup
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    Console(file=out).print(table)
    if (rest := len(result.rows) - MAX_PRINTED_ROWS) > 0:
        Console(stderr=True).print(f"{rest} more rows; --format csv or json writes them all")


def _json_value(value: Any) -> Any:
    """`value` with lists and structs followed, decimals as floats, and NaN and infinities as None."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    return value
