"""How sure an error rate is: the bootstrap over speakers. Imports neither torch nor mediapipe.

Clips of one speaker are alike, so an interval over clips would be too narrow: whole speakers are drawn, with
replacement, as many as there are (Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR
performance evaluation", drawn by speaker instead of by sentence). With few speakers it is still too narrow:
between readings that are as good on average, it leaves out 0 in some 41 % of cases with 2 speakers, 20 % with 4,
9 % with 8 and 7 % with 20, where 5 % are meant.

G groups (speakers, or clips), R resamples, K figures that add up.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Over = Literal["speakers", "clips"]

INTERVAL_QUANTILES = (0.025, 0.975)
"""Quantiles of the resamples between which the interval lies: 95 %."""
DRAWS_AT_ONCE = 1 << 20
ENOUGH_SPEAKERS = 8
"""With fewer an interval is told to be too narrow, and no difference to be shown."""


def groups_of(speakers: Sequence[str | None]) -> tuple[NDArray[np.int64], Over]:
    """The group of each clip, numbered from 0, and what the groups are.

    Speakers, where at least two are known; a clip of an unknown speaker is then a group by itself. Otherwise clips.
    """
    known = {
        speaker: number for number, speaker in enumerate(dict.fromkeys(s for s in speakers if s is not None))
    }
    if len(known) < 2:
        return np.arange(len(speakers)), "clips"
    unknown = iter(range(len(known), len(known) + len(speakers)))
    return np.array([next(unknown) if s is None else known[s] for s in speakers]), "speakers"


def summed_by_group(figures_NK: NDArray[np.int64], groups_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The figures of the clips of each group together (G, K)."""
    sums_GK = np.zeros((int(groups_N.max(initial=-1)) + 1, figures_NK.shape[1]), np.int64)
    np.add.at(sums_GK, groups_N, figures_NK)
    return sums_GK


def resampled_sums(sums_GK: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.int64]:
    """The figures of `resamples` splits of as many groups, each drawn from these with replacement (R, K)."""
    generator = np.random.default_rng(seed)
    num_groups = len(sums_GK)
    at_once = max(1, DRAWS_AT_ONCE // num_groups)
    drawn = [
        sums_GK[generator.integers(0, num_groups, (min(at_once, resamples - start), num_groups))].sum(axis=1)
        for start in range(0, resamples, at_once)
    ]
    return np.concatenate(drawn)


def rates(errors: NDArray[np.int64], chars: NDArray[np.int64]) -> NDArray[np.float64]:
    """errors / chars; without characters 1 where there are errors, else 0, as EditCounts.cer has it."""
    empty = (errors > 0).astype(np.float64)
    return np.divide(errors, chars, out=empty, where=chars > 0)


def interval_of(values_R: NDArray[np.float64]) -> tuple[float, float] | None:
    """The interval that holds the middle 95 % of the resamples; None where it has no width.

    All groups are alike then, without an error, say: they do not tell how far others would be from them.
    """
    low, high = np.quantile(values_R, INTERVAL_QUANTILES)
    return (float(low), float(high)) if low < high else None


def rate_interval(
    errors: Sequence[int], chars: Sequence[int], speakers: Sequence[str | None], resamples: int, seed: int
) -> tuple[tuple[float, float] | None, Over]:
    """95 % interval of the micro error rate of clips, and what it was drawn over.

    None where there is one clip only, or all groups are alike (`interval_of`).
    """
    groups_N, over = groups_of(speakers)
    if len(groups_N) < 2:
        return None, over
    sums_GK = summed_by_group(np.array([errors, chars], np.int64).T, groups_N)
    errors_R, chars_R = resampled_sums(sums_GK, resamples, seed).T
    return interval_of(rates(errors_R, chars_R)), over
