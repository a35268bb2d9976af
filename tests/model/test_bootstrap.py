"""The bootstrap over speakers, compared with slow loops, closed forms and scipy."""

import random
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from model import bootstrap as ours
from model.bootstrap import groups_of, interval_of, rate_interval, rates, resampled_sums, summed_by_group


def test_speakers_are_groups_if_two_are_known() -> None:
    groups_N, over = groups_of(["b", "a", None, "b", None])
    assert over == "speakers"
    assert groups_N.tolist() == [0, 1, 2, 0, 3], "a clip of an unknown speaker must be a group of its own"


@pytest.mark.parametrize("speakers", [[], [None, None], ["a", "a", None]])
def test_clips_are_groups_if_fewer_speakers_are_known(speakers: list[str | None]) -> None:
    groups_N, over = groups_of(speakers)
    assert over == "clips" and groups_N.tolist() == list(range(len(speakers)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(1, 50)), min_size=1))
def test_sums_by_group_agree_with_a_loop(clips: list[tuple[int, int, int]]) -> None:
    numbers = sorted({group for group, _, _ in clips})
    groups = [numbers.index(group) for group, _, _ in clips]
    sums_GK = summed_by_group(np.array([clip[1:] for clip in clips]), np.array(groups))
    for group in range(len(numbers)):
        members = [clip for clip, own in zip(clips, groups, strict=True) if own == group]
        assert sums_GK[group].tolist() == [sum(clip[k] for clip in members) for k in (1, 2)]


def test_a_resample_draws_as_many_whole_groups_as_there_are() -> None:
    # powers of 100 show how often each group was drawn
    sums_GK = np.array([[1, 1], [100, 1], [10_000, 1]])
    sums_RK = resampled_sums(sums_GK, 500, seed=0)
    times = [(total % 100, total // 100 % 100, total // 10_000) for total in sums_RK[:, 0].tolist()]
    assert all(sum(draws) == 3 for draws in times) and (sums_RK[:, 1] == 3).all()
    assert len(set(times)) == 10, "all 10 ways to draw 3 of 3 groups must occur"


def test_drawing_in_blocks_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    sums_GK = np.arange(20).reshape(10, 2)
    whole = resampled_sums(sums_GK, 333, seed=5)
    monkeypatch.setattr(ours, "DRAWS_AT_ONCE", 50)
    assert np.array_equal(resampled_sums(sums_GK, 333, seed=5), whole)


def test_the_interval_agrees_with_a_slow_loop() -> None:
    draw = random.Random(1)
    clips = [(draw.randrange(9), 10 + draw.randrange(20), f"s{draw.randrange(12)}") for _ in range(120)]
    errors, chars, speakers = zip(*clips, strict=True)
    interval, over = rate_interval(errors, chars, speakers, 20_000, seed=0)
    said = {name: [clip for clip in clips if clip[2] == name] for name in sorted(set(speakers))}
    resampled = []
    for _ in range(20_000):
        some = [clip for _ in said for clip in said[draw.choice(list(said))]]
        resampled.append(sum(clip[0] for clip in some) / sum(clip[1] for clip in some))
    assert over == "speakers" and interval == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=2e-3)


def test_the_interval_agrees_with_scipy() -> None:
    generator = np.random.default_rng(3)
    errors, chars = generator.integers(0, 9, 60), generator.integers(9, 30, 60)
    interval, over = rate_interval(errors.tolist(), chars.tolist(), [None] * 60, 20_000, seed=0)
    theirs = bootstrap(
        (errors, chars),
        lambda e, c, axis: e.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=generator,
    ).confidence_interval
    assert over == "clips" and interval == pytest.approx(tuple(theirs), abs=2e-3)


def test_the_interval_of_a_mean_has_its_closed_form() -> None:
    # all clips have the same length, so the CER is a mean, with a nearly normal bootstrap of deviation / sqrt(n)
    errors = [0, 10] * 200
    interval, _ = rate_interval(errors, [10] * 400, [None] * 400, 20_000, seed=0)
    half = 1.96 * 0.5 / sqrt(400)
    assert interval == pytest.approx((0.5 - half, 0.5 + half), abs=4e-3)


def test_correlated_clips_of_a_speaker_widen_the_interval() -> None:
    errors, chars = [0] * 50 + [10] * 50, [10] * 100
    by_clip, _ = rate_interval(errors, chars, [None] * 100, 2_000, seed=0)
    by_voice, _ = rate_interval(errors, chars, [f"s{index // 10}" for index in range(100)], 2_000, seed=0)
    assert by_clip and by_voice
    assert by_voice[1] - by_voice[0] > 2 * (by_clip[1] - by_clip[0])


def test_seed_and_edges() -> None:
    few = ([1, 2, 0], [5, 5, 5], [None] * 3, 200)
    assert rate_interval(*few, seed=1) == rate_interval(*few, seed=1)
    assert rate_interval([1], [5], [None], 200, seed=0) == (None, "clips")


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=40),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
)
def test_equal_groups_give_no_interval(chars: list[int], errors_a_character: int, of_speakers: bool) -> None:
    """An interval from 0 % to 0 % would claim certainty, but 40 clips without an error still allow about 7 %."""
    errors = [errors_a_character * count for count in chars]
    speakers = [f"s{index}" if of_speakers else None for index in range(len(chars))]
    over = "speakers" if of_speakers else "clips"
    assert rate_interval(errors, chars, speakers, 200, seed=0) == (None, over)


def test_one_error_in_many_clips_has_an_interval() -> None:
    interval, _ = rate_interval([1] + [0] * 39, [5] * 40, [None] * 40, 2_000, seed=0)
    assert interval and interval[0] == 0 and interval[1] > 0.01


def test_rates_without_characters_do_not_divide_by_zero() -> None:
    assert rates(np.array([0, 2, 1]), np.array([0, 0, 4])).tolist() == [0.0, 1.0, 0.25]
    assert interval_of(np.arange(1001.0)) == (25.0, 975.0)
