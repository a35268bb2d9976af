"""Keeps recently read shards open, for any number of threads."""

import errno
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from shards.errors import MachineError, ShardError
from shards.store import ShardStore

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

ADVICE = "`pipeline verify` lists the damage, `pipeline pack` writes the shards again"
_MAX_OPEN = 32  # two windows of 16; an open file uses disk space even after the cache removed it


class OpenShard:
    """The open file of a shard, readable from any thread; closed when the object is deleted."""

    def __init__(self, store: ShardStore, name: str, is_renewed: bool = False) -> None:
        self.name, self.is_renewed = name, is_renewed
        self._descriptor = -1
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ShardError(f"samples.parquet names the shard '{name}', which is outside the pack; {ADVICE}")
        self.place = store.place(name)
        try:
            self._descriptor = os.open(store.local(name), os.O_RDONLY | os.O_CLOEXEC)
            self.num_bytes = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise unreadable(self.place, error) from error

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # at the exit of the interpreter the module `os` may be gone
        if self._descriptor >= 0:
            close(self._descriptor)

    def read_into(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fills the buffers in order from `offset`; returns the number of bytes read."""
        try:
            return os.preadv(self._descriptor, buffers, offset)
        except OSError as error:
            raise unreadable(self.place, error) from error

    def read(self, num_bytes: int, offset: int) -> bytes:
        """Returns at most `num_bytes` bytes from `offset`."""
        try:
            return os.pread(self._descriptor, num_bytes, offset)
        except OSError as error:
            raise unreadable(self.place, error) from error


class OpenShards:
    """Open files of the recently read shards of a store, for any number of threads."""

    def __init__(self, store: ShardStore) -> None:
        self._store = store
        self._open: OrderedDict[str, OpenShard] = OrderedDict()
        self._failed: dict[str, str] = {}
        self._lock = threading.Lock()
        self._renewed: set[str] = set()
        self._renewing = threading.Lock()

    def __getitem__(self, name: str) -> OpenShard:
        """Returns the open shard. Raises ShardError if it is missing or damaged, without a new try until `try_again`.

        Raises MachineError if it cannot be reached; the next call tries again.
        """
        is_renewed = name in self._renewed
        with self._lock:
            if name in self._failed:
                raise ShardError(self._failed[name])
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
        try:
            # without the lock: a remote store downloads the shard here
            shard = OpenShard(self._store, name, is_renewed)
        except ShardError as error:
            with self._lock:
                self._failed[name] = str(error)
            raise
        with self._lock:
            self._open[name] = shard
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
        return shard

    def read(self, shard: OpenShard, read: Callable[[OpenShard], _Result]) -> _Result:
        """Returns `read(shard)`; downloads the shard again and retries once if the local copy was damaged.

        Raises the errors of `read` and of `[]`.
        """
        try:
            return read(shard)
        except ShardError as error:
            if not self._renew(shard):
                raise
            logger.warning("%s; the shard was fetched again in case only the local copy is damaged", error)
        return read(self[shard.name])

    def _renew(self, shard: OpenShard) -> bool:
        """Downloads the shard again; returns whether there is a newer copy than `shard`."""
        if shard.is_renewed:
            return False
        with self._renewing:  # other threads with the same damage wait for the first
            if shard.name not in self._renewed:
                if not self._store.renew(shard.name):
                    return False
                self._renewed.add(shard.name)
            with self._lock:
                if (kept := self._open.get(shard.name)) and not kept.is_renewed:
                    del self._open[shard.name]
        return True

    def try_again(self) -> None:
        """Forgets which shards failed."""
        with self._lock:
            self._failed.clear()


_UNREACHABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN}
    | {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET}
)
"""Error numbers of a network folder that is not mounted, or without permission."""


def unreadable(place: str, error: OSError) -> ShardError | MachineError:
    """Returns the error for a shard at `place` that cannot be opened or read."""
    if error.errno in _UNREACHABLE:
        return MachineError(
            f"shard {place} cannot be reached ({error}); check its permissions, and whether its disk is mounted"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return MachineError(
            f"shard {place} cannot be opened ({error}); raise the limit of open files (`ulimit -n`)"
        )
    return ShardError(f"shard {place} cannot be read ({error}); {ADVICE}")
