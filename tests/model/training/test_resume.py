"""Resuming needs only a position (epoch, step). The rest of the training is bit-identical."""

import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from model.checkpoints import load_checkpoint
from model.networks.lstm import BilstmEncoder
from model.settings import DecodeParams, ModelParams
from model.training.step import TrainingStep
from model.training.training_data import TrainingJob
from shards.errors import Interrupted
from shards.plan import plan_epoch
from shards.samples import read_samples
from shards.settings import LoaderParams, MachineParams
from shards.stream import ClipBatch, ShardStream
from stages.train import train
from tests.support.damage import damage
from tests.support.killed_runs import INTERRUPTED, Kill, job_in_folder, run, steps_of
from tests.support.packed import Codec, Packed, pack_clips, toy_clips
from tests.support.resuming import Position, assert_same_state, stopping_at
from tests.support.trainings import job_in

NUM_EPOCHS = 2
PARAMS = LoaderParams(frame_budget=200, window_shards=2, seed=3)

Flat = tuple[object, ...]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=23, num_valid=2))


def stream_of(packed: Packed, num_workers: int) -> ShardStream:
    machine = MachineParams(num_workers=num_workers, prefetch=2)
    return ShardStream(packed.store, read_samples(packed.samples, "train"), machine)


def run_from(stream: ShardStream, packed: Packed, position: Position) -> Iterator[tuple[Position, Flat]]:
    """Yields the position after each batch and the batch's content, for a process that starts at `position`."""
    samples = read_samples(packed.samples, "train")
    for epoch in range(position[0], NUM_EPOCHS):
        plan = plan_epoch(samples, PARAMS, 4, epoch)
        first = position[1] if epoch == position[0] else 0
        for step, batch in enumerate(stream.batches(plan.batches, first), first):
            yield (epoch, step + 1), flat(batch)


def flat(batch: ClipBatch) -> Flat:
    video = batch.video_BTHW
    frames = tuple(batch.num_frames_B.tolist())
    return (tuple(video.shape), video.numpy().tobytes(), frames, batch.clip_ids, batch.labels, batch.rows)


def test_after_one_or_two_stops_anywhere_the_rest_is_the_same(packed: Packed) -> None:
    """Pairs of stops anywhere in two epochs; the runs alternate between 2 and 0 threads."""
    whole = list(run_from(stream_of(packed, 0), packed, (0, 0)))
    assert len(whole) > 12
    assert len({batch for _, batch in whole}) == len(whole)  # all batches are different
    streams = [stream_of(packed, 2), stream_of(packed, 0)]
    pairs = itertools.combinations(range(len(whole) + 1), 2)
    for first, second in (pair for pair in pairs if sum(pair) % 3 == 0):
        seen: list[tuple[Position, Flat]] = []
        position = (0, 0)
        for number, stop in enumerate((first, second, len(whole))):
            part = run_from(streams[number % 2], packed, position)
            seen += itertools.islice(part, stop - len(seen))
            part.close()  # type: ignore[attr-defined]
            position = seen[-1][0] if seen else (0, 0)
        assert [p for p, _ in seen] == [p for p, _ in whole]
        assert all(ours == theirs for (_, ours), (_, theirs) in zip(seen, whole, strict=True))


@pytest.mark.realdata
@pytest.mark.parametrize("codec", ["raw", "jpeg", "h264", "ffv1"])
def test_resuming_is_exact_for_real_clips_of_every_codec(
    realdata: Path, tmp_path: Path, codec: Codec
) -> None:
    clips = []
    for number, path in enumerate(sorted((realdata / "grid" / "video").rglob("*.mpg"))[:10]):
        video, frames = cv2.VideoCapture(str(path)), []
        while (read := video.read())[0] and len(frames) < 20 + 5 * number:
            frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY)[150:246, 130:226])
        video.release()
        clips.append((f"grid_{number}", "train", np.stack(frames), "一二"))
    packed = pack_clips(tmp_path, clips, clips_a_shard=3, codec=codec)
    whole = list(run_from(stream_of(packed, 0), packed, (0, 0)))
    for number, (position, _) in enumerate(whole):
        rest = list(run_from(stream_of(packed, 2), packed, position))
        assert rest == whole[number + 1 :]
    if codec in ("raw", "ffv1"):
        lengths = {clip_id: len(clip_THW) for clip_id, _, clip_THW, _ in clips}
        shape, pixels, frames, ids, *_ = whole[0][1]
        video_BTHW = np.frombuffer(pixels, np.uint8).reshape(shape)  # type: ignore[call-overload]
        for number, clip_id in enumerate(ids):  # type: ignore[arg-type]
            clip_THW = next(clip for name, _, clip, _ in clips if name == clip_id)
            np.testing.assert_array_equal(video_BTHW[number, : lengths[clip_id]], clip_THW)


# -- the trainer, killed ----------------------------------------------------------------------------------

CONFORMER = ModelParams.model_validate(
    {
        "preset": "conformer_tiny",
        "frame_height": 24,
        "frame_width": 24,
        "sizes": {
            "channels": (4, 4, 6, 8),
            "hidden_dim": 16,
            "num_heads": 2,
            "feed_forward_dim": 24,
            "num_encoder_layers": 1,
            "conv_kernel": 5,
            "num_decoder_layers": 1,
        },
        "dropout": 0.1,
    }
)


def job_of(folder: Path, packed: Packed, network: str) -> TrainingJob:
    """Returns a job of three epochs; both kinds of decoder learn, and one of them reads the valid clips."""
    job = job_in(folder, packed, ema_decay=0.9, teacher_forcing_end=0.5, reverse_weight=0.3)
    if network == "conformer":
        return replace(job, model=CONFORMER, decode=DecodeParams(decoder="attention"))
    return job


@pytest.fixture(scope="module")
def undisturbed(
    request: pytest.FixtureRequest, packed: Packed, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingJob, Path]:
    """An uninterrupted training, and its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = job_of(folder, packed, request.param)
    assert run(job, folder, save_every_s=60) == 0
    return job, folder


RANDOM = random.Random(5)
KILLS: dict[str, tuple[float, list[Kill]]] = {
    # -1 saves after every window, 60 only at the end of an epoch
    "at random steps": (-1.0, [Kill("step", RANDOM.randint(1, 4)) for _ in range(5)]),
    "back to the epoch's start": (60.0, [Kill("step", RANDOM.randint(1, 9)) for _ in range(4)]),
    "while checkpoints are written": (
        -1.0,
        [Kill("write", 1), Kill("write", 3), Kill("rename", 1), Kill("rename", 2), Kill("write", 2)],
    ),
    "during validation": (-1.0, [Kill("validation", 1), Kill("validation", 2)]),
    # after the first of two micro-batches, twice, then after the last one, when the window is complete
    "by SIGTERM within a window": (60.0, [Kill("piece", number, signal.SIGTERM) for number in (1, 3, 4)]),
    "by SIGTERM": (60.0, [Kill("step", 3, signal.SIGTERM), Kill("validation", 1, signal.SIGTERM)]),
    "in turn": (-1.0, [Kill("step", 3), Kill("write", 2), Kill("rename", 1), Kill("validation", 1)]),
    "in turn by SIGTERM": (
        60.0,
        [Kill("piece", 1, signal.SIGTERM), Kill("step", 4), Kill("validation", 1, signal.SIGTERM)],
    ),
}
KILLED = [("conformer" if name.startswith("in turn") else "baseline", name) for name in KILLS]


@pytest.mark.parametrize(("undisturbed", "name"), KILLED, indirect=["undisturbed"])
def test_a_killed_and_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, undisturbed: tuple[TrainingJob, Path], name: str
) -> None:
    """Losses, batches, learning rates and weights are bit-identical."""
    job, there = undisturbed
    job = job_in_folder(job, tmp_path)
    save_every_s, kills = KILLS[name]
    for kill in kills:
        status = run(job, tmp_path, kill, save_every_s)
        assert status == (-kill.by if kill.by == signal.SIGKILL else INTERRUPTED)
    assert run(job, tmp_path, save_every_s=save_every_s) == 0
    expected = {tuple(step["position"]): step for step in steps_of(there)}
    steps = steps_of(tmp_path)
    assert {tuple(step["position"]) for step in steps} == expected.keys()
    assert len(expected) > 8
    for step in steps:
        assert step == expected[tuple(step["position"])]
    for path in (there / "checkpoints").glob("*.pt"):
        assert_same_state(load_checkpoint(path), load_checkpoint(tmp_path / "checkpoints" / path.name))
    for path in (there / "checkpoints").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "checkpoints" / path.name).read_bytes()


def test_sigterm_within_a_window_stops_after_the_current_micro_batch(tmp_path: Path, packed: Packed) -> None:
    job = job_of(tmp_path, packed, "baseline")
    assert run(job, tmp_path, Kill("piece", 3, signal.SIGTERM), save_every_s=60) == INTERRUPTED
    assert len(steps_of(tmp_path)) == 1
    (last,) = (tmp_path / "runs").glob("*/last.pt")
    progress = load_checkpoint(last)["progress"]
    assert (progress["epoch"], progress["batches_done"], progress["steps"]) == (0, 2, 1)


def test_bad_samples_of_an_interrupted_window_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack_clips(tmp_path, toy_clips(num_train=23, num_valid=2))
    job = job_of(tmp_path, packed, "baseline")
    job = replace(job, loader=job.loader.model_copy(update={"max_bad_fraction": 0.5}))
    (batch, *_) = plan_epoch(read_samples(packed.samples, "train"), job.loader, 4, 0).batches
    damage(packed, batch[:1].tolist())
    backward = TrainingStep._piece_backward

    def interrupted(*arguments: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return backward(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingStep, "_piece_backward", interrupted)
        train(job)
    train(job)
    state = load_checkpoint(job.checkpoints / "checkpoint_epoch_2.pt")
    assert state["progress"]["bad_clips_before"] == 3  # one in each epoch


def test_the_size_of_micro_batches_survives_resuming(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run resumes with enough memory: only the checkpoint knows the smaller size.

    Whole batches would draw other dropout and have other batch statistics.
    """
    forward = BilstmEncoder.forward

    def starved(self: BilstmEncoder, features_BSF: torch.Tensor, num_steps_B: torch.Tensor) -> torch.Tensor:
        if self.training and len(features_BSF) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, features_BSF, num_steps_B)

    whole, stopped = (
        replace(job, train=job.train.model_copy(update={"num_epochs": 1}))
        for job in (job_of(tmp_path / name, packed, "baseline") for name in ("whole", "stopped"))
    )
    with monkeypatch.context() as patch:
        patch.setattr(BilstmEncoder, "forward", starved)
        train(whole)
        with pytest.raises(Interrupted):
            train(stopping_at(stopped, 0, 2))
    train(stopped)
    for path in whole.checkpoints.glob("*.pt"):
        ours, theirs = load_checkpoint(path), load_checkpoint(stopped.checkpoints / path.name)
        assert ours["progress"]["piece_frames"] == theirs["progress"]["piece_frames"] is not None
        assert_same_state(ours, theirs)


def test_sigterm_in_validation_stops_during_it(tmp_path: Path, packed: Packed) -> None:
    """Stops after the current batch of two, not after all of valid."""
    more = pack_clips(tmp_path / "more", toy_clips(num_train=8, num_valid=12))
    job = job_of(tmp_path, more, "baseline")
    start = time.monotonic()
    assert run(job, tmp_path, Kill("validation", 1, signal.SIGTERM), save_every_s=60) == INTERRUPTED
    assert time.monotonic() - start < 20
    (last,) = (tmp_path / "runs").glob("*/last.pt")
    state = load_checkpoint(last)
    assert (state["progress"]["epoch"], state["progress"]["curves"]) == (0, [])
    assert state["progress"]["batches_done"] > 0
