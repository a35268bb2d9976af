"""A mirror of the cache that several machines share: any folder or bucket that fsspec opens (`machine.share`).

The cache of each machine stays where it is; entries are fetched before they would be made, and stored when they
were. Names are content keys, so machines that make the same entry at once do no harm.
"""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from shards.errors import ConfigError, MachineError
from shards.files import atomic_file
from stages.cache import Keys

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"})
"""Here a file appears whole or not at all, and a rename would copy it; elsewhere it is renamed when it is whole."""


class SharedCache:
    """The mirror at `url` of the cache in `folder`. Raises ConfigError where no such file system is known."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"machine.share: {url} cannot be opened ({error})") from error
        protocols = self._files.protocol
        self._is_object_store = bool(
            _OBJECT_STORES & {*((protocols,) if isinstance(protocols, str) else protocols)}
        )

    @contextmanager
    def mirrored(self, keys: Keys) -> Iterator[None]:
        """Entries of `keys` that only the mirror has are fetched; those it has not, or other ones, are stored."""
        entries = [_entry("clips", keys.clip)] + ([_entry("tracks", keys.track)] if keys.track else [])
        before = {entry: self.fetch(entry) for entry in entries}
        yield
        for entry in entries:
            now = _stamp(self.folder / entry)
            # changed: it was made here and now, or what was found was damaged and is made anew
            if now is not None and (now != before[entry] or not self._files.exists(self._place(entry))):
                try:
                    self._store(entry)
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
                    shutil.copyfileobj(there, file)
            except FileNotFoundError:
                return None
        return _stamp(here)

    def _store(self, entry: str) -> None:
        here, there = str(self.folder / entry), self._place(entry)
        if self._is_object_store:
            self._files.put_file(here, there)
            return
        folder, _, name = there.rpartition("/")
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
        self._files.makedirs(folder, exist_ok=True)
        try:
            self._files.put_file(here, temporary)
            self._files.mv(temporary, there)
        except BaseException:
            if self._files.exists(temporary):
                self._files.rm_file(temporary)
            raise

    def _place(self, entry: str) -> str:
        return f"{self._root}/{entry}"


def _entry(kind: str, key: str) -> str:
    """Where ClipCache keeps an entry, relative to its folder."""
    return f"{kind}/{key[:2]}/{key}.npz"


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
