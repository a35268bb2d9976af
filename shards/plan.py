"""The epoch plan: the clips of every batch of every rank, computed before any video is read.

It is a pure function of samples, seed, epoch, world size and loader parameters, so each rank computes its own plan.
To resume, a run needs only its position (epoch, step).

A table with the column `corpus` (`shards.packs`) holds several packs. Then an epoch may visit a clip more than once:
a plan has the number `visit * N + row` for it (shards/blend.py).

Shapes: N clips, B batches, S steps, W ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.blend import IS_LABELLED, blended_windows, packs_of
from shards.epoch_shuffle import cut, plan_window
from shards.errors import TableError, TrainingError
from shards.plan_identity import PlanIdentity
from shards.settings import LoaderParams

PLAN_VERSION = 2


@dataclass(frozen=True)
class EpochPlan:
    """Batches of one rank, as row numbers into the split's samples table (`visit * N + row` for several packs)."""

    batches: tuple[np.ndarray, ...]
    left_out: np.ndarray
    """Rows longer than the limit of this epoch and, rarely, visits left over after equal batches. int64."""
    num_clips: int
    """Clips in all ranks' batches; a clip that is visited twice counts twice."""
    num_frames: int
    """Frames of the clips in all ranks' batches."""
    padded_frames: int
    """`num_frames` with padding to the longest clip of each batch."""

    @property
    def padding_share(self) -> float:
        return 1 - self.num_frames / self.padded_frames if self.padded_frames else 0.0


@dataclass(frozen=True)
class EpochOrder:
    """Batches of all ranks: at step s rank w has the rows `row_N[first_SW[s, w] : stop_SW[s, w]]`; all int64."""

    row_N: np.ndarray
    first_SW: np.ndarray
    stop_SW: np.ndarray
    longest_SW: np.ndarray
    """Frames of the longest clip of each batch."""
    left_out: np.ndarray
    num_frames: int
    """Frames of the clips in all batches."""

    def batches(self, rank: int) -> tuple[np.ndarray, ...]:
        """Returns the batches of one rank, in the order of the steps."""
        edges = zip(self.first_SW[:, rank].tolist(), self.stop_SW[:, rank].tolist(), strict=True)
        # copies, because a view would keep the order of the whole epoch in memory
        return tuple(self.row_N[first:stop].copy() for first, stop in edges)

    def first_steps(self, num_steps: int) -> "EpochOrder":
        """Returns the order without the batches after `num_steps` steps."""
        first_SW, stop_SW = self.first_SW[:num_steps], self.stop_SW[:num_steps]
        return replace(self, first_SW=first_SW, stop_SW=stop_SW, longest_SW=self.longest_SW[:num_steps])

    def planned(self) -> np.ndarray:
        """Returns the row numbers in all batches, without those left over after equal batches."""
        edges_N = np.zeros(len(self.row_N) + 1, np.int64)
        edges_N[self.first_SW] += 1
        edges_N[self.stop_SW] -= 1
        return self.row_N[np.cumsum(edges_N[:-1]) > 0]

    @property
    def padded_SW(self) -> np.ndarray:
        """Frames of each batch including padding: the cost of a step for a rank."""
        return self.longest_SW * (self.stop_SW - self.first_SW)


def plan_identity(
    samples: str,
    params: LoaderParams,
    batch_size: int,
    world_size: int = 1,
    blend: dict[str, Any] | None = None,
) -> PlanIdentity:
    """Returns everything that the plans of all epochs depend on; `samples` is their `samples_hash`.

    `blend` describes the packs if there are several, or if a condition selects clips (`Packs.blend_of`).
    """
    loader = params.recorded()
    del loader["max_bad_fraction"]
    return PlanIdentity(PLAN_VERSION, samples, loader, batch_size, world_size, blend)


def length_limit(params: LoaderParams, epoch: int, longest: int) -> int:
    """Returns the maximum number of frames of a clip in `epoch`; `longest` is the length of the longest clip.

    Rises linearly from curriculum_frames in epoch 0 to max_frames (or to `longest` if max_frames is 0) in epoch
    curriculum_epochs, then stays constant.
    """
    full = params.max_frames or longest
    if epoch >= params.curriculum_epochs or params.curriculum_frames >= full:
        return full
    return params.curriculum_frames + (full - params.curriculum_frames) * epoch // params.curriculum_epochs


def plan_epoch(
    samples: pa.Table,
    params: LoaderParams,
    batch_size: int,
    epoch: int,
    world_size: int = 1,
    rank: int = 0,
    weights: Mapping[str, float] | None = None,
) -> EpochPlan:
    """Returns the batches of `rank` in `epoch`, in order; every rank gets the same number. See `order_epoch`.

    `samples` needs the columns clip_id, num_frames and shard, and corpus for several packs. Raises TrainingError if a
    clip that takes part in any epoch is longer than the frame budget, or if there are fewer clips than ranks.
    """
    assert 0 <= rank < world_size
    order = order_epoch(samples, params, batch_size, epoch, world_size, weights)
    return EpochPlan(
        batches=order.batches(rank),
        left_out=order.left_out,
        num_clips=int((order.stop_SW - order.first_SW).sum()),
        num_frames=order.num_frames,
        padded_frames=int(order.padded_SW.sum()),
    )


def order_epoch(
    samples: pa.Table,
    params: LoaderParams,
    batch_size: int,
    epoch: int,
    world_size: int = 1,
    weights: Mapping[str, float] | None = None,
    visited_N: np.ndarray | None = None,
) -> EpochOrder:
    """Returns the batches of all ranks in `epoch`.

    Clips longer than the limit of the epoch are left out. The shards are shuffled and cut into super-windows of
    about `window_shards` for each rank. In a super-window each rank gets a run of neighbouring shards, with about
    the same number of batches for all. Its clips are sorted by length times a random factor and cut into batches of
    at most `batch_size` clips and `frame_budget` padded frames. Ranks with fewer batches halve their largest. Then
    the steps are shuffled in the same way for all ranks, so at each step all ranks have clips of similar length.

    Each of several packs gets its share of the epoch by `weights` (pack's name → weight) or loader.temperature; parts
    of their shards take turns in proportion to the shares. With loader.mix `epoch`, a batch has the clips of one pack.
    `visited_N` are the numbers of clips that were in earlier batches of the epoch (shards/elastic_plan.py): only the
    others are planned.
    """
    rng = np.random.default_rng([params.seed, epoch])
    num_frames_N = _lengths(samples)
    longest = int(num_frames_N.max(initial=0))
    _refuse_over_budget(samples, num_frames_N, params.max_frames or longest, params.frame_budget)
    limit = length_limit(params, epoch, longest)
    kept_N = num_frames_N <= limit
    if (num_kept := int(kept_N.sum())) < world_size:
        raise TrainingError(
            f"epoch {epoch} has {num_kept} clips of at most {limit} frames, too few for {world_size} ranks; "
            "use fewer ranks, or raise loader.curriculum_frames or loader.max_frames"
        )
    shard_N, num_rows = shard_numbers(samples), samples.num_rows
    if {"corpus", IS_LABELLED.name} & {*samples.column_names} or params.epoch_clips:
        windows = blended_windows(samples, shard_N, kept_N, params, weights or {}, epoch, world_size, rng)
    else:
        windows = _super_windows(shard_N, kept_N, params.window_shards, world_size, rng)
    pack_N = packs_of(samples)[1] if params.mix == "epoch" else None
    rows, parts, left_out, base, num_frames = [], [], [np.flatnonzero(~kept_N)], 0, 0
    if visited_N is not None:
        windows = _not_visited(list(windows), visited_N, world_size)
    for row_N in windows:
        ordered_N, first_SW, stop_SW, longest_SW = plan_window(
            row_N,
            num_frames_N[row_N % num_rows],
            world_size,
            batch_size,
            params.frame_budget,
            rng,
            None if pack_N is None else pack_N[row_N % num_rows],
        )
        num_frames += int(num_frames_N[ordered_N % num_rows].sum())
        if (stop_SW - first_SW).sum() < len(row_N):
            is_used_N = np.zeros(len(row_N), bool)
            for first, stop in zip(first_SW.ravel(), stop_SW.ravel(), strict=True):
                is_used_N[first:stop] = True
            surplus = ordered_N[~is_used_N] % num_rows
            num_frames -= int(num_frames_N[surplus].sum())
            left_out.append(surplus)
        rows.append(ordered_N)
        parts.append((first_SW + base, stop_SW + base, longest_SW))
        base += len(row_N)
    first_SW, stop_SW, longest_SW = (np.concatenate(matrices) for matrices in zip(*parts, strict=True))
    return EpochOrder(
        np.concatenate(rows), first_SW, stop_SW, longest_SW, np.concatenate(left_out), num_frames
    )


def plan_scoring(samples: pa.Table, params: LoaderParams, batch_size: int) -> tuple[np.ndarray, ...]:
    """Returns batches for scoring: every clip of the split once, also long ones, shortest first."""
    num_frames_N = _lengths(samples)
    row_N = np.argsort(num_frames_N, kind="stable")
    batches = cut(num_frames_N[row_N], 0, len(row_N), batch_size, params.frame_budget)
    return tuple(row_N[first:stop] for first, stop in batches)


def _lengths(samples: pa.Table) -> np.ndarray:
    num_frames_N = samples["num_frames"].to_numpy().astype(np.int64)
    if num_frames_N.min(initial=1) < 1:
        shortest = samples["clip_id"][int(np.argmin(num_frames_N))].as_py()
        raise TableError(f"clip {shortest} of samples.parquet has no frames; run `pipeline pack` again")
    return num_frames_N


def _refuse_over_budget(samples: pa.Table, num_frames_N: np.ndarray, limit: int, budget: int) -> None:
    over = np.flatnonzero((num_frames_N <= limit) & (num_frames_N > budget))
    if len(over):
        worst = over[np.argmax(num_frames_N[over])]
        raise TrainingError(
            f"{len(over)} clips are longer than loader.frame_budget {budget}, the longest is "
            f"{samples['clip_id'][int(worst)].as_py()} with {num_frames_N[worst]} frames; raise loader.frame_budget, "
            "or leave out long clips with loader.max_frames"
        )


def shard_numbers(samples: pa.Table) -> np.ndarray:
    """Returns the index of each row's shard in the sorted names, for any encoding and chunks of the column."""
    column = samples["shard"]
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    code_N = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])
    names = column.chunk(0).dictionary
    used = np.flatnonzero(np.bincount(code_N, minlength=len(names)))
    number_of_code = np.zeros(len(names), np.int64)
    number_of_code[used] = pc.rank(names.take(pa.array(used)), tiebreaker="dense").to_numpy() - 1
    return number_of_code[code_N]


def _super_windows(
    shard_N: np.ndarray, kept_N: np.ndarray, window_shards: int, world_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yields the kept rows of each group of shuffled shards: shard by shard, in table order within a shard."""
    row_N = np.flatnonzero(kept_N)
    row_N = row_N[np.argsort(shard_N[row_N], kind="stable")]
    edges = np.concatenate([[0], np.cumsum(np.bincount(shard_N[row_N]))])
    shards = rng.permutation(np.flatnonzero(np.diff(edges)))
    # equal groups, as close to window_shards for each rank as possible; as many shards as ranks, if there are enough
    wanted = round(len(shards) / (window_shards * world_size))
    num_windows = max(1, min(wanted, len(shards) // world_size))
    for window in np.array_split(shards, num_windows):
        yield np.concatenate([row_N[edges[shard] : edges[shard + 1]] for shard in window])


def _not_visited(
    windows: Sequence[np.ndarray], visited_N: np.ndarray, world_size: int
) -> Iterator[np.ndarray]:
    """Yields super-windows without the numbers in `visited_N`; small rests are joined with the next window."""
    is_visited_N = np.zeros(1 + max(int(window.max()) for window in windows), bool)
    is_visited_N[visited_N] = True
    half = sum(map(len, windows)) // (2 * len(windows))
    joined = [windows[0][:0]]
    for window in windows:
        if len(joined[-1]) >= max(half, world_size):
            joined.append(window[:0])
        joined[-1] = np.concatenate([joined[-1], window[~is_visited_N[window]]])
    if len(joined[-1]) < world_size and len(joined) > 1:
        joined[-2:] = [np.concatenate(joined[-2:])]
    yield from joined
