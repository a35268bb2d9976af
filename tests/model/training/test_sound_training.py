"""Sound as a teacher: tokens, their loss in a step, and runs that learn from it."""

import csv
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.checkpoints import load_checkpoint
from model.networks.network_input import Targets
from model.networks.sound_head import IGNORED, SoundTokens, sound_features, sound_loss, sound_targets
from model.training.augment import training_input
from model.training.out_of_memory import part
from model.training.sound_tokens import k_means, learn_sound_tokens
from model.training.training_data import TrainingData, TrainingJob
from shards.errors import CheckpointError, Interrupted, TrainingError
from shards.stream import ClipBatch
from stages.train import train
from tests.support.killed_runs import INTERRUPTED, Kill, job_in_folder, run, steps_of
from tests.support.packed import Packed, pack_clips, toy_clips, toy_sound
from tests.support.resuming import assert_same_state, stopping_at
from tests.support.stepping import CONFORMER, Bench, TwoAlike, assert_close, stepping_job
from tests.support.trainings import job_in

CPU = torch.device("cpu")
SILENT = ("train_003", "train_010")


def packed_in(folder: Path, num_train: int = 23) -> Packed:
    clips = toy_clips(num_train=num_train, num_valid=2)
    sounds = {
        clip_id: toy_sound(label, number)
        for number, (clip_id, _, _, label) in enumerate(clips)
        if clip_id not in SILENT
    }
    return pack_clips(folder, clips, sounds=sounds)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed_in(tmp_path_factory.mktemp("packed"))


# -- tokens ------------------------------------------------------------------------------------------------


def test_k_means_finds_planted_groups_and_fills_empty_ones() -> None:
    rng = np.random.default_rng(0)
    planted_VD = rng.normal(size=(12, 6)) * 10
    vectors_ND = torch.from_numpy(
        np.concatenate([p + rng.normal(size=(50, 6)) * 0.01 for p in planted_VD])
    ).float()
    found_VD = k_means(vectors_ND, 12, seed=1)
    gap_V = torch.cdist(torch.from_numpy(planted_VD).float(), found_VD).min(dim=1).values
    assert float(gap_V.max()) < 0.05
    assert torch.equal(found_VD, k_means(vectors_ND, 12, seed=1))
    # two equal vectors, three centres
    assert k_means(torch.ones(2, 6), 3, seed=0).isfinite().all()


def test_no_single_centre_of_k_means_can_be_improved() -> None:
    """Each centre is the mean of its vectors, computed by numpy."""
    vectors_ND = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 3))).float()
    centre_VD = k_means(vectors_ND, 5, seed=0)
    nearest_N = torch.cdist(vectors_ND, centre_VD).argmin(dim=1).numpy()
    for number in range(5):
        mean_D = vectors_ND.numpy()[nearest_N == number].mean(axis=0)
        np.testing.assert_allclose(centre_VD[number].numpy(), mean_D, atol=1e-5)


def test_tokens_are_the_nearest_centres_of_vectors_and_their_changes(packed: Packed) -> None:
    job = job_in(packed.samples.parent / "unused", packed, audio_weight=1.0, audio_tokens=20)
    data = TrainingData(job)
    tokens = learn_sound_tokens(packed.store, data.samples, 20, seed=0)
    again = learn_sound_tokens(packed.store, data.samples, 20, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(tokens, again, strict=True))
    assert tokens.centre_VD.shape == (20, 80)
    sound_TKM = toy_sound("一二三", 0)
    vectors_JM = sound_TKM.reshape(-1, 40).astype(np.float32)
    change_JM = np.concatenate([np.zeros((1, 40), np.float32), vectors_JM[1:] - vectors_JM[:-1]])
    features_JD = np.concatenate([vectors_JM, change_JM], axis=1)
    np.testing.assert_array_equal(sound_features(torch.from_numpy(sound_TKM)[None])[0].numpy(), features_JD)
    scaled_JD = (features_JD - tokens.mean_D.numpy()) / tokens.deviation_D.numpy()
    distance_JV = ((scaled_JD[:, None] - tokens.centre_VD.numpy()) ** 2).sum(axis=2)
    np.testing.assert_array_equal(
        tokens.of(torch.from_numpy(sound_TKM)[None])[0].numpy(), distance_JV.argmin(axis=1)
    )


def test_speed_resamples_the_tokens_like_the_pictures() -> None:
    """At double speed each token stands for two; flip and shift change nothing, since they are no arguments."""
    tokens_BJ = torch.arange(80).reshape(1, 80).repeat(4, 1)
    frames_B, has_audio_B = torch.tensor([20, 20, 20, 10]), torch.tensor([True, True, False, True])
    played_B, speeds = torch.tensor([20, 10, 20, 13]), [1.0, 2.0, 1.0, 0.8]
    found_BJ = sound_targets(tokens_BJ, frames_B, played_B, speeds, has_audio_B)
    assert found_BJ.shape == (4, 80)
    assert found_BJ[0].tolist() == list(range(80))
    assert found_BJ[1].tolist() == list(range(1, 80, 2)) + [IGNORED] * 40
    assert found_BJ[2].tolist() == [IGNORED] * 80
    expected = [min(int((j + 0.5) * 0.8), 39) for j in range(52)]
    assert found_BJ[3].tolist() == expected + [IGNORED] * 28


def test_an_augmented_clip_has_the_sound_of_what_it_shows(packed: Packed, tmp_path: Path) -> None:
    """The gray level tells the frame: tokens follow the pictures, whatever the speed; masked frames keep theirs."""
    bench = bench_of(tmp_path, packed)
    (batch,) = bench.batches([8])
    assert batch.has_audio_B is not None
    T = batch.video_BTHW.shape[1]
    ramp_T = torch.arange(T, dtype=torch.uint8) * 2
    # one centre for each frame, and vectors that tell the frame
    audio_BTKM = torch.zeros(8, T, 4, 40, dtype=torch.float16)
    audio_BTKM[..., 0] = torch.arange(T)[None, :, None]
    batch = replace(
        batch,
        video_BTHW=ramp_T[None, :, None, None].expand_as(batch.video_BTHW).contiguous(),
        audio_BTKM=audio_BTKM,
    )
    centre_VD = torch.zeros(T, 80)
    centre_VD[:, 0] = torch.arange(T)
    bench.data.sound_tokens = SoundTokens(torch.zeros(80), torch.ones(80), centre_VD)
    model, num_played_faster = bench.data.model, 0
    for epoch in range(4):
        video_BCTYX, played_B, targets = _augmented(bench, batch, epoch, time_masks_per_s=0.0)
        _, _, masked = _augmented(bench, batch, epoch, time_masks_per_s=5.0)
        assert targets.sound_BJ is not None and masked.sound_BJ is not None
        assert torch.equal(targets.sound_BJ, masked.sound_BJ)
        frame_BT = ((video_BCTYX[:, 0, :, 0, 0] * model.input_std + model.input_mean) * 255 / 2).numpy()
        for number, (played, n) in enumerate(
            zip(played_B.tolist(), batch.num_frames_B.tolist(), strict=True)
        ):
            tokens_J = targets.sound_BJ[number, : 4 * played].numpy()
            if not batch.has_audio_B[number]:
                assert (tokens_J == IGNORED).all()
                continue
            num_played_faster += played < n
            # a picture and the middle of its quarters of a frame are half a frame apart
            ahead_T = tokens_J.reshape(played, 4).mean(axis=1) - frame_BT[number, :played]
            assert np.abs(ahead_T[:-2]).max() < 1
    assert num_played_faster > 5


def _augmented(
    bench: Bench, batch: ClipBatch, epoch: int, **augment: float
) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    changed = bench.job.train.augment.model_copy(update={"speed_change": 0.5, "gain_sigma": 0.0, **augment})
    job = replace(bench.job, train=bench.job.train.model_copy(update={"augment": changed}))
    return training_input(batch, job, bench.data, epoch, CPU)


# -- the step ----------------------------------------------------------------------------------------------


def bench_of(folder: Path, packed: Packed, model: Any = CONFORMER, **changes: Any) -> Bench:
    changes = {"audio_weight": 0.7, "audio_tokens": 20} | changes
    bench = Bench(stepping_job(folder, packed, model=model.model_copy(update={"dropout": 0.0}), **changes))
    if bench.job.train.audio_weight:
        bench.data.sound_tokens = learn_sound_tokens(packed.store, bench.data.samples, 20, seed=0)
    return bench


@pytest.mark.parametrize("stride", [1, 2])
def test_the_loss_is_the_entropy_of_each_token(packed: Packed, tmp_path: Path, stride: int) -> None:
    """Computed by a loop over clips, steps and vectors."""
    bench = bench_of(
        tmp_path, packed, CONFORMER.model_copy(update={"temporal_stride": stride}), ctc_weight=1.0
    )
    window = bench.batches([4, 3])
    expected_sum, right, num_tokens = 0.0, 0, 0
    state = bench.state
    for batch in window:
        video_BCTYX, frames_B, targets = training_input(batch, bench.job, bench.data, 0, CPU)
        with torch.no_grad():
            encoded_BSE, _ = state.network.encode(video_BCTYX, frames_B)
            assert (
                state.sound_head is not None
                and targets.sound_BJ is not None
                and batch.has_audio_B is not None
            )
            logits_BSO = functional.linear(encoded_BSE, state.sound_head.weight, state.sound_head.bias)
        for number, has_audio in enumerate(batch.has_audio_B.tolist()):
            if not has_audio:
                continue
            losses = []
            hits = []
            for j in range(4 * int(frames_B[number])):
                step, vector = divmod(j, 4 * stride)
                logits_V = logits_BSO[number, step].reshape(4 * stride, 20)[vector]
                token = int(targets.sound_BJ[number, j])
                losses.append(-float(functional.log_softmax(logits_V, dim=0)[token]))
                hits.append(int(logits_V.argmax()) == token)
            weight = 4 * int(batch.num_frames_B[number])
            expected_sum, right = (
                expected_sum + weight * float(np.mean(losses)),
                right + weight * float(np.mean(hits)),
            )
            num_tokens += weight
    figures = bench(window)
    assert figures.audio_tokens == num_tokens > 0
    assert figures.audio_loss_sum == pytest.approx(expected_sum, rel=1e-5)
    assert figures.audio_right == pytest.approx(right, rel=1e-5)


def test_the_gradient_is_that_of_labels_plus_weighted_sound(packed: Packed, tmp_path: Path) -> None:
    both = bench_of(tmp_path, packed)
    both(both.batches([4, 3]))
    labels = bench_of(tmp_path, packed, audio_weight=0.0)
    labels(labels.batches([4, 3]))
    sound, expected = bench_of(tmp_path, packed), {}
    window = sound.batches([4, 3])
    num_tokens = sum(
        4 * n
        for b in window
        for n, has in zip(b.num_frames_B.tolist(), b.has_audio_B.tolist(), strict=True)
        if has
    )
    for batch in window:
        video, frames_B, targets = training_input(batch, sound.job, sound.data, 0, CPU)
        outputs = sound.state.trained(video, frames_B, targets, 1.0)
        loss_B = sound_loss(outputs.sound_logits_BJV, targets.sound_BJ).entropy_B
        (0.7 / num_tokens * (loss_B * 4 * batch.num_frames_B).sum()).backward()
    for name, parameter in sound.network.named_parameters():
        added = 0 if parameter.grad is None else parameter.grad
        expected[name] = labels.gradient[name] + added
    assert_close(both.gradient, expected)
    # the head's own gradient is there too: its weights changed
    assert sound.state.sound_head is not None and both.state.sound_head is not None
    assert not torch.equal(sound.state.sound_head.weight, both.state.sound_head.weight)


def test_micro_batches_and_another_rank_change_no_gradient(packed: Packed, tmp_path: Path) -> None:
    whole, pieces, ranked = (bench_of(tmp_path, packed) for _ in range(3))
    pieces.state.progress.piece_frames = 60
    ranked.step.ranks = TwoAlike()
    ours = [bench(bench.batches([5, 4])) for bench in (whole, pieces, ranked)]
    assert_close(whole.gradient, pieces.gradient)
    # each of two alike ranks has half of all tokens; averaged over the ranks, the gradient is the same
    assert_close(whole.gradient, ranked.gradient)
    assert ours[2].audio_tokens == 2 * ours[0].audio_tokens
    assert ours[1].audio_loss_sum == pytest.approx(ours[0].audio_loss_sum, rel=1e-5)


def test_clips_whose_labels_count_nothing_teach_by_their_sound(packed: Packed, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, packed)
    bench.data.labels_of = lambda batch: (("",) * len(batch.labels), np.zeros(len(batch.labels), np.float32))  # type: ignore[method-assign]
    before = bench.everything()
    figures = bench(bench.batches([5]))
    assert figures.was_taken and figures.num_chars == 0 and figures.loss_sum == 0 and figures.audio_tokens > 0
    assert not all(torch.equal(a, b) for a, b in zip(before, bench.everything(), strict=False))


def test_unlabelled_clips_teach_by_their_sound_alone(tmp_path: Path) -> None:
    clips = [
        (name.replace("test", "unlabelled"), split.replace("test", "unlabelled"), clip_THW, label)
        for name, split, clip_THW, label in toy_clips(num_train=4, num_valid=3)
    ]
    sounds = {clip_id: toy_sound(label, 0) for clip_id, _, _, label in clips if clip_id != "unlabelled_001"}
    packed = pack_clips(tmp_path, clips, sounds=sounds)
    job = stepping_job(tmp_path, packed, model=CONFORMER, audio_weight=0.7, audio_tokens=20)
    bench = Bench(replace(job, loader=job.loader.model_copy(update={"unlabelled_share": 0.4})))
    bench.data.sound_tokens = learn_sound_tokens(packed.store, bench.data.samples, 20, seed=0)
    assert bench.data.samples["clip_id"].to_pylist()[4:] == [f"unlabelled_{n:03d}" for n in range(3)]
    window = bench.batches([5, 2])
    figures = bench(window)
    frames = {row["clip_id"]: row["num_frames"] for row in bench.data.samples.to_pylist()}
    assert figures.audio_tokens == sum(4 * n for clip_id, n in frames.items() if clip_id != "unlabelled_001")
    labels = {clip_id: label for clip_id, _, _, label in clips}
    assert figures.num_chars == sum(len(labels[f"train_{n:03d}"]) for n in range(4))
    assert figures.was_taken and figures.num_clips == 7


def test_a_window_of_silent_clips_is_a_step_on_labels(packed: Packed, tmp_path: Path) -> None:
    ours, plain = bench_of(tmp_path, packed), bench_of(tmp_path, packed, audio_weight=0.0)
    (batch,) = ours.batches([4])
    silent = part(batch, 3, 4)
    assert silent.clip_ids == ("train_003",)
    figures = ours([silent])
    (other,) = plain.batches([4])
    expected = plain([part(other, 3, 4)])
    assert figures.audio_tokens == 0 and figures.loss_sum == expected.loss_sum
    assert_close(ours.gradient, plain.gradient)


def test_the_head_is_outside_the_network(packed: Packed, tmp_path: Path) -> None:
    ours, plain = bench_of(tmp_path, packed), bench_of(tmp_path, packed, audio_weight=0.0)
    assert ours.network.state_dict().keys() == plain.network.state_dict().keys()
    # the same initial weights
    assert all(
        torch.equal(a, b) for a, b in zip(ours.network.parameters(), plain.network.parameters(), strict=True)
    )


# -- runs --------------------------------------------------------------------------------------------------


def sound_job(folder: Path, packed: Packed, **changes: Any) -> TrainingJob:
    return job_in(folder, packed, **({"audio_weight": 1.0, "audio_tokens": 16, "ema_decay": 0.9} | changes))


@pytest.fixture(scope="module")
def undisturbed(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingJob, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    job = sound_job(folder, packed)
    assert run(job, folder, save_every_s=60) == 0
    return job, folder


KILLS = {
    "at steps and while checkpoints are written": (
        -1.0,
        [Kill("step", 2), Kill("write", 2), Kill("rename", 1)],
    ),
    "back to the start": (60.0, [Kill("step", 2), Kill("step", 5)]),
    "by SIGTERM within a window": (60.0, [Kill("piece", number, signal.SIGTERM) for number in (1, 4)]),
}


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_with_sound_resumes_exactly(
    tmp_path: Path, undisturbed: tuple[TrainingJob, Path], name: str
) -> None:
    job, there = undisturbed
    job = job_in_folder(job, tmp_path)
    save_every_s, kills = KILLS[name]
    for kill in kills:
        status = run(job, tmp_path, kill, save_every_s)
        assert status == (-kill.by if kill.by == signal.SIGKILL else INTERRUPTED)
    assert run(job, tmp_path, save_every_s=save_every_s) == 0
    expected = {tuple(step["position"]): step for step in steps_of(there)}
    assert all(step == expected[tuple(step["position"])] for step in steps_of(tmp_path)) and len(expected) > 8
    paths = list((there / "checkpoints").glob("*.pt"))
    for path in paths:
        ours, theirs = load_checkpoint(tmp_path / "checkpoints" / path.name), load_checkpoint(path)
        assert "audio_head" in theirs and theirs["audio_head"]["training_weights"] is not None
        assert theirs["progress"]["curves"][-1]["audio_accuracy"] > 0
        assert_same_state(ours, theirs)
    weights = "checkpoints/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (there / weights).read_bytes()


def test_a_run_learns_the_sound_and_its_model_is_unchanged_in_size(packed: Packed, tmp_path: Path) -> None:
    train(sound_job(tmp_path / "sound", packed, num_epochs=12))
    train(job_in(tmp_path / "plain", packed, num_epochs=1, ema_decay=0.9))
    rows = list(csv.DictReader((tmp_path / "sound/logs/curves.csv").read_text().splitlines()))
    accuracy = [float(row["audio_accuracy"]) for row in rows]
    assert accuracy[-1] > 0.28 > 0.15 > accuracy[0]
    assert float(rows[-1]["audio_loss"]) < float(rows[0]["audio_loss"])
    plain = list(csv.DictReader((tmp_path / "plain/logs/curves.csv").read_text().splitlines()))
    assert not {"audio_loss", "audio_accuracy"} & plain[0].keys()
    assert "audio_head" not in load_checkpoint(tmp_path / "plain/checkpoints/best_model.pt")
    assert not [
        name
        for name in load_checkpoint(tmp_path / "plain/checkpoints/best_model.pt")["progress"]
        if "audio" in name
    ]
    sizes = [
        (tmp_path / name / "checkpoints/model.safetensors").stat().st_size for name in ("sound", "plain")
    ]
    assert sizes[0] == sizes[1]


def test_a_pack_without_sound_is_refused(tmp_path: Path) -> None:
    plain = pack_clips(tmp_path, toy_clips(num_train=5, num_valid=2))
    with pytest.raises(TrainingError, match="no training clip has sound in its pack"):
        train(sound_job(tmp_path, plain))


def test_a_checkpoint_without_sound_is_not_resumed_with_it(packed: Packed, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(stopping_at(job_in(tmp_path / "plain", packed), 0, 2))
    (last,) = (tmp_path / "plain" / "runs").glob("*/last.pt")
    with pytest.raises(CheckpointError, match="was trained with no sound tokens, this run has 16"):
        train(replace(sound_job(tmp_path, packed), resume=last))


def test_a_micro_batch_has_the_sound_of_its_clips() -> None:
    audio_BTKM = torch.arange(3 * 5 * 4 * 40).reshape(3, 5, 4, 40).half()
    batch = ClipBatch(
        torch.zeros(3, 5, 2, 2, dtype=torch.uint8),
        torch.tensor([5, 2, 3]),
        ("a", "b", "c"),
        ("", "", ""),
        (0, 1, 2),
        audio_BTKM=audio_BTKM,
        has_audio_B=torch.tensor([True, False, True]),
    )
    last = part(batch, 1, 3)
    assert last.audio_BTKM is not None and last.has_audio_B is not None
    assert torch.equal(last.audio_BTKM, audio_BTKM[1:, :3]) and last.has_audio_B.tolist() == [False, True]
