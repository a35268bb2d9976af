"""Atomic files and Parquet tables: a file on disk is always complete and synced."""

import hashlib
import io
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from shards.disk import FORBIDDEN, WatchedFile, disk_errors_reported, unwritable
from shards.errors import MachineError, PipelineError, TableError
from shards.locks import is_name_of, try_flock, try_lock
from shards.pipes import is_stream, open_stream, own_descriptor, refuse_pipe
from shards.schema import SCHEMA_VERSION, is_optional

HASH_BLOCK_BYTES = 1 << 20
ROW_GROUP_ROWS = 1 << 17
"""Rows that are read at once. With more, a query over millions of clips needs more memory; with fewer, more time."""


@contextmanager
def atomic_file(path: Path, needed_bytes: int = 0) -> Iterator[BinaryIO]:
    """Opens a temporary file next to `path`; syncs and renames it on success, removes it on error.

    A reader sees the old file or the complete new file, never a partial file. If `path` is a link, its target is
    replaced. A character device, a pipe or an open file of this process (/dev/stdout) is written directly.
    Raises DiskError if the file cannot be written, or not completely; the message for a full disk gives `needed_bytes`.
    """
    with disk_errors_reported(path, needed_bytes):
        temporary = None
        if (descriptor := own_descriptor(path)) is not None:
            # a duplicate shares the offset and the append mode
            raw = WatchedFile(os.dup(descriptor), "w")
        elif is_stream(path):
            raw = open_stream(path)
        else:
            path = _replaced_file(path)
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
                    # still open and locked: otherwise a sweep would remove it as the file of a killed process
                    temporary.replace(path)
    except Exception:
        # Arrow, torch and PyAV raise errors of other types if a write fails, or none
        if raw.failure is None:
            raise
        raise unwritable(path, raw.failure, needed_bytes) from raw.failure
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
    if temporary:
        sync_folder(path.parent)


def _replaced_file(path: Path) -> Path:
    """Returns the file to replace, after creating its folder: `path`, or the target if `path` is a link."""
    if not path.is_symlink():
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
    target = Path(os.path.realpath(path))
    if target.exists() and not target.stat().st_mode & 0o222:
        raise MachineError(
            f"{path} is a link to {target}, which is write-protected (as files in the DVC cache are); "
            f"run `dvc unprotect {path}`, remove the link, or give another path"
        )
    return target


def _locked_temporary(path: Path) -> tuple[Path, WatchedFile]:
    """Creates a file next to `path`, locked until it is closed or its process ends in any way."""
    while True:
        # a name may have 255 bytes, and a character has up to four
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:50]}.{_TEMPORARY}-", suffix=".tmp"
        )
        # False if a sweep came in between; on a file system without locks nothing is swept
        is_ours = True
        with suppress(OSError):
            is_ours = try_flock(descriptor) and is_name_of(Path(name), descriptor)
        if is_ours:
            return Path(name), WatchedFile(descriptor, "w")
        os.close(descriptor)


def _give_rights(descriptor: int, path: Path) -> None:
    """Copies owner and mode of the file at `path`; without one sets the default mode, not 0600."""
    try:
        old = path.stat()
    except FileNotFoundError:
        # other users of the machine read tables and shards
        os.fchmod(descriptor, 0o666 & ~_UMASK)
        return
    for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
        # only root may change the owner; other users own the new file
        with suppress(OSError):
            os.fchown(descriptor, owner, group)
    os.fchmod(descriptor, old.st_mode & 0o777)


_TEMPORARY = f"pipeline-{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}"
"""Part of the names of our temporary files on this machine; their locks show whether the process still runs."""
TEMPORARY_NAME = r"\.[^/]+\.pipeline-[0-9a-f]{8}-[^/]+\.tmp"
"""Names of our temporary files from any machine, as a regular expression."""
_swept: set[Path] = set()


def _sweep(folder: Path) -> None:
    """Removes partial files that killed processes of this machine left in `folder`; once for each folder."""
    if (place := folder.absolute()) in _swept:
        return
    _swept.add(place)
    for left in place.glob(f".*.{_TEMPORARY}-*.tmp"):
        with suppress(OSError, MachineError), try_lock(left) as is_ours:
            if is_ours:
                left.unlink()


def sync_folder(folder: Path) -> None:
    """Syncs a folder: afterwards new and removed names survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path, older_than_s: float) -> int:
    """Removes partial files of `atomic_file` from any machine below `folder`; returns the number of removed files.

    Keeps files younger than `older_than_s`, because another process may still write them.
    """
    latest = time.time() - older_than_s
    num_removed = 0
    for path in folder.rglob(".*.tmp"):
        # another sweep may run at the same time
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < latest:
                path.unlink()
                num_removed += 1
    return num_removed


def writable_by_this_user(path: Path) -> Path:
    """Returns `path`, or a path next to it with the user id if `path` belongs to another user and is not writable."""
    if not path.exists() or os.access(path, os.W_OK, effective_ids=True):
        return path
    return path.with_stem(f"{path.stem}-{os.geteuid()}")


def write_bytes(path: Path, payload: bytes) -> None:
    with atomic_file(path, len(payload)) as file:
        file.write(payload)


def write_all_or_none(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes all of `files` (name → content) or none: renames no file before all are completely on the disk."""
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
    """Returns indented JSON. Raises ValueError for a number that is not finite, because JSON cannot express it."""
    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode("utf-8")


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, json_bytes(value))


def table_bytes(table: pa.Table, schema: pa.Schema) -> bytes:
    """Returns the bytes that `write_table` writes."""
    file = io.BytesIO()
    pq.write_table(_with_schema(table, schema), file, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return file.getvalue()


def write_table(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """Writes `table` with `schema`, without optional columns of which no value is known.

    Raises if a column is missing or has another type.
    """
    with atomic_file(path) as file:
        pq.write_table(_with_schema(table, schema), file, compression="zstd", row_group_size=ROW_GROUP_ROWS)


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the table with `schema`, without optional columns that it lacks or of which no value is known."""
    unknown = {
        field.name
        for field in schema
        if is_optional(field)
        and (field.name not in table.column_names or table[field.name].null_count == len(table))
    }
    known = pa.schema([field for field in schema if field.name not in unknown], schema.metadata)
    return table.drop_columns([name for name in table.column_names if name in unknown]).cast(known)


def table_from_rows(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Returns an Arrow table of `rows`, which must have the keys of the schema; optional ones may be missing."""
    names = schema.names
    optional = {field.name for field in schema if is_optional(field)}
    for row in rows:
        assert row.keys() | optional == set(names), (
            f"row keys differ from the schema: {set(names) ^ row.keys()}"
        )
    return pa.table(
        {name: pa.array([row.get(name) for row in rows], schema.field(name).type) for name in names},
        schema=schema,
    )


def read_table(path: Path, schema: pa.Schema, made_by: str) -> pa.Table:
    """Returns the whole table at `path`, checked against `schema`.

    Raises TableError if the file is missing or damaged, has another schema version, another column type or a null
    where the schema does not allow it. The message names `made_by`, the command that writes the table.
    """
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            # in this thread: if a thread of Arrow cannot start, its scanner waits for it forever
            table = pq.ParquetFile(file).read(use_threads=False)
    except FileNotFoundError:
        raise _missing(path, made_by) from None
    except READ_ERRORS as error:
        raise unreadable(path, error, made_by) from error
    _refuse_other_schema(path, table.schema, schema, made_by)
    table = table.select([name for name in schema.names if name in table.schema.names])
    for place, field in enumerate(schema):
        if field.name not in table.schema.names:
            table = table.add_column(place, field, pa.nulls(len(table), field.type))
    _refuse_nulls(path, {name: table[name].null_count for name in schema.names}, schema, made_by)
    return table


def read_table_in_pieces(
    path: Path, schema: pa.Schema, made_by: str, columns: Sequence[str], piece_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yields `columns` of the table at `path`, at most `piece_rows` rows at a time; raises as `read_table`."""
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            _refuse_other_schema(path, parquet.schema_arrow, schema, made_by)
            # one row group at a time: otherwise Arrow keeps all rows that it has read, 1.8 GB of 10 million rows
            present = [name for name in columns if name in parquet.schema_arrow.names]
            for number in range(parquet.num_row_groups):
                for piece in parquet.iter_batches(piece_rows, row_groups=[number], columns=present):
                    _refuse_nulls(path, {name: piece[name].null_count for name in present}, schema, made_by)
                    for name in set(columns) - set(present):
                        field = schema.field(name)
                        piece = piece.append_column(field, pa.nulls(len(piece), field.type))
                    yield piece.select(list(columns))
    except FileNotFoundError:
        raise _missing(path, made_by) from None
    except READ_ERRORS as error:
        raise unreadable(path, error, made_by) from error


def check_table(path: Path, schema: pa.Schema, made_by: str) -> None:
    """Raises as `read_table` does, but reads only the file footer, which has the columns and their null counts."""
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
"""Errors that Arrow and its Python wrapper raise for a damaged Parquet file."""


def _missing(path: Path, made_by: str) -> TableError:
    return TableError(f"{path} is missing; run `{made_by}`")


def unreadable(path: Path, error: Exception, made_by: str) -> PipelineError:
    """Returns the error to raise after opening or reading a Parquet file raised `error`."""
    if isinstance(error, PermissionError):
        return MachineError(f"{path} {FORBIDDEN}")
    return TableError(f"{path} is not a readable Parquet file ({error}); run `{made_by}` again")


def _refuse_other_schema(path: Path, found: pa.Schema, schema: pa.Schema, made_by: str) -> None:
    version = (found.metadata or {}).get(b"schema_version", b"none").decode()
    needed = [field for field in schema if field.name in found.names or not is_optional(field)]
    if version != str(SCHEMA_VERSION) or found.names != [field.name for field in needed]:
        raise TableError(
            f"{path} has schema version {version} with columns {found.names}, but version {SCHEMA_VERSION} with "
            f"{[field.name for field in needed]} is needed; run `{made_by}` again"
        )
    for theirs, ours in zip(found, needed, strict=True):
        if theirs.type != ours.type:
            raise TableError(
                f"{path}: column {ours.name} has type {theirs.type}, but {ours.type} is needed; "
                f"run `{made_by}` again"
            )


def _refuse_nulls(path: Path, null_counts: Mapping[str, int], schema: pa.Schema, made_by: str) -> None:
    for name, count in null_counts.items():
        if count and not schema.field(name).nullable:
            raise TableError(
                f"{path}: column {name} is null in {count} rows, which is not allowed; run `{made_by}` again"
            )


def _null_counts(metadata: pq.FileMetaData) -> dict[str, int]:
    """Returns the null count of each flat column from the statistics of its row groups; without statistics it is 0."""
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
    """Returns the first 16 digits of the sha256 of a file."""
    return sha256_of(path)[:16]


def fingerprint(*parts: Any) -> str:
    """Returns the hex sha256 of a canonical JSON of `parts`: equal parts give equal fingerprints on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


Progress = Callable[[int, int], None]
"""Called with (done, total) during the work."""
Shown = Callable[[str, str], AbstractContextManager[Progress]]
"""Called with the name of the work and its unit; shows the progress that its function is called with."""


def not_shown(what: str, unit: str) -> AbstractContextManager[Progress]:
    """Shows nothing; see `Shown`."""
    return nullcontext(lambda done, total: None)


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# once, while there is one thread: two threads that read it at the same time may leave it at 0
_UMASK = _read_umask()
