"""Bad samples: an error by default; if some are allowed, they are counted, listed, logged and limited."""

import errno
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.runs import RunFolder
from model.training.quarantine import Quarantine
from model.training.training_data import TrainingData, TrainingJob
from shards.errors import Interrupted, MachineError, ShardError, TrainingError
from shards.packs import Packs
from shards.plan import plan_epoch
from shards.remote_store import RemoteStore
from shards.samples import read_samples
from shards.settings import LoaderParams, MachineParams
from shards.store import FolderStore
from shards.stream import BadSample, ClipBatch, ShardStream
from stages.train import train
from tests.support.damage import damage
from tests.support.packed import Codec, Packed, pack_clips, toy_clips
from tests.support.remote_packs import (  # noqa: F401
    QUICK_RETRIES,
    SHORT_TIMEOUTS,
    open_remote_fixture,
    packed_fixture,
    proxy_fixture,
    server_fixture,
)
from tests.support.s3_server import FaultyProxy
from tests.support.trainings import assert_same_weights, job_in

PARAMS = LoaderParams(frame_budget=200, max_bad_fraction=0.5)


def batches_of(packed: Packed, num_workers: int, quarantine: bool = True, first: int = 0) -> list[ClipBatch]:
    samples = read_samples(packed.samples, "train")
    machine = MachineParams(num_workers=num_workers)
    stream = ShardStream(packed.store, samples, machine, quarantine=quarantine)
    return list(stream.batches(plan_epoch(samples, PARAMS, 4, 0).batches, first))


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_rest_of_each_batch_equals_that_of_the_intact_pack(
    tmp_path: Path, codec: Codec, num_workers: int
) -> None:
    packed = pack_clips(tmp_path, toy_clips(16, 1), codec=codec)
    whole = batches_of(packed, 0, quarantine=False)
    # a whole batch, the first clip of a batch and the last one of another
    rows = [*whole[1].rows, whole[2].rows[0], whole[3].rows[-1]]
    names = damage(packed, rows)
    with pytest.raises(ShardError):
        batches_of(packed, num_workers, quarantine=False)
    left = batches_of(packed, num_workers)
    assert len(left) == len(whole)
    for ours, theirs in zip(left, whole, strict=True):
        kept = [i for i, row in enumerate(theirs.rows) if row not in rows]
        longest = max((int(theirs.num_frames_B[i]) for i in kept), default=0)
        assert ours.rows == tuple(theirs.rows[i] for i in kept)
        assert ours.clip_ids == tuple(theirs.clip_ids[i] for i in kept)
        assert ours.labels == tuple(theirs.labels[i] for i in kept)
        assert ours.num_frames_B.tolist() == [int(theirs.num_frames_B[i]) for i in kept]
        if kept:
            assert torch.equal(ours.video_BTHW, theirs.video_BTHW[kept, :longest])
        bad = [name for name, row in zip(theirs.clip_ids, theirs.rows, strict=True) if row in rows]
        assert sorted(sample.clip_id for sample in ours.bad) == sorted(bad)
    assert {sample.clip_id for batch in left for sample in batch.bad} == set(names)
    assert len(left[1].clip_ids) == 0 and left[1].video_BTHW.shape[0] == 0


def test_a_missing_shard_makes_its_samples_bad_and_is_opened_once(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, toy_clips(16, 1))
    asked = []

    class Counting(FolderStore):
        def local(self, name: str) -> Path:
            asked.append(name)
            return super().local(name)

    samples = read_samples(packed.samples, "train")
    missing = "train/train-000001.tar"
    (packed.shards / missing).unlink()
    stream = ShardStream(Counting(packed.shards), samples, MachineParams(num_workers=0), quarantine=True)
    batches = list(stream.batches([np.arange(8), np.arange(8, 16)]))
    bad = [sample for batch in batches for sample in batch.bad]
    assert [sample.clip_id for sample in bad] == samples["clip_id"].to_pylist()[5:10]
    assert {sample.shard for sample in bad} == {missing}
    assert all("train-000001.tar is missing" in sample.reason for sample in bad)
    assert asked.count(missing) == 1
    list(stream.batches([np.arange(8)]))  # the next epoch tries again
    assert asked.count(missing) == 2


def test_an_error_of_the_machine_is_never_a_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack_clips(tmp_path, toy_clips(4, 1))

    def full(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", full)
    stream = ShardStream(
        packed.store, read_samples(packed.samples, "train"), MachineParams(num_workers=0), quarantine=True
    )
    with pytest.raises(MachineError, match="open files"):
        next(stream.batches([np.arange(4)]))


def test_a_lost_folder_is_never_a_bad_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_clips(tmp_path, toy_clips(4, 1))
    samples = read_samples(packed.samples, "train")
    for code in (errno.EACCES, errno.ESTALE, errno.ENOTCONN):

        def gone(*_: object, code: int = code) -> int:
            raise OSError(code, os.strerror(code))

        stream = ShardStream(packed.store, samples, MachineParams(num_workers=0), quarantine=True)
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", gone)
            with pytest.raises(MachineError, match="cannot be reached"):
                next(stream.batches([np.arange(4)]))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("fault", ["503", "403", "cut", "hang"])
def test_an_outage_is_never_a_bad_sample(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore], num_workers: int, fault: str
) -> None:
    """At the start, and after the index and two shards were fetched."""
    samples = read_samples(packed.samples, "train")
    retries = replace(SHORT_TIMEOUTS, tries=2) if fault == "hang" else QUICK_RETRIES
    for is_fine in ((), ("index.json", "000000.tar", "000001.tar")):
        proxy.fault = lambda _, request, fine=is_fine: "" if any(name in request for name in fine) else fault
        store = open_remote(retries=retries, cache=f"cache{len(is_fine)}")
        stream = ShardStream(store, samples, MachineParams(num_workers=num_workers), quarantine=True)
        seen: list[ClipBatch] = []
        with pytest.raises(MachineError, match=r"s3://lips/pack/train/.*cannot read it"):
            for batch in stream.batches([np.arange(i, i + 5) for i in range(0, 20, 5)]):
                seen.append(batch)
        assert [batch.bad for batch in seen] == [()] * (2 if is_fine else 0)


def test_a_shard_missing_in_its_bucket_makes_its_samples_bad(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]
) -> None:
    proxy.fault = lambda _, request: "404" if "000001.tar" in request else ""
    samples = read_samples(packed.samples, "train")
    stream = ShardStream(open_remote(), samples, MachineParams(num_workers=2), quarantine=True)
    bad = [sample for batch in stream.batches([np.arange(15)]) for sample in batch.bad]
    assert [sample.clip_id for sample in bad] == samples["clip_id"].to_pylist()[5:10]


# -- the trainer ------------------------------------------------------------------------------------------


def tolerant(folder: Path, packed: Packed, fraction: float = 0.5, **changes: object) -> TrainingJob:
    return replace(
        job_in(folder, packed, **changes), loader=LoaderParams(frame_budget=200, max_bad_fraction=fraction)
    )


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def spoilt(tmp_path: Path) -> tuple[Packed, list[str]]:
    """24 clips of train, three of them bad, including the first one."""
    packed = pack_clips(tmp_path / "packed", toy_clips())
    return packed, damage(packed, [0, 7, 12])


def test_training_skips_bad_clips_and_reports_them(
    tmp_path: Path, spoilt: tuple[Packed, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    packed, names = spoilt
    with pytest.raises(ShardError, match=names[0]):
        train(job_in(tmp_path, packed))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert train(tolerant(tmp_path, packed)).epochs == 3
    (file,) = (tmp_path / "runs").glob("*/quarantine.jsonl")
    found = entries(file)
    assert [entry["epoch"] for entry in found] == [0] * 3 + [1] * 3 + [2] * 3
    for epoch in range(3):
        of_epoch = [entry for entry in found if entry["epoch"] == epoch]
        assert sorted(entry["clip_id"] for entry in of_epoch) == sorted(names)
        plan = plan_epoch(read_samples(packed.samples, "train"), LoaderParams(frame_budget=200), 4, epoch)
        ids = read_samples(packed.samples, "train")["clip_id"].to_pylist()
        for entry in of_epoch:
            assert entry["clip_id"] in [ids[row] for row in plan.batches[entry["batch"]]]
            assert entry["shard"] in entry["reason"] and entry["clip_id"] in entry["reason"]
        assert f"Epoch {epoch}: skipped 3 of 24 clips (12.50 %)" in caplog.text
        assert f"{file} lists them" in caplog.text
    assert (tmp_path / "logs/quarantine.jsonl").read_bytes() == file.read_bytes()


def test_a_window_without_clips_takes_no_step_but_counts_as_done(tmp_path: Path) -> None:
    """Windows of one batch; one batch has only bad clips."""
    packed = pack_clips(tmp_path / "packed", toy_clips())
    plan = plan_epoch(read_samples(packed.samples, "train"), LoaderParams(frame_budget=200), 4, 0)
    damage(packed, plan.batches[1].tolist())
    steps = []
    job = tolerant(tmp_path, packed, num_epochs=1, accumulation_steps=1)
    train(replace(job, on_batch=lambda _, done, total, _loss: steps.append((done, total))))
    assert steps == [(done, len(plan.batches)) for done in range(1, len(plan.batches) + 1)]
    state = torch.load(tmp_path / "checkpoints/best_model.pt", weights_only=True)["optimizer_state_dict"][
        "state"
    ]
    assert {int(of_one["step"]) for of_one in state.values()} == {len(plan.batches) - 1}


def test_too_many_bad_clips_end_the_run_and_a_higher_limit_resumes_it(
    tmp_path: Path, spoilt: tuple[Packed, list[str]]
) -> None:
    packed, _ = spoilt
    with pytest.raises(
        TrainingError, match=r"3 of the 24 clips.*0\.1 allows.*quarantine\.jsonl.*pipeline verify"
    ):
        train(tolerant(tmp_path, packed, 0.1))
    assert train(tolerant(tmp_path, packed, 3 / 24)).epochs == 3
    (file,) = (tmp_path / "runs").glob("*/quarantine.jsonl")
    assert len(entries(file)) == 9
    train(tolerant(tmp_path / "undisturbed", packed))
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / "undisturbed" / name, tmp_path / name)


def test_a_resumed_run_learns_the_same_and_lists_no_clip_twice(
    tmp_path: Path, spoilt: tuple[Packed, list[str]]
) -> None:
    packed, _ = spoilt
    train(tolerant(tmp_path / "whole", packed))

    def stop_at(epoch: int, batches_done: int) -> None:
        def stop(now: int, done: int, *_: object) -> None:
            if (now, done) == (epoch, batches_done):
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Interrupted):
            train(replace(tolerant(tmp_path / "stopped", packed), on_batch=stop))

    stop_at(0, 4)
    (file,) = (tmp_path / "stopped/runs").glob("*/quarantine.jsonl")
    # a kill after the last checkpoint leaves lines of batches that are read again, and an incomplete line
    with file.open("ab") as torn:
        torn.write(b'{"epoch": 0, "batch": 5, "clip_id": "x", "shard": "y", "reason": "z"}\n{"epoch": 0, "ba')
    stop_at(2, 2)
    train(tolerant(tmp_path / "stopped", packed))
    (whole,) = (tmp_path / "whole/runs").glob("*/quarantine.jsonl")

    def places(path: Path) -> list[tuple]:
        return [(entry["epoch"], entry["batch"], entry["clip_id"]) for entry in entries(path)]

    assert places(file) == places(whole)
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "stopped" / name)


def test_validation_never_skips_a_clip(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path / "packed", toy_clips())
    row = read_samples(packed.samples, "valid").to_pylist()[2]
    with (packed.shards / row["shard"]).open("r+b") as file:
        file.seek(row["sample_offset"])
        file.write(b"x")
    with pytest.raises(ShardError, match=row["clip_id"]):
        train(tolerant(tmp_path, packed))


def test_the_published_file_of_another_run_is_removed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/quarantine.jsonl").write_text("{}\n")
    run = RunFolder(tmp_path / "runs", "a")
    run.folder.mkdir(parents=True)
    quarantine = Quarantine(run.quarantine, 0.1)
    quarantine.publish(tmp_path / "logs")
    assert not (tmp_path / "logs/quarantine.jsonl").exists()
    quarantine.add(0, [(1, [BadSample("a", "train/a.tar", "cut")])])
    quarantine.rewind_to(0, 1)
    assert not run.quarantine.exists()


@pytest.mark.parametrize("fault", ["503", "403"])
@pytest.mark.parametrize("fine", ["", "index.json"])
def test_an_outage_ends_training_before_it_begins(
    tmp_path: Path,
    packed: Packed,
    proxy: FaultyProxy,
    open_remote: Callable[..., RemoteStore],
    fault: str,
    fine: str,
) -> None:
    """After the first shard, not after all shards."""
    proxy.fault = lambda _, request: "" if fine and fine in request else fault
    with pytest.raises(MachineError):
        TrainingData(
            replace(tolerant(tmp_path, packed, 0.9), packs=Packs.single(packed.samples, open_remote()))
        )
    assert not [request for request in proxy.requests if "000001.tar" in request]
    assert len(proxy.requests) <= QUICK_RETRIES.tries + 2


def test_the_first_clips_of_the_only_shard_may_be_bad(tmp_path: Path) -> None:
    """As many as the limit allows; more than that is an error."""
    packed = pack_clips(tmp_path / "packed", toy_clips(), clips_a_shard=24)
    damage(packed, range(12))
    data = TrainingData(tolerant(tmp_path, packed, 0.5))
    assert (data.crop_HW, data.fps) == ((96, 96), 25.0)
    (name,) = damage(packed, [12])
    with pytest.raises(ShardError, match=name):
        TrainingData(tolerant(tmp_path, packed, 0.5))


def test_the_first_clip_of_each_shard_is_tried_first(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path / "packed", toy_clips())
    damage(packed, range(15))
    assert TrainingData(tolerant(tmp_path, packed, 3 / 24)).fps == 25.0
