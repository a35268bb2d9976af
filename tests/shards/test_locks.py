"""Lock files: only regular files are opened, and links are not followed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import files, locks
from shards.errors import MachineError, ShardError
from shards.files import write_bytes
from shards.locks import hold_lock, try_lock
from shards.shard_cache import ShardCache
from tests.support.special_files import NULL, device, names

IN_ITS_PLACE: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("keep"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
    "device": lambda path: device(path, NULL),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", IN_ITS_PLACE)
def test_a_lock_that_is_not_a_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    keep, lock = tmp_path / "keep", tmp_path / ".samples.parquet.lock"
    keep.write_bytes(b"precious")
    IN_ITS_PLACE[kind](lock)
    message = rf"the lock {lock} is not a regular file \(.*\); remove it"
    with pytest.raises(MachineError, match=message), hold_lock(lock, ShardError):
        pass
    for flags in (0, os.O_CREAT):
        with pytest.raises(MachineError, match=message), try_lock(lock, flags):
            pass
    assert keep.read_bytes() == b"precious" and names(tmp_path) == [lock.name, "keep"]


def test_a_link_created_after_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, lock = tmp_path / "keep", tmp_path / ".lock"
    keep.write_bytes(b"precious")
    lock.symlink_to("keep")
    monkeypatch.setattr(Path, "lstat", Path.stat)
    with pytest.raises(OSError, match="symbolic links"), hold_lock(lock, ShardError):
        pass
    assert keep.read_bytes() == b"precious"


@pytest.mark.parametrize("after", ["renamed", "removed", "replaced"])
def test_a_file_that_lost_its_name_while_it_was_opened_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """Its holder completes or removes it between our opening and our locking."""
    path, opened = tmp_path / ".a.tmp", locks.open_lock_file
    path.write_bytes(b"x")

    def open_too_late(path: Path, flags: int) -> int:
        descriptor = opened(path, flags)
        path.rename(tmp_path / "a") if after != "removed" else path.unlink()
        if after == "replaced":
            path.write_bytes(b"of another process")
        return descriptor

    with try_lock(path) as is_ours:
        assert is_ours
    monkeypatch.setattr(locks, "open_lock_file", open_too_late)
    with try_lock(path) as is_ours:
        assert not is_ours


def test_a_link_as_lock_of_a_shard_cache_is_refused(tmp_path: Path) -> None:
    (shard := tmp_path / "a.tar").write_bytes(b"x")
    (tmp_path / ".lock").symlink_to("keep")
    with pytest.raises(MachineError, match=r"the lock \S*/\.lock is not a regular file"):
        ShardCache(tmp_path, 1000, 0.05, 5.0).has(shard, 1)
    assert names(tmp_path) == [".lock", "a.tar"]


def test_a_link_named_like_a_partial_file_blocks_no_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial_file = tmp_path / f".a.{files._TEMPORARY}-abcdefgh.tmp"
    partial_file.symlink_to("keep")
    monkeypatch.setattr(files, "_swept", set())
    write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == [partial_file.name, "a"]
