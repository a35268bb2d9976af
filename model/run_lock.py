"""Only one training at a time writes in a run folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.full_disk import full_disk_told
from model.runs import logger
from shards.errors import TrainingError

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of `folder`. TrainingError where one is at work there, on this machine or another.

    The kernel lets go of the lock when its process ends, however that ends. A file system that has no locks (NFS,
    where its server keeps none) is no reason not to train: it is said, and whoever starts two has been told.
    """
    with full_disk_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # to be written, else NFS grants no lock of it; never removed, since another may have opened it
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace")
        raise TrainingError(
            f"another training of the same parameters is at work in {folder} ({holder or 'it begins'}): wait until "
            "it has ended, or end it, and the same command goes on from there; to train both, change a parameter "
            "(train.seed), or give this one paths.runs, paths.checkpoints and paths.logs of its own"
        ) from None
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s): start no second training of the same parameters, both would write there",
            folder,
            error.strerror,
        )
        return
    with full_disk_told(folder):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)
