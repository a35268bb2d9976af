"""The interface of shard stores, and shards in a local folder."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.errors import ShardError
from shards.files import TEMPORARY_NAME, atomic_file, sync_folder

SHARDS_KEY = "paths.shards"
"""The setting that names the store of a single pack, for messages."""
OWNER = ".pack_owner"
"""File in a remote store that identifies the owner of its pack."""
PARTIAL_FILE_NAMES = re.compile(
    rf"([^/]+/)?{TEMPORARY_NAME}|[A-Za-z0-9_-]+/\.[A-Za-z0-9_-]+(-\d{{6}}\.tar|\.json)\..*\.tmp"
    r"|\.{1,2}(README\.md|metadata\.json|pack_owner)\..*\.tmp"
)
"""Partial files that a killed `pack` leaves in a folder, or in a remote store that is not an object store."""


class ShardStore(ABC):
    """The files of one pack, to read, named as in samples.parquet: `train/train-000000.tar`, `train/index.json`, …"""

    is_remote: bool

    @abstractmethod
    def place(self, name: str) -> str:
        """Returns the path or URL of a file, for messages."""

    @abstractmethod
    def names(self) -> list[str]:
        """Returns the names of all files, sorted; empty if there is no pack."""

    @abstractmethod
    def local(self, name: str) -> Path:
        """Returns the path of the complete file on this machine; open it immediately.

        Raises ShardError if it is missing or damaged, MachineError if it cannot be reached.
        """

    @abstractmethod
    def renew(self, name: str) -> bool:
        """Downloads a shard again and replaces the local copy; False if the store keeps no copies.

        Works once for each shard and store, then returns False. Raises as `local` does.
        """

    @abstractmethod
    def expect(self, names: Sequence[str]) -> None:
        """Announces the shards that will be needed, in this order; a remote store fetches them ahead."""


class WritableStore(ShardStore):
    """A store that `pack` can write."""

    @abstractmethod
    def claim(self, catalogue: Path) -> None:
        """Claims the store for a new pack of `catalogue`; raises ShardError if a remote store holds another one's."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Opens a file for writing; it gets its name when it is complete, and is discarded after an error."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes an existing file; it stays removed after a power cut."""


def refuse_outside_name(name: str) -> None:
    """Raises ShardError for a name that leaves the store: names come from untrusted tables and tars."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ShardError(f"'{name}' is not a valid name of a shard; run `pipeline pack` again")


class FolderStore(WritableStore):
    """Shards in a local folder."""

    is_remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str) -> str:
        return str(self.folder / name)

    def names(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir()
        )

    def local(self, name: str) -> Path:
        refuse_outside_name(name)
        path = self.folder / name
        if not path.is_file():
            raise ShardError(f"shard {path} is missing; run `pipeline pack`")
        return path

    def renew(self, name: str) -> bool:
        """Returns False, because there is no other copy."""
        return False

    def claim(self, catalogue: Path) -> None:
        """Does nothing, because `pack` locks a folder."""

    def expect(self, names: Sequence[str]) -> None:
        """Does nothing, because the shards are local."""

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        with atomic_file(self.folder / name) as file:
            yield file

    def remove(self, name: str) -> None:
        """Removes the file, and its folder if it is empty then."""
        path = self.folder / name
        folder = path.parent
        path.unlink()
        if folder != self.folder and not any(folder.iterdir()):
            folder.rmdir()
            folder = self.folder
        sync_folder(folder)
