"""Where the shards of a pack lie: a folder here, or any place that fsspec opens."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.errors import ShardError
from shards.files import TEMPORARY_NAME, atomic_file, sync_folder

OWNER = ".pack_owner"
"""In a remote store: whose pack it holds."""
LEFTOVER_NAMES = re.compile(
    rf"([^/]+/)?{TEMPORARY_NAME}|[A-Za-z0-9_-]+/\.[A-Za-z0-9_-]+(-\d{{6}}\.tar|\.json)\..*\.tmp"
    r"|\.{1,2}(README\.md|metadata\.json|pack_owner)\..*\.tmp"
)
"""What a pack that was killed leaves in a folder, or in a remote store that is no object store."""


class ShardStore(ABC):
    """The files of one pack, named as in samples.parquet: `train/train-000000.tar`, `train/index.json`, …"""

    is_remote: bool

    @abstractmethod
    def place(self, name: str) -> str:
        """Path or URL of a file, for messages."""

    @abstractmethod
    def names(self) -> list[str]:
        """Every file below, sorted; none where there is no pack."""

    @abstractmethod
    def local(self, name: str) -> Path:
        """The whole file on this machine, to be opened at once.

        Raises ShardError where it is missing or damaged, MachineError where it cannot be reached.
        """

    @abstractmethod
    def renew(self, name: str) -> bool:
        """Fetches a shard anew over the copy that this machine keeps of it; False where none is kept.

        Done once a shard and store: False afterwards. Raises as `local` does.
        """

    @abstractmethod
    def claim(self, catalogue: Path) -> None:
        """Before a pack of `catalogue` is written: ShardError where a remote store holds another catalogue's."""

    @abstractmethod
    def expect(self, names: Sequence[str]) -> None:
        """Shards that will be asked for, in this order: a remote store fetches them ahead as its cache allows."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that appears under its name when it is whole; not at all after an error."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file that is there, for good: it does not come back after a power cut."""


def refuse_outside_name(name: str) -> None:
    """Names come from tables and tars of other people's making; ShardError for one that leaves the store."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ShardError(f"'{name}' is no name of a shard; run `pipeline pack` again")


class FolderStore(ShardStore):
    """Shards in a folder of this machine."""

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
            raise ShardError(f"shard {path} is missing; `pipeline pack` makes it")
        return path

    def renew(self, name: str) -> bool:
        """False: there is no other copy."""
        return False

    def claim(self, catalogue: Path) -> None:
        """Nothing: a folder has a lock."""

    def expect(self, names: Sequence[str]) -> None:
        """Nothing: they are here."""

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        with atomic_file(self.folder / name) as file:
            yield file

    def remove(self, name: str) -> None:
        """Removes the file, and its folder where it was the last one in it."""
        path = self.folder / name
        folder = path.parent
        path.unlink()
        if folder != self.folder and not any(folder.iterdir()):
            folder.rmdir()
            folder = self.folder
        sync_folder(folder)
