"""In a super-window, batches of the same step have the same rank in the order of lengths."""

from itertools import combinations

import numpy as np
import pytest

from shards.epoch_shuffle import plan_window


@pytest.mark.parametrize("world_size", [2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_no_step_is_longer_for_one_rank_and_shorter_for_another(world_size: int, seed: int) -> None:
    """Lengths so close that the noise of the sort decides which batch holds the longest clip."""
    rng = np.random.default_rng(seed)
    num_frames_N = rng.integers(100, 106, 60 * world_size)
    *_, longest_SW = plan_window(np.arange(len(num_frames_N)), num_frames_N, world_size, 3, 400, rng)
    assert len(longest_SW) >= 20 and (longest_SW.max(axis=0) > longest_SW.min(axis=0)).all()
    for first, second in combinations(longest_SW.tolist(), 2):
        signs = {np.sign(a - b) for a, b in zip(first, second, strict=True)}
        assert not {1, -1} <= signs


def test_the_steps_are_not_ordered_by_length() -> None:
    num_frames_N = np.random.default_rng(0).integers(50, 200, 300)
    *_, longest_SW = plan_window(np.arange(300), num_frames_N, 1, 3, 600, np.random.default_rng(0))
    rises = np.diff(longest_SW[:, 0]) > 0
    assert 0.3 < rises.mean() < 0.7
