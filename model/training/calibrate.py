"""Calibrates the confidences of a trained model's characters on valid, and stores the scale with the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoints import load_checkpoint, save_checkpoint
from model.decoding.calibration import calibration_error, fit_scale, right_characters
from model.decoding.reader import LipReader
from model.decoding.scoring import score_split
from model.training.training_data import TrainingData, TrainingJob

MOST_CLIPS = 1000
"""A thousand clips have several thousand characters, enough for two numbers."""


def calibrate(
    best: Path, job: TrainingJob, data: TrainingData, device: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    """Adds `confidence_scale` to the checkpoint `best`, unless it has one; None without a CTC head or valid clips.

    Reads valid with the greedy decoder, of more than MOST_CLIPS evenly spread ones. Returns the checkpoint's values.
    """
    state = load_checkpoint(best)
    samples = data.valid_samples
    if "confidence_scale" in state or not samples.num_rows:
        return state
    rows = np.unique(np.linspace(0, samples.num_rows - 1, min(samples.num_rows, MOST_CLIPS)).astype(int))
    clips = score_split(
        LipReader.of_state(state, best, device),
        samples.take(rows),
        job.packs.store,
        batch_size=job.train.batch_size,
        loader=job.loader,
        machine=job.machine,
        decode=job.decode.for_validation(),
        with_confidences=True,
    )
    confidences: list[float] = []
    are_right: list[bool] = []
    for clip in clips:
        if clip.confidences:
            confidences += clip.confidences
            are_right += right_characters(clip.reference, clip.hypothesis)
    scale = fit_scale(confidences, are_right) if confidences else None
    state["confidence_scale"] = None if scale is None else list(scale)
    save_checkpoint(best, state)
    before = calibration_error(confidences, are_right)
    if scale is not None and before is not None:
        after = calibration_error([scale.calibrated(one) for one in confidences], are_right)
        say(
            f"confidence of {len(confidences)} characters of {len(clips)} valid clips calibrated: "
            f"expected calibration error {before:.1%} before, {after:.1%} after"
        )
    return state
