"""Mean and deviation of the gray levels that the network sees, measured on the training shards."""

import math

import numpy as np
import pyarrow as pa
import torch

from model.checkpoint_errors import reported_as_modified
from model.checkpoints import load_checkpoint
from model.networks.network_input import SMALLEST_VARIANCE, mean_frame, window_of
from model.runs import RunFolder
from model.settings import ModelParams
from model.training.job import TrainingJob
from model.training.last_checkpoint import newest_intact
from model.training.ranks import SINGLE_PROCESS, Ranks
from shards.errors import ShardError, TrainingError
from shards.open_shards import OpenShards
from shards.sample_reader import read_sample_of
from shards.store import ShardStore

MEASURED_CLIPS = 200
"""On GRID s1, windows of 88 px, 200 clips of 8 shards give 0.5740 and 0.1022, all 799 of 9 give 0.5742 and 0.1025."""
MEASURED_SHARDS = 8
"""That these clips come from: shards are fetched whole, and each holds clips of all speakers, shuffled by pack."""


def with_pixel_statistics(
    job: TrainingJob, run: RunFolder, samples: pa.Table, ranks: Ranks = SINGLE_PROCESS
) -> ModelParams:
    """`job.model` with the run's `input_mean` and `input_std` where `standardise` says `shards`; else as it is.

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
            job.shards, samples, model, leave_out_bad=job.loader.max_bad_fraction > 0
        )
    mean, deviation = ranks.gathered(torch.tensor(levels, dtype=torch.float64))[0].tolist()
    return model.model_copy(update={"input_mean": mean, "input_std": deviation})


def _resumed_statistics(job: TrainingJob, run: RunFolder) -> tuple[float, float] | None:
    """Those of the checkpoint that `job` goes on from; None where it starts afresh."""
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
    """Mean and deviation of gray levels 0..1 over every pixel of about `MEASURED_CLIPS` clips.

    Of the pixels in the network's window, at its size; the deviation is that after `subtract_mean`, the mean is
    the one before. Four significant digits: the same on every machine, whose sums differ further down. Raises
    ShardError where a clip is bad, unless told to leave it out, and TrainingError where none is left.
    """
    shards = OpenShards(store)
    num_pixels, means, variances = [], [], []
    for row in _measured_rows(samples).tolist():
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


def _measured_rows(samples: pa.Table) -> np.ndarray:
    """Rows of the clips measured: spread over shards that are spread over the table; small shards, more of them."""
    shard_N = samples["shard"].combine_chunks().dictionary_encode().indices.to_numpy()
    num_shards = int(shard_N.max()) + 1
    wanted = max(MEASURED_SHARDS, math.ceil(MEASURED_CLIPS * num_shards / len(shard_N)))
    rows = np.flatnonzero(np.isin(shard_N, _spread(num_shards, wanted)))
    return rows[_spread(len(rows), MEASURED_CLIPS)]


def _spread(total: int, count: int) -> np.ndarray:
    """At most `count` of the numbers below `total`, from the first to the last."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
