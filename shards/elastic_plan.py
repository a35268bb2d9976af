"""The epoch plan of a training whose number of processes or batch size changes.

A plan has a shape. Any number of processes can take its batches: the optimiser steps have the same clips. For another
global batch, the clips of the epoch that are left are planned again in the new shape: the epoch gets another segment.
Everything is a pure function of the samples, the parameters and the segments (shape and number of steps) so far.

Shapes: N clips, B batches, S steps, W ranks of the plan, K windows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from shards.plan import EpochOrder, order_epoch
from shards.settings import LoaderParams


class PlanShape(NamedTuple):
    """How a plan cuts an epoch into optimiser steps."""

    world_size: int
    batch_size: int
    """Clips in a batch, at most."""
    accumulation_steps: int
    """Batches of each rank in an optimiser step."""

    @property
    def global_batch(self) -> int:
        """Clips in an optimiser step, at most."""
        return self.world_size * self.batch_size * self.accumulation_steps

    def __str__(self) -> str:
        processes = "process" if self.world_size == 1 else "processes"
        return (
            f"{self.world_size} {processes} × batch_size {self.batch_size} × accumulation_steps "
            f"{self.accumulation_steps} (global batch {self.global_batch})"
        )


class Segment(NamedTuple):
    """The first `num_steps` steps of a plan for the clips that earlier segments of the epoch have left."""

    shape: PlanShape
    num_steps: int


class Window(NamedTuple):
    """The batches of one optimiser step."""

    first_step: int
    """Steps count from the start of the epoch."""
    stop_step: int
    batches: tuple[np.ndarray, ...]
    """The batches of this process, as row numbers of the plan; empty if there are fewer clips than processes."""
    steps: tuple[int, ...]
    """The step of each of these batches."""
    clips_before: int
    """Clips of the epoch's earlier windows, of all processes."""
    num_clips: int
    """Clips of this window, of all processes."""


@dataclass(frozen=True)
class ElasticPlan:
    """The epoch as one process reads it. All processes have equally many windows."""

    windows: tuple[Window, ...]
    """The windows of the last segment."""
    num_steps: int
    """Steps of all segments."""
    num_clips: int
    """Clips in the batches of all segments and processes."""
    left_out: np.ndarray
    """Rows in no batch: longer than the limit of this epoch or, rarely, left over after equal batches. int64."""
    num_frames: int
    """Frames of the clips in the batches of all segments and processes."""
    padded_frames: int
    """`num_frames` with padding to the longest clip of each batch."""

    @property
    def padding_share(self) -> float:
        return 1 - self.num_frames / self.padded_frames if self.padded_frames else 0.0

    @property
    def batches(self) -> tuple[np.ndarray, ...]:
        """The batches of this process in the last segment."""
        return tuple(batch for window in self.windows for batch in window.batches)


def plan_segments(
    samples: pa.Table,
    params: LoaderParams,
    epoch: int,
    shape: PlanShape,
    done: Sequence[Segment] = (),
    world_size: int = 1,
    rank: int = 0,
    batch_size: int | None = None,
    weights: Mapping[str, float] | None = None,
    usable_N: np.ndarray | None = None,
) -> ElasticPlan:
    """Returns the plan of process `rank` for what the segments `done` have left of `epoch`.

    The batches are dealt to `world_size` processes, in parts of at most `batch_size` clips. If `shape` has the same
    `world_size`, each process gets the batches of its rank. Raises the errors of `order_epoch`.
    """
    orders = order_segments(samples, params, epoch, shape, done, weights, usable_N)
    num_frames_N = samples["num_frames"].to_numpy()
    rows = [order.planned() % samples.num_rows for order, _ in orders]
    (order, last), first_step = orders[-1], sum(segment.num_steps for segment in done)
    return ElasticPlan(
        windows=_dealt(
            order,
            last,
            (first_step, sum(map(len, rows[:-1]))),
            (rank, world_size),
            batch_size or last.batch_size,
        ),
        num_steps=first_step + len(order.first_SW),
        num_clips=sum(map(len, rows)),
        left_out=order.left_out,
        num_frames=sum(int(num_frames_N[row_N].sum()) for row_N in rows),
        padded_frames=sum(int(order.padded_SW.sum()) for order, _ in orders),
    )


def order_segments(
    samples: pa.Table,
    params: LoaderParams,
    epoch: int,
    shape: PlanShape,
    done: Sequence[Segment] = (),
    weights: Mapping[str, float] | None = None,
    usable_N: np.ndarray | None = None,
) -> list[tuple[EpochOrder, PlanShape]]:
    """Returns the batches of each segment of `done` and of the rest of the epoch, with the shape that was used.

    If a rest has too few clips for equally many batches of all ranks, it is planned for one rank with the batches of
    all in a step. So no clip is left over, whatever the shapes.
    """
    orders: list[tuple[EpochOrder, PlanShape]] = []
    for segment, num_steps in [*done, (shape, None)]:
        earlier = [order for order, _ in orders]
        order, used = _order_rest(samples, params, epoch, segment, earlier, weights, usable_N)
        orders.append((order.first_steps(num_steps) if num_steps is not None else order, used))
    return orders


def _order_rest(
    samples: pa.Table,
    params: LoaderParams,
    epoch: int,
    shape: PlanShape,
    earlier: Sequence[EpochOrder],
    weights: Mapping[str, float] | None,
    usable_N: np.ndarray | None,
) -> tuple[EpochOrder, PlanShape]:
    def ordered(shape: PlanShape, visited_N: np.ndarray | None = None) -> EpochOrder:
        return order_epoch(
            samples, params, shape.batch_size, epoch, shape.world_size, weights, visited_N, usable_N
        )

    if not earlier:
        return ordered(shape), shape
    visited_N = np.concatenate([order.planned() for order in earlier])
    num_left = len(earlier[0].row_N) - len(visited_N)
    if num_left == 0:
        return replace(earlier[-1].first_steps(0), row_N=visited_N[:0]), shape
    if num_left >= shape.world_size:
        order = ordered(shape, visited_N)
        if len(order.planned()) == num_left:
            return order, shape
    single = PlanShape(1, shape.batch_size, shape.world_size * shape.accumulation_steps)
    return ordered(single, visited_N), single


def _dealt(
    order: EpochOrder, shape: PlanShape, before: tuple[int, int], process: tuple[int, int], batch_size: int
) -> tuple[Window, ...]:
    """Returns the windows of process (rank, world size); `before` are steps and clips of earlier segments."""
    (first_step, num_before), (rank, world_size) = before, process
    num_steps, num_ranks = order.first_SW.shape
    first_B, stop_B = order.first_SW.ravel(), order.stop_SW.ravel()
    windows = []
    for first in range(0, num_steps, shape.accumulation_steps):
        stop = min(first + shape.accumulation_steps, num_steps)
        all_B = np.arange(first * num_ranks, stop * num_ranks)
        num_clips_B = stop_B[all_B] - first_B[all_B]
        if len(all_B) < world_size or num_clips_B.max() > batch_size:
            batches = [(int(first_B[b]), int(stop_B[b]), int(b) // num_ranks) for b in all_B]
            mine = _parts(batches, batch_size, world_size)[rank::world_size]
        else:
            own_B = all_B[rank::world_size]
            mine = list(
                zip(
                    first_B[own_B].tolist(),
                    stop_B[own_B].tolist(),
                    (own_B // num_ranks).tolist(),
                    strict=True,
                )
            )
        num_clips = int(num_clips_B.sum())
        windows.append(
            Window(
                first_step + first,
                first_step + stop,
                # copies, because a view would keep the order of the whole epoch in memory
                tuple(order.row_N[start:end].copy() for start, end, _ in mine),
                tuple(first_step + step for _, _, step in mine),
                num_before,
                num_clips,
            )
        )
        num_before += num_clips
    return tuple(windows)


def _parts(
    batches: Sequence[tuple[int, int, int]], batch_size: int, world_size: int
) -> list[tuple[int, int, int]]:
    """Cuts batches (first, stop, step) into parts of at most `batch_size` clips, one for each process if possible."""
    parts = []
    for first, stop, step in batches:
        edges = np.linspace(first, stop, -(-(stop - first) // batch_size) + 1).round().astype(int).tolist()
        parts += [(*edge, step) for edge in pairwise(edges)]
    while len(parts) < min(world_size, sum(stop - first for first, stop, _ in parts)):
        largest = max(range(len(parts)), key=lambda number: parts[number][1] - parts[number][0])
        first, stop, step = parts[largest]
        middle = (first + stop) // 2
        parts[largest : largest + 1] = [(first, middle, step), (middle, stop, step)]
    return parts
