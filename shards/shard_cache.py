"""A bounded folder of shards fetched from elsewhere, shared by all processes of a machine.

Nothing but the folder itself holds its state, so a process may be killed at any moment: sizes are those of the files,
the order of use is their mtime, and a file in the making is held by a lock that dies with its maker.
"""

import fcntl
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shards.errors import MachineError
from shards.files import atomic_file

_WAIT_S = 0.05
_MAKERS_PATIENCE = 4
"""Times the patience with one request: how long another process may take for a whole shard."""


class ShardCache:
    """Files below `folder`, together at most `max_bytes`, those in the making included.

    The least recently used go first, but none that was asked for within `grace_s`: whoever asked has opened it
    by then. An open file stays readable when its name goes. Threads may share one.
    """

    def __init__(self, folder: Path, max_bytes: int, grace_s: float, patience_s: float) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._grace_s, self._patience_s = grace_s, patience_s
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
    def alone(self, path: Path) -> Iterator[None]:
        """Waits until no other process or thread makes this file; MachineError where that takes unlikely long."""
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with _lock_file(_lock_of(path)) as descriptor:
            while not _is_locked(descriptor):
                if time.monotonic() - began > _MAKERS_PATIENCE * self._patience_s:
                    raise MachineError(
                        f"{path.name} has been in the making by another process for {time.monotonic() - began:.0f} s; "
                        f"end that one if it hangs or is stopped (it holds {_lock_of(path)})"
                    )
                time.sleep(_WAIT_S)
            yield

    @contextmanager
    def making(
        self, path: Path, num_bytes: int, may_go: Callable[[Path], float] = lambda _: math.inf
    ) -> Iterator[BinaryIO]:
        """The file to be filled with `num_bytes`, within `alone`; it appears under its name when it is whole.

        What has to go goes in the order of use. Where `may_go` is less than infinite a file goes only if waiting
        for others did not help, higher ones first, and at -inf never. Raises MachineError where it finds no
        room in `patience_s`.
        """
        if num_bytes > self.max_bytes:
            raise MachineError(
                f"machine.shard_cache_gb ({self.max_bytes / 1e9:g}) holds not even one shard: {path.name} has "
                f"{num_bytes / 1e9:.3g} GB; raise it, or pack with a smaller pack.shard_mb"
            )
        with atomic_file(path) as file:
            self._make_room(file, num_bytes, may_go)
            yield file
        # its grace begins now; a long fsync may have used it up
        with self._locked(), suppress(FileNotFoundError):
            _touch(path)

    def _make_room(self, file: BinaryIO, num_bytes: int, may_go: Callable[[Path], float]) -> None:
        """Gives the file its size, when so much is free; others see from it how much is taken."""
        began = time.monotonic()
        while True:
            waited_s = time.monotonic() - began
            with self._locked():
                sizes = self._sizes()
                excess = sum(sizes.values()) + num_bytes - self.max_bytes
                for path in self._in_order(sizes, may_go, waited_s) if excess > 0 else ():
                    path.unlink(missing_ok=True)
                    self._used.pop(path, None)
                    excess -= sizes[path]
                    if excess <= 0:
                        break
                if excess <= 0:
                    file.truncate(num_bytes)
                    return
            if waited_s > self._patience_s:
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
                return {path: path.stat().st_size for path in paths}

    def _in_order(
        self, sizes: dict[Path, int], may_go: Callable[[Path], float], waited_s: float
    ) -> list[Path]:
        """What may go, first to go first. Called under the lock of the folder."""
        latest = time.time() - self._grace_s
        lowest = math.inf if waited_s <= 2 * self._grace_s else -sys.float_info.max
        orphans, whole = [], []
        for path in sizes:
            if path.name.startswith("."):
                if path.suffix == ".tmp" and sizes[path] and not _is_in_the_making(path):
                    orphans.append(path)
                continue
            used, rank = path.stat().st_mtime, may_go(path)
            if used < latest and rank >= lowest:
                whole.append((-rank, used, path))
        return orphans + [path for *_, path in sorted(whole)]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the folder, for a moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock_file(self.folder / ".lock") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    """Each opening is a holder of its own, so that threads shut each other out as processes do."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _is_in_the_making(temporary: Path) -> bool:
    """Whether the maker of this temporary file of `atomic_file` lives: it holds the lock of the file it makes."""
    made = temporary.name.removeprefix(".").rsplit(".", 2)[0]
    with _lock_file(_lock_of(temporary.with_name(made))) as descriptor:
        return not _is_locked(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether the lock could be taken, now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _touch(path: Path) -> None:
    now = time.time()
    os.utime(path, (now, now))
