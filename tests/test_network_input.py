"""What the network is given of a clip in scoring, and the gray levels it is normalised by."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.networks.network_input import network_input
from model.reader import LipReader
from model.settings import ModelParams
from model.training.gray_levels import MEASURED_CLIPS, measured, with_gray_levels
from model.training.trainer import train
from shards.errors import ShardError, TrainingError
from shards.plan import read_samples
from tests.packed import pack_clips, toy_clips
from tests.trainings import job_in, with_sizes

SMALL = ModelParams(frame_height=32, frame_width=32)


def test_blind_input_is_the_mean_frame_of_the_clip_alone() -> None:
    video = torch.randint(0, 256, (1, 6, 96, 96), dtype=torch.uint8)
    longer = torch.cat([video, torch.full((1, 4, 96, 96), 200, dtype=torch.uint8)], dim=1)
    blind = network_input(longer, torch.tensor([6]), SMALL, blind=True)
    sighted = network_input(video, torch.tensor([6]), SMALL)
    torch.testing.assert_close(blind[:, :, :6], sighted.mean(2, keepdim=True).expand(1, 1, 6, 32, 32))
    assert bool((blind[:, :, 6:] == 0).all())


def test_the_window_is_the_middle_of_the_crop() -> None:
    video = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    params = SMALL.model_copy(update={"window_px": 88, "frame_height": 88, "frame_width": 88})
    expected = (video[:, :, 4:92, 4:92].float() / 255 - 0.421) / 0.165  # as public lip readers see it
    torch.testing.assert_close(network_input(video, torch.tensor([3]), params)[:, 0], expected)
    with pytest.raises(ValueError, match="window_px"):
        network_input(video, torch.tensor([3]), SMALL.model_copy(update={"window_px": 100}))


@pytest.mark.parametrize("subtract_mean", [0.0, 0.8])
def test_clips_are_standardised_over_their_own_frames(subtract_mean: float) -> None:
    params = SMALL.model_copy(update={"standardise": "clip", "subtract_mean": subtract_mean})
    video, lengths = torch.randint(0, 256, (2, 9, 96, 96), dtype=torch.uint8), torch.tensor([9, 5])
    inputs = network_input(video, lengths, params)
    for clip, num_frames in enumerate(lengths.tolist()):
        inside = inputs[clip, 0, :num_frames]
        assert float(inside.mean()) == pytest.approx(0, abs=1e-4)
        assert float(inside.std(unbiased=False)) == pytest.approx(1, abs=1e-2)
        assert not inputs[clip, 0, num_frames:].any()


# -- standardise: shards -----------------------------------------------------------------------------------


def clips_of_many_grays(num_clips: int, side: int = 24) -> list[tuple[str, str, np.ndarray, str]]:
    """Each with its own mean, contrast and length: what tells a wrong weighting from a right one."""
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
def test_measured_gray_levels_against_numpy_over_the_same_clips(tmp_path: Path, subtract_mean: float) -> None:
    clips = clips_of_many_grays(2 * MEASURED_CLIPS + 37)
    packed = pack_clips(tmp_path, clips, clips_a_shard=100)
    params = ModelParams(window_px=16, frame_height=16, frame_width=16, subtract_mean=subtract_mean)
    mean, deviation = measured(packed.store, read_samples(packed.samples, "train"), params)
    step = (len(clips) - 1) / (MEASURED_CLIPS - 1)
    chosen = [clips[round(number * step)][2][:, 4:20, 4:20] / 255 for number in range(MEASURED_CLIPS)]
    pixels = np.concatenate([clip.ravel() for clip in chosen])
    seen = np.concatenate([(clip - subtract_mean * clip.mean(0)).ravel() for clip in chosen])
    assert mean == float(f"{pixels.mean():.4g}")
    assert deviation == float(f"{seen.std():.4g}")
    # what the network is given of these clips then has mean 0 and deviation 1
    model = with_gray_levels(
        params.model_copy(update={"standardise": "shards"}),
        packed.store,
        read_samples(packed.samples, "train"),
    )
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


def test_gray_levels_are_measured_where_asked_for_alone(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, clips_of_many_grays(3))
    samples = read_samples(packed.samples, "train")
    model = ModelParams(window_px=24, frame_height=16, frame_width=16)
    assert with_gray_levels(model, packed.store, samples) is model
    of_shards = with_gray_levels(model.model_copy(update={"standardise": "shards"}), packed.store, samples)
    assert (of_shards.input_mean, of_shards.input_std) == measured(packed.store, samples, model)
    assert ModelParams.model_validate(of_shards.model_dump()) == of_shards


def test_clips_without_any_contrast_have_a_deviation_to_divide_by(tmp_path: Path) -> None:
    black = [("train_0", "train", np.zeros((4, 24, 24), np.uint8), "一")]
    packed = pack_clips(tmp_path, black)
    model = ModelParams(window_px=24, frame_height=16, frame_width=16, standardise="shards")
    model = with_gray_levels(model, packed.store, read_samples(packed.samples, "train"))
    assert model.input_mean == 0 and model.input_std > 0
    assert not network_input(torch.zeros(1, 4, 24, 24, dtype=torch.uint8), torch.tensor([4]), model).any()


def test_a_bad_clip_is_an_error_or_left_out(tmp_path: Path) -> None:
    clips = clips_of_many_grays(6)
    packed = pack_clips(tmp_path, clips, clips_a_shard=3)
    samples = read_samples(packed.samples, "train")
    model = ModelParams(window_px=24, frame_height=24, frame_width=24)
    (packed.shards / "train/train-000001.tar").unlink()
    with pytest.raises(ShardError, match="train-000001"):
        measured(packed.store, samples, model)
    left = np.concatenate([clip[2].ravel() for clip in clips[:3]]) / 255
    mean, deviation = measured(packed.store, samples, model, leave_out_bad=True)
    assert (mean, deviation) == (float(f"{left.mean():.4g}"), float(f"{left.std():.4g}"))
    (packed.shards / "train/train-000000.tar").unlink()
    with pytest.raises(TrainingError, match="pipeline verify"):
        measured(packed.store, samples, model, leave_out_bad=True)


def test_a_training_takes_the_levels_of_its_shards_into_the_checkpoint(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, toy_clips(8, 2))
    job = replace(job_in(tmp_path / "a", packed, num_epochs=1), model=with_sizes(hidden_dim=8))
    job = replace(job, model=job.model.model_copy(update={"standardise": "shards"}))
    train(job)
    checkpoint = tmp_path / "a/checkpoints/best_model.pt"
    read_by = LipReader.from_checkpoint(checkpoint, torch.device("cpu")).model
    expected = measured(packed.store, read_samples(packed.samples, "train"), job.model)
    assert (read_by.input_mean, read_by.input_std) == expected
    assert read_by.input_mean != job.model.input_mean
    # measured again, they are the same: what was saved can be gone on from
    further = job_in(tmp_path / "b", packed, num_epochs=2)
    assert train(replace(further, model=job.model, resume=checkpoint)).epochs == 2
