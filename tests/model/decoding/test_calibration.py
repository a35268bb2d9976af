"""Calibration of confidences, against scipy, jiwer and closed forms; and that training stores it with the model."""

import json
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from model.checkpoints import load_checkpoint, save_checkpoint
from model.decoding.calibration import (
    PRIOR,
    UNCALIBRATED,
    ConfidenceScale,
    calibration_error,
    fit_scale,
    logit,
    right_characters,
    sigmoid,
)
from model.decoding.reader import LipReader
from model.settings import DecodeParams
from shards.errors import CheckpointError
from stages.train import train
from tests.support.packed import pack_clips, toy_clip, toy_clips
from tests.support.trainings import job_in, read_test_clips


def drawn(seed: int, num: int, slope: float, offset: float) -> tuple[list[float], list[bool]]:
    """Returns confidences, and characters that are right as often as the scale says."""
    rng = np.random.default_rng(seed)
    confidences = [sigmoid(one) for one in rng.normal(2, 2, num)]
    true = [sigmoid(slope * logit(one) + offset) for one in confidences]
    return confidences, (rng.uniform(size=num) < true).tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 200), st.floats(0.2, 3), st.floats(-2, 2))
def test_the_fit_is_that_of_scipy(seed: int, num: int, slope: float, offset: float) -> None:
    confidences, are_right = drawn(seed, num, slope, offset)
    inputs_N = np.array([logit(one) for one in confidences])
    sign_N = np.where(are_right, 1.0, -1.0)

    def loss(weights: np.ndarray) -> float:
        logits_N = sign_N * (weights[0] * inputs_N + weights[1])
        prior = 0.5 * PRIOR * ((weights[0] - 1) ** 2 + weights[1] ** 2)
        return float(np.logaddexp(0, -logits_N).sum() + prior)

    found = minimize(loss, np.array([1.0, 0.0]), bounds=[(0.01, None), (None, None)], tol=1e-12).x
    ours = fit_scale(confidences, are_right)
    if found[0] > 0.011:
        assert loss(np.array(ours)) <= loss(found) + 1e-6
    else:  # surer characters are wrong more often; a scale cannot turn their order
        assert ours.slope == 0.01


def test_calibrated_confidences_are_right_as_often_as_they_say() -> None:
    confidences, are_right = drawn(0, 20_000, slope=0.4, offset=-0.5)
    scale = fit_scale(confidences, are_right)
    assert scale == pytest.approx((0.4, -0.5), abs=0.05)
    others, others_right = drawn(1, 20_000, slope=0.4, offset=-0.5)
    before = calibration_error(others, others_right)
    after = calibration_error([scale.calibrated(one) for one in others], others_right)
    assert before is not None and after is not None
    assert before > 0.15 and after < 0.015


@given(st.floats(1e-3, 1 - 1e-3), st.floats(0.2, 2), st.floats(-2, 2))
def test_a_calibration_can_be_undone(confidence: float, slope: float, offset: float) -> None:
    scale = ConfidenceScale(slope, offset)
    assert scale.uncalibrated(scale.calibrated(confidence)) == pytest.approx(confidence, rel=1e-6)
    assert UNCALIBRATED.calibrated(confidence) == confidence


def test_a_split_without_errors_keeps_finite_numbers() -> None:
    scale = fit_scale([0.9] * 50, [True] * 50)
    assert 0.9 < scale.calibrated(0.9) < 1 and np.isfinite(scale).all()


def test_the_error_of_known_bins() -> None:
    assert calibration_error([], []) is None
    assert calibration_error([0.75] * 8, [True] * 6 + [False] * 2, num_bins=1) == pytest.approx(0)
    # two bins: 0.5 with none right, 1.0 with all right
    assert calibration_error([1.0, 0.5] * 4, [True, False] * 4, num_bins=2) == pytest.approx(0.25)


@given(st.text("abc", min_size=1, max_size=8), st.text("abc", min_size=1, max_size=8))
def test_right_characters_are_the_hits_of_a_cheapest_alignment(reference: str, hypothesis: str) -> None:
    are_right = right_characters(reference, hypothesis)
    assert len(are_right) == len(hypothesis)
    assert are_right.count(True) == jiwer.process_characters(reference, hypothesis).hits
    rest = iter(reference)
    right = [character for character, is_right in zip(hypothesis, are_right, strict=True) if is_right]
    assert all(character in rest for character in right), "in the order of the reference"


def test_training_stores_the_scale_with_the_model(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, toy_clips(16, 4))
    job = job_in(tmp_path, packed, num_epochs=2)
    train(job)
    best = tmp_path / "checkpoints" / "best_model.pt"
    state = load_checkpoint(best)
    reader = LipReader.from_checkpoint(best, torch.device("cpu"))
    assert reader.confidence_scale == ConfidenceScale(*state["confidence_scale"]) != UNCALIBRATED
    config = json.loads((tmp_path / "checkpoints" / "config.json").read_text("utf-8"))
    assert config["confidence_scale"] == state["confidence_scale"]
    clip_THW, ctc = toy_clip("一二三", 5), DecodeParams(decoder="ctc")
    plain = replace(reader, confidence_scale=UNCALIBRATED).read_clip(clip_THW, ctc).characters
    for ours, raw in zip(reader.read_clip(clip_THW, ctc).characters, plain, strict=True):
        assert ours.confidence == pytest.approx(reader.confidence_scale.calibrated(raw.confidence))
        shares = sum(other.share for other in ours.alternatives)
        assert ours.confidence + shares == pytest.approx(1, abs=0.5) and shares <= 1 - ours.confidence + 1e-9
    before = best.read_bytes()
    train(job)
    assert best.read_bytes() == before, "a finished run is not calibrated again"
    clips = read_test_clips(reader, packed)
    assert all(clip.confidences == () for clip in clips), "only on request"
    for wrong in ([0.0, 1.0], [1.0], "x", [float("nan"), 0.0]):
        save_checkpoint(best, state | {"confidence_scale": wrong})
        with pytest.raises(CheckpointError, match="modified"):
            LipReader.from_checkpoint(best, torch.device("cpu"))
