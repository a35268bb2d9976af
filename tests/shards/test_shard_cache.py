"""The cache of a remote store: always bounded, shared by threads and processes, filled ahead."""

import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.errors import MachineError, ShardError
from shards.plan import plan_epoch
from shards.remote_store import RemoteStore
from shards.sample_reader import read_sample
from shards.samples import read_samples
from shards.settings import LoaderParams, MachineParams
from shards.stream import ShardStream
from shards.tar import IndexedShard
from shards.verify import verify
from tests.conftest import OnSmallDisk
from tests.support.forked import Forked
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.remote_packs import (  # noqa: F401
    FAULTS,
    GRACE_S,
    ROOT,
    SHORT_TIMEOUTS,
    URL,
    cache_of,
    open_remote_fixture,
    packed_fixture,
    proxy_fixture,
    server_fixture,
    sizes,
    tars,
    watched,
    write_indexes,
)
from tests.support.s3_server import BUCKET, FaultyProxy, upload


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_a_stream_gives_the_same_batches_from_anywhere(
    packed: Packed,
    proxy: FaultyProxy,
    open_remote: Callable[..., RemoteStore],
    tmp_path: Path,
    num_workers: int,
    scheme: str,
) -> None:
    """With network faults and a cache of 2.5 shards, which never exceeds its limit."""
    proxy.fault = FAULTS["each"]
    samples = read_samples(packed.samples, "train")
    gigabytes = cache_of(packed, 2.5)
    remote = open_remote(URL if scheme == "s3" else packed.shards.as_uri(), gigabytes, SHORT_TIMEOUTS)
    machine = MachineParams(num_workers=num_workers)
    streams = [ShardStream(store, samples, machine) for store in (packed.store, remote)]
    with watched(tmp_path / "cache" / "shards") as totals:
        for epoch in (1, 2):
            plan = plan_epoch(samples, LoaderParams(frame_budget=200, window_shards=2), 4, epoch)
            ours, theirs = (list(stream.batches(plan.batches)) for stream in streams)
            assert len(ours) == len(theirs) == len(plan.batches)
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a.video_BTHW, b.video_BTHW)
                assert torch.equal(a.num_frames_B, b.num_frames_B)
                assert (a.clip_ids, a.labels, a.rows) == (b.clip_ids, b.labels, b.rows)
    assert max(totals) <= gigabytes * 1e9
    assert max(totals) > 1.5e9 * cache_of(packed, 1)
    if scheme == "s3":
        assert {"503", "cut", "hang"} == set(proxy.faults)


def test_an_open_file_stays_readable_after_its_eviction(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]
) -> None:
    store, names = open_remote(cache_gb=cache_of(packed, 1.5)), tars(packed)
    path = store.local(names[0])
    with path.open("rb") as file:
        began = time.monotonic()
        for name in names[1:3]:
            store.local(name)
        assert time.monotonic() - began >= 2 * GRACE_S * 0.9  # recently requested files are kept
        assert not path.exists()
        assert file.read() == (packed.shards / names[0]).read_bytes()
    assert store.local(names[0]).exists()


def test_many_threads_fetch_a_shard_once(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]
) -> None:
    store, names = open_remote(), tars(packed)[:3]
    store.expect(names)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(store.local, names * 8))
    for name, path in zip(names * 8, found, strict=True):
        assert path.read_bytes() == (packed.shards / name).read_bytes()
    assert proxy.gets(".tar") and len(proxy.gets(".tar")) == len(set(proxy.gets(".tar")))


READ_ALL = """
import os, sys, time
from shards.remote_files import RetryPolicy
from shards.remote_store import RemoteStore
from shards.settings import MachineParams
url, cache, *names = sys.argv[1:]
retries = RetryPolicy(6, 0.01, 20, 5, 5, 5, 1 << 18)
store = RemoteStore(url, MachineParams(cache_dir=cache), retries)
print("ready", flush=True)
while os.path.exists(cache + ".wait"):
    time.sleep(0.001)
for name in names:
    print(store.local(name), flush=True)
"""


def waited_for(condition: Callable[[], bool], limit_s: float = 5) -> bool:
    began = time.monotonic()
    while not condition() and time.monotonic() - began < limit_s:
        time.sleep(0.01)
    return condition()


def reader(cache: Path, names: list[str]) -> Forked:
    """Starts a process that reads these shards."""
    return Forked(ROOT, [URL, cache, *names], source=READ_ALL)


def test_two_processes_fetch_a_shard_once(packed: Packed, proxy: FaultyProxy, tmp_path: Path) -> None:
    names, wait = tars(packed)[:3], tmp_path / "cache.wait"
    wait.touch()
    processes = [reader(tmp_path / "cache", names) for _ in range(2)]
    assert waited_for(lambda: all(process.output()[0] for process in processes), 60)
    wait.unlink()  # both start at the same moment
    done = [process.wait(60) for process in processes]
    assert [process.returncode for process in done] == [0, 0]
    outputs = [process.stdout for process in done]
    assert outputs[0] == outputs[1]
    for name, path in zip(names, outputs[0].split()[1:], strict=True):
        assert Path(path).read_bytes() == (packed.shards / name).read_bytes()
    assert len(proxy.gets("index.json")) == 2
    assert proxy.gets(".tar") and len(proxy.gets(".tar")) == len(set(proxy.gets(".tar")))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_partial_files_of_a_killed_process_are_removed_for_room(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore], tmp_path: Path, split: str
) -> None:
    """Also for a shard in another folder, where writing sweeps only its own folder."""
    names, wanted = tars(packed), tars(packed, split)[-1]
    proxy.fault = lambda number, request: "hang" if number == 4 else ""
    process = reader(tmp_path / "cache", names[:1])
    while not proxy.faults and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    left = sizes(tmp_path / "cache")
    assert list(left.values()) == [(packed.shards / names[0]).stat().st_size]
    store = open_remote(cache_gb=cache_of(packed, 1.0))
    assert store.local(wanted).read_bytes() == (packed.shards / wanted).read_bytes()
    assert not left.keys() & sizes(tmp_path / "cache").keys()


def test_expected_shards_are_fetched_ahead_up_to_half_of_the_cache(
    proxy: FaultyProxy, server: tuple[str, int], open_remote: Callable[..., RemoteStore], tmp_path: Path
) -> None:
    """Shards of equal size, with one request each, and a cache of four shards."""
    folder, cache = tmp_path / "equal", tmp_path / "cache" / "shards"
    names = [f"train/train-{number:06d}.tar" for number in range(8)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(100_000))
    write_indexes(folder)
    upload(server, folder, "equal")
    store = open_remote(f"s3://{BUCKET}/equal", cache_gb=400_000e-9)

    def here() -> list[int]:
        found = [path for path in sizes(cache) if not path.endswith(".tmp")]
        return [
            number for number, name in enumerate(names) if any(f"/{name[:-4]}." in path for path in found)
        ]

    store.expect(names)
    assert waited_for(lambda: here() == [0, 1])
    time.sleep(0.1)
    assert here() == [0, 1]
    store.local(names[0])
    assert waited_for(lambda: here() == [0, 1, 2])
    # a new epoch with a new order: 2 and 1 are cached and needed soon, so nothing else is fetched
    store.expect([names[2], names[1], names[7]])
    time.sleep(GRACE_S)
    assert here() == [0, 1, 2]
    # unexpected shards replace shards that were already read
    for number in (4, 5, 6):
        store.local(names[number])
    assert here() == [1, 2, 5, 6]
    for number in (2, 1):
        store.local(names[number])
    assert waited_for(lambda: 7 in here())
    assert [len(proxy.gets(name)) for name in names] == [1, 1, 1, 0, 1, 1, 1, 1]


def test_a_failure_of_fetching_ahead_is_raised_only_by_reading(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]
) -> None:
    store, names = open_remote(), tars(packed)
    proxy.fault = lambda number, request: "404" if names[1] in request else ""
    store.expect([*names[:3], "train/train-000099.tar"])
    assert waited_for(lambda: bool(proxy.gets(names[2])))
    with pytest.raises(ShardError, match=names[1]):
        store.local(names[1])
    store.local(names[2])


def test_a_cache_smaller_than_a_shard(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]
) -> None:
    store = open_remote(cache_gb=cache_of(packed, 0.5))
    store.expect(tars(packed))
    with pytest.raises(
        MachineError, match=r"machine\.shard_cache_gb .* smaller than the shard .*pack\.shard_mb"
    ):
        store.local(tars(packed)[0])


def test_a_disk_that_cannot_be_written(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_bytes(b"a file, no folder")
    with pytest.raises(MachineError, match=r"cannot hold shards .*machine\.cache_dir"):
        open_remote().local(tars(packed)[0])


def test_a_full_disk(packed: Packed, tmp_path: Path, on_small_disk: OnSmallDisk) -> None:
    """With a real full disk, in a separate process."""
    url, cache, names = packed.shards.as_uri(), tmp_path / "cache", tars(packed)[:2]
    source = READ_ALL.replace('print("ready"', "assert 'torch' not in sys.modules; print(\"ready\"")
    done = on_small_disk(cache, "1m", [sys.executable, "-c", source, url, str(cache), *names], ROOT)
    assert len(done.stdout.split()) == 2, done.stderr  # the first was fetched
    assert "MachineError" in done.stderr and "free some space" in done.stderr


def test_a_later_pack_with_the_same_names_is_not_a_cache_hit(
    packed: Packed, tmp_path: Path, open_remote: Callable[..., RemoteStore]
) -> None:
    first = pack_clips(tmp_path / "there", toy_clips(num_train=4, num_valid=1, seed=0))
    write_indexes(first.shards)
    name = tars(first)[0]
    assert open_remote(first.shards.as_uri()).local(name).read_bytes() == (first.shards / name).read_bytes()
    second = pack_clips(tmp_path / "there", toy_clips(num_train=4, num_valid=1, seed=1))
    write_indexes(second.shards)
    assert open_remote(first.shards.as_uri()).local(name).read_bytes() == (second.shards / name).read_bytes()


def damaged_copy(store: RemoteStore, packed: Packed, shard: str) -> Path:
    """Fetches a shard and damages all tar headers in the local copy."""
    path = store.local(shard)
    with path.open("r+b") as file:
        for row in read_samples(packed.samples, "train").to_pylist():
            if row["shard"] == shard:
                file.seek(row["sample_offset"])
                file.write(b"\xff" * 300)
    return path


@pytest.mark.parametrize("quarantine", [False, True])
@pytest.mark.parametrize("num_workers", [0, 4])
def test_a_copy_damaged_on_this_machine_is_fetched_once_more(
    packed: Packed,
    proxy: FaultyProxy,
    open_remote: Callable[..., RemoteStore],
    caplog: pytest.LogCaptureFixture,
    num_workers: int,
    quarantine: bool,
) -> None:
    store, name = open_remote(), tars(packed)[1]
    path = damaged_copy(store, packed, name)
    before = len(proxy.gets(name))
    samples, machine = read_samples(packed.samples, "train"), MachineParams(num_workers=num_workers)
    plan = plan_epoch(samples, LoaderParams(frame_budget=60, window_shards=2), 2, 1)
    with caplog.at_level(logging.WARNING):
        ours = list(ShardStream(store, samples, machine, quarantine=quarantine).batches(plan.batches))
    theirs = ShardStream(packed.store, samples, machine).batches(plan.batches)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.clip_ids, a.bad) == (b.clip_ids, ())
        assert torch.equal(a.video_BTHW, b.video_BTHW)
    assert path.read_bytes() == (packed.shards / name).read_bytes()
    assert len(proxy.gets(name)) == 2 * before
    assert 1 <= sum("fetched again" in record.message for record in caplog.records) <= 5
    damaged_copy(other := open_remote(), packed, name)
    row = samples.slice(5, 1).to_pylist()[0]
    assert row["shard"] == name and read_sample(other, row)[0].shape[0] == row["num_frames"]


def test_damage_in_the_pack_itself_is_fetched_again_once_and_then_reported(
    tmp_path: Path, open_remote: Callable[..., RemoteStore]
) -> None:
    """The index of the pack matches its damaged samples."""
    packed = pack_clips(tmp_path / "there", toy_clips(num_train=10, num_valid=1))
    samples = read_samples(packed.samples, "train")
    name = tars(packed)[0]
    with (packed.shards / name).open("r+b") as file:
        for row in samples.to_pylist()[:3]:
            file.seek(row["sample_offset"])
            file.write(b"\xff" * 300)
    write_indexes(packed.shards)
    fetched = []

    class Counting(RemoteStore):
        def _download(self, shard: IndexedShard, path: Path) -> None:
            fetched.append(shard.name)
            super()._download(shard, path)

    machine = MachineParams(num_workers=4, cache_dir=str(tmp_path / "cache"))
    stream = ShardStream(Counting(packed.shards.as_uri(), machine), samples, machine, quarantine=True)
    for _ in range(2):
        bad = [sample.clip_id for batch in stream.batches(np.arange(10)[:, None]) for sample in batch.bad]
        assert bad == ["train_000", "train_001", "train_002"]
    assert sorted(fetched) == [name, name, tars(packed)[1]]


def test_a_copy_of_another_size_is_not_a_cache_hit(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]
) -> None:
    name = tars(packed)[0]
    path = open_remote().local(name)
    for num_bytes in (0, 1000, path.stat().st_size + 1):
        os.truncate(path, num_bytes)
        assert open_remote().local(name).read_bytes() == (packed.shards / name).read_bytes()


def test_a_shard_stays_complete_during_its_renewal(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]
) -> None:
    """Another process may be about to open it."""
    store, name = open_remote(), tars(packed)[0]
    path = store.local(name)
    inode = path.stat().st_ino
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(store.renew, name)
        while not renewing.done():
            assert path.stat().st_size == (packed.shards / name).stat().st_size
    assert renewing.result() and path.stat().st_ino != inode
    assert not store.renew(name)


def test_verify_reports_an_unreachable_shard_as_a_machine_error(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]
) -> None:
    names = tars(packed)
    for fault in ("503", "403", "cut"):
        proxy.fault = lambda number, request, fault=fault: fault if names[2] in request else ""
        with pytest.raises(MachineError, match=names[2]):
            verify(open_remote(), packed.samples, MachineParams(workers=2))
    proxy.fault = lambda number, request: "404" if names[2] in request else ""
    result = verify(open_remote(), packed.samples, MachineParams(workers=2), split="train")
    assert [problem.shard for problem in result.problems if "cannot be read" in problem.what] == [names[2]]
