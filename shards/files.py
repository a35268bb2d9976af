"""Atomic files and the Parquet tables: a name on disk is always a whole, synced file."""

import hashlib
import io
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shards.disk import FORBIDDEN, WatchedFile, disk_errors_reported, unwritable
from shards.errors import MachineError, PipelineError, TableError
from shards.locks import is_name_of, try_flock, try_lock
from shards.pipes import is_stream, open_stream, own_descriptor, refuse_pipe
from shards.schema import SCHEMA_VERSION

HASH_BLOCK_BYTES = 1 << 20
ROW_GROUP_ROWS = 1 << 17
"""Rows of a table that are read at once; more cost a query over millions of clips memory, fewer cost it time."""


@contextmanager
def atomic_file(path: Path, needed_bytes: int = 0) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`; on success it is synced and renamed, on error removed.

    A reader sees the old file or the whole new one, never a torso. Where `path` is a link, its target is replaced; a
    character device, a pipe, or what stands for an open file of this process (/dev/stdout) is written as it comes.
    Raises DiskError where nothing can be written there, or not
    enough; the message for a full disk tells of `needed_bytes`.
    """
    with disk_errors_reported(path, needed_bytes):
        temporary = None
        if (descriptor := own_descriptor(path)) is not None:
            # of the same opening, so at its offset, and at the end where it appends
            raw = WatchedFile(os.dup(descriptor), "w")
        elif is_stream(path):
            raw = open_stream(path)
        else:
            path = _made_place(path)
            _sweep(path.parent)
            temporary, raw = _locked_temporary(path)
    try:
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            if raw.failure:
                raise raw.failure
            if temporary:
                with disk_errors_reported(path, needed_bytes):
                    os.fsync(raw.fileno())
                    _give_rights(raw.fileno(), path)
                    # still open, so locked: a sweep would take it for a killed process's
                    temporary.replace(path)
    except Exception:
        # Arrow, torch and PyAV raise what they like where the disk refuses, or nothing
        if raw.failure is None:
            raise
        raise unwritable(path, raw.failure, needed_bytes) from raw.failure
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
    if temporary:
        sync_folder(path.parent)


def _made_place(path: Path) -> Path:
    """Where the file lies that `path` names, its folder made: a link stays, and its target is what is replaced."""
    if not path.is_symlink():
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
    target = Path(os.path.realpath(path))
    if target.exists() and not target.stat().st_mode & 0o222:
        raise MachineError(
            f"{path} is a link to {target}, which is write-protected (DVC's cache is: `dvc unprotect {path}`); "
            "remove the link, or give another place"
        )
    return target


def _locked_temporary(path: Path) -> tuple[Path, WatchedFile]:
    """A file beside `path`, locked until it is closed or its process ends, however that ends."""
    while True:
        # a name may have 255 bytes, and a character up to four
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:50]}.{_TEMPORARY}-", suffix=".tmp"
        )
        # not so where a sweep came in between; a file system without locks is never swept
        is_ours = True
        with suppress(OSError):
            is_ours = try_flock(descriptor) and is_name_of(Path(name), descriptor)
        if is_ours:
            return Path(name), WatchedFile(descriptor, "w")
        os.close(descriptor)


def _give_rights(descriptor: int, path: Path) -> None:
    """To the open file those of the one at `path`, which it replaces; else the usual ones, where mkstemp gives 0600."""
    try:
        former = path.stat()
    except FileNotFoundError:
        # tables and shards are shared with other users of the machine
        os.fchmod(descriptor, 0o666 & ~_UMASK)
        return
    for owner, group in ((-1, former.st_gid), (former.st_uid, -1)):
        # only root may give to anyone: whoever may not has it as his own
        with suppress(OSError):
            os.fchown(descriptor, owner, group)
    os.fchmod(descriptor, former.st_mode & 0o777)


_TEMPORARY = f"pipeline-{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}"
"""In the name of a temporary file: this program's, of this machine, whose locks tell that its maker is gone."""
TEMPORARY_NAME = r"\.[^/]+\.pipeline-[0-9a-f]{8}-[^/]+\.tmp"
"""The same, of any machine, as a regular expression."""
_swept: set[Path] = set()


def _sweep(folder: Path) -> None:
    """Removes what killed processes of this machine left of `atomic_file` in `folder`, the first time it is asked."""
    if (place := folder.absolute()) in _swept:
        return
    _swept.add(place)
    for left in place.glob(f".*.{_TEMPORARY}-*.tmp"):
        with suppress(OSError, MachineError), try_lock(left) as is_ours:
            if is_ours:
                left.unlink()


def sync_folder(folder: Path) -> None:
    """Returns when the names in `folder`, and those gone from it, would outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path, older_than_s: float) -> int:
    """Removes what killed processes of any machine left of `atomic_file` below `folder`; gives the number of files.

    Younger files are left: another process may be writing them.
    """
    latest = time.time() - older_than_s
    num_removed = 0
    for path in folder.rglob(".*.tmp"):
        # another sweep may be at it
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < latest:
                path.unlink()
                num_removed += 1
    return num_removed


def writable_by_this_user(path: Path) -> Path:
    """`path`, or one beside it of this user's own where another's stands there that cannot be written."""
    if not path.exists() or os.access(path, os.W_OK, effective_ids=True):
        return path
    return path.with_stem(f"{path.stem}-{os.geteuid()}")


def write_bytes(path: Path, payload: bytes) -> None:
    with atomic_file(path, len(payload)) as file:
        file.write(payload)


def write_all_or_none(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes all of `files` (name → content) or none: no file is renamed before every byte of all is on the disk."""
    with ExitStack() as opened:
        for name, content in files.items():
            file = opened.enter_context(atomic_file(folder / name, len(content)))
            file.write(content)
            file.flush()
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                with disk_errors_reported(folder / name, len(content)):
                    os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def json_bytes(value: Any) -> bytes:
    """Raises ValueError where a figure is not finite: JSON has no word for it, and other programs refuse Python's."""
    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode("utf-8")


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, json_bytes(value))


def table_bytes(table: pa.Table, schema: pa.Schema) -> bytes:
    """The file that `write_table` writes."""
    file = io.BytesIO()
    pq.write_table(table.cast(schema), file, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return file.getvalue()


def write_table(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """Writes `table` under exactly `schema`; raises where a column is missing or of another type."""
    with atomic_file(path) as file:
        pq.write_table(table.cast(schema), file, compression="zstd", row_group_size=ROW_GROUP_ROWS)


def table_from_rows(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Arrow table of dictionaries that must have exactly the schema's keys."""
    names = schema.names
    for row in rows:
        assert row.keys() == set(names), f"row keys differ from the schema: {set(names) ^ row.keys()}"
    return pa.table(
        {name: pa.array([row[name] for row in rows], schema.field(name).type) for name in names},
        schema=schema,
    )


def read_table(path: Path, schema: pa.Schema, made_by: str) -> pa.Table:
    """The whole table at `path`, checked against `schema`.

    `made_by` is the command that makes it, for the message of the TableError raised where the file is
    missing, damaged, of another schema version, or has another type or a null where the schema allows none.
    """
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            # in this thread: where a thread of theirs cannot start, Arrow's scanner waits for it for ever
            table = pq.ParquetFile(file).read(use_threads=False)
    except FileNotFoundError:
        raise _missing(path, made_by) from None
    except READ_ERRORS as error:
        raise unreadable(path, error, made_by) from error
    _refuse_other_schema(path, table.schema, schema, made_by)
    _refuse_nulls(path, {name: table[name].null_count for name in schema.names}, schema, made_by)
    return table


def read_table_in_pieces(
    path: Path, schema: pa.Schema, made_by: str, columns: Sequence[str], piece_rows: int
) -> Iterator[pa.RecordBatch]:
    """`columns` of the table at `path`, at most `piece_rows` rows at a time; checked and refused as by `read_table`."""
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            _refuse_other_schema(path, parquet.schema_arrow, schema, made_by)
            # one row group after the other: over all of them Arrow keeps what it has read, 1.8 GB of 10 million rows
            for number in range(parquet.num_row_groups):
                for piece in parquet.iter_batches(piece_rows, row_groups=[number], columns=list(columns)):
                    _refuse_nulls(path, {name: piece[name].null_count for name in columns}, schema, made_by)
                    yield piece
    except FileNotFoundError:
        raise _missing(path, made_by) from None
    except READ_ERRORS as error:
        raise unreadable(path, error, made_by) from error


def check_table(path: Path, schema: pa.Schema, made_by: str) -> None:
    """Raises as `read_table` does, but looks at the end of the file alone, where columns and their nulls stand."""
    refuse_pipe(path)
    try:
        metadata = pq.read_metadata(path)
        found = metadata.schema.to_arrow_schema()
        null_counts = _null_counts(metadata)
    except FileNotFoundError:
        raise _missing(path, made_by) from None
    except READ_ERRORS as error:
        raise unreadable(path, error, made_by) from error
    _refuse_other_schema(path, found, schema, made_by)
    _refuse_nulls(path, null_counts, schema, made_by)


READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What reading a Parquet file raises where bytes of it are wrong: by Arrow's parts, and by its wrapper in Python."""


def _missing(path: Path, made_by: str) -> TableError:
    return TableError(f"{path} is missing; `{made_by}` makes it")


def unreadable(path: Path, error: Exception, made_by: str) -> PipelineError:
    """What to raise where opening or reading a Parquet file raised `error`."""
    if isinstance(error, PermissionError):
        return MachineError(f"{path} {FORBIDDEN}")
    return TableError(f"{path} is no readable Parquet file ({error}); run `{made_by}` again")


def _refuse_other_schema(path: Path, found: pa.Schema, schema: pa.Schema, made_by: str) -> None:
    version = (found.metadata or {}).get(b"schema_version", b"none").decode()
    if version != str(SCHEMA_VERSION) or found.names != schema.names:
        raise TableError(
            f"{path} has schema version {version} with columns {found.names}, "
            f"this code reads version {SCHEMA_VERSION} with {schema.names}; run `{made_by}` again"
        )
    for theirs, ours in zip(found, schema, strict=True):
        if theirs.type != ours.type:
            raise TableError(
                f"{path}: column {ours.name} holds {theirs.type}, this code reads {ours.type}; "
                f"run `{made_by}` again"
            )


def _refuse_nulls(path: Path, null_counts: Mapping[str, int], schema: pa.Schema, made_by: str) -> None:
    for name, count in null_counts.items():
        if count and not schema.field(name).nullable:
            raise TableError(
                f"{path}: column {name} is null in {count} rows and must never be; run `{made_by}` again"
            )


def _null_counts(metadata: pq.FileMetaData) -> dict[str, int]:
    """Nulls of each flat column, by the statistics of its row groups; a column without them counts as without nulls."""
    counts: dict[str, int] = {}
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if "." not in column.path_in_schema and (statistics := column.statistics) is not None:
                counts[column.path_in_schema] = counts.get(column.path_in_schema, 0) + (
                    statistics.null_count or 0
                )
    return counts


def sha256_of(path: Path) -> str:
    refuse_pipe(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_identity(path: Path) -> str:
    """Of the bytes of a file: the first digits of their sha256, as many as tell files apart."""
    return sha256_of(path)[:16]


def fingerprint(*parts: Any) -> str:
    """Hex sha256 of a canonical JSON of `parts`: equal parts, equal fingerprint, on any machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# once, while there is one thread: two that read it at a time may leave it at 0
_UMASK = _read_umask()
