"""A bounded folder of downloaded shards, shared by all processes of a machine, and the threads that fetch ahead.

All state is in the folder, so a process may be killed at any time: sizes are the file sizes, the order of use is the
mtime, and a partial file has a lock that ends with the process that writes it. The threads fetch the shards of an epoch
ahead, within a share of the cache.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.errors import MachineError, PipelineError
from shards.files import atomic_file
from shards.locks import open_lock_file, try_lock
from shards.tar import IndexedShard

logger = logging.getLogger(__name__)

_WAIT_S = 0.05
_FOLDERS_LOCK = ".lock"
_WRITER_WAIT_FACTOR = 4
"""Another process may take this factor times `max_wait_s` for a whole shard."""
FETCHERS = 4
"""Number of threads, each with one shard: one connection rarely uses the whole bandwidth."""


class Expected(NamedTuple):
    """Files that will be needed soon, relative to the file that needs room now."""

    sooner: frozenset[Path] = frozenset()
    """Needed before that file: never removed for it."""
    later: Sequence[Path] = ()
    """Needed after it: removed in this order if waiting for other files did not help."""


NOTHING_EXPECTED = Expected()


class ShardCache:
    """Files below `folder`, together at most `max_bytes`, including partial files.

    Removes the least recently used files first, but none that was requested within `grace_s`, so that the caller can
    open it. An open file stays readable after its removal. Threads may share an instance.
    """

    def __init__(self, folder: Path, max_bytes: int, grace_s: float, max_wait_s: float) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._grace_s, self._max_wait_s = grace_s, max_wait_s
        self._used: dict[Path, float] = {}
        """Last time when this process updated the mtime of a file; clock of time.monotonic."""

    def has(self, path: Path, num_bytes: int) -> bool:
        """Returns whether the file exists with this size, and marks it as used. Removes a file of another size."""
        # avoids a system call for most samples: three quarters of the grace time remain
        if time.monotonic() - self._used.get(path, -self._grace_s) < self._grace_s / 4:
            return True
        if not path.exists():
            return False
        with self._locked():
            try:
                if path.stat().st_size != num_bytes:
                    path.unlink()
                    return False
                _touch(path)
            except FileNotFoundError:
                return False
        self._used[path] = time.monotonic()
        return True

    @contextmanager
    def exclusive(self, path: Path) -> Iterator[None]:
        """Waits until no other process or thread writes this file; raises MachineError if that takes far too long."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, began = path.with_name(f".{path.name}.lock"), time.monotonic()
        while True:
            with try_lock(lock, os.O_CREAT) as is_ours:
                if is_ours:
                    try:
                        yield
                    finally:
                        # otherwise lock files would accumulate, and each download lists all files
                        lock.unlink(missing_ok=True)
                    return
            if time.monotonic() - began > _WRITER_WAIT_FACTOR * self._max_wait_s:
                raise MachineError(
                    f"another process has been writing {path.name} for {time.monotonic() - began:.0f} s; "
                    f"end it if it hangs or is stopped (it holds {lock})"
                )
            time.sleep(_WAIT_S)

    @contextmanager
    def new_file(
        self, path: Path, num_bytes: int, expected: Expected = NOTHING_EXPECTED
    ) -> Iterator[BinaryIO]:
        """Opens a new file of `num_bytes`, inside `exclusive`; it gets its name when it is complete.

        Removes other files in the order of use, as far as `expected` allows. Raises MachineError if there is no room
        within `max_wait_s`.
        """
        if num_bytes > self.max_bytes:
            raise MachineError(
                f"machine.shard_cache_gb ({self.max_bytes / 1e9:g}) is smaller than the shard {path.name} "
                f"({num_bytes / 1e9:.3g} GB); raise it, or pack with a smaller pack.shard_mb"
            )
        # locked until it is renamed: otherwise others would remove it as the file of a killed process
        with atomic_file(path) as file:
            self._make_room(file, num_bytes, expected)
            yield file
        # starts its grace time, which a long fsync may have used up
        with self._locked(), suppress(FileNotFoundError):
            _touch(path)

    def _make_room(self, file: BinaryIO, num_bytes: int, expected: Expected) -> None:
        """Sets the size of the file when there is room; other processes count this size as used."""
        began = time.monotonic()
        while True:
            waited_s = time.monotonic() - began
            with self._locked():
                sizes = self._sizes()
                excess = sum(sizes.values()) + num_bytes - self.max_bytes
                if excess > 0:
                    excess -= sum(
                        sizes[path] for path in sizes if _is_removed_as_left_behind(path, sizes[path])
                    )
                # after two grace times every file in use now is free, unless it is requested again
                has_waited = waited_s > 2 * self._grace_s
                for path in self._removable(sizes, expected, has_waited) if excess > 0 else ():
                    path.unlink(missing_ok=True)
                    self._used.pop(path, None)
                    excess -= sizes[path]
                    if excess <= 0:
                        break
                if excess <= 0:
                    file.truncate(num_bytes)
                    return
            if waited_s > self._max_wait_s:
                raise MachineError(
                    f"{self.folder} is full of shards in use ({self.max_bytes / 1e9:g} GB); "
                    "raise machine.shard_cache_gb, or lower loader.window_shards"
                )
            # until a grace time ends, or another process completes its file
            time.sleep(_WAIT_S)

    def _sizes(self) -> dict[Path, int]:
        while True:
            paths = [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]
            # completed files are renamed without the lock: a missing file may have a new name, so list again
            with suppress(FileNotFoundError):
                # lock files are empty, and may vanish at any time
                return {path: 0 if path.suffix == ".lock" else path.stat().st_size for path in paths}

    def _removable(self, paths: Iterable[Path], expected: Expected, has_waited: bool) -> list[Path]:
        """Returns the complete files that may be removed, in this order. Needs the lock of the folder."""
        now, used = time.time(), {}
        for path in paths:
            if path.name.startswith("."):
                continue
            used_at = path.stat().st_mtime
            if abs(now - used_at) >= self._grace_s:
                # a future mtime is from before the clock was set back, so the file is the oldest
                used[path] = used_at if used_at < now else 0.0
        removable = sorted(
            used.keys() - expected.sooner - set(expected.later), key=lambda path: (used[path], path)
        )
        return removable + [path for path in expected.later if has_waited and path in used]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock of the folder, for a short time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock_file(self.folder / _FOLDERS_LOCK, os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _is_removed_as_left_behind(path: Path, num_bytes: int) -> bool:
    """Removes a lock or partial file if its process has ended; returns whether it did."""
    is_lock = path.suffix == ".lock" and path.name != _FOLDERS_LOCK
    # a partial file without a size will be locked next
    if not path.name.startswith(".") or not (is_lock or (path.suffix == ".tmp" and num_bytes)):
        return False
    with try_lock(path) as is_ours:
        if is_ours:
            path.unlink()
        return is_ours


def _touch(path: Path) -> None:
    now = time.time()
    os.utime(path, (now, now))


class FetchAhead:
    """Calls `fetch` for each expected shard, in order, while shards not yet requested have at most `max_bytes`.

    `path_of` returns the path of a shard in the cache.
    """

    def __init__(
        self,
        fetch: Callable[[IndexedShard], None],
        path_of: Callable[[IndexedShard], Path],
        max_bytes: float,
    ) -> None:
        self._fetch, self._path_of, self._max_bytes = fetch, path_of, max_bytes
        # this lock guards all fields below
        self._changed = threading.Condition()
        self._expected: Sequence[IndexedShard] = ()
        self._next = 0
        self._requested: set[str] = set()
        self._ahead: dict[str, int] = {}
        """Index in `_expected` of each shard that is fetched ahead and not yet requested."""
        self._num_threads = 0

    def expect(self, shards: Sequence[IndexedShard]) -> None:
        """Replaces the expected shards."""
        with self._changed:
            self._expected, self._next = shards, 0
            self._requested, self._ahead = set(), {}
            self._changed.notify_all()
            while self._num_threads < min(FETCHERS, len(shards)):
                self._num_threads += 1
                threading.Thread(target=self._work, name="shards ahead", daemon=True).start()

    def note_requested(self, name: str) -> None:
        """Records that the shard is needed now, so that another one can be fetched ahead."""
        with self._changed:
            self._requested.add(name)
            self._ahead.pop(name, None)
            self._changed.notify_all()

    def expected_around(self, wanted: IndexedShard) -> Expected:
        """Returns the shards fetched ahead before and after `wanted`; `later` begins with the last one."""
        with self._changed:
            number_wanted = self._ahead.get(wanted.name, -1)
            numbers = sorted(self._ahead.values(), reverse=True)
            paths = {number: self._path_of(self._expected[number]) for number in numbers}
        return Expected(
            sooner=frozenset(path for number, path in paths.items() if number <= number_wanted),
            later=tuple(path for number, path in paths.items() if number > number_wanted),
        )

    def stop(self, within_s: float) -> None:
        """Waits until the threads have finished their current shards, at most `within_s`."""
        self.expect(())
        with self._changed:
            self._changed.wait_for(lambda: not self._num_threads, within_s)

    def _work(self) -> None:
        try:
            while (shard := self._take()) is not None:
                try:
                    self._fetch(shard)
                except PipelineError as error:
                    # the thread that needs the shard tries again and gets the error
                    logger.warning("fetching a shard ahead failed: %s", error)
                    with self._changed:
                        self._ahead.pop(shard.name, None)
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._num_threads -= 1
                self._changed.notify_all()

    def _take(self) -> IndexedShard | None:
        """Waits for room and returns the next shard to fetch; None when all have been fetched or requested."""
        with self._changed:
            while self._next < len(self._expected):
                shard = self._expected[self._next]
                num_bytes = sum(self._expected[number].num_bytes for number in self._ahead.values())
                if shard.name in self._requested:
                    self._next += 1
                elif num_bytes + shard.num_bytes <= self._max_bytes:
                    self._ahead[shard.name] = self._next
                    self._next += 1
                    return shard
                else:
                    self._changed.wait()
            return None
