"""Creates devices, such as a copy of /dev/full, and lists the names in a folder."""

import os
import stat
from pathlib import Path

import pytest

NULL, FULL = (1, 3), (1, 7)
"""Device numbers of Linux: /dev/null and /dev/full."""


def device(path: Path, numbers: tuple[int, int], kind: int = stat.S_IFCHR) -> Path:
    """Creates a device for this test: those in /dev are shared, and tests may run as root."""
    try:
        os.mknod(path, kind | 0o666, os.makedev(*numbers))
        if kind == stat.S_IFCHR:
            os.close(os.open(path, os.O_WRONLY))
    except PermissionError:
        pytest.skip("devices cannot be created here")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
