"""The folder of the shard cache: which files are removed for another one, and which locks remain."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.errors import MachineError
from shards.shard_cache import Expected, ShardCache
from tests.support import forked

ROOT = Path(__file__).parents[2]
HASH = "0123456789abcdef"


def open_cache(
    folder: Path, max_bytes: int = 1000, grace_s: float = 0.05, max_wait_s: float = 5.0
) -> ShardCache:
    return ShardCache(folder / "cache", max_bytes, grace_s, max_wait_s)


def shard(folder: Path, number: int, split: str = "train") -> Path:
    """Returns the path as RemoteStore names it."""
    return folder / "cache" / "pack" / split / f"{split}-{number:06d}.{HASH}.tar"


def fetch(cache: ShardCache, path: Path, num_bytes: int, expected: Expected = Expected()) -> None:  # noqa: B008
    with cache.exclusive(path), cache.new_file(path, num_bytes, expected) as file:
        file.write(bytes(num_bytes))


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache").rglob(".*") if path.name != ".lock")


@pytest.mark.parametrize("split", ["train", "unseen_speakers_of_the_north", "s" * 200], ids=len)
def test_a_partial_file_is_not_removed_for_another(tmp_path: Path, split: str) -> None:
    """For names of any length: the second file waits until the first is complete, then the first is removed."""
    first, second = shard(tmp_path, 0, split), shard(tmp_path, 1, split)
    is_half, may_finish = threading.Event(), threading.Event()

    def write_slowly() -> bool:
        cache = open_cache(tmp_path)
        with cache.exclusive(first), cache.new_file(first, 700) as file:
            file.write(bytes(300))
            file.flush()
            is_half.set()
            assert may_finish.wait(10)
            file.write(bytes(400))
        return first.exists()

    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(write_slowly)
        assert is_half.wait(10)
        other = pool.submit(fetch, open_cache(tmp_path), second, 700)
        time.sleep(0.3)
        assert not other.done()
        may_finish.set()
        assert slow.result()
        other.result()
    assert (first.exists(), second.stat().st_size) == (False, 700)


def test_nothing_is_left_but_shards(tmp_path: Path) -> None:
    """Lock files are removed after use; otherwise the folder would collect one for every shard."""
    cache = open_cache(tmp_path, grace_s=0)
    for number in range(20):
        fetch(cache, shard(tmp_path, number), 400)
    with pytest.raises(ZeroDivisionError), cache.exclusive(shard(tmp_path, 20)):
        _ = 1 / 0
    assert hidden(tmp_path) == []
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from shards.shard_cache import ShardCache
cache, path = ShardCache(Path(sys.argv[1]), 1000, 0.05, 5.0), Path(sys.argv[2])
with cache.exclusive(path), cache.new_file(path, 700) as file:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_partial_file_of_a_killed_process_is_removed_with_its_lock(tmp_path: Path) -> None:
    left = shard(tmp_path, 0, "s" * 200)
    assert forked.python(KILLED, tmp_path / "cache", left).returncode == -signal.SIGKILL
    assert len(hidden(tmp_path)) == 2
    fetch(open_cache(tmp_path), shard(tmp_path, 1), 700)
    assert hidden(tmp_path) == []


def test_only_one_thread_writes_a_file_although_its_lock_file_is_removed(tmp_path: Path) -> None:
    path, writers = shard(tmp_path, 0), []

    def make(_: int) -> None:
        with open_cache(tmp_path).exclusive(path):
            writers.append(1)
            assert len(writers) == 1
            time.sleep(0.002)
            writers.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(80)))
    assert hidden(tmp_path) == []


def test_the_order_of_removal(tmp_path: Path) -> None:
    """By use; files expected later only if waiting did not help, the last one first; files expected sooner never."""
    cache = open_cache(tmp_path, 500, max_wait_s=0.5)
    paths = [shard(tmp_path, number) for number in range(9)]
    sooner, later, much_later, old, older = paths[:5]
    for path in (sooner, later, much_later, older, old):
        fetch(cache, path, 100)
        time.sleep(0.01)
    expected = Expected(sooner=frozenset({sooner}), later=(much_later, later))
    for path, gone in zip(paths[5:], (older, old, paths[5], paths[6]), strict=True):
        fetch(cache, path, 100, expected)
        assert not gone.exists()
    assert all(path.exists() for path in (sooner, later, much_later))
    fetch(cache, paths[4], 300, expected)  # removes all but `sooner` and one of those expected later
    assert [path.exists() for path in (sooner, later, much_later)] == [True, True, False]
    with pytest.raises(MachineError, match="full of shards in use"):
        fetch(cache, paths[3], 450, expected)
    assert sooner.exists()


def test_files_in_use_are_removed_before_expected_ones(tmp_path: Path) -> None:
    """After two grace times a shard that was read is free, so the expected one is not fetched again."""
    cache = open_cache(tmp_path, 300, grace_s=0.2)
    later, in_use, new = (shard(tmp_path, number) for number in range(3))
    fetch(cache, later, 100)
    time.sleep(0.25)
    fetch(cache, in_use, 200)
    fetch(cache, new, 100, Expected(later=(later,)))
    assert (later.exists(), in_use.exists()) == (True, False)


def test_a_clock_that_was_set_back_does_not_fill_the_cache(tmp_path: Path) -> None:
    """Files with a future mtime count as the oldest."""
    cache = open_cache(tmp_path, 400, max_wait_s=0.5)
    future, later_future, now = (shard(tmp_path, number) for number in range(3))
    for path, ahead_s in ((now, 0), (future, 3600), (later_future, 3700)):
        fetch(cache, path, 100)
        os.utime(path, (time.time() + ahead_s,) * 2)
    time.sleep(0.1)
    fetch(cache, shard(tmp_path, 3), 300)
    assert [path.exists() for path in (future, later_future, now)] == [False, False, True]


def test_a_clock_set_back_slightly_keeps_the_grace_time(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 100, grace_s=0.5, max_wait_s=0.1)
    fetch(cache, path := shard(tmp_path, 0), 100)
    os.utime(path, (time.time() + 0.2,) * 2)
    with pytest.raises(MachineError, match="full of shards in use"):
        fetch(cache, shard(tmp_path, 1), 100)
    assert path.exists()
