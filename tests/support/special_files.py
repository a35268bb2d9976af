"""Shared by tests: special files."""

import os
import stat
from pathlib import Path

import pytest

NULL, FULL = (1, 3), (1, 7)


"""Numbers of Linux's devices: one that takes everything, one that is always full."""


def device(path: Path, numbers: tuple[int, int], kind: int = stat.S_IFCHR) -> Path:
    """A device of this test's own: those in /dev are everybody's, and tests may run as root."""
    try:
        os.mknod(path, kind | 0o666, os.makedev(*numbers))
        if kind == stat.S_IFCHR:
            os.close(os.open(path, os.O_WRONLY))
    except PermissionError:
        pytest.skip("no devices can be made here")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
