"""Runs programs with a small disk of their own, in processes forked after all imports."""

import subprocess
from pathlib import Path

from tests.support import forked

MOUNT = """
import ctypes, os, sys
from pathlib import Path

USER_AND_MOUNTS, PRIVATE = 0x10000000 | 0x00020000, 0x4000 | 0x40000  # sched.h and mount.h of Linux
place, size = sys.argv[1:3]
del sys.argv[1:3]
libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
assert libc.unshare(USER_AND_MOUNTS) == 0, os.strerror(ctypes.get_errno())
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"0 {user} 1")
Path("/proc/self/gid_map").write_text(f"0 {group} 1")
assert libc.mount(b"none", b"/", None, PRIVATE, None) == 0, os.strerror(ctypes.get_errno())
done = libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={size}".encode())
assert done == 0, os.strerror(ctypes.get_errno())
"""
"""Mounts a file system that only this process and its children see, as `unshare -rm` and `mount` do."""


def python_on_small_disk(
    place: Path, size: str, source: str, *arguments: str | Path, folder: Path = forked.ROOT
) -> "subprocess.CompletedProcess[str]":
    """Runs a program in `folder`; it has a file system of `size` at the folder `place`, and may enlarge it.

    Tests need the fixture `on_small_disk`, which skips them where this is not allowed.
    """
    place.mkdir(exist_ok=True)
    return forked.python(f"{MOUNT}\n{source}", place.resolve(), size, *arguments, folder=folder)
