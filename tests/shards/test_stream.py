"""The stream yields exactly the planned clips for any number of threads, and its threads end with it."""

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from shards.codec import decode_clip
from shards.errors import ShardError
from shards.plan import plan_epoch
from shards.samples import read_samples
from shards.settings import LoaderParams, MachineParams
from shards.store import FolderStore
from shards.stream import ClipBatch, ShardStream, read_sample
from tests.support.packed import Codec, Packed, pack_clips, toy_clip, toy_clips

CLIPS = toy_clips(num_train=17, num_valid=2)
PARAMS = LoaderParams(frame_budget=200, window_shards=2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), CLIPS)


def stream_of(packed: Packed, num_workers: int, prefetch: int = 4, **options: bool) -> ShardStream:
    samples = read_samples(packed.samples, "train")
    return ShardStream(
        packed.store, samples, MachineParams(num_workers=num_workers, prefetch=prefetch), **options
    )


def plan_of(packed: Packed, epoch: int = 1) -> tuple[np.ndarray, ...]:
    return plan_epoch(read_samples(packed.samples, "train"), PARAMS, 4, epoch).batches


def assert_same_batches(ours: Sequence[ClipBatch], theirs: Sequence[ClipBatch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.clip_ids, a.labels, a.rows, a.bad) == (b.clip_ids, b.labels, b.rows, b.bad)
        assert torch.equal(a.num_frames_B, b.num_frames_B)
        assert torch.equal(a.video_BTHW, b.video_BTHW)


def test_each_clip_arrives_whole_with_its_label(packed: Packed) -> None:
    truth = {clip_id: (clip, label) for clip_id, _, clip, label in CLIPS}
    seen = []
    for batch in stream_of(packed, 0).batches(plan_of(packed)):
        assert batch.video_BTHW.dtype == torch.uint8
        assert batch.video_BTHW.shape[1] == int(batch.num_frames_B.max())
        for video_THW, n, clip_id, label in zip(
            batch.video_BTHW, batch.num_frames_B, batch.clip_ids, batch.labels, strict=True
        ):
            np.testing.assert_array_equal(video_THW[:n].numpy(), truth[clip_id][0])
            assert not video_THW[n:].any()
            assert label == truth[clip_id][1]
            seen.append(clip_id)
    assert sorted(seen) == sorted(clip_id for clip_id, split, *_ in CLIPS if split == "train")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset closes its files by garbage collection
def test_the_clips_are_those_that_plain_webdataset_reads(packed: Packed) -> None:
    paths = sorted(str(path) for path in (packed.shards / "train").glob("*.tar"))
    theirs = {s["__key__"]: s["npy"] for s in webdataset.WebDataset(paths, shardshuffle=False).decode()}
    gc.collect()
    ours = {}
    for batch in stream_of(packed, 1).batches(plan_of(packed)):
        for video_THW, n, clip_id in zip(batch.video_BTHW, batch.num_frames_B, batch.clip_ids, strict=True):
            ours[clip_id] = video_THW[:n].numpy()
    assert ours.keys() == theirs.keys()
    for clip_id, clip_THW in ours.items():
        np.testing.assert_array_equal(clip_THW, theirs[clip_id])


@pytest.mark.parametrize(("num_workers", "prefetch"), [(1, 1), (2, 4), (5, 1)])
def test_batches_do_not_depend_on_threads_or_the_first_step(
    packed: Packed, num_workers: int, prefetch: int
) -> None:
    plan = plan_of(packed)
    whole = list(stream_of(packed, 0).batches(plan))
    stream = stream_of(packed, num_workers, prefetch)
    assert_same_batches(list(stream.batches(plan)), whole)
    assert_same_batches(list(stream.batches(plan, 2)), whole[2:])
    assert_same_batches(list(stream_of(packed, 0).batches(plan, 2)), whole[2:])
    assert list(stream.batches(plan, len(plan))) == []


@pytest.mark.parametrize("codec", ["jpeg", "h264", "ffv1"])
def test_clips_of_every_codec_arrive_as_they_are_decoded(tmp_path: Path, codec: Codec) -> None:
    packed = pack_clips(tmp_path, toy_clips(5, 1), codec=codec)
    samples = read_samples(packed.samples, "train")
    (batch,) = ShardStream(packed.store, samples, MachineParams(num_workers=1)).batches([np.arange(5)])
    for video_THW, n, row in zip(batch.video_BTHW, batch.num_frames_B, samples.to_pylist(), strict=True):
        start, size = row["clip_offset"], row["clip_size"]
        payload = (packed.shards / row["shard"]).read_bytes()[start : start + size]
        np.testing.assert_array_equal(video_THW[:n].numpy(), decode_clip(payload, codec, row["num_frames"]))
        assert not video_THW[n:].any()


def test_names_that_fit_no_plain_tar_header_are_read(tmp_path: Path) -> None:
    clips = [(f"{letter * 110}", "train", toy_clip("一二", seed), "一二") for seed, letter in enumerate("ab")]
    packed = pack_clips(tmp_path, clips)
    (batch,) = stream_of(packed, 0).batches([np.arange(2)])
    for video_THW, (clip_id, _, clip_THW, _), name in zip(
        batch.video_BTHW, clips, batch.clip_ids, strict=True
    ):
        assert name == clip_id
        np.testing.assert_array_equal(video_THW.numpy(), clip_THW)
    with pytest.raises(ShardError, match="different packs"):
        read_sample(
            packed.store, read_samples(packed.samples, "train").to_pylist()[0] | {"clip_id": "b" * 110}
        )


@pytest.mark.parametrize(("num_workers", "prefetch"), [(0, 1), (2, 1)])
def test_memory_is_reused_but_never_while_it_is_referenced(
    packed: Packed, num_workers: int, prefetch: int
) -> None:
    plan = plan_of(packed) * 8
    places, held = set(), []
    for number, batch in enumerate(stream_of(packed, num_workers, prefetch).batches(plan)):
        places.add(batch.video_BTHW.data_ptr())
        if number % 8 == 0:  # a slice keeps the memory of its batch
            held.append((batch.video_BTHW[:1, 2:], batch.video_BTHW[:1, 2:].clone()))
    # in addition to held memory: the current and previous batch, batches ahead, and early buffers that were too small
    assert len(places) <= len(held) + 2 + 2 * num_workers * prefetch + 4 < len(plan)
    assert all(torch.equal(kept, copy) for kept, copy in held)


@pytest.mark.gpu
def test_pinned_batches_are_the_same(packed: Packed, cuda: str) -> None:
    plan = plan_of(packed)
    pinned = []
    for batch in stream_of(packed, 2, pin_memory=True).batches(plan):
        assert batch.video_BTHW.is_pinned() and batch.num_frames_B.is_pinned()
        on_device = batch.video_BTHW.to(cuda, non_blocking=True)
        pinned.append(replace(batch, video_BTHW=on_device.cpu()))
    assert_same_batches(pinned, list(stream_of(packed, 0).batches(plan)))


# -- early stop----------------------------------------------------------------------------------------


class SlowStore(FolderStore):
    """Waits before each request and records the requests."""

    def __init__(self, folder: Path, delay_s: float = 0.0) -> None:
        super().__init__(folder)
        self.delay_s, self.asked, self.expected = delay_s, list[str](), list[list[str]]()

    def local(self, name: str) -> Path:
        self.asked.append(name)
        time.sleep(self.delay_s)
        return super().local(name)

    def expect(self, names: Sequence[str]) -> None:
        self.expected.append(list(names))


def one_clip_shards(folder: Path, num_clips: int = 24) -> Packed:
    """Packs each clip in its own shard, so that the store gets a request for each."""
    return pack_clips(folder, [c for c in toy_clips(num_clips, 0) if c[1] == "train"], clips_a_shard=1)


def test_an_abandoned_iterator_stops_reading_and_the_next_epoch_starts(tmp_path: Path) -> None:
    packed = one_clip_shards(tmp_path)
    store = SlowStore(packed.shards, delay_s=0.05)
    samples = read_samples(packed.samples, "train")
    stream = ShardStream(store, samples, MachineParams(num_workers=2, prefetch=8))
    batches = [np.array([row]) for row in range(24)]
    for _ in stream.batches(batches):
        break
    gc.collect()
    time.sleep(0.2)
    asked = len(store.asked)
    assert asked < 10  # of the 17 queued batches, only those that had started
    time.sleep(0.3)
    assert len(store.asked) == asked
    assert [batch.rows for batch in stream.batches(batches, 20)] == [(20,), (21,), (22,), (23,)]
    first, second = stream.batches(batches), stream.batches(batches, 5)
    assert (next(first).rows, next(second).rows, next(first).rows) == ((0,), (5,), (1,))


def test_threads_end_with_their_stream(packed: Packed) -> None:
    before = set(threading.enumerate())
    stream = stream_of(packed, 3)
    batches = stream.batches(plan_of(packed))
    next(batches)
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    del stream, batches
    gc.collect()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()


def test_the_store_gets_the_order_of_the_needed_shards(packed: Packed) -> None:
    store = SlowStore(packed.shards)
    samples = read_samples(packed.samples, "train")
    plan = plan_of(packed)
    list(ShardStream(store, samples, MachineParams(num_workers=0)).batches(plan, 2))
    needed = [samples["shard"][int(row)].as_py() for batch in plan[2:] for row in batch]
    assert store.expected == [list(dict.fromkeys(needed))]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_is_raised_with_its_batch(tmp_path: Path, num_workers: int) -> None:
    packed = one_clip_shards(tmp_path, 12)
    samples = read_samples(packed.samples, "train")
    (packed.shards / samples["shard"][7].as_py()).unlink()
    stream = ShardStream(packed.store, samples, MachineParams(num_workers=num_workers))
    batches = stream.batches([np.array([row]) for row in range(12)])
    assert [next(batches).rows for _ in range(7)] == [(row,) for row in range(7)]
    with pytest.raises(ShardError, match=r"train-000007\.tar"):
        next(batches)


def test_the_interpreter_drops_the_queue_after_ctrl_c(tmp_path: Path) -> None:
    """Threads are joined at exit and must drop their queue, here 32 batches of one shard each."""
    one_clip_shards(tmp_path, 40)
    script = (
        "import os, pathlib, signal, sys, time\n"
        "import numpy as np\n"
        "from shards.samples import read_samples\n"
        "from shards.settings import MachineParams\n"
        "from shards.stream import ShardStream\n"
        "from tests.support.packed import Packed\n"
        "from tests.shards.test_stream import SlowStore\n"
        "class Noting(SlowStore):\n"
        "    def local(self, name):\n"
        "        os.write(1, name.encode() + b'\\n')  # print() of two threads may mix their lines\n"
        "        return super().local(name)\n"
        "packed = Packed.at(pathlib.Path(sys.argv[1]))\n"
        "samples = read_samples(packed.samples, 'train')\n"
        "stream = ShardStream(Noting(packed.shards, 0.3), samples, MachineParams(num_workers=2, prefetch=16))\n"
        "batches = stream.batches([np.array([row]) for row in range(40)])\n"
        "next(batches)\n"
        "os.write(1, b'running\\n')\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout and process.stderr
        before = list(itertools.takewhile(lambda line: line != "running\n", process.stdout))
        assert 1 <= len(before) < 10, before
        process.send_signal(2)
        after, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    # both threads may finish a shard and begin another one
    assert len(after.splitlines()) <= 6
