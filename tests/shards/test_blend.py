"""Several packs in one epoch plan: each pack has its share, and its clips are visited equally often."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.blend import visits_of_packs
from shards.elastic_plan import PlanShape, Segment, plan_segments
from shards.errors import TrainingError
from shards.plan import EpochPlan, plan_epoch
from shards.settings import LoaderParams


def blend(*sizes: int, clips_a_shard: int = 5, seed: int = 0) -> pa.Table:
    """Returns a table of packs a, b, … with clips of 10 to 99 frames."""
    rng = np.random.default_rng(seed)
    names = [chr(ord("a") + number) for number in range(len(sizes))]
    corpus = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    return pa.table(
        {
            "clip_id": [f"c{number}" for number in place],
            "num_frames": rng.integers(10, 100, len(corpus)),
            "shard": [
                f"{names[pack]}/train-{number // clips_a_shard}.tar"
                for pack, number in zip(corpus, place, strict=True)
            ],
            "corpus": pa.DictionaryArray.from_arrays(corpus, names),
        }
    )


def plans(
    samples: pa.Table, params: LoaderParams, epoch: int, world_size: int = 1, **weights: float
) -> list[EpochPlan]:
    return [plan_epoch(samples, params, 8, epoch, world_size, rank, weights) for rank in range(world_size)]


def visits(all_plans: list[EpochPlan]) -> Counter[int]:
    """Returns how often each number of the plans occurs: a clip's row, plus the number of rows at each repetition."""
    return Counter(int(number) for plan in all_plans for batch in plan.batches for number in batch)


def clips_by_pack(samples: pa.Table, counts: Counter[int]) -> Counter[str]:
    corpus = samples["corpus"].to_pylist()
    return Counter(corpus[number % len(corpus)] for number in counts.elements())


def test_by_size_every_clip_of_every_pack_is_visited_once_an_epoch() -> None:
    samples = blend(37, 8, 111)
    for epoch in range(3):
        counts = visits(plans(samples, LoaderParams(frame_budget=500), epoch, world_size=2))
        assert set(counts.values()) == {1} and len(counts) >= samples.num_rows - 1
        assert max(counts) < samples.num_rows, "no clip is visited again"


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.5, 10), min_size=4, max_size=4),
    epoch_clips=st.sampled_from([0, 0, 64, 200]),
    world_size=st.integers(1, 3),
    mix=st.sampled_from(["batch", "epoch"]),
    window=st.integers(1, 3),
)
def test_each_clip_is_visited_as_often_as_its_neighbours_and_ranks_have_equal_steps(
    sizes: list[int], weights: list[float], epoch_clips: int, world_size: int, mix: str, window: int
) -> None:
    samples = blend(*sizes)
    params = LoaderParams(frame_budget=400, epoch_clips=epoch_clips, mix=mix, window_shards=window)
    names = ["a", "b", "c", "d"][: len(sizes)]
    by_name = dict(zip(names, weights, strict=False))
    wanted = visits_of_packs(names, np.array(sizes), params, by_name)
    if min(wanted.sum(), sum(sizes)) < world_size:
        with pytest.raises(TrainingError, match=f"too few for {world_size} ranks"):
            plans(samples, params, 0, world_size, **by_name)
        return
    for epoch in range(3):
        found = plans(samples, params, epoch, world_size, **by_name)
        assert len({len(plan.batches) for plan in found}) == 1
        counts = visits(found)
        assert set(counts.values()) == {1}, "a visit is in one batch"
        left_out = int(wanted.sum()) - sum(counts.values())
        assert 0 <= left_out == len(found[0].left_out) and found[0].num_clips == sum(counts.values())
        per_clip = Counter(number % samples.num_rows for number in counts)
        for name, size, num_visits in zip(names, sizes, wanted.tolist(), strict=True):
            rows = np.flatnonzero(np.array(samples["corpus"].to_pylist()) == name)
            times = [per_clip[row] for row in rows.tolist()]
            assert num_visits // size - left_out <= min(times) and max(times) <= -(-num_visits // size)
        for plan in found:
            for batch in plan.batches:
                frames = samples["num_frames"].to_numpy()[batch % samples.num_rows]
                assert len(batch) <= 8 and (len(batch) == 1 or frames.max() * len(batch) <= 400)
                packs = {samples["corpus"][int(number % samples.num_rows)].as_py() for number in batch}
                assert len(packs) == 1 or mix == "batch"


def test_over_the_epochs_all_clips_of_a_pack_are_visited_equally_often() -> None:
    samples = blend(100, 40)
    total: Counter[int] = Counter()
    for epoch in range(10):
        counts = visits(plans(samples, LoaderParams(frame_budget=500, epoch_clips=70), epoch, a=3, b=4))
        total += Counter(number % samples.num_rows for number in counts)
    assert {total[row] for row in range(100)} == {3} and {total[row] for row in range(100, 140)} == {10}


@pytest.mark.parametrize(("epoch_clips", "weight"), [(1, 1), (2, 1), (4, 1), (2, 4.5)])
def test_an_epoch_without_a_clip_of_each_pack_is_refused_with_the_fewest_clips(
    epoch_clips: int, weight: float
) -> None:
    names, sizes, by_name = ["a", "b", "small"], np.array([40, 40, 40]), {"a": 4.5, "b": 4.5, "small": weight}
    share, fewest = weight / (9 + weight), {1: 10, 4.5: 3}[weight]
    message = (
        rf"loader\.epoch_clips {epoch_clips} is too few for 3 packs: .* {share:.2%}, .* set it to {fewest} or"
    )
    with pytest.raises(TrainingError, match=message):
        visits_of_packs(names, sizes, LoaderParams(epoch_clips=epoch_clips), by_name)
    enough = visits_of_packs(names, sizes, LoaderParams(epoch_clips=fewest), by_name)
    assert enough.min() == 1 and enough.sum() == fewest


@pytest.mark.parametrize("epoch_clips", [0, 500, 3001])
def test_the_shares_of_an_epoch_are_the_weights(epoch_clips: int) -> None:
    samples = blend(900, 60, 333)
    params = LoaderParams(frame_budget=500, epoch_clips=epoch_clips)
    weights = {"a": 0.5, "b": 0.2, "c": 0.3}
    for epoch in range(3):
        counts = clips_by_pack(samples, visits(plans(samples, params, epoch, 2, **weights)))
        total = sum(counts.values())
        assert all(abs(counts[name] / total - weight) < 0.005 for name, weight in weights.items())
        assert total in (epoch_clips or 1800, (epoch_clips or 1800) - 1)


def test_the_packs_are_mixed_evenly_over_the_epoch() -> None:
    """Also a pack of one large shard. Half of the epoch has half of the clips of each pack, within a few batches."""
    samples = blend(600, 200, clips_a_shard=10)
    shard = [name if not name.startswith("b/") else "b/train-0.tar" for name in samples["shard"].to_pylist()]
    samples = samples.set_column(2, "shard", pa.array(shard))
    (plan,) = plans(samples, LoaderParams(frame_budget=800, window_shards=4), 0)
    half = np.concatenate(plan.batches[: len(plan.batches) // 2])
    share = np.mean([samples["corpus"][int(number)].as_py() == "b" for number in half])
    assert abs(share - 0.25) < 0.06


def test_temperature_makes_the_shares_more_equal() -> None:
    names, sizes = ["a", "b"], np.array([900, 100])
    shares = []
    for temperature in (1.0, 2.0, 100.0):
        wanted = visits_of_packs(names, sizes, LoaderParams(temperature=temperature, epoch_clips=1000), {})
        shares.append(wanted[1] / wanted.sum())
    assert shares[0] == 0.1
    assert shares[1] == pytest.approx(1 / 4), "sqrt(100) of sqrt(100) + sqrt(900)"
    assert shares[2] == pytest.approx(0.495, abs=0.002)


def test_a_plan_is_a_pure_function_and_epochs_differ() -> None:
    samples, params = blend(50, 20), LoaderParams(frame_budget=500)

    def listed(epoch: int, **weights: float) -> list[list[int]]:
        (plan,) = plans(samples, params, epoch, **weights)
        return [batch.tolist() for batch in plan.batches]

    assert listed(3, a=1, b=2) == listed(3, a=1, b=2)
    assert listed(3, a=1, b=2) != listed(4, a=1, b=2)


def test_a_pack_without_a_clip_in_the_epoch_is_an_error_that_names_it() -> None:
    samples = blend(20, 20)
    long = np.where(np.arange(40) < 20, 10, 300)
    samples = samples.set_column(1, "num_frames", pa.array(long))
    params = LoaderParams(frame_budget=400, curriculum_epochs=2, curriculum_frames=20)
    with pytest.raises(
        TrainingError, match=r"epoch 0 has no clip of pack b; raise loader\.curriculum_frames"
    ):
        plans(samples, params, 0)


def test_one_pack_may_have_shorter_epochs_too() -> None:
    samples = blend(100).drop_columns("corpus")
    total: Counter[int] = Counter()
    for epoch in range(4):
        counts = visits(plans(samples, LoaderParams(frame_budget=500, epoch_clips=25), epoch))
        assert len(counts) == 25
        total += counts
    assert set(total) == set(range(100))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(4, 60), min_size=2, max_size=3),
    mix=st.sampled_from(["batch", "epoch"]),
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8)), min_size=2, max_size=4),
    share_done=st.floats(0.1, 0.9),
)
def test_an_epoch_keeps_its_visits_if_the_number_of_processes_or_the_batch_changes(
    sizes: list[int], mix: str, shapes: list[tuple[int, int]], share_done: float
) -> None:
    """So the shares of the packs are the weights after a resume, too."""
    samples, weights = blend(*sizes), {"a": 3.0, "b": 1.0, "c": 2.0}
    params = LoaderParams(frame_budget=500, mix=mix, window_shards=2)
    (whole,) = plans(samples, params, 1, **weights)
    done: list[Segment] = []
    seen: Counter[int] = Counter()
    for number, (world_size, batch_size) in enumerate(shapes):
        shape = PlanShape(world_size, batch_size, 1)
        of_ranks = [
            plan_segments(samples, params, 1, shape, done, world_size, rank, batch_size, weights)
            for rank in range(world_size)
        ]
        num_windows = len(of_ranks[0].windows)
        num_windows = num_windows if number == len(shapes) - 1 else int(share_done * num_windows)
        seen.update(
            int(visit)
            for plan in of_ranks
            for window in plan.windows[:num_windows]
            for batch in window.batches
            for visit in batch
        )
        if num_windows:
            num_steps = of_ranks[0].windows[num_windows - 1].stop_step - sum(one.num_steps for one in done)
            done.append(Segment(shape, num_steps))
    # without an earlier part, a few visits may be left over after equal batches
    num_left_over = 0 if len(done) > 1 else len(of_ranks[0].left_out)
    assert seen <= visits([whole]) and (visits([whole]) - seen).total() == num_left_over
