"""Fetching ahead continues after a shard that is too large, and a process that hangs is reported."""

import fcntl
import threading
import time
from pathlib import Path

import pytest

from shards.errors import MachineError
from shards.shard_cache import FetchAhead, ShardCache
from shards.tar import IndexedShard


def shard(name: str, num_bytes: int) -> IndexedShard:
    return IndexedShard(name, 1, num_bytes, "0" * 64)


def test_a_shard_too_large_to_be_fetched_ahead_does_not_block_later_ones() -> None:
    """All threads wait until the large shard is requested; then the others are fetched ahead."""
    fetched: set[str] = set()
    all_small = threading.Event()

    def fetch(wanted: IndexedShard) -> None:
        fetched.add(wanted.name)
        if len(fetched) == 4:
            all_small.set()

    ahead = FetchAhead(fetch, lambda wanted: Path(wanted.name), max_bytes=5)
    ahead.expect([shard("large", 8), *(shard(f"small{number}", 1) for number in range(4))])
    time.sleep(0.05)
    assert not fetched
    ahead.note_requested("large")
    assert all_small.wait(5)
    assert fetched == {"small0", "small1", "small2", "small3"}
    ahead.stop(5)


def test_a_writer_that_hangs_is_reported(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1 << 20, grace_s=0, max_wait_s=0.05)
    shard_path = tmp_path / "train" / "train-000000.tar"
    shard_path.parent.mkdir()
    with shard_path.with_name(f".{shard_path.name}.lock").open("ab+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        with (
            pytest.raises(MachineError, match=r"has been writing train-000000\.tar"),
            cache.exclusive(shard_path),
        ):
            raise AssertionError("the lock is taken")
        assert time.monotonic() - began < 5
    with cache.exclusive(shard_path):
        pass
