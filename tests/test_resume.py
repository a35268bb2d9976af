"""A position (epoch, step) is all that going on needs: what comes after it is bit for bit what would have come."""

import itertools
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model.checkpoints import CHECKPOINT_VERSION, load_checkpoint
from model.job import TrainingJob
from model.trainer import train
from shards.errors import CheckpointError, Interrupted
from shards.plan import plan_epoch, read_samples
from shards.settings import LoaderParams, MachineParams
from shards.stream import ClipBatch, ShardStream
from tests.packed import Codec, Packed, pack_clips, toy_clips
from tests.test_trainer import assert_same_weights, job_in

NUM_EPOCHS = 2
PARAMS = LoaderParams(frame_budget=200, window_shards=2, seed=3)

Position = tuple[int, int]
Flat = tuple[object, ...]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=23, num_valid=2))


def stream_of(packed: Packed, num_workers: int) -> ShardStream:
    machine = MachineParams(num_workers=num_workers, prefetch=2)
    return ShardStream(packed.store, read_samples(packed.samples, "train"), machine)


def run_from(stream: ShardStream, packed: Packed, position: Position) -> Iterator[tuple[Position, Flat]]:
    """The position after each batch, and all of the batch, as a process that starts at `position` sees it."""
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


def test_stopped_anywhere_once_or_twice_the_rest_is_the_same(packed: Packed) -> None:
    """All pairs of stops in two epochs; the runs before and after a stop have 0 and 2 threads in turn."""
    whole = list(run_from(stream_of(packed, 0), packed, (0, 0)))
    assert len(whole) > 12
    assert len({batch for _, batch in whole}) == len(
        whole
    )  # so that no two batches can be taken for each other
    streams = [stream_of(packed, 2), stream_of(packed, 0)]
    for first, second in itertools.combinations(range(len(whole) + 1), 2):
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
def test_it_holds_for_real_clips_of_every_codec(realdata: Path, tmp_path: Path, codec: Codec) -> None:
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


# -- the trainer ------------------------------------------------------------------------------------------


def stopping_at(job: TrainingJob, epoch: int, batches_done: int) -> TrainingJob:
    """The same job, which is sent SIGTERM when it stands there."""

    def tell(now: int, done: int, _: int) -> None:
        if (now, done) == (epoch, batches_done):
            os.kill(os.getpid(), signal.SIGTERM)

    return replace(job, on_batch=tell)


def stopped_in(folder: Path, packed: Packed) -> Path:
    """The checkpoint of a run that stands in the middle of epoch 1."""
    with pytest.raises(Interrupted, match="epoch 1 after 2 batches"):
        train(stopping_at(job_in(folder, packed), 1, 2))
    (last,) = (folder / "runs").glob("*/last.pt")
    return last


def test_a_checkpoint_within_an_epoch_goes_on_elsewhere_exactly(tmp_path: Path, packed: Packed) -> None:
    last = stopped_in(tmp_path / "stopped", packed)
    threads = MachineParams(threads=1, device="cpu", num_workers=2)
    train(replace(job_in(tmp_path / "resumed", packed), resume=last, machine=threads))
    train(job_in(tmp_path / "whole", packed))
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "resumed" / name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"loader": LoaderParams(frame_budget=200, seed=1)}, r"loader\.seed is 1, the checkpoint has 0"),
        ({"loader": LoaderParams(frame_budget=180)}, r"loader\.frame_budget is 180, the checkpoint has 200"),
        ({"batch_size": 3}, r"train\.batch_size 3 here, 4 there"),
        ({"clips": 22}, "other clips: samples.parquet"),
    ],
)
def test_another_plan_is_refused_with_what_differs_and_the_flag(
    tmp_path: Path, packed: Packed, change: dict, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    last = stopped_in(tmp_path / "a", packed)
    if "clips" in change:
        packed = pack_clips(tmp_path / "fewer", toy_clips(change["clips"], 2))
    job = replace(job_in(tmp_path / "b", packed), resume=last)
    if "loader" in change:
        job = replace(job, loader=change["loader"])
    if "batch_size" in change:
        job = replace(job, train=job.train.model_copy(update=change))
    with pytest.raises(CheckpointError, match=rf"(?s){told}.*--accept-new-plan.*epoch 1 anew"):
        train(job)
    steps: list[Position] = []
    accepted = replace(job, accept_new_plan=True, on_batch=lambda epoch, done, _: steps.append((epoch, done)))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert train(accepted).epochs == 3
    assert "epoch 1 starts anew from its first batch, not after batch 2" in caplog.text
    assert steps[0] == (1, 2)  # the first window of the epoch: two batches
    state = load_checkpoint(tmp_path / "b/checkpoints/checkpoint_epoch_2.pt")
    assert state["progress"]["epoch"] == 3
    # its own plan from now on: the same command without the flag goes on, or finds itself finished
    assert train(replace(job, resume=None)).already_done


def test_bad_samples_allowed_later_are_no_other_plan(tmp_path: Path, packed: Packed) -> None:
    last = stopped_in(tmp_path / "a", packed)
    loader = LoaderParams(frame_budget=200, max_bad_fraction=0.1)
    job = replace(job_in(tmp_path / "a", packed), loader=loader)
    assert not train(job).already_done
    assert load_checkpoint(last)["progress"]["epoch"] == 3
    assert len(list((tmp_path / "a/runs").iterdir())) == 1


def test_a_checkpoint_of_version_1_is_refused_by_its_version(tmp_path: Path, packed: Packed) -> None:
    train(job_in(tmp_path, packed, num_epochs=1))
    path = tmp_path / "checkpoints/best_model.pt"
    state = load_checkpoint(path)
    del state["plan_identity"]
    torch.save(state | {"version": 1, "plan_hash": "0" * 64}, path)
    with pytest.raises(CheckpointError, match=f"version 1, this program reads {CHECKPOINT_VERSION}"):
        load_checkpoint(path)


def test_a_fresh_run_tells_of_one_that_waits(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipeline.train"):
        last = stopped_in(tmp_path, packed)
        assert "fresh run" not in caplog.text
        train(job_in(tmp_path, packed, num_epochs=1, learning_rate=0.005))
    (line,) = [message for message in caplog.messages if "fresh run" in message]
    assert f"though {last.parent} stands unfinished in epoch 1 of 3" in line
    assert "train.learning_rate: 0.01 there, 0.005 here; train.num_epochs: 3 there, 1 here" in line
    assert line.endswith(f"pipeline train --params {last.parent / 'config.yaml'}")
    caplog.clear()
    fewer = pack_clips(tmp_path / "fewer", toy_clips(20, 2))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_in(tmp_path, fewer, num_epochs=1))
    (line,) = [message for message in caplog.messages if "fresh run" in message]
    assert "other clips" in line and line.endswith(f"--resume {last} --accept-new-plan")
    caplog.clear()
    # gone on with and finished, it is told of no more
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_in(tmp_path, packed))
        train(job_in(tmp_path, packed, num_epochs=1, seed=5))
    assert "fresh run" not in caplog.text
