"""`shards.dataset` yields the batches of `pipeline train` in the same order, for any DataLoader, and resumes."""

import copy
import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import shards
from model.training.ranks import Ranks
from model.training.training_data import TrainingData
from shards.errors import ConfigError, ShardError, TrainingError
from shards.loading import PaddedBatch
from shards.planned_batches import PlannedBatches
from shards.settings import LoaderParams, MachineParams
from tests.support.damage import damage
from tests.support.packed import Packed, pack_clips, toy_clips, toy_sound
from tests.support.remote_packs import write_indexes
from tests.support.trainings import job_in

STATEFUL = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
"""torchdata 0.11 calls it in torch 2.13."""
LOADER = {"seed": 3, "frame_budget": 90, "window_shards": 2}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=33, num_valid=2))


def dataset_of(packed: Packed, **options: Any) -> PlannedBatches:
    values: dict[str, Any] = {"batch_size": 4, **LOADER, **options}
    return shards.dataset(packed.samples, packed.shards, **values)


def ids(batches: Iterable[PaddedBatch]) -> list[list[str]]:
    return [batch["clip_ids"] for batch in batches]


def assert_equal(ours: Sequence[PaddedBatch], theirs: Sequence[PaddedBatch]) -> None:
    assert ids(ours) == ids(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a["labels"] == b["labels"]
        assert torch.equal(a["num_frames_B"], b["num_frames_B"])
        assert torch.equal(a["video_BTHW"], b["video_BTHW"])


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_batches_are_those_of_a_training(tmp_path: Path, packed: Packed, world_size: int) -> None:
    job = replace(job_in(tmp_path, packed), loader=LoaderParams.model_validate(LOADER))
    for rank in range(world_size):
        data = TrainingData(job, Ranks(rank, world_size))
        ours = dataset_of(packed, rank=rank, world_size=world_size)
        for epoch in (0, 1):
            ours.set_epoch(epoch)
            plan, found = data.epoch(epoch), list(ours)
            assert len(ours) == len(found) == len(plan.batches) > 3
            for batch, theirs in zip(found, data.streams(False)[0].batches(plan.batches), strict=True):
                assert torch.equal(batch["video_BTHW"], theirs.video_BTHW)
                assert torch.equal(batch["num_frames_B"], theirs.num_frames_B)
                assert tuple(batch["clip_ids"]) == theirs.clip_ids
                assert tuple(batch["labels"]) == theirs.labels


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("is_persistent", [False, True])
def test_the_order_does_not_depend_on_workers(packed: Packed, num_workers: int, is_persistent: bool) -> None:
    ours = dataset_of(packed)
    loader = DataLoader(
        ours, batch_size=None, num_workers=num_workers, persistent_workers=is_persistent and num_workers > 0
    )
    for epoch in (0, 1):
        ours.set_epoch(epoch)
        assert len(loader) == len(ours)
        expected = dataset_of(packed)
        expected.set_epoch(epoch)
        assert_equal(list(loader), list(expected))
    # the threads of this process must not be used in a worker
    list(ours)
    assert len(ids(loader)) == len(ours)


def test_ranks_come_from_the_environment(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        ours = dataset_of(packed)
        assert ids(ours) == ids(dataset_of(packed, rank=rank, world_size=2))
        seen += [clip_id for batch in ids(ours) for clip_id in batch]
    assert len(seen) == len(set(seen)) > 28


@pytest.mark.parametrize("rank", ["x", "", "-1", "0.5", "²"])
def test_a_rank_that_is_no_number_is_refused(
    packed: Packed, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(ConfigError, match="the variable RANK must be a number"):
        dataset_of(packed)


def test_ranks_come_from_the_process_group(packed: Packed, tmp_path: Path) -> None:
    from torch import distributed

    distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert ids(dataset_of(packed)) == ids(dataset_of(packed, rank=0, world_size=1))
    finally:
        distributed.destroy_process_group()


@STATEFUL
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 4, 5])
def test_torchdata_resumes_in_the_middle_of_an_epoch(packed: Packed, num_workers: int, stop: int) -> None:
    def loader_of() -> tuple[PlannedBatches, StatefulDataLoader]:
        ours = dataset_of(packed)
        return ours, StatefulDataLoader(ours, batch_size=None, num_workers=num_workers)

    first, loader = loader_of()
    first.set_epoch(2)
    batches = iter(loader)
    before = [next(batches) for _ in range(stop)]
    state = copy.deepcopy(loader.state_dict())
    rest = list(batches)
    first.set_epoch(3)
    later = list(loader)

    for sets_epoch in (True, False):
        second, loader = loader_of()
        loader.load_state_dict(state)
        if sets_epoch:
            second.set_epoch(2)
        assert_equal(list(loader), rest)
        second.set_epoch(3)
        assert_equal(list(loader), later)
    assert len(before) + len(rest) == len(list(first))


@STATEFUL
@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchdata_resumes_between_epochs(packed: Packed, num_workers: int) -> None:
    ours = dataset_of(packed)
    loader = StatefulDataLoader(ours, batch_size=None, num_workers=num_workers)
    list(loader)
    state = loader.state_dict()
    ours.set_epoch(1)
    expected = list(loader)
    other = dataset_of(packed)
    loader = StatefulDataLoader(other, batch_size=None, num_workers=num_workers)
    loader.load_state_dict(state)
    other.set_epoch(1)
    assert_equal(list(loader), expected)


def test_a_state_without_a_loader(packed: Packed) -> None:
    ours = dataset_of(packed)
    ours.set_epoch(1)
    batches = iter(ours)
    for _ in range(2):
        next(batches)
    other = dataset_of(packed)
    other.load_state_dict(ours.state_dict())
    assert other.state_dict() == ours.state_dict()
    assert_equal(list(other), list(batches))
    # the end of an epoch: nothing is left of it, and the next one begins at its start
    ended = dataset_of(packed)
    ended.load_state_dict(other.state_dict())
    assert list(ended) == []
    ended.set_epoch(2)
    assert len(list(ended)) == len(ended) > 0


def test_a_state_of_other_batches_is_refused(packed: Packed) -> None:
    state = dataset_of(packed).state_dict()
    with pytest.raises(TrainingError, match=r"loader\.seed is 4, the checkpoint has 3"):
        dataset_of(packed, seed=4).load_state_dict(state)
    with pytest.raises(TrainingError, match="batch_size is 5"):
        dataset_of(packed, batch_size=5).load_state_dict(state)
    with pytest.raises(TrainingError, match="this run has 2 ranks, the checkpoint 1"):
        dataset_of(packed, rank=0, world_size=2).load_state_dict(state)
    with pytest.raises(TrainingError, match="DataLoader has 1 workers, the checkpoint 2"):
        dataset_of(packed).load_state_dict(state | {"num_workers": 2})


@pytest.mark.parametrize("change", [{"plan": None}, {"plan": {"seed": 1}}, {"epoch": "two"}, None])
def test_a_state_that_is_none_of_ours_is_refused(packed: Packed, change: dict[str, Any] | None) -> None:
    ours = dataset_of(packed)
    state = {} if change is None else ours.state_dict() | change
    with pytest.raises(TrainingError, match=r"not one of PlannedBatches\.state_dict .*save it again"):
        ours.load_state_dict(state)


def test_a_state_of_another_epoch_is_refused(packed: Packed) -> None:
    ours = dataset_of(packed)
    ours.set_epoch(0)
    ours.load_state_dict(ours.state_dict() | {"epoch": 5, "batches_done": 1})
    with pytest.raises(
        TrainingError, match=r"from the middle of epoch 5, but the epoch is 0; call set_epoch\(5\)"
    ):
        iter(ours)


def test_wrong_values_are_refused(packed: Packed) -> None:
    for options, what in (
        ({"frame_budget": 0}, r"loader\.frame_budget: Input should be greater than 0"),
        ({"frames": 0}, r"loader\.frames: Extra inputs"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_bad_fraction": 0.1}, "max_bad_fraction must be 0"),
        ({"split": "nosuch"}, "no samples of split 'nosuch'"),
        ({"rank": 1}, "rank must be between"),
    ):
        with pytest.raises(ConfigError, match=what):
            dataset_of(packed, **options)
    with pytest.raises(ConfigError, match="epoch must be at least 0"):
        dataset_of(packed).set_epoch(-1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_have_the_sound_if_asked_for(tmp_path: Path, num_workers: int) -> None:
    clips = toy_clips(num_train=9, num_valid=2)
    sounds = {clip_id: toy_sound(label, 1) for clip_id, _, _, label in clips}
    silent = clips[2][0]
    del sounds[silent]
    packed = pack_clips(tmp_path, clips, sounds=sounds)
    batches = list(DataLoader(dataset_of(packed, audio=True), batch_size=None, num_workers=num_workers))
    assert ids(batches) == ids(dataset_of(packed)), "sound changes no order"
    for batch in batches:
        for number, clip_id in enumerate(batch["clip_ids"]):
            sound_TKM, num_frames = batch["audio_BTKM"][number].numpy(), batch["num_frames_B"][number]
            assert bool(batch["has_audio_B"][number]) == (clip_id != silent)
            if clip_id != silent:
                assert np.array_equal(sound_TKM[:num_frames], member_of(packed, clip_id)[:num_frames])
            assert not sound_TKM[num_frames if clip_id != silent else 0 :].any()
    assert "audio_BTKM" not in next(iter(dataset_of(packed)))


def member_of(packed: Packed, clip_id: str) -> np.ndarray:
    """The sound as tarfile and numpy read it."""
    for shard in packed.shards.glob("train/*.tar"):
        with tarfile.open(shard) as tar:
            name = f"{clip_id}.audio.npy"
            if name in tar.getnames():
                member = tar.extractfile(name)
                assert member is not None
                return np.load(io.BytesIO(member.read()))
    raise AssertionError(f"no shard has the sound of {clip_id}")


def test_a_pack_without_sound_gives_none(packed: Packed) -> None:
    with pytest.raises(ConfigError, match=r"no clip of split train .* has sound; set pack.audio"):
        dataset_of(packed, audio=True)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_clip_is_an_error(tmp_path: Path, num_workers: int) -> None:
    packed = pack_clips(tmp_path, toy_clips(6, 1))
    (clip_id,) = damage(packed, [2])
    with pytest.raises(ShardError, match=f"the sample of clip {clip_id} is damaged"):
        list(DataLoader(dataset_of(packed), batch_size=None, num_workers=num_workers))


def test_a_pack_at_a_url(packed: Packed, tmp_path: Path) -> None:
    of_url = pack_clips(tmp_path / "copy", toy_clips(num_train=33, num_valid=2))
    write_indexes(of_url.shards)
    machine = MachineParams(cache_dir=str(tmp_path / "cache"))
    ours = shards.dataset(of_url.samples, of_url.shards.as_uri(), batch_size=4, machine=machine, **LOADER)
    expected = list(dataset_of(packed))
    assert_equal(list(ours), expected)
    assert_equal(list(DataLoader(ours, batch_size=None, num_workers=2)), expected)
