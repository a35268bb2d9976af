"""SQL over the tables: read-only views of the Parquet files, without access to other files or the network."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from pipeline.params import PathsParams
from shards.catalogue import batches, damage, open_catalogue
from shards.errors import ConfigError, Interrupted, TableError
from shards.plain import inner_lines

MEMORY_LIMIT = "2GB"
BATCH_ROWS = 10_000
_MISSING_TABLE = re.compile(r"Table with name (\w+) does not exist")
_Done = TypeVar("_Done")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave: columns in the order of the SELECT, and rows that are read once, batch after batch."""

    connection: duckdb.DuckDBPyConnection
    relation: duckdb.DuckDBPyRelation

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.relation.columns)

    def batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """As `shards.catalogue.batches`."""
        return batches(self.relation, batch_rows)


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
        return _interruptible(connection, lambda: use(Answer(connection, connection.sql(statements[0]))))


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


def _interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], _Done]) -> _Done:
    """`work()` in a thread, so that Ctrl-C ends it at once: DuckDB itself does not look for it while it sorts."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt as error:
            # again and again: one that comes between two steps of DuckDB is lost
            while not future.done():
                connection.interrupt()
                wait([future], timeout=0.1)
            raise Interrupted("query: stopped") from error
