"""Measures mean and standard deviation of the network's input pixels on the training shards."""

import math

import numpy as np
import pyarrow as pa
import torch

from model.checkpoints import load_checkpoint, reported_as_modified
from model.networks.network_input import SMALLEST_VARIANCE, mean_frame, window_of
from model.runs import RunFolder
from model.settings import ModelParams
from model.training.last_checkpoint import newest_intact
from model.training.ranks import SINGLE_PROCESS, Ranks
from model.training.training_data import TrainingJob
from shards.errors import ShardError, TrainingError
from shards.open_shards import OpenShards
from shards.sample_reader import read_sample_of
from shards.store import ShardStore

MEASURED_CLIPS = 200
"""GRID s1, windows of 88 px: 200 clips of 8 shards give 0.5740 and 0.1022, all 799 of 9 shards 0.5742 and 0.1025."""
MEASURED_SHARDS = 8
"""Shards that these clips come from. Shards are fetched whole, and pack shuffles clips of all speakers into each."""


def with_pixel_statistics(
    job: TrainingJob, run: RunFolder, samples: pa.Table, ranks: Ranks = SINGLE_PROCESS
) -> ModelParams:
    """Returns `job.model`, with the run's `input_mean` and `input_std` if `standardise` is `shards`.

    A resumed run takes them from its checkpoint, whatever the shards hold now. A fresh run measures them: the first
    rank measures, all ranks get its values, and all ranks must call this. Raises the errors of
    `measure_pixel_statistics`, and CheckpointError.
    """
    model = job.model
    if model.standardise != "shards":
        return model
    levels = (math.nan, math.nan)
    if ranks.is_first:
        levels = _resumed_statistics(job, run) or measure_pixel_statistics(
            job.packs.store, samples, model, leave_out_bad=job.loader.max_bad_fraction > 0
        )
    mean, deviation = ranks.gathered(torch.tensor(levels, dtype=torch.float64))[0].tolist()
    return model.model_copy(update={"input_mean": mean, "input_std": deviation})


def _resumed_statistics(job: TrainingJob, run: RunFolder) -> tuple[float, float] | None:
    """Returns the statistics of the checkpoint that `job` resumes from; None for a new run."""
    if job.resume:
        state, path = load_checkpoint(job.resume, mapped=True), job.resume
    elif found := newest_intact(run, mapped=True):
        state, path, _ = found
    else:
        return None
    with reported_as_modified(path):
        model = ModelParams.model_validate(state["model_params"])
    return model.input_mean, model.input_std


def measure_pixel_statistics(
    store: ShardStore, samples: pa.Table, params: ModelParams, leave_out_bad: bool = False
) -> tuple[float, float]:
    """Returns mean and standard deviation of gray levels 0..1 over the pixels of about `MEASURED_CLIPS` clips.

    Measures the network's window at its input size: the mean before `subtract_mean`, the deviation after it. Both are
    rounded to four significant digits, so that they are equal on all machines. Raises ShardError for a bad clip,
    unless `leave_out_bad` is set, and TrainingError if no clip can be read.
    """
    shards = OpenShards(store)
    num_pixels, means, variances = [], [], []
    for row in measured_rows(samples).tolist():
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
            "model.standardise: shards: none of the sampled clips can be read; run `pipeline verify`, or set "
            "model.input_mean and model.input_std and standardise: given"
        )
    mean = np.average(means, weights=num_pixels)
    # variance within and between the clips: Chan, Golub and LeVeque 1983, for parts of any size
    left = 1 - params.subtract_mean
    between = np.average((np.array(means) - mean) ** 2, weights=num_pixels) * left**2
    variance = np.average(variances, weights=num_pixels) + between
    return _rounded(mean), _rounded(math.sqrt(max(variance, SMALLEST_VARIANCE)))


def measured_rows(samples: pa.Table) -> np.ndarray:
    """Returns the rows to measure: spread over shards that are spread over the table. Small shards: more of them."""
    shard_N = samples["shard"].combine_chunks().dictionary_encode().indices.to_numpy()
    num_shards = int(shard_N.max()) + 1
    wanted = max(MEASURED_SHARDS, math.ceil(MEASURED_CLIPS * num_shards / len(shard_N)))
    rows = np.flatnonzero(np.isin(shard_N, _spread(num_shards, wanted)))
    return rows[_spread(len(rows), MEASURED_CLIPS)]


def _spread(total: int, count: int) -> np.ndarray:
    """Returns at most `count` evenly spread numbers from 0 to `total` - 1."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
