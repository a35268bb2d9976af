"""Order of disk operations: a power cut leaves complete files, and no new shards with an old catalogue."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.files import write_bytes
from shards.settings import PackParams
from shards.store import FolderStore
from stages.pack import pack
from tests.support.packing import PARAMS, Packing, make


class Disk:
    """Records fsync, rename and remove calls of this process in order, and runs them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Path, int]] = []
        self._names: dict[int, Path] = {}
        fsync, replace, unlink = os.fsync, os.replace, os.unlink

        def synced(descriptor: int) -> None:
            fsync(descriptor)
            status = os.fstat(descriptor)
            self.calls.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink(), status.st_size))

        def renamed(source: Path, target: Path) -> None:
            self.calls.append(("rename", Path(target), Path(source).stat().st_size))
            replace(source, target)

        def removed(path: Path) -> None:
            if Path(path).exists():
                self.calls.append(("remove", Path(path), 0))
            unlink(path)

        for name, call in (("fsync", synced), ("replace", renamed), ("unlink", removed)):
            monkeypatch.setattr(os, name, call)

    def of(self, kind: str) -> Iterator[Path]:
        return (path for what, path, _ in self.calls if what == kind)

    def place(self, kind: str, path: Path) -> int:
        """Returns the index of the first such call."""
        return next(i for i, call in enumerate(self.calls) if call[:2] == (kind, path))


def test_a_file_is_synced_before_its_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, path = Disk(monkeypatch), tmp_path / "table"
    write_bytes(path, bytes(100_000))
    (first, temporary, num_bytes), rename, last = disk.calls
    assert (first, temporary.parent, num_bytes) == ("sync", tmp_path, 100_000)
    assert rename == ("rename", path, 100_000)
    assert last[:2] == ("sync", tmp_path)


def test_the_old_catalogue_and_indexes_are_removed_and_synced_before_a_new_shard_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise samples of the new pack would be read at offsets of the old one, without an error."""
    packing: Packing = make(tmp_path, 2)
    packing.pack("shards")
    store, samples = FolderStore(tmp_path / "shards"), tmp_path / "shards.parquet"
    old = {
        kind: [store.folder / name for name in store.names() if kind in name]
        for kind in (".tar", "index.json")
    }
    assert all(len(paths) >= 2 for paths in old.values())
    clips, crops, tracks = packing.tables
    disk = Disk(monkeypatch)
    pack(packing.corpus, PARAMS, PackParams(), packing.machine, clips, crops, tracks, store, samples)
    # without the file that tests write access
    removed = [path for path in disk.of("remove") if path.suffix != ".tmp"]
    assert removed[0] == samples
    assert set(removed[1 : 1 + len(old["index.json"])]) == set(old["index.json"])
    assert set(old[".tar"]) <= set(removed)
    first_shard = min(disk.place("rename", path) for path in disk.of("rename") if path.suffix == ".tar")
    for path in [samples, *old["index.json"]]:
        # the folder of a split without shards is removed too
        folders = {path.parent} if path == samples else {path.parent, store.folder}
        calls = disk.calls[disk.place("remove", path) : first_shard]
        assert any(what == "sync" and folder in folders for what, folder, _ in calls), path
