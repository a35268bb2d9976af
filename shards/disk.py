"""What a disk refuses, told as what it is: by file, and with what mends it."""

import errno
import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import DiskError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MB = 1_000_000
FULL = (errno.ENOSPC, errno.EDQUOT)
WRITE_ERRORS = (*FULL, errno.EFBIG, errno.EROFS)
"""Errors that only writing meets."""
FORBIDDEN = "may not be opened by this user: ask its owner to allow it (chmod), or name another place"
"""What is to be said of a PermissionError."""
KEPT = "what was saved before is kept"
_MENDS = {
    errno.EACCES: "give another place, or make that one writable (chmod)",
    errno.EPERM: "give another place, or lift its protection (lsattr shows it)",
    errno.EROFS: "give another place: what is mounted there may only be read",
    errno.EPIPE: "what reads it ended too soon: see why, or name a file",
    errno.ENXIO: "no program reads this pipe: start the reader first, or name a file",
    errno.EFBIG: "raise the limit (`ulimit -f` shows it), or give a place whose file system takes files so large",
    errno.EBADF: "it is closed (>&-), or open for reading only (<): redirect it to a file or a pipe, or name a file",
    errno.ESPIPE: "this kind needs a file: a pipe has no places to go back to",
    errno.EISDIR: "a folder has that name: name a file in it",
    errno.ENOTDIR: "a file stands where a folder is needed: remove it, or give another place",
    errno.EEXIST: "a file stands where a folder is needed: remove it, or give another place",
    errno.ENOENT: "make the folder it is to be in, or give another place",
    errno.ELOOP: "its links lead in a circle: remove them, or give another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "look at the disk (`dmesg` tells what failed), and give another place",
}


class WatchedFile(io.FileIO):
    """An unbuffered file that remembers why it could not be written.

    What writes through it (Arrow, torch, PyAV, a buffer) raises an error of its own instead, or none at all.
    """

    failure: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def unwritable(place: Path | str, error: OSError, needed_bytes: int = 0) -> DiskError:
    """The message for `error`, met while `place` was written."""
    if error.errno in FULL:
        room = f", {needed_bytes / MB:.1f} MB are needed" if needed_bytes > MB / 10 else ""
        return DiskError(
            f"the disk is full: {place} cannot be written{room}; {KEPT}. Free some space, "
            "then the same command goes on"
        )
    mend = _MENDS.get(error.errno or 0, "give another place")
    return DiskError(f"{place} cannot be written ({error.strerror or error}); {mend}")


@contextmanager
def disk_errors_reported(
    place: Path | str, needed_bytes: int = 0, among: Collection[int] | None = None
) -> Iterator[None]:
    """Raises DiskError naming `place` where it turns out that nothing can be written there.

    `among` these numbers of errors: for a block that does more than write.
    """
    try:
        yield
    except OSError as error:
        if among is not None and error.errno not in among:
            raise
        raise unwritable(place, error, needed_bytes) from error
