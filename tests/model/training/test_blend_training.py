"""Training on several packs: every pack's clips are learnt, validated apart and together, and resumed."""

import csv
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints import load_checkpoint
from model.decoding.reader import LipReader
from model.metrics import total_counts
from model.settings import DecodeParams
from model.training.augment import training_input
from model.training.training_data import TrainingData, TrainingJob
from pipeline.console import progress
from shards.errors import CheckpointError, TrainingError
from shards.packs import Pack, Packs
from shards.settings import LoaderParams
from shards.stream import ShardStream
from stages import train as train_module
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clip, toy_clips
from tests.support.ranks import together
from tests.support.trainings import assert_same_weights, job_in, read_test_clips


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Packed]:
    folder = tmp_path_factory.mktemp("packs")
    return pack_clips(folder / "a", toy_clips(12, 3)), pack_clips(folder / "b", toy_clips(6, 2, seed=5))


def blend_job(folder: Path, two: tuple[Packed, Packed], **changes: object) -> TrainingJob:
    packs = Packs([Pack(name, packed.samples, packed.store) for name, packed in zip("ab", two, strict=True)])
    return replace(job_in(folder, two[0], **changes), packs=packs)


def test_packs_are_trained_and_validated_together_and_apart(
    tmp_path: Path, two: tuple[Packed, Packed], caplog: pytest.LogCaptureFixture
) -> None:
    job = replace(
        blend_job(tmp_path, two, num_epochs=2), loader=LoaderParams(frame_budget=200, temperature=100)
    )
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job)
    assert "An epoch visits 12 clips of pack a (50.0 %), which has 12" in caplog.text
    assert "An epoch visits 12 clips of pack b (50.0 %), which has 6" in caplog.text
    assert "in another split" not in caplog.text
    with (job.logs / "curves.csv").open(newline="") as file:
        curves = list(csv.DictReader(file))
    reader = LipReader.from_checkpoint(job.checkpoints / "checkpoint_epoch_1.pt", torch.device("cpu"))
    counts = {}
    for name, packed in zip("ab", two, strict=True):
        scored = read_test_clips(reader, packed, DecodeParams(decoder="ctc"), split="valid")
        counts[name] = total_counts((clip.reference, clip.hypothesis) for clip in scored)
        assert float(curves[-1][f"val_cer_{name}"]) == pytest.approx(counts[name].cer)
    assert float(curves[-1]["val_cer"]) == pytest.approx((counts["a"] + counts["b"]).cer)


def test_a_training_warns_of_a_video_that_one_pack_trains_on_and_another_validates(
    tmp_path: Path, two: tuple[Packed, Packed], caplog: pytest.LogCaptureFixture
) -> None:
    (_, _, clip_THW, label), *_ = toy_clips(12, 3)
    others = [(f"other_{seed}", "train", toy_clip("一二三", seed), "一二三") for seed in (101, 102, 103)]
    copied = pack_clips(tmp_path / "copied", [*others, ("again", "valid", clip_THW, label)])
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(blend_job(tmp_path, (two[0], copied), num_epochs=1))
    (line,) = [line for line in caplog.messages if "in another split" in line]
    assert line.startswith(
        "train.data: videos in training and in another split, so that the CER is too good: 1"
    )
    assert "a/train_000 (train)" in line and "b/again (valid)" in line and "`pipeline overlap`" in line


def test_very_many_clips_are_not_compared_and_that_is_logged(
    tmp_path: Path,
    two: tuple[Packed, Packed],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_module, "MAX_COMPARED_CLIPS", 17)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(blend_job(tmp_path, two, num_epochs=1))
    assert "18 clips are not searched for copies" in caplog.text and "`pipeline overlap`" in caplog.text


def test_the_search_for_copies_shows_its_rate_and_the_time_left(
    tmp_path: Path, two: tuple[Packed, Packed], capsys: pytest.CaptureFixture[str]
) -> None:
    job = blend_job(tmp_path, two, num_epochs=1)
    machine = job.machine.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    train(replace(job, machine=machine, shown=progress))
    shown = capsys.readouterr().err
    for name, num_clips in (("a", 18), ("b", 10)):
        assert re.search(
            rf"fingerprints of {name}: {num_clips}/{num_clips} clips, \S+ clips/s, 0:00:00 left", shown
        )


def searching(folder: Path, two: tuple[Packed, Packed]) -> list[str]:
    """Returns the log lines of this rank, as if each rank had a machine of its own."""
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    train_module.WAIT_S = 0.0
    job = blend_job(folder, two, num_epochs=1)
    machine = job.machine.model_copy(update={"cache_dir": str(folder / "cache")})
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pipeline.train").addHandler(handler)
    train(replace(job, machine=machine))
    return lines


def test_other_ranks_wait_for_the_search_for_copies_and_say_so(
    tmp_path: Path, two: tuple[Packed, Packed]
) -> None:
    first, second = together(searching, tmp_path, two)
    assert (
        "searching the packs for copies of videos (once; 18 training clips; the other processes wait)"
        in first
    )
    assert second == ["rank 1 waits for rank 0, which searches the packs for copies of videos"]


class Killed(Exception):
    """Ends a training without saving a checkpoint."""


def test_an_interrupted_blend_resumes_bit_identically(
    tmp_path: Path, two: tuple[Packed, Packed], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = blend_job(tmp_path / "whole", two, num_epochs=2)
    train(whole)
    monkeypatch.setattr(train_module, "SAVE_EVERY_S", 0.0)

    def kill(epoch: int, batches_done: int, *_: object) -> None:
        if (epoch, batches_done) == (1, 4):
            raise Killed

    stopped = blend_job(tmp_path / "stopped", two, num_epochs=2)
    with pytest.raises(Killed):
        train(replace(stopped, on_batch=kill))
    begun = []
    train(replace(stopped, on_batch=lambda epoch, done, *_: begun.append((epoch, done))))
    assert begun[0] == (1, 4), "the step after the last saved one"
    assert_same_weights(whole.checkpoints / "best_model.pt", stopped.checkpoints / "best_model.pt")


@pytest.mark.parametrize("weights", [(0.0, 0.0), (2.0, 0.0), (2.0, 1.0)])
def test_a_pack_may_be_only_validated(
    tmp_path: Path, two: tuple[Packed, Packed], weights: tuple[float, float]
) -> None:
    job = blend_job(tmp_path, two, num_epochs=1)
    first, second = (
        replace(pack, weight=weight) for pack, weight in zip(job.packs.packs, weights, strict=True)
    )
    job = replace(job, packs=Packs([replace(second, splits={"train": ()}), first]))
    train(job)
    state = load_checkpoint(job.checkpoints / "best_model.pt")
    assert state["progress"]["curves"][0].keys() >= {"val_cer_a", "val_cer_b"}
    assert list(state["plan_identity"]["blend"]["packs"]) == ["a"]


def test_a_changed_weight_is_named_when_resuming(tmp_path: Path, two: tuple[Packed, Packed]) -> None:
    job = blend_job(tmp_path, two, num_epochs=1)
    train(job)
    heavier = Packs(
        [replace(pack, weight=weight) for pack, weight in zip(job.packs.packs, (1.0, 3.0), strict=True)]
    )
    resumed = replace(
        job,
        packs=heavier,
        runs=tmp_path / "other",
        resume=job.checkpoints / "checkpoint_epoch_0.pt",
        checkpoints=tmp_path / "c",
    )
    with pytest.raises(
        CheckpointError, match=r"(?s)weight of pack b is 3\.0, the checkpoint has 0\.0.*--accept-new"
    ):
        train(resumed)


def test_a_clip_that_is_visited_twice_is_augmented_differently(
    tmp_path: Path, two: tuple[Packed, Packed]
) -> None:
    job = blend_job(tmp_path, two)
    data = TrainingData(job)
    num_rows = data.samples.num_rows
    stream = ShardStream(job.packs.store, data.samples, job.machine)
    (batch,) = stream.batches([np.array([3, 3 + num_rows, 3])])
    video_BCTYX, *_ = training_input(batch, job, data, 0, torch.device("cpu"))
    assert torch.equal(batch.video_BTHW[0], batch.video_BTHW[1])
    assert not torch.equal(video_BCTYX[0], video_BCTYX[1])
    assert torch.equal(video_BCTYX[0], video_BCTYX[2])


def test_packs_of_other_clips_are_refused(tmp_path: Path, two: tuple[Packed, Packed]) -> None:
    faster = pack_clips(tmp_path / "faster", toy_clips(4, 1), fps=50.0)
    with pytest.raises(
        TrainingError, match=r"pack b has clips of 96x96 px at 50 frames/s, pack a of 96x96 px at 25"
    ):
        TrainingData(blend_job(tmp_path, (two[0], faster)))


def test_a_checkpoint_of_one_pack_is_as_before(tmp_path: Path, two: tuple[Packed, Packed]) -> None:
    job = job_in(tmp_path, two[0], num_epochs=1)
    train(job)
    state = load_checkpoint(job.checkpoints / "best_model.pt")
    assert "blend" not in state["plan_identity"]
    assert not [key for key in state["progress"]["curves"][0] if key.startswith("val_cer_")]
