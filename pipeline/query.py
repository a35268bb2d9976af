"""SQL over the tables: read-only views of the Parquet files, without access to other files or the network."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
from duckdb.sqltypes import DuckDBPyType

from pipeline.params import PathsParams
from shards.catalogue import batches, damage, interruptible, open_catalogue
from shards.errors import ConfigError, TableError
from shards.plain import inner_lines

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
            raise ConfigError(f"query: {inner_lines(error)}") from error
        raise TableError(f"{file} is missing; `{verb}` makes it") from error
    except duckdb.OutOfMemoryException as error:
        # what DuckDB proposes in the lines after the first is locked
        raise ConfigError(
            f"query needs more than {MEMORY_LIMIT} of memory; aggregate or LIMIT it, or take fewer columns: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except duckdb.Error as error:
        raise damage(error, files) or ConfigError(f"query: {inner_lines(error)}") from error
    except (pa.ArrowNotImplementedError, OverflowError) as error:
        # a UNION, an interval of a million years: neither Arrow nor Python has the like
        raise ConfigError(
            f"query: a column cannot be shown ({inner_lines(error)}); cast it, as x::VARCHAR"
        ) from error
