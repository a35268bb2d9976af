"""Pipes, devices and open files of this process: what a path may name that is no plain file."""

import errno
import os
import re
import stat
import time
from pathlib import Path

from shards.disk import WatchedFile
from shards.errors import MachineError

READER_WAIT_S = 10.0
"""For whoever is to read a pipe: it may be started after this command."""


def refuse_pipe(path: Path) -> None:
    """MachineError where `path` is a named pipe, which is opened only when, and if ever, another opens it too.

    A pipe that this process was started with (/dev/stdin, /dev/fd/N, a shell's <(command)) is open, and let pass.
    """
    try:
        is_pipe = stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        # whoever opens it tells
        return
    if is_pipe and own_descriptor(path) is None:
        raise MachineError(
            f"{path} is a named pipe, and whoever opens it may wait for ever; give a file, or what comes out of the "
            "pipe as /dev/stdin"
        )


def open_stream(path: Path) -> WatchedFile:
    """The pipe or device open for writing. OSError where nobody reads the pipe within READER_WAIT_S."""
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
    """The descriptor that `path` leads to, as /dev/stdout and /dev/fd/6 do; None for every other path.

    Its link reads as a path, which the open file may no longer have. MachineError for another process's open file.
    """
    for _ in range(_MOST_LINKS):
        path = Path(os.path.realpath(path.parent), path.name)
        of_process = _DESCRIPTOR.fullmatch(str(path))
        # one that is closed is no link, and no file to be made either
        if of_process and int(of_process[1]) == os.getpid():
            return int(path.name)
        if not path.is_symlink():
            return None
        if of_process:
            if is_stream(path):
                return None
            raise MachineError(
                f"{path} is an open file of another process; give the file's own path, or /dev/stdout"
            )
        path = path.parent / path.readlink()
    return None


_MOST_LINKS = 40
"""As many as Linux follows."""
_DESCRIPTOR = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd/\d+")


def is_stream(path: Path) -> bool:
    """Whether it is written as it comes, and never replaced; MachineError for what only root could write."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise MachineError(f"{path} is a {'disk' if stat.S_ISBLK(mode) else 'socket'}; name a file")
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)
