"""Paths that are not regular files: pipes, devices and open files of this process."""

import errno
import os
import re
import stat
import time
from pathlib import Path

from shards.disk import WatchedFile
from shards.errors import MachineError

READER_WAIT_S = 10.0
"""Wait for the reader of a pipe, which may start after this command."""


def refuse_pipe(path: Path) -> None:
    """Raises MachineError if `path` is a named pipe: opening it blocks until another process opens the other end.

    Accepts pipes that this process got open at its start (/dev/stdin, /dev/fd/N, <(command) of a shell).
    """
    try:
        is_pipe = stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return  # opening the file reports the error
    if is_pipe and own_descriptor(path) is None:
        raise MachineError(
            f"{path} is a named pipe, and opening it could block forever; give a file, or redirect the pipe to "
            "standard input and give /dev/stdin"
        )


def open_stream(path: Path) -> WatchedFile:
    """Opens the pipe or device for writing. Raises OSError if nobody reads the pipe within READER_WAIT_S."""
    until_s = time.monotonic() + READER_WAIT_S
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > until_s:
                raise
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return WatchedFile(descriptor, "w")


def own_descriptor(path: Path) -> int | None:
    """Returns the descriptor of this process that `path` leads to (/dev/stdout, /dev/fd/6), None for other paths.

    The link target is not usable as a path, because the open file may be renamed or removed. Raises MachineError for
    an open file of another process.
    """
    for _ in range(_MOST_LINKS):
        path = Path(os.path.realpath(path.parent), path.name)
        of_process = _DESCRIPTOR.fullmatch(str(path))
        # a closed descriptor is not a link, and must not become a new file
        if of_process and int(of_process[1]) == os.getpid():
            return int(path.name)
        if not path.is_symlink():
            return None
        if of_process:
            if is_stream(path):
                return None
            raise MachineError(
                f"{path} is an open file of another process; give the path of the file itself, or /dev/stdout"
            )
        path = path.parent / path.readlink()
    return None


_MOST_LINKS = 40
"""Limit of Linux."""
_DESCRIPTOR = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd/\d+")


def is_stream(path: Path) -> bool:
    """Returns whether `path` is a pipe or device, written directly. Raises MachineError for a disk or a socket."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise MachineError(f"{path} is a {'disk' if stat.S_ISBLK(mode) else 'socket'}; name a file")
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)
