"""Calibrates confidences of characters: of those with confidence 0.8, eight of ten should be correct. No torch."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from model.metrics import Op, align

MAX_LOGIT = 20.0
PRIOR = 1.0
"""Weight of the wish to change nothing, in characters: without it, a split without errors would have no finite fit."""
NUM_STEPS = 50


class ConfidenceScale(NamedTuple):
    """Turns the logit of a confidence into the logit of the share of correct characters (Platt 1999)."""

    slope: float
    offset: float

    @classmethod
    def of(cls, stored: Any) -> "ConfidenceScale":
        """Returns the scale stored with a model; None: UNCALIBRATED. Raises ValueError or TypeError if it is wrong."""
        if stored is None:
            return UNCALIBRATED
        slope, offset = map(float, stored)
        if not (math.isfinite(slope + offset) and slope > 0):
            raise ValueError(f"confidence_scale {stored} must be a slope above 0 and an offset")
        return cls(slope, offset)

    def calibrated(self, confidence: float) -> float:
        """Returns the calibrated confidence, 0 to 1."""
        if self == UNCALIBRATED:
            return confidence
        return sigmoid(self.slope * logit(confidence) + self.offset)

    def uncalibrated(self, confidence: float) -> float:
        """Returns the confidence that becomes this one by `calibrated`."""
        return sigmoid((logit(confidence) - self.offset) / self.slope)


UNCALIBRATED = ConfidenceScale(1.0, 0.0)


def logit(share: float) -> float:
    """Returns log(share / (1 - share)), within ± MAX_LOGIT."""
    if share <= 0 or share >= 1:
        return math.copysign(MAX_LOGIT, share - 0.5)
    return min(max(math.log(share / (1 - share)), -MAX_LOGIT), MAX_LOGIT)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-min(max(logit, -700.0), 700.0)))


def fit_scale(confidences: Sequence[float], are_right: Sequence[bool]) -> ConfidenceScale:
    """Returns the scale under which the right and wrong characters are most probable, by Newton's method.

    The slope stays above 0, so that surer characters stay surer.
    """
    inputs_N2 = np.stack([[logit(one) for one in confidences], np.ones(len(confidences))], axis=1)
    right_N = np.asarray(are_right, np.float64)
    start = np.array(UNCALIBRATED)
    weights = start.copy()
    for _ in range(NUM_STEPS):
        share_N = 1 / (1 + np.exp(-np.clip(inputs_N2 @ weights, -700, 700)))
        gradient = inputs_N2.T @ (share_N - right_N) + PRIOR * (weights - start)
        curvature = (inputs_N2 * (share_N * (1 - share_N))[:, None]).T @ inputs_N2 + PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # far from the minimum a whole step would overshoot
        weights -= step * min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
        weights[0] = max(weights[0], 0.01)
    return ConfidenceScale(*weights.tolist())


def right_characters(reference: str, hypothesis: str) -> list[bool]:
    """Returns for each character of the hypothesis whether a cheapest alignment pairs it with an equal one."""
    return [part.op is Op.EQUAL for part in align(reference, hypothesis) for _ in part.hypothesis]


def calibration_error(
    confidences: Sequence[float], are_right: Sequence[bool], num_bins: int = 15
) -> float | None:
    """Returns the expected calibration error, 0 to 1; None without characters.

    Mean distance between confidence and share of right characters, over bins with equally many characters (Nguyen and
    O'Connor 2015): confidences are mostly close to 1, where bins of equal width would hold nearly all.
    """
    if not confidences:
        return None
    order = np.argsort(confidences, kind="stable")
    bins = np.array_split(order, min(num_bins, len(confidences)))
    sure_N, right_N = np.asarray(confidences), np.asarray(are_right, np.float64)
    distances = [len(one) * abs(sure_N[one].mean() - right_N[one].mean()) for one in bins]
    return float(sum(distances) / len(confidences))
