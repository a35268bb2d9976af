"""Turns errors of the file system into messages that name the file and the fix."""

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
"""Error numbers that only writing causes."""
FORBIDDEN = "may not be opened by this user: ask its owner to allow it (chmod), or name another file"
"""End of the message for a PermissionError."""
KEPT = "files saved earlier are kept"
_FIXES = {
    errno.EACCES: "give another path, or make this one writable (chmod)",
    errno.EPERM: "give another path, or remove the protection of this one (lsattr shows it)",
    errno.EROFS: "give another path: this file system is mounted read-only",
    errno.EPIPE: "the program that reads the pipe ended too early: find out why, or name a file",
    errno.ENXIO: "no program reads this pipe: start the reader first, or name a file",
    errno.EFBIG: "raise the limit (`ulimit -f` shows it), or give a path on a file system that allows such large files",
    errno.EBADF: "it is closed (>&-) or open only for reading (<): redirect it to a file or a pipe, or name a file",
    errno.ESPIPE: "this format needs a file, because a pipe cannot seek: name a file",
    errno.EISDIR: "a folder has this name: name a file in it",
    errno.ENOTDIR: "a file exists where a folder is needed: remove it, or give another path",
    errno.EEXIST: "a file exists where a folder is needed: remove it, or give another path",
    errno.ENOENT: "create its folder, or give another path",
    errno.ELOOP: "its symbolic links form a loop: remove them, or give another path",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "check the disk (`dmesg` shows the failure), and give another path",
}


class WatchedFile(io.FileIO):
    """An unbuffered file that remembers the error of a failed write.

    Libraries that write through it (Arrow, torch, PyAV, a buffer) raise another error instead, or none.
    """

    failure: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def unwritable(place: Path | str, error: OSError, needed_bytes: int = 0) -> DiskError:
    """Returns the DiskError for `error`, which occurred while `place` was written."""
    if error.errno in FULL:
        room = f" ({needed_bytes / MB:.1f} MB needed)" if needed_bytes > MB / 10 else ""
        return DiskError(
            f"the disk is full: {place} cannot be written{room}; {KEPT}. Free some space, "
            "then run the same command again"
        )
    fix = _FIXES.get(error.errno or 0, "give another path")
    return DiskError(f"{place} cannot be written ({error.strerror or error}); {fix}")


@contextmanager
def disk_errors_reported(
    place: Path | str, needed_bytes: int = 0, among: Collection[int] | None = None
) -> Iterator[None]:
    """Raises DiskError that names `place` if the block raises an OSError.

    With `among` only for these error numbers: for a block that does more than write.
    """
    try:
        yield
    except OSError as error:
        if among is not None and error.errno not in among:
            raise
        raise unwritable(place, error, needed_bytes) from error
