"""Fingerprints of all clips of a pack, computed once: they are kept in the cache under the hash of samples.parquet."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shards import schema
from shards.copies import Fingerprints
from shards.errors import ShardError
from shards.files import READ_ERRORS, Progress, read_table_in_pieces, write_table
from shards.fingerprint import FINGERPRINT_VERSION, NUM_MODES, fingerprint_of
from shards.machine import usable_cores
from shards.open_shards import ADVICE, OpenShards
from shards.reading_threads import ReadingThreads
from shards.sample_reader import CatalogueRow, read_sample_of
from shards.samples import HASHED_COLUMNS, samples_hash
from shards.settings import MachineParams
from shards.store import ShardStore

_log = logging.getLogger(__name__)

_COLUMNS = tuple(dict.fromkeys([*HASHED_COLUMNS, *CatalogueRow._fields, "split", "speaker"]))
_SCHEMA = pa.schema([pa.field("motion", pa.large_binary(), nullable=False)])
_CLIPS_A_TASK = 32
_MIN_FPS, _MAX_FPS = 1, 1000


def read_catalogue(samples_path: Path) -> pa.Table:
    """Returns the columns of samples.parquet that the search for copies and speakers uses, with all splits."""
    pieces = read_table_in_pieces(samples_path, schema.SAMPLES, "pipeline pack", _COLUMNS, 1 << 16)
    return pa.Table.from_batches(list(pieces), pa.schema([schema.SAMPLES.field(name) for name in _COLUMNS]))


def fingerprints_of(
    samples: pa.Table, store: ShardStore, machine: MachineParams, on_progress: Progress | None = None
) -> Fingerprints:
    """Returns the fingerprint of each row of `read_catalogue`, from the cache or from the shards.

    Each shard is read once. `on_progress` counts clips. Raises ShardError that names shard and clip if one is missing
    or damaged, MachineError if the store cannot be reached.
    """
    folder = Path(machine.cache_dir) / "fingerprints"
    path = folder / f"{samples_hash(samples)}-{FINGERPRINT_VERSION}.parquet"
    if (kept := _read(path, samples.num_rows)) is not None:
        return kept
    computed = _compute(samples, store, machine, on_progress)
    motions = [motion_FM.tobytes() for motion_FM in computed]
    write_table(path, pa.table({"motion": pa.array(motions, pa.large_binary())}), _SCHEMA)
    return Fingerprints.of(computed)


def _read(path: Path, num_clips: int) -> Fingerprints | None:
    """Returns None if there is no such file or it is damaged."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            table = pq.ParquetFile(file).read(use_threads=False)
        motion = table.cast(_SCHEMA)["motion"].combine_chunks()
        num_bytes_N = pc.binary_length(motion).to_numpy(zero_copy_only=False)
        if len(motion) != num_clips or motion.null_count or (num_bytes_N % NUM_MODES).any():
            raise pa.ArrowInvalid("it has other rows than the pack")
    except (*READ_ERRORS, ValueError) as error:
        _log.warning("%s is damaged (%s); the fingerprints are computed again", path, error)
        return None
    content = b"".join(motion.to_pylist())
    motion_FM = np.frombuffer(content, np.int8).reshape(-1, NUM_MODES)
    return Fingerprints(motion_FM, np.cumsum([0, *(num_bytes_N // NUM_MODES)]))


def _compute(
    samples: pa.Table, store: ShardStore, machine: MachineParams, on_progress: Progress | None
) -> list[NDArray[np.int8]]:
    columns = [*CatalogueRow._fields]
    numbered = samples.select(columns).append_column("row", pa.array(np.arange(samples.num_rows)))
    ordered = numbered.sort_by([("shard", "ascending"), ("sample_offset", "ascending")])
    store.expect(ordered["shard"].unique().to_pylist())
    shards = OpenShards(store)

    def compute(first: int) -> list[tuple[int, NDArray[np.int8]]]:
        rows = ordered.slice(first, _CLIPS_A_TASK).to_pylist()
        return [(row["row"], _fingerprint(shards, row)) for row in rows]

    found: list[NDArray[np.int8]] = [np.empty((0, NUM_MODES), np.int8)] * samples.num_rows
    threads = ReadingThreads(machine.workers or usable_cores())
    tasks = [threads.submit(compute, first) for first in range(0, samples.num_rows, _CLIPS_A_TASK)]
    num_done = 0
    try:
        for task in tasks:
            for row, motion_FM in task.result():
                found[row] = motion_FM
                num_done += 1
            if on_progress:
                on_progress(num_done, samples.num_rows)
    finally:
        for task in tasks:
            task.cancel()
        threads.end()
    return found


def _fingerprint(shards: OpenShards, row: dict[str, Any]) -> NDArray[np.int8]:
    clip_THW, metadata = read_sample_of(shards, row)
    fps = metadata["fps"]
    if not isinstance(fps, int | float) or not _MIN_FPS <= fps <= _MAX_FPS:
        raise ShardError(
            f"shard {shards[row['shard']].place}: the sample of clip {row['clip_id']} has the frame rate {fps!r} in "
            f"its metadata; {ADVICE}"
        )
    return fingerprint_of(clip_THW, fps)
