"""The benchmark of `crop.speaker: sound`, on drawn lips and loudness."""

import numpy as np
import pytest

from benchmarks.speaker import VARIANTS, Talk, bench_speaker
from shards.errors import ConfigError

NUM_FRAMES = 75
TIMES_S = (np.arange(NUM_FRAMES) + 0.5) / 25


def talks(own_share: float, motion: list[float]) -> list[Talk]:
    """Returns talks whose loudness is `own_share` their own lips; all lips also open and close together, slowly."""
    rng = np.random.default_rng(0)
    together = 5 * np.sin(np.pi * np.arange(NUM_FRAMES) / NUM_FRAMES)
    lips = rng.normal(size=(len(motion), NUM_FRAMES))
    noise = rng.normal(size=lips.shape)
    return [
        Talk(TIMES_S, mine + together, much, own_share * mine + (1 - own_share) * other + together)
        for mine, other, much in zip(lips, noise, motion, strict=True)
    ]


def test_shares_are_counted_by_pair() -> None:
    result = bench_speaker(talks(1.0, [3.0, 1.0, 2.0]), 25.0, pairs_a_clip=40)
    assert result.num_clips == 3 and result.num_pairs == 120
    assert result.by_sound.keys() == VARIANTS.keys()
    assert result.by_sound["as built"] == 1.0 and result.own_below_limit == 0.0
    # the face that moves most is right for its own clip only, the second for half of its pairs
    assert result.by_motion == pytest.approx(0.5, abs=0.08)


def test_sound_that_is_not_of_the_lips_is_chance() -> None:
    result = bench_speaker(talks(0.0, [1.0] * 40), 25.0, pairs_a_clip=10)
    assert result.by_sound["as built"] == pytest.approx(0.5, abs=0.12)
    assert result.by_motion == 0.0 and result.own_below_limit > 0.5


def test_one_clip_has_no_other_face() -> None:
    with pytest.raises(ConfigError, match="two clips"):
        bench_speaker(talks(1.0, [1.0]), 25.0, 1)
