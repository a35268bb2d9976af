"""A folder for results, tried before hours of work go into them."""

import tempfile
from pathlib import Path

from shards.errors import ConfigError


def check_writable(folder: Path, key: str = "--out") -> None:
    """Raises ConfigError, naming `key`, where no file can be written to `folder`; leaves nothing there.

    Of a folder that is yet to be made, the first above it that is there is tried.
    """
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"tried")
            file.flush()
    except OSError as error:
        raise ConfigError(
            f"{key} {folder}: no file can be written there ({error.strerror}); make room, or give another folder"
        ) from error
