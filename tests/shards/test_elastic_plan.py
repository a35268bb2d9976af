"""However often the number of processes and the batches change within an epoch, each clip is visited once."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shards.elastic_plan import ElasticPlan, PlanShape, Segment, plan_segments
from shards.plan import length_limit, plan_epoch
from shards.settings import LoaderParams
from tests.support.catalogues import like_chinese_lips, table

PARAMS = LoaderParams(frame_budget=400, max_frames=300, window_shards=2)
shapes = st.builds(PlanShape, st.integers(1, 6), st.integers(1, 9), st.integers(1, 3))


def processes(
    samples: pa.Table,
    params: LoaderParams,
    epoch: int,
    shape: PlanShape,
    done: Sequence[Segment],
    world_size: int,
    batch_size: int,
) -> list[ElasticPlan]:
    return [
        plan_segments(samples, params, epoch, shape, done, world_size, rank, batch_size)
        for rank in range(world_size)
    ]


def clips_of(plans: Sequence[ElasticPlan], num_windows: int | None = None) -> list[int]:
    return [
        row
        for plan in plans
        for window in plan.windows[:num_windows]
        for batch in window.batches
        for row in batch.tolist()
    ]


@settings(max_examples=200, deadline=None)
@given(
    num_frames=st.lists(st.integers(1, 400), min_size=1, max_size=80),
    clips_a_shard=st.integers(1, 9),
    params=st.sampled_from(
        [PARAMS, LoaderParams(frame_budget=400, curriculum_frames=100, curriculum_epochs=4)]
    ),
    epoch=st.integers(0, 5),
    parts=st.lists(
        st.tuples(shapes, st.floats(0, 1), st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=5
    ),
)
def test_any_sequence_of_shapes_and_positions_visits_every_clip_once(
    num_frames: list[int],
    clips_a_shard: int,
    params: LoaderParams,
    epoch: int,
    parts: list[tuple[PlanShape, float, int, int]],
) -> None:
    samples = table(num_frames, clips_a_shard)
    limit = length_limit(params, epoch, max(num_frames))
    kept = {row for row, length in enumerate(num_frames) if length <= limit}
    visited: list[int] = []
    done: list[Segment] = []
    for number, (shape, share, world_size, batch_size) in enumerate(parts):
        assume(done or len(kept) >= shape.world_size)
        is_last = number + 1 == len(parts)
        plans = processes(samples, params, epoch, shape, done, world_size, batch_size)
        windows = [[window[:2] + window[-2:] for window in plan.windows] for plan in plans]
        assert all(other == windows[0] for other in windows), "all processes take part in the same steps"
        num_windows = len(windows[0]) if is_last else int(share * len(windows[0]))
        before = len(visited)
        for window in range(num_windows):
            of_window = [row for plan in plans for batch in plan.windows[window].batches for row in batch]
            assert windows[0][window][2:] == (len(visited), len(of_window))
            visited += of_window
        assert len(visited) == before + len(clips_of(plans, num_windows))
        for plan in plans:
            assert max((len(batch) for batch in plan.batches), default=0) <= batch_size
            assert all(
                plan.windows[w].first_step <= s < plan.windows[w].stop_step
                for w in range(len(plan.windows))
                for s in plan.windows[w].steps
            )
        if num_windows and not is_last:
            done.append(Segment(shape, windows[0][num_windows - 1][1] - sum(s.num_steps for s in done)))
    assert max(Counter(visited).values(), default=1) == 1
    left_over = set() if done else set(plans[0].left_out.tolist()) & kept
    assert set(visited) == kept - left_over
    assert plans[0].num_clips == len(visited)
    assert plans[0].num_frames == sum(num_frames[row] for row in visited) <= plans[0].padded_frames


@settings(max_examples=100, deadline=None)
@given(
    num_frames=st.lists(st.integers(1, 200), min_size=6, max_size=80),
    shape=shapes,
    world_size=st.integers(1, 6),
)
def test_the_batches_of_a_step_do_not_depend_on_the_number_of_processes(
    num_frames: list[int], shape: PlanShape, world_size: int
) -> None:
    samples = table(num_frames)
    own = processes(samples, PARAMS, 1, shape, (), shape.world_size, shape.batch_size)
    for rank, plan in enumerate(own):
        expected = plan_epoch(samples, PARAMS, shape.batch_size, 1, shape.world_size, rank)
        assert [b.tolist() for b in plan.batches] == [b.tolist() for b in expected.batches]
        assert (plan.num_frames, plan.padded_frames) == (expected.num_frames, expected.padded_frames)
    others = processes(samples, PARAMS, 1, shape, (), world_size, shape.batch_size)
    for window in range(len(own[0].windows)):
        ours, theirs = (
            sorted(tuple(batch.tolist()) for plan in plans for batch in plan.windows[window].batches)
            for plans in (own, others)
        )
        if len(ours) >= world_size:
            assert ours == theirs, "whole batches, so dropout and batch statistics are the same"
        else:
            assert sorted(chain.from_iterable(ours)) == sorted(chain.from_iterable(theirs))
            empty = sum(not plan.windows[window].batches for plan in others)
            assert empty == max(0, world_size - sum(map(len, ours)))


def test_the_rest_of_an_epoch_needs_few_open_shards_and_little_padding() -> None:
    """Half of an epoch on four processes, the rest on three: like an epoch that was planned for three."""
    samples = table(like_chinese_lips(6_000), clips_a_shard=50)
    params = LoaderParams(frame_budget=8_000, window_shards=4)
    (four,) = {len(p.windows) for p in processes(samples, params, 0, PlanShape(4, 16, 1), (), 4, 16)}
    done = [Segment(PlanShape(4, 16, 1), four // 2)]
    rest = processes(samples, params, 0, PlanShape(3, 16, 1), done, 3, 16)
    whole = processes(samples, params, 0, PlanShape(3, 16, 1), (), 3, 16)
    assert shards_at_once(rest, 50) <= shards_at_once(whole, 50) + 2
    assert rest[0].padding_share == pytest.approx(whole[0].padding_share, abs=0.01)


def test_the_rests_of_many_windows_fill_batches_together() -> None:
    """A step of eight ranks leaves one clip of each of eight shards, which are eight windows of a single rank."""
    samples, params = table([10] * 64, clips_a_shard=8), LoaderParams(frame_budget=400, window_shards=1)
    eight = PlanShape(8, 7, 1)
    epoch = next(e for e in range(9) if plan_segments(samples, params, e, eight).windows[0].num_clips == 56)
    rest = plan_segments(samples, params, epoch, PlanShape(1, 8, 1), [Segment(eight, 1)])
    assert [window.num_clips for window in rest.windows] == [4, 4]


def shards_at_once(plans: Sequence[ElasticPlan], clips_a_shard: int) -> int:
    """Returns the largest number of shards between whose first and last clip a process is at the same time."""
    most = 0
    for plan in plans:
        shard_of = [np.unique(batch // clips_a_shard) for batch in plan.batches]
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for number, shards in enumerate(shard_of):
            for shard in shards.tolist():
                first.setdefault(shard, number)
                last[shard] = number
        change = np.zeros(len(shard_of) + 1, int)
        for shard, number in first.items():
            change[number] += 1
            change[last[shard] + 1] -= 1
        most = max(most, int(change.cumsum().max()))
    return most
