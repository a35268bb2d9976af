"""Lock files that one process at a time holds; the kernel releases a lock when its process ends in any way."""

import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import MachineError, PipelineError

LOG = logging.getLogger(__name__)


@contextmanager
def hold_lock(file: Path, refusal: Callable[[str], PipelineError]) -> Iterator[None]:
    """Holds the lock `file`, whose folder must exist. Raises `refusal(name of the holder)` if another process holds it.

    The holder may run on this machine or another one. If the file system has no locks (some NFS servers), it logs a
    warning and continues without a lock.
    """
    descriptor = _opened(file)
    try:
        _lock(descriptor, file, refusal)
        yield
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    """Opens the lock file. It is never removed, because another process may have opened it."""
    try:
        # opened for writing, because NFS needs that for an exclusive lock
        return open_lock_file(file, os.O_CREAT)
    except PermissionError:
        # another user's file: a lock also works if the file may only be read
        try:
            return os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            pass  # the folder cannot be written
        except PermissionError as error:
            raise MachineError(
                f"the lock {file} belongs to another user and cannot be opened ({error.strerror}); ask its owner to "
                f"make it readable (chmod a+r), or to remove it while nothing runs"
            ) from error
        raise


def _lock(descriptor: int, file: Path, refusal: Callable[[str], PipelineError]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise refusal(os.pread(descriptor, 200, 0).decode(errors="replace") or "just started") from None
    except OSError as error:
        LOG.warning(
            "%s cannot be locked (%s): do not run this command twice at the same time, both would write the same files",
            file,
            error.strerror,
        )
        return
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)


@contextmanager
def try_lock(path: Path, flags: int = 0) -> Iterator[bool]:
    """Tries to lock the file at `path` without waiting; yields whether it is locked, and holds the lock in the block.

    Yields False if the file is missing, or if its holder renamed or removed it while it was opened here.
    """
    try:
        descriptor = open_lock_file(path, flags)
    except FileNotFoundError:
        yield False
        return
    try:
        yield try_flock(descriptor) and is_name_of(path, descriptor)
    finally:
        os.close(descriptor)


def open_lock_file(path: Path, flags: int) -> int:
    """Opens a lock file. Each open file holds its own lock, so locks also work between threads.

    Raises MachineError if `path` is a link, a device or the like: otherwise its target would be written.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise MachineError(
                f"the lock {path} is not a regular file (but a link, a pipe or the like); remove it"
            )
    # O_NOFOLLOW for a link created since the check, O_NONBLOCK for a pipe
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)


def try_flock(descriptor: int) -> bool:
    """Takes the lock if it is free; returns whether it was."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_name_of(path: Path, descriptor: int) -> bool:
    """Returns whether `path` is still the name of the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
