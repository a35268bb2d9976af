"""The confidence of a label weighs its loss."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.training.training_data import TrainingData
from shards.errors import TrainingError
from shards.files import read_table
from shards.schema import SAMPLES
from stages import train as train_module
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips, with_column
from tests.support.stepping import ALL_HEADS, MODELS, Bench, assert_close, assert_same, stepping_job
from tests.support.trainings import assert_same_weights, job_in

NUM_TRAIN = 21
CONFIDENCE = {
    f"train_{number:03d}": value
    for number, value in enumerate(
        np.random.default_rng(0).uniform(0, 1, NUM_TRAIN).astype(np.float32).tolist()
    )
    if number != 4  # unknown: counts fully
} | {"train_002": 0.0, "train_003": 1.0}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(NUM_TRAIN, 2))


@pytest.mark.parametrize("model", list(MODELS))
def test_a_step_is_the_weighted_mean_of_the_losses_of_single_clips(
    tmp_path: Path, packed: Packed, model: str
) -> None:
    weighted = with_column(packed, tmp_path, "confidence", CONFIDENCE)
    bench = Bench(stepping_job(tmp_path, weighted, MODELS[model], **ALL_HEADS))
    figures = bench(bench.batches([8, 8, 5]))
    plain = Bench(stepping_job(tmp_path, packed, MODELS[model], **ALL_HEADS))
    total, num_chars = torch.zeros(()), 0.0
    for batch in plain.batches([1] * NUM_TRAIN):
        weight = CONFIDENCE.get(batch.clip_ids[0], 1.0)
        total = total + weight * plain.step.batch_loss_B(plain.network, batch, 0)[0]
        num_chars += weight * len(batch.labels[0])
    assert figures.loss_sum == pytest.approx(total.item(), rel=1e-5)
    assert figures.num_chars == pytest.approx(num_chars, rel=1e-6)
    (total / num_chars).backward()
    gradient = {name: p.grad for name, p in plain.network.named_parameters() if p.grad is not None}
    assert_close(bench.gradient, gradient)


def test_batches_and_micro_batches_have_the_gradient_of_one_batch(tmp_path: Path, packed: Packed) -> None:
    job = stepping_job(tmp_path, with_column(packed, tmp_path, "confidence", CONFIDENCE), **ALL_HEADS)
    whole, batches, pieces = Bench(job), Bench(job), Bench(job)
    whole(whole.batches([21]))
    batches(batches.batches([8, 8, 5]))
    pieces.state.progress.piece_frames = 60
    (batch,) = pieces.batches([21])
    pieces([batch])
    assert len(list(pieces.step.micro_batches.pieces(batch))) > 1
    assert_close(batches.gradient, whole.gradient)
    assert_close(pieces.gradient, whole.gradient)


def test_the_label_of_a_clip_of_confidence_0_changes_nothing(tmp_path: Path, packed: Packed) -> None:
    benches = []
    for name, label in (("one", "一二三四"), ("other", "四三")):
        doubted = with_column(packed, tmp_path / name, "label", {"train_002": label})
        doubted = with_column(doubted, tmp_path / name, "confidence", CONFIDENCE)
        benches.append(Bench(stepping_job(tmp_path / name, doubted, **ALL_HEADS)))
    figures = [bench(bench.batches([8, 8, 5])) for bench in benches]
    assert figures[0].loss_sum == pytest.approx(figures[1].loss_sum, rel=1e-6)
    assert figures[0].num_chars == figures[1].num_chars
    assert_close(benches[0].gradient, benches[1].gradient)


def test_full_confidence_trains_the_same_model_bit_for_bit(tmp_path: Path, packed: Packed) -> None:
    certain = with_column(packed, tmp_path, "confidence", dict.fromkeys(CONFIDENCE, 1.0))
    benches = [Bench(stepping_job(tmp_path, one, **ALL_HEADS), batch_norm=True) for one in (packed, certain)]
    for bench in benches:
        bench(bench.batches([8, 8, 5]))
    assert_same(*(bench.everything() for bench in benches))


def test_an_unknown_confidence_is_the_table_and_the_run_of_before(tmp_path: Path, packed: Packed) -> None:
    unknown = with_column(packed, tmp_path, "confidence", {})
    assert unknown.samples.read_bytes() == packed.samples.read_bytes()
    known = with_column(packed, tmp_path / "known", "confidence", {"train_001": 0.5})
    data = [TrainingData(job_in(tmp_path, one)) for one in (packed, unknown, known)]
    assert data[0].plan_identity == data[1].plan_identity != data[2].plan_identity


class Killed(Exception):
    """Ends a training without saving a checkpoint."""


def test_a_training_with_confidences_resumes_bit_identically(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted = with_column(packed, tmp_path, "confidence", CONFIDENCE)
    whole = job_in(tmp_path / "whole", weighted, num_epochs=2)
    train(whole)
    monkeypatch.setattr(train_module, "SAVE_EVERY_S", 0.0)

    def kill(epoch: int, batches_done: int, *_: object) -> None:
        if (epoch, batches_done) == (1, 2):
            raise Killed

    stopped = job_in(tmp_path / "stopped", weighted, num_epochs=2)
    with pytest.raises(Killed):
        train(replace(stopped, on_batch=kill))
    train(stopped)
    assert_same_weights(whole.checkpoints / "best_model.pt", stopped.checkpoints / "best_model.pt")


@pytest.mark.parametrize("wrong", [1.5, -0.25, math.nan, math.inf])
def test_a_confidence_outside_0_to_1_is_refused_with_its_clip(
    tmp_path: Path, packed: Packed, wrong: float
) -> None:
    weighted = with_column(packed, tmp_path, "confidence", CONFIDENCE | {"train_007": wrong})
    assert read_table(weighted.samples, SAMPLES, "pipeline pack")["confidence"].null_count
    with pytest.raises(
        TrainingError, match=r"train_007 .* between 0 and 1 \(got .* 1\); .*`pipeline ingest`"
    ):
        TrainingData(job_in(tmp_path, weighted))


def test_labels_that_all_have_confidence_0_are_refused(tmp_path: Path, packed: Packed) -> None:
    nothing = {f"train_{number:03d}": 0.0 for number in range(NUM_TRAIN)}
    with pytest.raises(TrainingError, match="every training clip has confidence 0"):
        TrainingData(job_in(tmp_path, with_column(packed, tmp_path, "confidence", nothing)))
