"""Compares a pack with its catalogue and indexes: reads each shard once and lists problems with lost samples."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.errors import ShardError
from shards.files import Progress, read_table
from shards.machine import usable_cores
from shards.reading_threads import ReadingThreads
from shards.samples import read_samples
from shards.settings import MachineParams
from shards.store import OWNER, PARTIAL_FILE_NAMES, ShardStore
from shards.tar import INDEX, IndexedShard, SplitIndex, parse_index
from shards.verify_shard import Problem, check_shard

CARDS = frozenset({"README.md", "metadata.json", OWNER})
"""Files of `pack` outside the folders of the splits."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked, and the problems."""

    num_shards: int
    num_samples: int
    num_bytes: int
    seconds: float
    problems: tuple[Problem, ...]

    @property
    def num_lost(self) -> int:
        """Number of samples lost by problems."""
        return len({clip_id for problem in self.problems for clip_id in problem.clip_ids})

    def as_dict(self) -> dict[str, Any]:
        return {
            "num_shards": self.num_shards,
            "num_samples": self.num_samples,
            "num_bytes": self.num_bytes,
            "seconds": round(self.seconds, 3),
            "num_problems": len(self.problems),
            "num_lost": self.num_lost,
            "problems": [
                {"shard": problem.shard, "what": problem.what, "clip_ids": list(problem.clip_ids)}
                for problem in self.problems
            ],
        }


def verify(
    store: ShardStore,
    samples_path: Path,
    machine: MachineParams,
    split: str | None = None,
    decode: bool = False,
    on_progress: Progress | None = None,
) -> Verification:
    """Reads every byte of the shards of `split` (None: all splits), in several threads.

    With `decode` it also decodes every clip. Shards of a remote store are downloaded again, also those in the cache,
    to check the remote files. `on_progress` counts megabytes. Raises TableError if samples.parquet is damaged,
    ConfigError if it has no such split, MachineError if a shard cannot be reached.
    """
    began = time.monotonic()
    samples = (
        read_table(samples_path, schema.SAMPLES, "pipeline pack")
        if split is None
        else read_samples(samples_path, split)
    )
    names = [name for name in store.names() if split is None or name.startswith(f"{split}/")]
    problems = _of_catalogue(samples)
    indexes = dict(_read_indexes(store, samples, names, problems))
    indexed = {name: shard for index in indexes.values() for name, shard in index.shards.items()}
    shards = _Shards(samples)
    problems += _of_indexes(indexes, shards, set(names))
    counted = _Counter(sum(shard.num_bytes for shard in indexed.values()), on_progress)

    def check(name: str) -> list[Problem]:
        return _check(store, name, indexed.get(name), shards.rows(name), decode, counted.add)

    found = set(names)
    present = [name for name in shards.names if name in found]
    problems += [
        Problem(name, "is missing", tuple(row["clip_id"] for row in shards.rows(name)))
        for name in shards.names
        if name not in found
    ]
    # not an executor, which after Ctrl-C waits for the current shards, also remote ones
    threads = ReadingThreads(machine.workers or usable_cores())
    checks = [threads.submit(check, name) for name in present]
    try:
        problems += chain.from_iterable(future.result() for future in checks)
    finally:
        for future in checks:
            future.cancel()
        threads.end()
    problems += _foreign(names, {*shards.names, *indexed})
    return Verification(
        len(shards.names), samples.num_rows, counted.num_bytes, time.monotonic() - began, tuple(problems)
    )


class _Shards:
    """The rows of each shard, in the order of the shard."""

    def __init__(self, samples: pa.Table) -> None:
        self._samples = samples.sort_by([("shard", "ascending"), ("sample_offset", "ascending")])
        runs = pc.run_end_encode(self._samples["shard"].combine_chunks()) if len(samples) else None
        self.names: list[str] = runs.values.to_pylist() if runs is not None else []
        ends = runs.run_ends.to_numpy() if runs is not None else np.empty(0, int)
        self._ends = dict(zip(self.names, ends.tolist(), strict=True))
        self._starts = dict(zip(self.names, [0, *ends[:-1].tolist()], strict=True)) if self.names else {}

    def num_rows(self, name: str) -> int:
        return self._ends[name] - self._starts[name] if name in self._ends else 0

    def rows(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._samples.slice(self._starts[name], self.num_rows(name)).to_pylist()
        return rows


class _Counter:
    """Counts the bytes read by all threads and reports them in megabytes."""

    def __init__(self, total_bytes: int, on_progress: Progress | None) -> None:
        self._total_bytes, self._on_progress, self._lock = total_bytes, on_progress, threading.Lock()
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        with self._lock:
            before, self.num_bytes = self.num_bytes, self.num_bytes + num_bytes
            if self._on_progress and before // 1_000_000 < self.num_bytes // 1_000_000:
                # a shard may be longer than in its index
                self._on_progress(
                    self.num_bytes // 1_000_000, max(self.num_bytes, self._total_bytes) // 1_000_000
                )


def _of_catalogue(samples: pa.Table) -> list[Problem]:
    counts = samples.group_by("clip_id").aggregate([("clip_id", "count")])
    duplicates = counts.filter(pc.greater(counts["clip_id_count"], 1))["clip_id"].to_pylist()
    return [
        Problem("samples.parquet", "has this clip more than once", (clip_id,))
        for clip_id in sorted(duplicates)
    ]


def _read_indexes(
    store: ShardStore, samples: pa.Table, names: Sequence[str], problems: list[Problem]
) -> Iterator[tuple[str, SplitIndex]]:
    """Yields the index of each split that has samples or an index; adds faults of an index to `problems`."""
    splits = set(samples["split"].unique().to_pylist())
    splits |= {name.removesuffix(f"/{INDEX}") for name in names if name.endswith(f"/{INDEX}")}
    for split in sorted(splits):
        name = f"{split}/{INDEX}"
        if name not in names:
            problems.append(Problem(name, "is missing: the split is incomplete"))
            continue
        try:
            yield split, parse_index(store.local(name).read_bytes(), split, store.place(name))
        except ShardError as error:
            problems.append(Problem(name, str(error)))


def _of_indexes(indexes: Mapping[str, SplitIndex], shards: _Shards, present: set[str]) -> list[Problem]:
    problems = []
    for split, index in indexes.items():
        name = f"{split}/{INDEX}"
        if index.split != split:
            problems.append(Problem(name, f"is the index of split {index.split!r}"))
        total = sum(shard.num_samples for shard in index.shards.values())
        if index.num_samples != total:
            problems.append(Problem(name, f"says {index.num_samples} samples, but its shards have {total}"))
        for shard in index.shards.values():
            if shard.num_samples != shards.num_rows(shard.name):
                problems.append(
                    Problem(
                        shard.name,
                        f"has {shard.num_samples} samples in {name}, {shards.num_rows(shard.name)} in samples.parquet",
                    )
                )
            if shard.name not in present and not shards.num_rows(shard.name):
                problems.append(Problem(shard.name, "is missing"))
    for name in shards.names:
        split = name.partition("/")[0]
        if split in indexes and name not in indexes[split].shards:
            problems.append(Problem(name, f"is not listed in {split}/{INDEX}"))
    return problems


def _check(
    store: ShardStore,
    name: str,
    indexed: IndexedShard | None,
    rows: Sequence[Mapping[str, Any]],
    decode: bool,
    on_bytes: Callable[[int], None],
) -> list[Problem]:
    try:
        store.renew(name)
        with store.local(name).open("rb") as file:
            problems = check_shard(file, name, indexed, rows, decode, on_bytes)
    except (ShardError, OSError) as error:
        return [Problem(name, f"cannot be read: {error}", tuple(str(row["clip_id"]) for row in rows))]
    if misplaced := tuple(str(row["clip_id"]) for row in rows if row["split"] != name.partition("/")[0]):
        problems.append(Problem(name, "samples.parquet has these clips in another split", misplaced))
    return problems


def _foreign(names: Sequence[str], known: Set[str]) -> list[Problem]:
    return [
        Problem(
            name,
            "is a partial file of a killed (or running) `pipeline pack`; the next run removes it"
            if PARTIAL_FILE_NAMES.fullmatch(name)
            else "is not a file of this pack",
        )
        for name in names
        if name not in known and name not in CARDS and not name.endswith(f"/{INDEX}")
    ]
