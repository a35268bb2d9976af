"""A mirror of the cache that several machines share: any folder or bucket that fsspec opens (`machine.share`).

Each machine keeps its own cache. An entry that is missing there is fetched from the mirror; a new one is stored in it.
Names are content keys, so machines may safely make the same entry at the same time. For entries of the local cache,
each process lists a folder of the mirror once and does not ask for every entry.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import MachineError
from shards.files import atomic_file
from shards.remote_files import open_file_system, upload_whole
from stages.clips.cache import Keys
from stages.clips.entries import MAX_MEMBER_BYTES

BLOCK_BYTES = 1 << 24
_KEY = "machine.share"
_ENTRY = re.compile(r"[0-9a-f]{64}\.npz")


class SharedCache:
    """The mirror at `url` of the cache in `folder`. Raises ConfigError where the file system of `url` is not known."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder, self._url = folder, url
        self._files, self._root = open_file_system(url, _KEY)

    @contextmanager
    def mirrored(self, keys: Keys) -> Iterator[None]:
        """Fetches entries of `keys` that only the mirror has; afterwards stores those that are new or changed."""
        entries = [_entry("clips", keys.clip)] + ([_entry("tracks", keys.track)] if keys.track else [])
        before = {entry: self.fetch(entry) for entry in entries}
        yield
        for entry in entries:
            now = _stamp(self.folder / entry)
            # changed: it was made now, also where the one found was damaged
            if now is not None and (now != before[entry] or not self._has(entry)):
                try:
                    upload_whole(self._files, self.folder / entry, self._place(entry))
                except (FileNotFoundError, PermissionError) as error:
                    # s3fs raises these for a missing bucket
                    raise MachineError(
                        f"machine.share: {self._place(entry)} cannot be written ({error})"
                    ) from error

    def fetch_clip(self, clip_key: str) -> None:
        self.fetch(_entry("clips", clip_key))

    def fetch(self, entry: str) -> Any:
        """Fetches a missing entry; returns a stamp that changes with the file, None without a file."""
        here = self.folder / entry
        if not here.exists():
            try:
                with self._files.open(self._place(entry), "rb") as there, atomic_file(here) as file:
                    # no entry is larger: a longer one is truncated, so it is damaged and made again
                    while file.tell() < MAX_MEMBER_BYTES and (block := there.read(BLOCK_BYTES)):
                        file.write(block)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise MachineError(
                    f"machine.share: {self._place(entry)} cannot be fetched ({error})"
                ) from error
        return _stamp(here)

    def _has(self, entry: str) -> bool:
        folder, _, name = entry.rpartition("/")
        if (_listed(self._url, folder) == _number(name)).any():
            return True
        # another machine may have stored it since
        return bool(self._files.exists(self._place(entry)))

    def _place(self, entry: str) -> str:
        return f"{self._root}/{entry}"


@cache
def _listed(url: str, folder: str) -> NDArray[np.uint64]:
    """Returns the `_number` of every entry of a folder of the mirror: 8 bytes each, since there may be millions."""
    files, root = open_file_system(url, _KEY)
    try:
        names = files.ls(f"{root}/{folder}", detail=False)
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise MachineError(f"machine.share: {root}/{folder} cannot be listed ({error})") from error
    # a cached list would hide entries that others store from now on
    files.invalidate_cache()
    # other files are not ours
    entries = (entry for name in names if _ENTRY.fullmatch(entry := Path(name).name))
    return np.array([_number(entry) for entry in entries], np.uint64)


def _number(name: str) -> int:
    """Returns the first 64 bits of the key in an entry's name."""
    return int(name[:16], 16)


def _entry(kind: str, key: str) -> str:
    """Returns the path where ClipCache keeps an entry, relative to its folder."""
    return f"{kind}/{key[:2]}/{key}.npz"


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
