"""Mean and deviation of the gray levels that the network sees, measured on the training shards."""

import math

import numpy as np
import pyarrow as pa
import torch

from model.networks.network_input import SMALLEST_VARIANCE, mean_frame, window_of
from model.settings import ModelParams
from shards.errors import ShardError, TrainingError
from shards.open_shards import OpenShards
from shards.sample_reader import read_sample_of
from shards.store import ShardStore

MEASURED_CLIPS = 200
"""On GRID s1, 200 clips give 0.5732 and 0.1027, all 799 give 0.5736 and 0.1025."""


def with_gray_levels(
    model: ModelParams, store: ShardStore, samples: pa.Table, leave_out_bad: bool = False
) -> ModelParams:
    """`model` with measured `input_mean` and `input_std` where `standardise` says `shards`; else as it is."""
    if model.standardise != "shards":
        return model
    mean, deviation = measured(store, samples, model, leave_out_bad)
    return model.model_copy(update={"input_mean": mean, "input_std": deviation})


def measured(
    store: ShardStore, samples: pa.Table, params: ModelParams, leave_out_bad: bool = False
) -> tuple[float, float]:
    """Mean and deviation of gray levels 0..1 over every pixel of `MEASURED_CLIPS` clips, spread over the table.

    Of the pixels in the network's window, at its size; the deviation is that after `subtract_mean`, the mean is
    the one before. Four significant digits: the same on every machine, whose sums differ further down. Raises
    ShardError where a clip is bad, unless told to leave it out, and TrainingError where none is left.
    """
    rows = np.linspace(0, len(samples) - 1, min(MEASURED_CLIPS, len(samples))).round().astype(int)
    shards = OpenShards(store)
    num_pixels, means, variances = [], [], []
    for row in rows.tolist():
        try:
            clip_THW, _ = read_sample_of(shards, samples.slice(row, 1).to_pylist()[0])
        except ShardError:
            if leave_out_bad:
                continue
            raise
        pixels_1TYX = window_of(torch.tensor(clip_THW)[None], params).double()
        means.append(float(pixels_1TYX.mean()))
        pixels_1TYX -= params.subtract_mean * mean_frame(pixels_1TYX, torch.tensor([len(clip_THW)]))
        variances.append(float(pixels_1TYX.var(correction=0)))
        num_pixels.append(pixels_1TYX.numel())
    if not means:
        raise TrainingError(
            "model.standardise: shards: none of the clips looked at can be read; run `pipeline verify`, or give "
            "model.input_mean and model.input_std with standardise: given"
        )
    mean = np.average(means, weights=num_pixels)
    # within the clips and between them: Chan, Golub and LeVeque 1983, for parts of any size
    left = 1 - params.subtract_mean
    between = np.average((np.array(means) - mean) ** 2, weights=num_pixels) * left**2
    variance = np.average(variances, weights=num_pixels) + between
    return _rounded(mean), _rounded(math.sqrt(max(variance, SMALLEST_VARIANCE)))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
