"""What stands where a lock file is to be: nothing but a file is opened, and no link is followed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import files
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
def test_what_is_no_file_is_refused_as_a_lock_and_named(tmp_path: Path, kind: str) -> None:
    keep, lock = tmp_path / "keep", tmp_path / ".samples.parquet.lock"
    keep.write_bytes(b"precious")
    IN_ITS_PLACE[kind](lock)
    told = rf"the lock {lock} is not a regular file \(.*\); remove it"
    with pytest.raises(MachineError, match=told), hold_lock(lock, ShardError):
        pass
    for flags in (0, os.O_CREAT):
        with pytest.raises(MachineError, match=told), try_lock(lock, flags):
            pass
    assert keep.read_bytes() == b"precious" and names(tmp_path) == [lock.name, "keep"]


def test_a_link_that_comes_in_between_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, lock = tmp_path / "keep", tmp_path / ".lock"
    keep.write_bytes(b"precious")
    lock.symlink_to("keep")
    monkeypatch.setattr(Path, "lstat", Path.stat)
    with pytest.raises(OSError, match="symbolic links"), hold_lock(lock, ShardError):
        pass
    assert keep.read_bytes() == b"precious"


def test_the_lock_of_a_shard_cache_is_no_link(tmp_path: Path) -> None:
    (shard := tmp_path / "a.tar").write_bytes(b"x")
    (tmp_path / ".lock").symlink_to("keep")
    with pytest.raises(MachineError, match=r"the lock \S*/\.lock is not a regular file"):
        ShardCache(tmp_path, 1000, 0.05, 5.0).has(shard, 1)
    assert names(tmp_path) == [".lock", "a.tar"]


def test_a_link_named_as_a_torso_stops_no_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torso = tmp_path / f".a.{files._TEMPORARY}-abcdefgh.tmp"
    torso.symlink_to("keep")
    monkeypatch.setattr(files, "_swept", set())
    write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == [torso.name, "a"]
