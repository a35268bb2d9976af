"""The folder of the shard cache: what goes for another file and what never does, and what is left of its locks."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.errors import MachineError
from shards.shard_cache import Expected, ShardCache

ROOT = Path(__file__).parents[2]
HASH = "0123456789abcdef"


def opened(folder: Path, max_bytes: int = 1000, grace_s: float = 0.05, max_wait_s: float = 5.0) -> ShardCache:
    return ShardCache(folder / "cache", max_bytes, grace_s, max_wait_s)


def shard(folder: Path, number: int, split: str = "train") -> Path:
    """As RemoteStore names them."""
    return folder / "cache" / "pack" / split / f"{split}-{number:06d}.{HASH}.tar"


def fetch(cache: ShardCache, path: Path, num_bytes: int, expected: Expected = Expected()) -> None:  # noqa: B008
    with cache.exclusive(path), cache.new_file(path, num_bytes, expected) as file:
        file.write(bytes(num_bytes))


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache").rglob(".*") if path.name != ".lock")


@pytest.mark.parametrize("split", ["train", "unseen_speakers_of_the_north", "s" * 200], ids=len)
def test_a_file_in_the_making_makes_no_room_for_another(tmp_path: Path, split: str) -> None:
    """However long its name; the other one waits until it is whole, and then it goes."""
    first, second = shard(tmp_path, 0, split), shard(tmp_path, 1, split)
    is_half, may_end = threading.Event(), threading.Event()

    def make_slowly() -> bool:
        cache = opened(tmp_path)
        with cache.exclusive(first), cache.new_file(first, 700) as file:
            file.write(bytes(300))
            file.flush()
            is_half.set()
            assert may_end.wait(10)
            file.write(bytes(400))
        return first.exists()

    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(make_slowly)
        assert is_half.wait(10)
        other = pool.submit(fetch, opened(tmp_path), second, 700)
        time.sleep(0.3)
        assert not other.done()
        may_end.set()
        assert slow.result()
        other.result()
    assert (first.exists(), second.stat().st_size) == (False, 700)


def test_nothing_is_left_but_shards(tmp_path: Path) -> None:
    """A lock has a file while it is held, or the folder would grow by one with every shard that was ever in it."""
    cache = opened(tmp_path, grace_s=0)
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


def test_what_a_killed_process_left_is_removed_with_its_lock(tmp_path: Path) -> None:
    left = shard(tmp_path, 0, "s" * 200)
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cache", left], cwd=ROOT, check=False)
    assert len(hidden(tmp_path)) == 2
    fetch(opened(tmp_path), shard(tmp_path, 1), 700)
    assert hidden(tmp_path) == []


def test_one_at_a_time_makes_a_file_though_its_lock_comes_and_goes(tmp_path: Path) -> None:
    path, makers = shard(tmp_path, 0), []

    def make(_: int) -> None:
        with opened(tmp_path).exclusive(path):
            makers.append(1)
            assert len(makers) == 1
            time.sleep(0.002)
            makers.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(80)))
    assert hidden(tmp_path) == []


def test_what_goes_first(tmp_path: Path) -> None:
    """By use; what is expected later only when waiting did not help, the latest first; what is sooner, never."""
    cache = opened(tmp_path, 500, max_wait_s=0.5)
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
    fetch(cache, paths[4], 300, expected)  # all but `sooner`, and one of those expected later
    assert [path.exists() for path in (sooner, later, much_later)] == [True, True, False]
    with pytest.raises(MachineError, match="full of shards in use"):
        fetch(cache, paths[3], 450, expected)
    assert sooner.exists()


def test_what_is_expected_later_waits_for_what_is_in_use(tmp_path: Path) -> None:
    """Within two graces a shard that was read just now is free, and the one expected need not be fetched again."""
    cache = opened(tmp_path, 300, grace_s=0.2)
    later, in_use, new = (shard(tmp_path, number) for number in range(3))
    fetch(cache, later, 100)
    time.sleep(0.25)
    fetch(cache, in_use, 200)
    fetch(cache, new, 100, Expected(later=(later,)))
    assert (later.exists(), in_use.exists()) == (True, False)


def test_a_clock_that_was_set_back_fills_no_cache(tmp_path: Path) -> None:
    """Files of a time to come are older than what is used from now on."""
    cache = opened(tmp_path, 400, max_wait_s=0.5)
    future, later_future, now = (shard(tmp_path, number) for number in range(3))
    for path, ahead_s in ((now, 0), (future, 3600), (later_future, 3700)):
        fetch(cache, path, 100)
        os.utime(path, (time.time() + ahead_s,) * 2)
    time.sleep(0.1)
    fetch(cache, shard(tmp_path, 3), 300)
    assert [path.exists() for path in (future, later_future, now)] == [False, False, True]


def test_a_clock_that_is_set_back_by_a_moment_takes_nobody_s_grace(tmp_path: Path) -> None:
    cache = opened(tmp_path, 100, grace_s=0.5, max_wait_s=0.1)
    fetch(cache, path := shard(tmp_path, 0), 100)
    os.utime(path, (time.time() + 0.2,) * 2)
    with pytest.raises(MachineError, match="full of shards in use"):
        fetch(cache, shard(tmp_path, 1), 100)
    assert path.exists()
