"""A full disk, told as what it is: by file, and by the room that is missing."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import MachineError

MB = 1_000_000


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk, or a used-up quota, is behind `error` (torch wraps it in errors of its own)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def full_disk_told(place: Path | str, needed_bytes: int | None = None) -> Iterator[None]:
    """Raises MachineError naming `place` where writing to it inside meets a full disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: torch.save's
        if not is_full_disk(error):
            raise
        room = "" if needed_bytes is None else f", {max(needed_bytes / MB, 0.1):.1f} MB are needed"
        raise MachineError(
            f"the disk is full: {place} cannot be written{room}; what was saved before is kept. Free some space, "
            "then the same command goes on"
        ) from error
