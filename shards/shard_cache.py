"""A bounded folder of shards fetched from elsewhere, shared by all processes of a machine.

Nothing but the folder itself holds its state, so a process may be killed at any moment: sizes are those of the files,
the order of use is their mtime, and a file in the making is held by a lock that dies with its maker.
"""

import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.errors import MachineError
from shards.files import atomic_file
from shards.locks import open_lock_file, try_lock

_WAIT_S = 0.05
_FOLDERS_LOCK = ".lock"
_MAKER_WAIT_FACTOR = 4
"""Times the patience with one request: how long another process may take for a whole shard."""


class Expected(NamedTuple):
    """Files that somebody will ask for soon, as whoever wants room for another one sees them."""

    sooner: frozenset[Path] = frozenset()
    """Asked for before that one: they never go for it."""
    later: Sequence[Path] = ()
    """Asked for after it: they go where waiting for others did not help, in this order."""


NOTHING_EXPECTED = Expected()


class ShardCache:
    """Files below `folder`, together at most `max_bytes`, those in the making included.

    The least recently used go first, but none that was asked for within `grace_s`: whoever asked has opened it
    by then. An open file stays readable when its name goes. Threads may share one.
    """

    def __init__(self, folder: Path, max_bytes: int, grace_s: float, max_wait_s: float) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._grace_s, self._max_wait_s = grace_s, max_wait_s
        self._used: dict[Path, float] = {}
        """When this process last told the folder that it uses a file; clock of time.monotonic."""

    def has(self, path: Path, num_bytes: int) -> bool:
        """Whether the file is here, with so many bytes; it counts as used now. One of another size is removed."""
        # no system call for most samples: the file keeps three quarters of its grace
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
        """Waits until no other process or thread makes this file; MachineError where that takes unlikely long."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, began = path.with_name(f".{path.name}.lock"), time.monotonic()
        while True:
            with try_lock(lock, os.O_CREAT) as is_ours:
                if is_ours:
                    try:
                        yield
                    finally:
                        # a file for every shard that was ever here would be walked at each download
                        lock.unlink(missing_ok=True)
                    return
            if time.monotonic() - began > _MAKER_WAIT_FACTOR * self._max_wait_s:
                raise MachineError(
                    f"{path.name} has been in the making by another process for {time.monotonic() - began:.0f} s; "
                    f"end that one if it hangs or is stopped (it holds {lock})"
                )
            time.sleep(_WAIT_S)

    @contextmanager
    def new_file(
        self, path: Path, num_bytes: int, expected: Expected = NOTHING_EXPECTED
    ) -> Iterator[BinaryIO]:
        """The file to be filled with `num_bytes`, within `alone`; it appears under its name when it is whole.

        What has to go goes in the order of use, as far as `expected` lets it. Raises MachineError where it finds
        no room in `max_wait_s`.
        """
        if num_bytes > self.max_bytes:
            raise MachineError(
                f"machine.shard_cache_gb ({self.max_bytes / 1e9:g}) holds not even one shard: {path.name} has "
                f"{num_bytes / 1e9:.3g} GB; raise it, or pack with a smaller pack.shard_mb"
            )
        # locked until it has its name: others take it for a killed process's without
        with atomic_file(path) as file:
            self._make_room(file, num_bytes, expected)
            yield file
        # its grace begins now; a long fsync may have used it up
        with self._locked(), suppress(FileNotFoundError):
            _touch(path)

    def _make_room(self, file: BinaryIO, num_bytes: int, expected: Expected) -> None:
        """Gives the file its size, when so much is free; others see from it how much is taken."""
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
                # within two graces all that is in use now is free, if nobody asks for it again
                has_waited = waited_s > 2 * self._grace_s
                for path in self._in_turn(sizes, expected, has_waited) if excess > 0 else ():
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
                    f"{self.folder} is full of shards in use, {self.max_bytes / 1e9:g} GB; "
                    "raise machine.shard_cache_gb, or lower loader.window_shards"
                )
            # a shard's grace ends, or another process has made what it makes
            time.sleep(_WAIT_S)

    def _sizes(self) -> dict[Path, int]:
        while True:
            paths = [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]
            # a file that is whole takes its name without the lock: where a listed one is gone, it may be there unlisted
            with suppress(FileNotFoundError):
                # locks come and go all the time, and are empty
                return {path: 0 if path.suffix == ".lock" else path.stat().st_size for path in paths}

    def _in_turn(self, paths: Iterable[Path], expected: Expected, has_waited: bool) -> list[Path]:
        """The whole files that may go, first to go first. Called under the lock of the folder."""
        now, used = time.time(), {}
        for path in paths:
            if path.name.startswith("."):
                continue
            used_at = path.stat().st_mtime
            if abs(now - used_at) >= self._grace_s:
                # of a time to come: used before the clock was set back, so before all that is used from now on
                used[path] = used_at if used_at < now else 0.0
        in_turn = sorted(
            used.keys() - expected.sooner - set(expected.later), key=lambda path: (used[path], path)
        )
        return in_turn + [path for path in expected.later if has_waited and path in used]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the folder, for a moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock_file(self.folder / _FOLDERS_LOCK, os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _is_removed_as_left_behind(path: Path, num_bytes: int) -> bool:
    """Removes a lock, or a file in the making, that its holder can no more: whether it did."""
    is_lock = path.suffix == ".lock" and path.name != _FOLDERS_LOCK
    # one without its size is about to be locked
    if not path.name.startswith(".") or not (is_lock or (path.suffix == ".tmp" and num_bytes)):
        return False
    with try_lock(path) as is_ours:
        if is_ours:
            path.unlink()
        return is_ours


def _touch(path: Path) -> None:
    now = time.time()
    os.utime(path, (now, now))
