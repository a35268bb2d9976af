"""Training on labelled and unlabelled clips: hidden labels are never learnt, and a run resumes bit-identically."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.checkpoints import load_checkpoint
from model.training.training_data import TrainingData, TrainingJob
from shards.errors import Interrupted
from shards.settings import LoaderParams
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import stopping_at
from tests.support.trainings import assert_same_weights, job_in, weights

Hidden = Callable[[str], str]


def packed_in(folder: Path, hidden: Hidden = lambda label: label) -> Packed:
    """Packs 12 labelled and 8 unlabelled clips; `hidden` changes the labels of the unlabelled ones."""
    raw = [
        (f"raw_{n}", "unlabelled", clip, hidden(label))
        for n, (_, _, clip, label) in enumerate(toy_clips(8, 0, seed=9))
    ]
    return pack_clips(folder, [*toy_clips(12, 3), *raw])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed_in(tmp_path_factory.mktemp("packed"))


def job_of(folder: Path, packed: Packed, share: float = 0.5, **changes: object) -> TrainingJob:
    job = job_in(folder, packed, num_epochs=2, **changes)
    return replace(job, loader=LoaderParams(frame_budget=200, unlabelled_share=share))


def test_labels_of_unlabelled_clips_are_empty_and_count_nothing(tmp_path: Path, packed: Packed) -> None:
    data = TrainingData(job_of(tmp_path, packed))
    stream, _ = data.streams(pin_memory=False)
    num_rows = data.samples.num_rows
    (batch,) = stream.batches([np.array([0, 12, 19, 12 + num_rows, 11])])
    labels, weight_B = data.labels_of(batch)
    assert labels == (batch.labels[0], "", "", "", batch.labels[4]) and all(batch.labels)
    assert weight_B.tolist() == [1, 0, 0, 0, 1]
    assert data.num_chars(batch) == len(batch.labels[0]) + len(batch.labels[4])


def test_hidden_labels_change_nothing(tmp_path: Path, packed: Packed) -> None:
    """Not the vocabulary, the loss or the weights; also a label too long for its video is not refused."""
    other = packed_in(tmp_path / "other", lambda label: "新" * 500)
    train(job_of(tmp_path / "a", packed))
    train(job_of(tmp_path / "b", other))
    train(job_of(tmp_path / "c", packed, share=0.0))
    ours, theirs, without = (weights(tmp_path / name / "checkpoints/checkpoint_epoch_1.pt") for name in "abc")
    assert ours.keys() == theirs.keys() == without.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert any((ours[name] != without[name]).any() for name in ours), (
        "unlabelled clips change batch statistics"
    )
    curves = load_checkpoint(tmp_path / "a/checkpoints/checkpoint_epoch_1.pt")["progress"]["curves"]
    assert all(np.isfinite(row["train_loss"]) and row["train_loss"] > 0 for row in curves)


def test_an_interrupted_training_resumes_bit_identically(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_of(tmp_path / "whole", packed))
    assert "An epoch visits 12 clips (50.0 %), which has 12" in caplog.text
    assert "An epoch visits 12 unlabelled clips (50.0 %), which has 8" in caplog.text
    stopped = job_of(tmp_path / "stopped", packed)
    with pytest.raises(Interrupted):
        train(stopping_at(stopped, 1, 2))
    train(stopped)
    assert_same_weights(*(tmp_path / name / "checkpoints/best_model.pt" for name in ("whole", "stopped")))
