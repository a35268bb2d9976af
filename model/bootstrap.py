"""Confidence intervals of error rates by the bootstrap over speakers. Imports neither torch nor mediapipe.

Clips of one speaker are similar, so an interval over clips would be too narrow. Each resample draws whole speakers with
replacement, as many as there are (Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR
performance evaluation", which draws sentences instead of speakers). With few speakers the interval is still too
narrow: for two models that are equally good, the interval of their difference excludes 0 in about 41 % of cases with
2 speakers, 20 % with 4, 9 % with 8 and 7 % with 20, instead of 5 %.

G groups (speakers, or clips), R resamples, K counts that add up.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Over = Literal["speakers", "clips"]

INTERVAL_QUANTILES = (0.025, 0.975)
"""The interval lies between these quantiles of the resamples: 95 %."""
DRAWS_AT_ONCE = 1 << 20
ENOUGH_SPEAKERS = 8
"""With fewer speakers, reports mark an interval as too narrow, and do not call a difference proven."""


def groups_of(speakers: Sequence[str | None]) -> tuple[NDArray[np.int64], Over]:
    """Returns the group number of each clip, from 0, and what the groups are.

    The groups are speakers if at least two are known: each clip of an unknown speaker is then one group.
    Otherwise the groups are clips.
    """
    known = {
        speaker: number for number, speaker in enumerate(dict.fromkeys(s for s in speakers if s is not None))
    }
    if len(known) < 2:
        return np.arange(len(speakers)), "clips"
    unknown = iter(range(len(known), len(known) + len(speakers)))
    return np.array([next(unknown) if s is None else known[s] for s in speakers]), "speakers"


def summed_by_group(figures_NK: NDArray[np.int64], groups_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the sums of the clips' counts in each group (G, K)."""
    sums_GK = np.zeros((int(groups_N.max(initial=-1)) + 1, figures_NK.shape[1]), np.int64)
    np.add.at(sums_GK, groups_N, figures_NK)
    return sums_GK


def resampled_sums(sums_GK: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.int64]:
    """Returns the counts of each resample (R, K): as many groups as there are, drawn with replacement."""
    generator = np.random.default_rng(seed)
    num_groups = len(sums_GK)
    at_once = max(1, DRAWS_AT_ONCE // num_groups)
    drawn = [
        sums_GK[generator.integers(0, num_groups, (min(at_once, resamples - start), num_groups))].sum(axis=1)
        for start in range(0, resamples, at_once)
    ]
    return np.concatenate(drawn)


def rates(errors: NDArray[np.int64], chars: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns errors / chars. Where chars is 0: 1 if there are errors, else 0, like EditCounts.cer."""
    empty = (errors > 0).astype(np.float64)
    return np.divide(errors, chars, out=empty, where=chars > 0)


def interval_of(values_R: NDArray[np.float64]) -> tuple[float, float] | None:
    """Returns the interval that holds the middle 95 % of the resamples; None if its width is 0.

    All groups are then equal (without an error, for example), so they say nothing about other groups.
    """
    low, high = np.quantile(values_R, INTERVAL_QUANTILES)
    return (float(low), float(high)) if low < high else None


def rate_interval(
    errors: Sequence[int], chars: Sequence[int], speakers: Sequence[str | None], resamples: int, seed: int
) -> tuple[tuple[float, float] | None, Over]:
    """Returns the 95 % interval of the micro error rate of clips, and whether it is over speakers or clips.

    The interval is None if there is only one clip, or if all groups are equal (`interval_of`).
    """
    groups_N, over = groups_of(speakers)
    if len(groups_N) < 2:
        return None, over
    sums_GK = summed_by_group(np.array([errors, chars], np.int64).T, groups_N)
    errors_R, chars_R = resampled_sums(sums_GK, resamples, seed).T
    return interval_of(rates(errors_R, chars_R)), over
