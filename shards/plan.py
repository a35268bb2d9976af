"""The epoch plan: which clips stand in which batch, computed before a byte of video is read.

A pure function of (samples, seed, epoch, world size, loader parameters). A position in it (epoch, step) is
all that resume needs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.errors import ConfigError, TrainingError
from shards.files import fingerprint, read_table
from shards.settings import LoaderParams

PLAN_VERSION = 1
# Clips are sorted by length times a random factor: neighbours vary from epoch to epoch, padding stays low.
LENGTH_NOISE = 0.08


@dataclass(frozen=True)
class EpochPlan:
    """Batches of one rank, as row numbers into the split's samples table."""

    batches: tuple[np.ndarray, ...]
    left_out: np.ndarray
    """Rows in no batch of this epoch, for no rank: longer than loader.max_frames, or more than come out even."""
    num_frames: int
    """Frames of the clips in all ranks' batches."""
    padded_frames: int
    """The same with padding to the longest clip of each batch."""

    @property
    def padding_share(self) -> float:
        return 1 - self.num_frames / self.padded_frames if self.padded_frames else 0.0


def read_samples(samples_path: Path, split: str) -> pa.Table:
    """The rows of one split in the order of the table; ConfigError where there are none."""
    table = read_table(samples_path, schema.SAMPLES, "pipeline pack")
    chosen = table.filter(pc.equal(table["split"], split))
    if chosen.num_rows == 0:
        splits = sorted(set(table["split"].to_pylist()))
        raise ConfigError(f"{samples_path} has no samples of split '{split}'; it has {splits}")
    return chosen


def splits_of(samples_path: Path) -> set[str]:
    """The splits that have samples."""
    return set(read_table(samples_path, schema.SAMPLES, "pipeline pack")["split"].to_pylist())


def samples_hash(samples: pa.Table) -> str:
    """Identity of what is learnt from: clip ids, payload hashes, lengths and labels, in table order."""
    columns = ["clip_id", "sha256", "num_frames", "label", "shard", "sample_offset"]
    return fingerprint(*(samples[name].to_pylist() for name in columns))


def plan_hash(samples: pa.Table, params: LoaderParams, batch_size: int, world_size: int = 1) -> str:
    """Two runs with one plan hash see the same batches in the same order, epoch by epoch."""
    return fingerprint(PLAN_VERSION, samples_hash(samples), params.model_dump(), batch_size, world_size)


def plan_epoch(
    samples: pa.Table,
    params: LoaderParams,
    batch_size: int,
    epoch: int,
    world_size: int = 1,
    rank: int = 0,
) -> EpochPlan:
    """The batches of `rank` in `epoch`, in order; every rank gets the same number.

    Shards are shuffled; the samples of `window_shards` of them are shuffled together, sorted by length up to
    a random factor and cut into batches of at most `batch_size` clips and `frame_budget` padded frames;
    the window's batches are shuffled. Raises TrainingError where a clip is longer than the budget or
    there are fewer clips than ranks.
    """
    rng = np.random.default_rng([params.seed, epoch])
    num_frames_N = samples["num_frames"].to_numpy()
    kept = num_frames_N <= params.max_frames if params.max_frames else np.ones(len(num_frames_N), dtype=bool)
    rows = np.flatnonzero(kept)
    _refuse_over_budget(samples, rows, num_frames_N, params.frame_budget)
    batches: list[np.ndarray] = []
    for window in _windows(samples, rows, params.window_shards, rng):
        noise = rng.uniform(1, 1 + LENGTH_NOISE, len(window))
        ordered = window[np.argsort(num_frames_N[window] * noise, kind="stable")]
        cut = _cut(ordered, num_frames_N, batch_size, params.frame_budget)
        batches += [cut[i] for i in rng.permutation(len(cut))]
    batches, uneven = _even_out(batches, world_size)
    return EpochPlan(
        batches=tuple(batches[rank::world_size]),
        left_out=np.concatenate([np.flatnonzero(~kept), *uneven]).astype(np.int64),
        num_frames=sum(int(num_frames_N[batch].sum()) for batch in batches),
        padded_frames=sum(int(num_frames_N[batch].max()) * len(batch) for batch in batches),
    )


def plan_scoring(samples: pa.Table, params: LoaderParams, batch_size: int) -> tuple[np.ndarray, ...]:
    """Batches for scoring: every clip of the split once, whatever its length, shortest first."""
    num_frames_N = samples["num_frames"].to_numpy()
    ordered = np.argsort(num_frames_N, kind="stable")
    return tuple(_cut(ordered, num_frames_N, batch_size, params.frame_budget))


def _refuse_over_budget(samples: pa.Table, rows: np.ndarray, num_frames_N: np.ndarray, budget: int) -> None:
    over = rows[num_frames_N[rows] > budget]
    if len(over):
        worst = over[np.argmax(num_frames_N[over])]
        raise TrainingError(
            f"{len(over)} clips are longer than loader.frame_budget {budget}, the longest is "
            f"{samples['clip_id'][int(worst)].as_py()} with {num_frames_N[worst]} frames; raise the budget, "
            "or leave such clips out with loader.max_frames"
        )


def _windows(
    samples: pa.Table, rows: np.ndarray, window_shards: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """The rows of groups of `window_shards` shuffled shards, shuffled within each group."""
    _, shard_N = np.unique(samples["shard"].to_numpy(zero_copy_only=False), return_inverse=True)
    shard_order = rng.permutation(shard_N.max() + 1) if len(shard_N) else np.empty(0, dtype=int)
    window_of_shard = np.empty_like(shard_order)
    window_of_shard[shard_order] = np.arange(len(shard_order)) // window_shards
    shuffled = rng.permutation(rows)
    window_N = window_of_shard[shard_N[shuffled]]
    grouped = shuffled[np.argsort(window_N, kind="stable")]
    edges = np.flatnonzero(np.diff(np.sort(window_N))) + 1
    return [window for window in np.split(grouped, edges) if len(window)]


def _cut(ordered: np.ndarray, num_frames_N: np.ndarray, batch_size: int, budget: int) -> list[np.ndarray]:
    """Cuts `ordered` into runs of at most `batch_size` clips and `budget` padded frames.

    A clip over the budget gets a batch of its own.
    """
    batches, first, longest = [], 0, 0
    for position, row in enumerate(ordered):
        longest_with_row = max(longest, int(num_frames_N[row]))
        count = position - first
        if count and (count == batch_size or longest_with_row * (count + 1) > budget):
            batches.append(ordered[first:position])
            first, longest_with_row = position, int(num_frames_N[row])
        longest = longest_with_row
    if first < len(ordered):
        batches.append(ordered[first:])
    return batches


def _even_out(batches: list[np.ndarray], world_size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Batches that come out even over the ranks, and those left out for it.

    The batches of most clips are halved; where all hold one clip, the last few are left out of the epoch (other
    ones in the next). Raises TrainingError where there are fewer clips than ranks.
    """
    batches = list(batches)
    num_clips = sum(map(len, batches))
    if batches and num_clips < world_size:
        raise TrainingError(f"{num_clips} clips cannot be spread over {world_size} ranks; use fewer ranks")
    while len(batches) % world_size:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batch = batches[largest]
        if len(batch) < 2:
            even = len(batches) - len(batches) % world_size
            return batches[:even], batches[even:]
        batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return batches, []
