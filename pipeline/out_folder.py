"""A folder for results, tried before hours of work go into them."""

import tempfile
from pathlib import Path

from shards.errors import ConfigError


def check_writable(folder: Path) -> None:
    """Raises ConfigError where no file can be written to `--out`; leaves nothing there, nor the folder if it is new."""
    made: list[Path] = []
    try:
        for each in (*reversed(folder.parents), folder):
            if not each.exists():
                each.mkdir()
                made.append(each)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"tried")
            file.flush()
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: no file can be written there ({error.strerror}); make room, or give another folder"
        ) from error
    finally:
        for each in reversed(made):
            each.rmdir()
