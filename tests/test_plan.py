"""The epoch plan is a pure function that loses no clip."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import TrainingError
from shards.plan import EpochPlan, plan_epoch, plan_hash, plan_scoring
from shards.settings import LoaderParams


def table(num_frames: list[int], clips_a_shard: int = 7) -> pa.Table:
    n = len(num_frames)
    return pa.table(
        {
            "clip_id": [f"c{i}" for i in range(n)],
            "sha256": [f"{i:064x}" for i in range(n)],
            "num_frames": num_frames,
            "label": ["字"] * n,
            "shard": [f"train/train-{i // clips_a_shard:06d}.tar" for i in range(n)],
            "sample_offset": list(range(n)),
        }
    )


lengths = st.lists(st.integers(1, 400), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 16), st.integers(0, 5), st.integers(1, 4), st.integers(1, 3))
def test_every_clip_stands_in_one_batch_within_the_limits(
    num_frames: list[int], batch_size: int, epoch: int, world_size: int, window: int
) -> None:
    samples, params = table(num_frames), LoaderParams(frame_budget=400, max_frames=300, window_shards=window)
    kept = [i for i, n in enumerate(num_frames) if n <= 300]
    if len(kept) < world_size and len(kept):
        with pytest.raises(TrainingError, match="fewer ranks"):
            plan_epoch(samples, params, batch_size, epoch, world_size)
        return
    plans = [plan_epoch(samples, params, batch_size, epoch, world_size, rank) for rank in range(world_size)]
    batches = [batch for plan in plans for batch in plan.batches]
    in_batches = sorted(row for batch in batches for row in batch)
    left_out = set(plans[0].left_out.tolist())
    assert sorted([*in_batches, *left_out]) == list(range(len(num_frames)))
    uneven = left_out & set(kept)
    assert left_out - uneven == {i for i, n in enumerate(num_frames) if n > 300}
    # clips are left out for evenness only where every batch is down to one clip
    assert len(uneven) < world_size
    assert not uneven or all(len(batch) == 1 for batch in batches)
    assert len({len(plan.batches) for plan in plans}) == 1
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) * max(num_frames[row] for row in batch) <= 400
    assert plans[0].num_frames == sum(num_frames[i] for i in in_batches)
    assert plans[0].padded_frames == sum(len(b) * max(num_frames[r] for r in b) for b in batches)


def same(a: EpochPlan, b: EpochPlan) -> bool:
    return [x.tolist() for x in a.batches] == [x.tolist() for x in b.batches]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    samples, params = table(list(range(20, 120))), LoaderParams()
    plan = plan_epoch(samples, params, 8, epoch=3)
    assert same(plan, plan_epoch(samples, params, 8, epoch=3))
    assert not same(plan, plan_epoch(samples, params, 8, epoch=4))
    assert not same(plan, plan_epoch(samples, LoaderParams(seed=1), 8, epoch=3))


def test_padding_is_low_on_lengths_like_chinese_lips() -> None:
    rng = np.random.default_rng(0)
    num_frames = np.clip(rng.lognormal(np.log(230), 0.45, 3_000), 30, 1_000).astype(int).tolist()
    plan = plan_epoch(table(num_frames, 200), LoaderParams(frame_budget=8_000), 32, epoch=0)
    assert plan.padding_share <= 0.08


def test_a_clip_over_the_budget_is_named() -> None:
    with pytest.raises(TrainingError, match=r"c1 with 500 frames"):
        plan_epoch(table([10, 500, 20]), LoaderParams(frame_budget=400), 8, 0)


def test_scoring_reads_every_clip_once_even_over_the_budget() -> None:
    batches = plan_scoring(table([10, 500, 20]), LoaderParams(frame_budget=400, max_frames=100), 8)
    assert [batch.tolist() for batch in batches] == [[0, 2], [1]]


def test_the_hash_sees_what_changes_the_batches() -> None:
    samples, params = table([10, 20, 30]), LoaderParams()
    base = plan_hash(samples, params, 8)
    assert base == plan_hash(table([10, 20, 30]), LoaderParams(), 8)
    others = [
        plan_hash(table([10, 20, 31]), params, 8),
        plan_hash(samples, LoaderParams(seed=1), 8),
        plan_hash(samples, params, 9),
        plan_hash(samples, params, 8, world_size=2),
    ]
    assert len({base, *others}) == 5
