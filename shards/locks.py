"""A file that one process at a time holds; the kernel lets go of it when that process ends, however it ends."""

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
    """Holds `file`, whose folder is there. Raises what `refusal` makes of the holder's name where another holds it.

    On this machine or another. A file system that has no locks (NFS, where its server keeps none) is no reason to
    stop: it is said, and whoever starts two has been told.
    """
    descriptor = _opened(file)
    try:
        _lock(descriptor, file, refusal)
        yield
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    """Never removed, since another may have opened it."""
    try:
        # to be written, else NFS grants no lock of it
        return open_lock_file(file, os.O_CREAT)
    except PermissionError:
        # another user's: it is locked as well where it may only be read
        try:
            return os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            pass  # it is the folder that cannot be written
        except PermissionError as error:
            raise MachineError(
                f"the lock {file} is another user's and cannot be opened ({error.strerror}); ask its owner to let you "
                f"read it (chmod a+r), or to remove it while nothing runs"
            ) from error
        raise


def _lock(descriptor: int, file: Path, refusal: Callable[[str], PipelineError]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise refusal(os.pread(descriptor, 200, 0).decode(errors="replace") or "it begins") from None
    except OSError as error:
        LOG.warning(
            "%s cannot be locked (%s): start the same command no second time meanwhile, both would write there",
            file,
            error.strerror,
        )
        return
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)


@contextmanager
def try_lock(path: Path, flags: int = 0) -> Iterator[bool]:
    """Whether the lock of the file at `path` could be taken, now; it is held within.

    Nobody's where the file is gone, or renamed or removed by the last holder while it was opened here.
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
    """Each opening is a holder of its own, so that threads shut each other out as processes do.

    MachineError where a link, a device or the like stands in the file's place: its target would be written.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise MachineError(
                f"the lock {path} is no regular file (a link, a pipe or another thing); remove it"
            )
    # one that came in between is not followed, and a pipe not waited for
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)


def try_flock(descriptor: int) -> bool:
    """Whether the lock could be taken, now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_name_of(path: Path, descriptor: int) -> bool:
    """Whether `path` is still the name of the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
