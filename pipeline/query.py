"""SQL over the tables: read-only views of the Parquet files, without access to other files or the network.

The answer to a query as a table, CSV, JSON or Parquet, written while it is read.
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
from shards.catalogue import batches, damaged_table_error, interruptible, open_catalogue
from shards.errors import ConfigError, TableError
from shards.files import ROW_GROUP_ROWS, atomic_file
from shards.safe_text import indented_lines, is_control, one_line, write_csv_rows

MEMORY_LIMIT = "2GB"
BATCH_ROWS = 10_000
_MISSING_TABLE = re.compile(r"Table with name (\w+) does not exist")
NESTED = ("list", "array", "struct", "map")
"""DuckDB's names of the types that hold others."""
_Done = TypeVar("_Done")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave: columns in the order of the SELECT, and rows that are read once, batch after batch."""

    connection: duckdb.DuckDBPyConnection
    relation: duckdb.DuckDBPyRelation
    columns: tuple[str, ...]
    """Two may share a name."""

    def with_text_for(self, is_kept: Callable[[str], bool]) -> "Answer":
        """The same answer, all values of other types as the text that DuckDB writes of them, in lists and structs too.

        `is_kept` is asked by DuckDB's name of a type ('hugeint', 'timestamp_ns', 'struct'). Neither Arrow nor Python
        has all of its values: dates may be infinite, an interval has months, a UHUGEINT would become -1.
        """
        chosen = []
        # by number, since names may be shared; what is chosen of those gets names of its own
        for place, (name, kind) in enumerate(zip(self.columns, self.relation.types, strict=True), start=1):
            shown = _kept_or_text(kind, is_kept)
            chosen.append(
                f"#{place}" if shown == str(kind) else f"CAST(#{place} AS {shown}) AS {_quoted(name)}"
            )
        return replace(self, relation=self.relation.project(", ".join(chosen)))

    def batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """As `shards.catalogue.batches`."""
        return batches(self.relation, batch_rows)


def _kept_or_text(kind: DuckDBPyType, is_kept: Callable[[str], bool]) -> str:
    """The SQL name of the type as which values of `kind` are shown."""
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
    """A batch as tuples of the Python values that DuckDB gives; sums of integers are integers."""
    # DuckDB turns them back: Arrow has a map as a list of pairs, and an interval as three numbers
    found = answer.connection.cursor().from_arrow(pa.Table.from_batches([batch])).fetchall()
    wide = [i for i, kind in enumerate(batch.schema.types) if pa.types.is_decimal(kind) and kind.scale == 0]
    return [_with_integers(row, wide) for row in found] if wide else found


def _with_integers(row: tuple[Any, ...], places: list[int]) -> tuple[Any, ...]:
    return tuple(int(v) if i in places and isinstance(v, Decimal) else v for i, v in enumerate(row))


def view_files(paths: PathsParams) -> dict[str, tuple[Path, str]]:
    """View → its Parquet file and the command that makes it."""
    return {
        "clips": (Path(paths.clips), "pipeline ingest"),
        "crops": (Path(paths.crops), "pipeline crop"),
        "tracks": (Path(paths.tracks), "pipeline crop"),
        "samples": (Path(paths.samples), "pipeline pack"),
        "predictions": (Path(paths.report) / "predictions.parquet", "pipeline report"),
    }


def query(sql: str, paths: PathsParams, use: Callable[[Answer], _Done]) -> _Done:
    """What `use` makes of the answer to one SELECT (also FROM, WITH, DESCRIBE, SUMMARIZE, SHOW) over the views.

    Raises ConfigError with DuckDB's message where the SQL is wrong, TableError naming the verb to run where
    it names a table that is not made yet or is damaged, Interrupted after Ctrl-C.
    """
    files = view_files(paths)
    with open_catalogue(files, MEMORY_LIMIT) as connection, _told(files):
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
def _told(files: dict[str, tuple[Path, str]]) -> Iterator[None]:
    """DuckDB's errors as ours."""
    try:
        yield
    except duckdb.CatalogException as error:
        named = _MISSING_TABLE.search(str(error))
        file, verb = files.get(named[1].lower() if named else "", (None, ""))
        if file is None or file.is_file():
            raise ConfigError(f"query: {indented_lines(error)}") from error
        raise TableError(f"{file} is missing; `{verb}` makes it") from error
    except duckdb.OutOfMemoryException as error:
        # what DuckDB proposes in the lines after the first is locked
        raise ConfigError(
            f"query needs more than {MEMORY_LIMIT} of memory; aggregate or LIMIT it, or take fewer columns: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except duckdb.Error as error:
        raise damaged_table_error(error, files) or ConfigError(f"query: {indented_lines(error)}") from error
    except (pa.ArrowNotImplementedError, OverflowError) as error:
        # a UNION, an interval of a million years: neither Arrow nor Python has the like
        raise ConfigError(
            f"query: a column cannot be shown ({indented_lines(error)}); cast it, as x::VARCHAR"
        ) from error


FORMATS = ("table", "csv", "json", "parquet")
MAX_PRINTED_ROWS = 1_000
_PLAIN = frozenset(
    {"boolean", "varchar", "float", "double", "decimal"}
    | {"tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint"}
)
_LOST = frozenset({"uhugeint", "bignum", "bit", "time with time zone"})
"""Of these Arrow, by which Parquet is written, gets other values, or bytes that DuckDB alone can read."""
_KEPT: Mapping[str, Callable[[str], bool]] = {
    "table": _PLAIN.__contains__,
    "csv": _PLAIN.__contains__,
    "json": (_PLAIN | {*NESTED}).__contains__,
    "parquet": lambda kind: kind not in _LOST,
}
"""Format → whether it gives values of a type as they are; others are given as text."""


def write_answer(sql: str, paths: PathsParams, format: str = "table", out: Path | None = None) -> None:
    """Writes what `sql` gives to the file `out`, whole or not at all, or to stdout.

    `table` shows the first MAX_PRINTED_ROWS rows and counts the rest on stderr, the others write all; in JSON, a list
    with one object a line, values that are not finite are null. Memory does not grow with the rows. Numbers, truth
    values and text are given as such, in JSON lists and structs of them too; all else as DuckDB writes it. Parquet
    keeps the types that it has. Raises ConfigError for another format than FORMATS, where JSON or Parquet would lose a
    column because another has its name, for Parquet on a terminal, and where `out` is one of the tables.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format: '{format}' is not allowed; known are {', '.join(FORMATS)}")
    if out and any(file.exists() and out.exists() and out.samefile(file) for file, _ in _tables(paths)):
        raise ConfigError(f"--out: {out} is one of the tables that queries read; name another file")
    if format == "parquet" and not out and sys.stdout.isatty():
        raise ConfigError("--format parquet is not for a terminal; name a file with --out")

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


def _tables(paths: PathsParams) -> Iterable[tuple[Path, str]]:
    return view_files(paths).values()


@contextmanager
def _text_file(path: Path) -> Iterator[TextIO]:
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        yield text
        # the file is synced and closed by its owner
        text.detach()


def _write_parquet(answer: Answer, file: BinaryIO) -> None:
    _refuse_shared_names(answer)
    batches = answer.batches(ROW_GROUP_ROWS)
    try:
        with pq.ParquetWriter(file, next(batches).schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise ConfigError(f"query: Parquet cannot hold a column ({error}); cast it, as x::VARCHAR") from error


def _write_csv(answer: Answer, out: TextIO) -> None:
    rows: Iterable[Iterable[Any]] = chain(
        [answer.columns], chain.from_iterable(rows_of(answer, one) for one in answer.batches())
    )
    if out.isatty():
        # lists and structs are written as Python shows them, which has none
        rows = ([one_line(value) if isinstance(value, str) else value for value in row] for row in rows)
    write_csv_rows(out, rows)


def _write_json(answer: Answer, out: TextIO) -> None:
    _refuse_shared_names(answer)
    between = "[\n"
    for batch in answer.batches():
        for row in rows_of(answer, batch):
            named = dict(zip(answer.columns, map(_json_value, row), strict=True))
            text = json.dumps(named, ensure_ascii=False, default=str)
            if not text.isprintable():
                # json escapes the control characters of ASCII only
                text = "".join(json.dumps(one)[1:-1] if is_control(one) else one for one in text)
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
        # Text: a value such as [red] is no markup
        table.add_row(*(Text("" if value is None else one_line(value)) for value in row))
    console_on(out).print(table)
    if (rest := num_rows - len(shown)) > 0:
        Console(stderr=True).print(f"{rest} more rows; --format csv, json or parquet writes them all")


def _refuse_shared_names(answer: Answer) -> None:
    if len(set(answer.columns)) < len(answer.columns):
        raise ConfigError(
            f"query: two columns of {', '.join(answer.columns)} share a name; rename one with AS"
        )


def _json_value(value: Any) -> Any:
    """`value` with lists and structs followed, decimals as floats, and NaN and infinities as None."""
    if isinstance(value, Decimal):
        # a HUGEINT within a list is one of scale 0
        value = float(value) if value.as_tuple().exponent else int(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    return value
