"""A mirror of the cache that several machines share: any folder or bucket that fsspec opens (`machine.share`).

The cache of each machine stays where it is; entries are fetched before they would be made, and stored when they
were. Names are content keys, so machines that make the same entry at once do no harm. For what is here already the
mirror is not asked entry by entry: each process lists a folder of it once.
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
    """The mirror at `url` of the cache in `folder`. Raises ConfigError where no such file system is known."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder, self._url = folder, url
        self._files, self._root = open_file_system(url, _KEY)

    @contextmanager
    def mirrored(self, keys: Keys) -> Iterator[None]:
        """Entries of `keys` that only the mirror has are fetched; those it has not, or other ones, are stored."""
        entries = [_entry("clips", keys.clip)] + ([_entry("tracks", keys.track)] if keys.track else [])
        before = {entry: self.fetch(entry) for entry in entries}
        yield
        for entry in entries:
            now = _stamp(self.folder / entry)
            # changed: it was made here and now, or what was found was damaged and is made anew
            if now is not None and (now != before[entry] or not self._has(entry)):
                try:
                    upload_whole(self._files, self.folder / entry, self._place(entry))
                except (FileNotFoundError, PermissionError) as error:
                    # s3fs says so of a bucket that is not there
                    raise MachineError(
                        f"machine.share: {self._place(entry)} cannot be written ({error})"
                    ) from error

    def fetch_clip(self, clip_key: str) -> None:
        self.fetch(_entry("clips", clip_key))

    def fetch(self, entry: str) -> Any:
        """Fetches an entry that is not here; gives what tells this file of a later one, None without a file."""
        here = self.folder / entry
        if not here.exists():
            try:
                with self._files.open(self._place(entry), "rb") as there, atomic_file(here) as file:
                    # no entry is larger: cut off, it is damaged, and is made again
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
    """The `_number` of every entry of a folder of the mirror: eight bytes each, where there may be millions."""
    files, root = open_file_system(url, _KEY)
    try:
        names = files.ls(f"{root}/{folder}", detail=False)
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise MachineError(f"machine.share: {root}/{folder} cannot be listed ({error})") from error
    # a file system that remembers the list would not find what others store from now on
    files.invalidate_cache()
    # whatever else lies there is none of ours
    entries = (entry for name in names if _ENTRY.fullmatch(entry := Path(name).name))
    return np.array([_number(entry) for entry in entries], np.uint64)


def _number(name: str) -> int:
    """64 bits of the key that an entry is named after."""
    return int(name[:16], 16)


def _entry(kind: str, key: str) -> str:
    """Where ClipCache keeps an entry, relative to its folder."""
    return f"{kind}/{key[:2]}/{key}.npz"


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
