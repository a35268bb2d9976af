"""Turns the clips of one super-window of an epoch into batches, the same number for every rank.

Shapes: N clips, S steps, W ranks.
"""

import heapq
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

# Clips are sorted by length times a random factor: neighbours change between epochs, and padding stays low.
LENGTH_NOISE = 0.08

Batch = tuple[int, int]
"""First position of a batch in the sorted clips of its super-window, and the position after its last clip."""


def plan_window(
    row_N: np.ndarray,
    num_frames_N: np.ndarray,
    world_size: int,
    batch_size: int,
    budget: int,
    rng: np.random.Generator,
    pack_N: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns `row_N` in a new order, and for each batch first and stop position in it and the longest clip, S×W.

    If `pack_N` is given, all clips of a batch have the same value of it.
    """
    edge_W1 = part_edges(num_frames_N, world_size, batch_size, budget)
    part_N = np.repeat(np.arange(world_size), np.diff(edge_W1))
    noise_N = rng.uniform(1, 1 + LENGTH_NOISE, len(row_N))
    pack_N = np.zeros(len(row_N), np.int8) if pack_N is None else pack_N
    order_N = np.lexsort((num_frames_N * noise_N, pack_N, part_N))
    row_N, num_frames_N = row_N[order_N], num_frames_N[order_N]
    new_pack_N = np.flatnonzero(np.diff(pack_N[order_N])) + 1
    of_rank = []
    for first, stop in zip(edge_W1[:-1].tolist(), edge_W1[1:].tolist(), strict=True):
        edges = [first, *new_pack_N[(first < new_pack_N) & (new_pack_N < stop)].tolist(), stop]
        of_rank.append(
            [batch for run in pairwise(edges) for batch in cut(num_frames_N, *run, batch_size, budget)]
        )
    batch_WS2 = np.array(even_out(of_rank, rng), np.int64)
    first_WS, stop_WS = batch_WS2[..., 0], batch_WS2[..., 1]
    longest_WS = _longest(num_frames_N, first_WS, stop_WS)
    by_length = np.argsort(longest_WS, axis=1, kind="stable")[:, rng.permutation(first_WS.shape[1])]
    first_SW, stop_SW, longest_SW = (
        np.take_along_axis(value_WS, by_length, axis=1).T for value_WS in (first_WS, stop_WS, longest_WS)
    )
    return row_N, first_SW, stop_SW, longest_SW


def part_edges(num_frames_N: np.ndarray, world_size: int, batch_size: int, budget: int) -> np.ndarray:
    """Returns edges that cut the clips into one run for each rank, of equal cost up to one clip, never empty.

    The cost of a clip is its share of a batch of clips of the same length.
    """
    num_clips = len(num_frames_N)
    cost_N = 1 / np.minimum(batch_size, budget // num_frames_N)
    end_N = np.cumsum(cost_N)
    wanted_W = np.arange(world_size) * (end_N[-1] / world_size)
    edge_W = np.searchsorted(end_N - cost_N / 2, wanted_W)
    # at least one clip for each rank: the previous edge pushes up, then the end pushes down
    each_W = np.arange(world_size)
    edge_W = np.maximum.accumulate(edge_W - each_W) + each_W
    edge_W = np.minimum(edge_W, num_clips - world_size + each_W)
    return np.append(edge_W, num_clips)


def cut(num_frames_N: np.ndarray, first: int, stop: int, batch_size: int, budget: int) -> list[Batch]:
    """Cuts the positions from `first` to `stop` into runs of at most `batch_size` clips and `budget` padded frames.

    A clip over the budget gets a batch of its own.
    """
    counts = np.arange(1, min(batch_size, stop - first) + 1)
    batches = []
    while first < stop:
        at_most = min(batch_size, budget // int(num_frames_N[first]), stop - first)
        num_clips = 1
        if at_most > 1:
            longest = np.maximum.accumulate(num_frames_N[first : first + at_most])
            num_clips = int(np.count_nonzero(longest * counts[:at_most] <= budget))
        batches.append((first, first + num_clips))
        first += num_clips
    return batches


def even_out(of_rank: Sequence[list[Batch]], rng: np.random.Generator) -> list[list[Batch]]:
    """Gives every rank the same number of batches. Leaves out no clip, or in rare cases fewer clips than ranks.

    Ranks with fewer batches halve their largest. If a rank has too few clips for that, the batches of all ranks
    are halved until their number is a multiple of the ranks, and distributed again. If all batches have one clip
    and their number is still no multiple, the remainder is left out.
    """
    num_steps = max(map(len, of_rank))
    if all(batches[-1][1] - batches[0][0] >= num_steps for batches in of_rank):
        return [_halved(batches, num_steps) for batches in of_rank]
    world_size = len(of_rank)
    together = [batch for batches in of_rank for batch in batches]
    num_clips = sum(stop - first for first, stop in together)
    together = _halved(together, min(num_clips, -(-len(together) // world_size) * world_size))
    surplus = set(rng.choice(len(together), len(together) % world_size, replace=False).tolist())
    together = [batch for number, batch in enumerate(together) if number not in surplus]
    num_steps = len(together) // world_size
    return [together[first : first + num_steps] for first in range(0, len(together), num_steps)]


def _halved(batches: list[Batch], num_batches: int) -> list[Batch]:
    """Halves the batches with the most clips until there are `num_batches`; returns all, in order."""
    if len(batches) == num_batches:
        return batches
    by_size = [(first - stop, first, stop) for first, stop in batches]
    heapq.heapify(by_size)
    while len(by_size) < num_batches:
        _, first, stop = by_size[0]
        middle = (first + stop) // 2
        assert first < middle, "there are enough clips for this number of batches"
        heapq.heapreplace(by_size, (first - middle, first, middle))
        heapq.heappush(by_size, (middle - stop, middle, stop))
    return sorted((first, stop) for _, first, stop in by_size)


def _longest(num_frames_N: np.ndarray, first_WS: np.ndarray, stop_WS: np.ndarray) -> np.ndarray:
    """Returns the frames of the longest clip of each batch; clips between two batches belong to neither."""
    edges = np.stack([first_WS, stop_WS], axis=-1).ravel()
    padded = np.append(num_frames_N, 0)
    return np.maximum.reduceat(padded, edges)[::2].reshape(first_WS.shape)
