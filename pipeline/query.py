"""Answers SQL over read-only views of the Parquet tables, without access to other files or the network.

Writes the answer as a table, CSV, JSON or Parquet while it is read.
"""

import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb.sqltypes import DuckDBPyType
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.console import console_on
from pipeline.params import PathsParams
from shards.catalogue import MEMORY_LIMIT, batches, damaged_table_error, interruptible, open_catalogue
from shards.errors import ConfigError, TableError
from shards.files import ROW_GROUP_ROWS, atomic_file
from shards.safe_text import indented_lines, is_control, one_line, write_csv_rows
from shards.schema import FURTHER_TABLES

BATCH_ROWS = 10_000
_NO_MEMORY_LEFT = "Allocation failure"
"""Part of DuckDB's error if the system gives no more memory, although the query is below MEMORY_LIMIT."""
_MISSING_TABLE = re.compile(r"Table with name (\w+) does not exist")
NESTED = ("list", "array", "struct", "map")
"""DuckDB's names of the nested types."""

FORMATS = ("table", "csv", "json", "parquet")
MAX_PRINTED_ROWS = 1_000
_PLAIN = frozenset(
    {"boolean", "varchar", "float", "double", "decimal"}
    | {"tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint"}
)
_LOST = frozenset({"uhugeint", "bignum", "bit", "time with time zone"})
"""Types that Arrow, which writes Parquet, changes or writes as bytes that only DuckDB can read."""
_KEPT: Mapping[str, Callable[[str], bool]] = {
    "table": _PLAIN.__contains__,
    "csv": _PLAIN.__contains__,
    "json": (_PLAIN | {*NESTED}).__contains__,
    "parquet": lambda kind: kind not in _LOST,
}
"""Format → whether it keeps the values of a type; other values are written as text."""
_Done = TypeVar("_Done")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a query: columns in the order of the SELECT, and rows that can be read once, in batches."""

    connection: duckdb.DuckDBPyConnection
    relation: duckdb.DuckDBPyRelation
    columns: tuple[str, ...]
    """Two columns may have the same name."""

    def with_text_for(self, is_kept: Callable[[str], bool]) -> "Answer":
        """Returns the answer with values of all types that are not kept as DuckDB's text, also in lists and structs.

        `is_kept` gets DuckDB's name of a type ('hugeint', 'timestamp_ns', 'struct'). Arrow and Python lack some of
        its values: dates may be infinite, an interval has months, a UHUGEINT would become -1.
        """
        chosen = []
        # by number, because two columns may have the same name; DuckDB then renames the chosen ones
        for place, (name, kind) in enumerate(zip(self.columns, self.relation.types, strict=True), start=1):
            shown = _kept_or_text(kind, is_kept)
            chosen.append(
                f"#{place}" if shown == str(kind) else f"CAST(#{place} AS {shown}) AS {_quoted(name)}"
            )
        return replace(self, relation=self.relation.project(", ".join(chosen)))

    def batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yields batches, as `shards.catalogue.batches` does."""
        return batches(self.relation, batch_rows)


def _kept_or_text(kind: DuckDBPyType, is_kept: Callable[[str], bool]) -> str:
    """Returns the SQL name of the type in which values of `kind` are written."""
    if not is_kept(kind.id):
        return "VARCHAR"
    if kind.id not in NESTED:
        return str(kind)
    parts = dict(kind.children)
    size = parts.pop("size") if kind.id == "array" else ""
    kinds = [_kept_or_text(part, is_kept) for part in parts.values()]
    if kind.id == "struct":
        fields = (f"{_quoted(name)} {part}" for name, part in zip(parts, kinds, strict=True))
        return f"STRUCT({', '.join(fields)})"
    return f"MAP({', '.join(kinds)})" if kind.id == "map" else f"{kinds[0]}[{size}]"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def rows_of(answer: Answer, batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    """Returns a batch as tuples of DuckDB's Python values; sums of integers are integers."""
    # back through DuckDB: in Arrow a map is a list of pairs, and an interval is three numbers
    found = answer.connection.cursor().from_arrow(pa.Table.from_batches([batch])).fetchall()
    wide = [i for i, kind in enumerate(batch.schema.types) if pa.types.is_decimal(kind) and kind.scale == 0]
    return [_with_integers(row, wide) for row in found] if wide else found


def _with_integers(row: tuple[Any, ...], places: list[int]) -> tuple[Any, ...]:
    return tuple(int(v) if i in places and isinstance(v, Decimal) else v for i, v in enumerate(row))


def view_files(paths: PathsParams) -> dict[str, tuple[Path, str]]:
    """Returns view → its Parquet file and the command that writes it."""
    return {
        "clips": (Path(paths.clips), "pipeline ingest"),
        "crops": (Path(paths.crops), "pipeline crop"),
        "tracks": (Path(paths.tracks), "pipeline crop"),
        "samples": (Path(paths.samples), "pipeline pack"),
        **{name: (Path(getattr(paths, name)), command) for name, command in FURTHER_TABLES.items()},
        "predictions": (Path(paths.report) / "predictions.parquet", "pipeline report"),
    }


def query(sql: str, paths: PathsParams, use: Callable[[Answer], _Done]) -> _Done:
    """Returns the result of `use` on the answer to one SELECT (also FROM, WITH, DESCRIBE, SUMMARIZE, SHOW).

    Raises ConfigError with DuckDB's message if the SQL is wrong, TableError with the command to run if a table of the
    query is missing or damaged, Interrupted after Ctrl-C.
    """
    files = view_files(paths)
    with open_catalogue(files, MEMORY_LIMIT) as connection, _pipeline_errors(files):
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise ConfigError(
                f"query must be one SELECT statement (DESCRIBE clips lists the columns of a view): {sql}"
            )

        def answered() -> _Done:
            relation = connection.sql(statements[0])
            return use(Answer(connection, relation, tuple(relation.columns)))

        return interruptible(connection, "query", answered)


@contextmanager
def _pipeline_errors(files: dict[str, tuple[Path, str]]) -> Iterator[None]:
    """Converts errors of DuckDB to errors of the pipeline."""
    try:
        yield
    except duckdb.CatalogException as error:
        named = _MISSING_TABLE.search(str(error))
        file, verb = files.get(named[1].lower() if named else "", (None, ""))
        if file is None or file.is_file():
            raise ConfigError(f"query: {indented_lines(error)}") from error
        raise TableError(f"{file} is missing; run `{verb}`") from error
    except duckdb.OutOfMemoryException as error:
        # the options that DuckDB proposes after the first line are locked
        if _NO_MEMORY_LEFT in str(error):
            raise MemoryError(str(error).splitlines()[0]) from error
        raise ConfigError(
            f"query needs more than {MEMORY_LIMIT} of memory; aggregate, add a LIMIT or select fewer columns: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except duckdb.Error as error:
        raise damaged_table_error(error, files) or ConfigError(f"query: {indented_lines(error)}") from error


def write_answer(sql: str, paths: PathsParams, format: str = "table", out: Path | None = None) -> None:
    """Writes the answer to `sql` to stdout, or to the file `out`, which is written completely or not at all.

    `table` prints the first MAX_PRINTED_ROWS rows and the number of the rest on stderr; other formats write all rows.
    JSON is a list with one object on each line; values that are not finite are null. Memory does not grow with the
    rows. Numbers, booleans and text keep their type, in JSON also inside lists and structs; other values are DuckDB's
    text. Parquet keeps the types that it has. Raises ConfigError for a format not in FORMATS, if JSON or Parquet would
    lose a column because two columns have the same name, for Parquet on a terminal, and if `out` is one of the tables.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)} (got '{format}')")
    tables = [file for file, _ in view_files(paths).values()]
    if out and any(file.exists() and out.exists() and out.samefile(file) for file in tables):
        raise ConfigError(f"--out: {out} is one of the tables that queries read; choose another file")
    if format == "parquet" and not out and sys.stdout.isatty():
        raise ConfigError("--format parquet cannot be written to a terminal; choose a file with --out")

    def write(answer: Answer) -> None:
        answer = answer.with_text_for(_KEPT[format])
        if format == "parquet":
            with atomic_file(out) if out else nullcontext(sys.stdout.buffer) as file:
                _write_parquet(answer, file)
        else:
            write_text = {"table": _write_table, "csv": _write_csv, "json": _write_json}[format]
            with _text_file(out) if out else nullcontext(sys.stdout) as text:
                write_text(answer, text)

    query(sql, paths, write)


@contextmanager
def _text_file(path: Path) -> Iterator[TextIO]:
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        yield text
        # atomic_file syncs and closes the file
        text.detach()


def _write_parquet(answer: Answer, file: BinaryIO) -> None:
    _refuse_shared_names(answer)
    batches = answer.batches(ROW_GROUP_ROWS)
    try:
        with pq.ParquetWriter(file, next(batches).schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        # an INTERVAL or a UNION, or MAP {} and an infinite TIMESTAMP_S
        raise ConfigError(
            f"query: Parquet cannot hold a column ({error}); cast it to text: x::VARCHAR"
        ) from error


def _write_csv(answer: Answer, out: TextIO) -> None:
    rows: Iterable[Iterable[Any]] = chain(
        [answer.columns], chain.from_iterable(rows_of(answer, batch) for batch in answer.batches())
    )
    if out.isatty():
        rows = ([one_line(value) if isinstance(value, str) else value for value in row] for row in rows)
    write_csv_rows(out, rows)


def _write_json(answer: Answer, out: TextIO) -> None:
    _refuse_shared_names(answer)
    between = "[\n"
    for batch in answer.batches():
        for row in rows_of(answer, batch):
            named = dict(zip(answer.columns, map(_json_value, row), strict=True))
            text = json.dumps(named, ensure_ascii=False)
            if not text.isprintable():
                # json escapes only the control characters of ASCII
                text = "".join(json.dumps(char)[1:-1] if is_control(char) else char for char in text)
            out.write(between + text)
            between = ",\n"
    out.write("[]\n" if between == "[\n" else "\n]\n")


def _write_table(answer: Answer, out: TextIO) -> None:
    shown: list[tuple[Any, ...]] = []
    num_rows = 0
    for batch in answer.batches():
        if len(shown) < MAX_PRINTED_ROWS:
            shown += rows_of(answer, batch.slice(0, MAX_PRINTED_ROWS - len(shown)))
        num_rows += batch.num_rows
    table = Table()
    for index, column in enumerate(answer.columns):
        numeric = bool(shown) and isinstance(shown[0][index], int | float | Decimal)
        table.add_column(Text(one_line(column)), justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        # Text: a value such as [red] is not markup
        table.add_row(*(Text("" if value is None else one_line(value)) for value in row))
    console_on(out).print(table)
    if (rest := num_rows - len(shown)) > 0:
        Console(stderr=True).print(f"{rest} more rows; write all rows with --format csv, json or parquet")


def _refuse_shared_names(answer: Answer) -> None:
    if len(set(answer.columns)) < len(answer.columns):
        raise ConfigError(
            f"query: two columns of {', '.join(answer.columns)} share a name; rename one with AS"
        )


def _json_value(value: Any) -> Any:
    """Converts `value`, also inside lists and structs: decimals to floats, NaN and infinities to None."""
    if isinstance(value, Decimal):
        # a HUGEINT within a list is a decimal of scale 0
        value = float(value) if value.as_tuple().exponent else int(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    return value
