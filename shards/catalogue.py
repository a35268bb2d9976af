"""The Parquet tables as SQL views, read only and with nothing else within reach: what query and stats ask.

DuckDB reads the tables itself, so that it takes only the columns and row groups a question needs and its memory limit
counts all that it holds: the same views over Arrow datasets took 5.2 GB where these take 0.6 (`SELECT *` of 10 million
clips). It gets at them through a file system that knows their names alone and opens for reading alone. With its own
right to the files instead, `WITH x AS (COPY … TO 'clips.parquet' (use_tmp_file false)) SELECT …` overwrites a table.
"""

import io
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from shards.errors import Interrupted, TableError
from shards.files import READ_ERRORS, unreadable
from shards.machine import usable_cores
from shards.pipes import refuse_pipe

MEMORY_LIMIT = "2GB"
MOST_THREADS = 8
_PROTOCOL = "catalogue"
_OUT_OF_MEMORY = "Out of Memory Error"

_Done = TypeVar("_Done")


@contextmanager
def open_catalogue(
    files: Mapping[str, tuple[Path, str]], memory_limit: str = MEMORY_LIMIT
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory connection with a view for each of `files` that exists, and access to nothing else.

    `files`: view → its Parquet file and the command that makes it. A table that is replaced meanwhile is still
    read as it was. Raises TableError where a file is no readable Parquet table.
    """
    with ExitStack() as stack:
        opened: dict[str, BinaryIO] = {}
        for view, (file, verb) in files.items():
            refuse_pipe(file)
            if file.is_file():
                try:
                    opened[view] = stack.enter_context(file.open("rb"))
                    # DuckDB would tell of damage in words about its own name of the file
                    pq.read_metadata(opened[view])
                except READ_ERRORS as error:
                    raise unreadable(file, error, verb) from error
        connection = stack.enter_context(duckdb.connect(":memory:"))
        connection.register_filesystem(_OpenTables(opened))
        places = {view: f"{_PROTOCOL}://{view}" for view in opened}
        connection.execute(
            "SET allowed_paths = [" + ", ".join(f"'{place}'" for place in places.values()) + "]"
        )
        for view, place in places.items():
            connection.execute(f"CREATE VIEW {view} AS FROM read_parquet('{place}')")
        connection.execute(f"SET memory_limit = '{memory_limit}'")
        # each holds a row group's columns: dozens of them would pass the limit by that alone
        connection.execute(f"SET threads = {min(usable_cores(), MOST_THREADS)}")
        # without it a large query would spill to a folder in the working directory
        connection.execute("SET temp_directory = ''")
        # it would be drawn on stdout, between the rows
        connection.execute("SET enable_progress_bar = false")
        # this also keeps SQL from naming Python variables of this process as tables
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection


def interruptible(connection: duckdb.DuckDBPyConnection, verb: str, work: Callable[[], _Done]) -> _Done:
    """Returns `work()`, computed in a thread; raises Interrupted at once at Ctrl-C.

    In the main thread DuckDB may not notice Ctrl-C before it is done.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt as error:
            # again and again: one that comes between two steps of DuckDB is lost
            while not future.done():
                connection.interrupt()
                wait([future], timeout=0.1)
            raise Interrupted(f"{verb}: stopped") from error


def batches(relation: duckdb.DuckDBPyRelation, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Rows as Arrow has them, first an empty batch that tells the columns; the query runs while they are read.

    Raises DuckDB's errors, also the ones that come after some rows.
    """
    reader = relation.to_arrow_reader(batch_rows)
    yield pa.RecordBatch.from_pylist([], reader.schema)
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except OSError as error:
            # so Arrow hands on what DuckDB raises once rows have been given
            text = str(error)
            raise (duckdb.OutOfMemoryException if _OUT_OF_MEMORY in text else duckdb.Error)(text) from error
        yield batch


def damaged_table_error(error: duckdb.Error, files: Mapping[str, tuple[Path, str]]) -> TableError | None:
    """What `error` tells of a damaged table, in words about its file; None where it tells of something else."""
    text = str(error).splitlines()[0]
    if named := re.search(rf'Failed to read file "{_PROTOCOL}://(\w+)"', text):
        file, verb = files[named[1]]
        return TableError(f"{file} is damaged ({text}); run `{verb}` again")
    if re.match(r"[\w ]+ Error: ", text) or "extension" in text:
        return None
    # a bare message of the Parquet reader, which does not tell of which file
    for file, verb in files.values():
        if file.is_file() and (fault := _fault(file)):
            return TableError(f"{file} is damaged ({fault}); run `{verb}` again")
    return None


def _fault(file: Path) -> str:
    """What Arrow says of a damaged table, nothing of a sound one; reads all of it."""
    try:
        for _ in pq.ParquetFile(file).iter_batches():
            pass
    except READ_ERRORS as error:
        return str(error)
    return ""


class _OpenTables(AbstractFileSystem):
    """What DuckDB may open: these files, for reading."""

    protocol = _PROTOCOL
    cachable = False

    def __init__(self, files: Mapping[str, BinaryIO]) -> None:
        super().__init__()
        self._files = files

    def open(self, path: str, mode: str = "rb", **_: Any) -> "_Reader":
        if mode != "rb":
            raise PermissionError(f"the tables are read only, and {path} was to be opened as '{mode}'")
        return _Reader(self._file(path).fileno())

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        size = os.fstat(self._file(path).fileno()).st_size
        return {"name": self._strip_protocol(path), "size": size, "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return [self.info(name) if detail else name for name in self._files]

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(os.fstat(self._file(path).fileno()).st_mtime, UTC)

    def _file(self, path: str) -> BinaryIO:
        if (name := self._strip_protocol(path)) not in self._files:
            raise FileNotFoundError(path)
        return self._files[name]


class _Reader(io.RawIOBase):
    """Reads an open file from a position of each thread's own.

    DuckDB's threads share a reader, and each first seeks, then reads: with one position they read each other's bytes.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        # by the system's thread: DuckDB's have no lasting Python thread, and with it no threading.local
        self._position_of_thread: dict[int, int] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position_of_thread.get(threading.get_native_id(), 0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        self._position_of_thread[threading.get_native_id()] = start + offset
        return start + offset

    def read(self, size: int = -1) -> bytes:
        position = self.tell()
        payload = os.pread(self._descriptor, self._size - position if size < 0 else size, position)
        self.seek(position + len(payload))
        return payload
