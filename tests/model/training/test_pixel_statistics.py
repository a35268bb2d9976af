"""Pixel statistics of the shards against numpy, and when they are measured."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints import load_checkpoint
from model.decoding.reader import LipReader
from model.networks.network_input import network_input
from model.runs import RunFolder
from model.settings import ModelParams
from model.training.pixel_statistics import (
    MEASURED_CLIPS,
    MEASURED_SHARDS,
    measure_pixel_statistics,
    with_pixel_statistics,
)
from model.training.training_data import TrainingData, TrainingJob
from shards.errors import CheckpointError, Interrupted, ShardError, TrainingError
from shards.packs import Packs
from shards.samples import read_samples
from shards.settings import LoaderParams
from shards.store import FolderStore
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import stopping_at
from tests.support.trainings import MODEL, job_in

OF_SHARDS = MODEL.model_copy(update={"standardise": "shards"})


def clips_of_many_grays(num_clips: int, side: int = 24) -> list[tuple[str, str, np.ndarray, str]]:
    """Returns clips with different mean, contrast and length, so that a wrong weighting shows."""
    rng = np.random.default_rng(1)
    return [
        (
            f"train_{number:03d}",
            "train",
            np.clip(
                rng.normal(20 + 200 * number / num_clips, 5 + number % 40, (3 + number % 9, side, side)),
                0,
                255,
            ).astype(np.uint8),
            "一",
        )
        for number in range(num_clips)
    ]


@pytest.mark.parametrize("subtract_mean", [0.0, 0.7, 1.0])
def test_pixel_statistics_equal_numpy_over_the_same_clips(tmp_path: Path, subtract_mean: float) -> None:
    clips = clips_of_many_grays(2 * MEASURED_CLIPS + 37)
    packed = pack_clips(tmp_path, clips, clips_a_shard=100)
    params = ModelParams(window_px=16, frame_height=16, frame_width=16, subtract_mean=subtract_mean)
    mean, deviation = measure_pixel_statistics(packed.store, read_samples(packed.samples, "train"), params)
    step = (len(clips) - 1) / (MEASURED_CLIPS - 1)
    chosen = [clips[round(number * step)][2][:, 4:20, 4:20] / 255 for number in range(MEASURED_CLIPS)]
    pixels = np.concatenate([clip.ravel() for clip in chosen])
    seen = np.concatenate([(clip - subtract_mean * clip.mean(0)).ravel() for clip in chosen])
    assert mean == float(f"{pixels.mean():.4g}")
    assert deviation == float(f"{seen.std():.4g}")
    # then the input of the network has mean 0 and standard deviation 1
    model = params.model_copy(update={"input_mean": mean, "input_std": deviation})
    inputs = [
        network_input(
            torch.from_numpy(clips[round(number * step)][2])[None],
            torch.tensor([len(clips[round(number * step)][2])]),
            model,
        ).ravel()
        for number in range(MEASURED_CLIPS)
    ]
    given = torch.cat(inputs).double()
    assert float(given.mean()) == pytest.approx(0, abs=2e-3)
    assert float(given.std()) == pytest.approx(1, abs=2e-3)


def test_clips_without_contrast_have_a_positive_deviation(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, [("train_0", "train", np.zeros((4, 24, 24), np.uint8), "一")])
    model = ModelParams(window_px=24, frame_height=16, frame_width=16)
    mean, deviation = measure_pixel_statistics(packed.store, read_samples(packed.samples, "train"), model)
    assert mean == 0 and deviation > 0
    model = model.model_copy(update={"input_mean": mean, "input_std": deviation})
    assert not network_input(torch.zeros(1, 4, 24, 24, dtype=torch.uint8), torch.tensor([4]), model).any()


class Counting(FolderStore):
    """Records which shards are requested."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []

    def local(self, name: str) -> Path:
        self.asked.append(name)
        return super().local(name)


@pytest.mark.parametrize(
    ("num_clips", "clips_a_shard", "num_shards"),
    [(16 * 40, 40, MEASURED_SHARDS), (40, 20, 2), (16 * 20, 20, MEASURED_CLIPS // 20)],
    ids=["a few of many", "all of few", "as many as needed"],
)
def test_few_shards_spread_over_the_whole_table_are_fetched(
    tmp_path: Path, num_clips: int, clips_a_shard: int, num_shards: int
) -> None:
    packed = pack_clips(tmp_path, clips_of_many_grays(num_clips, side=16), clips_a_shard)
    store = Counting(packed.shards)
    measure_pixel_statistics(store, read_samples(packed.samples, "train"), ModelParams(window_px=16))
    asked = sorted({int(Path(name).stem[-6:]) for name in store.asked})
    last = -(-num_clips // clips_a_shard) - 1
    assert len(asked) == num_shards and (asked[0], asked[-1]) == (0, last)
    assert np.diff(asked).max() <= np.ceil(last / (num_shards - 1))
    assert len(store.asked) <= MEASURED_CLIPS


def test_a_bad_clip_is_an_error_or_skipped(tmp_path: Path) -> None:
    clips = clips_of_many_grays(6)
    packed = pack_clips(tmp_path, clips, clips_a_shard=3)
    samples = read_samples(packed.samples, "train")
    model = ModelParams(window_px=24, frame_height=24, frame_width=24)
    (packed.shards / "train/train-000001.tar").unlink()
    with pytest.raises(ShardError, match="train-000001"):
        measure_pixel_statistics(packed.store, samples, model)
    left = np.concatenate([clip[2].ravel() for clip in clips[:3]]) / 255
    mean, deviation = measure_pixel_statistics(packed.store, samples, model, leave_out_bad=True)
    assert (mean, deviation) == (float(f"{left.mean():.4g}"), float(f"{left.std():.4g}"))
    (packed.shards / "train/train-000000.tar").unlink()
    with pytest.raises(TrainingError, match="pipeline verify"):
        measure_pixel_statistics(packed.store, samples, model, leave_out_bad=True)


# -- when they are measured -------------------------------------------------------------------------------


@pytest.fixture(name="packed")
def packed_fixture(tmp_path: Path) -> Packed:
    """Clips so different that the statistics change without two of them."""
    clips = [
        (clip_id, split, (video_THW // 2 + 5 * (number % 24)).astype(np.uint8), label)
        for number, (clip_id, split, video_THW, label) in enumerate(toy_clips(24, 3))
    ]
    return pack_clips(tmp_path / "packed", clips)


def job_of_shards(folder: Path, packed: Packed, **changes: object) -> TrainingJob:
    loader = LoaderParams(frame_budget=200, max_bad_fraction=0.5)
    return replace(job_in(folder, packed, **changes), model=OF_SHARDS, loader=loader)


def levels_in(checkpoint: Path) -> tuple[float, float]:
    model = load_checkpoint(checkpoint)["model_params"]
    return model["input_mean"], model["input_std"]


def test_a_training_stores_the_statistics_of_its_shards_in_the_checkpoint(
    tmp_path: Path, packed: Packed
) -> None:
    train(job_of_shards(tmp_path, packed, num_epochs=1))
    checkpoint = tmp_path / "checkpoints/best_model.pt"
    read_by = LipReader.from_checkpoint(checkpoint, torch.device("cpu")).model
    expected = measure_pixel_statistics(packed.store, read_samples(packed.samples, "train"), OF_SHARDS)
    assert (read_by.input_mean, read_by.input_std) == expected == levels_in(checkpoint)
    assert read_by.input_mean != MODEL.input_mean


def damage(packed: Packed, rows: Sequence[int]) -> None:
    samples = read_samples(packed.samples, "train").to_pylist()
    for row in rows:
        with (packed.shards / samples[row]["shard"]).open("r+b") as file:
            file.seek(samples[row]["sample_offset"] + 130)
            file.write(b"9")


@pytest.mark.parametrize("damaged_first", [True, False])
@pytest.mark.parametrize("asked", [True, False], ids=["--resume", "by itself"])
def test_a_resumed_run_keeps_its_statistics_after_changes_of_the_shards(
    tmp_path: Path, packed: Packed, damaged_first: bool, asked: bool
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(packed.shards, whole)
    job = job_of_shards(tmp_path / "a", packed, num_epochs=2)
    if damaged_first:
        damage(packed, [3, 5])
    with pytest.raises(Interrupted):
        train(stopping_at(job, 0, 2))
    (last,) = (tmp_path / "a/runs").glob("*/last.pt")
    before = levels_in(last)
    if damaged_first:
        shutil.rmtree(packed.shards)
        shutil.copytree(whole, packed.shards)
    else:
        damage(packed, [3, 5])
    assert before != measure_pixel_statistics(
        packed.store, read_samples(packed.samples, "train"), OF_SHARDS, True
    )
    if asked:
        job = replace(job_of_shards(tmp_path / "b", packed, num_epochs=2), resume=last)
    assert train(job).epochs == 2
    assert levels_in(job.checkpoints / "best_model.pt") == before


def test_resuming_fetches_no_shard(tmp_path: Path, packed: Packed) -> None:
    job = job_of_shards(tmp_path, packed, num_epochs=1)
    train(job)
    (last,) = (tmp_path / "runs").glob("*/last.pt")
    store, samples = Counting(packed.shards), read_samples(packed.samples, "train")
    run, fresh = RunFolder(job.runs, last.parent.name), RunFolder(job.runs, "another")
    for other in (job, replace(job, resume=last)):
        model = with_pixel_statistics(replace(other, packs=Packs.single(packed.samples, store)), run, samples)
        assert (model.input_mean, model.input_std) == levels_in(last)
    given = replace(job, packs=Packs.single(packed.samples, store), model=MODEL)
    assert with_pixel_statistics(given, fresh, samples) is MODEL
    assert not store.asked
    assert (
        with_pixel_statistics(replace(job, packs=Packs.single(packed.samples, store)), fresh, samples)
        == model
    )
    assert store.asked


def test_modified_statistics_are_reported(tmp_path: Path, packed: Packed) -> None:
    job = job_of_shards(tmp_path, packed, num_epochs=1)
    train(job)
    (last,) = (tmp_path / "runs").glob("*/last.pt")
    state = load_checkpoint(last)
    torch.save({**state, "model_params": {**state["model_params"], "input_mean": "dark"}}, last)
    with pytest.raises(CheckpointError, match=r"last\.pt was modified"):
        train(job)


def test_the_search_for_a_budget_does_not_measure_them(tmp_path: Path, packed: Packed) -> None:
    store = Counting(packed.shards)
    TrainingData(replace(job_of_shards(tmp_path, packed), packs=Packs.single(packed.samples, store)))
    assert set(store.asked) == {"train/train-000000.tar"}, "the first clip, for its size"
