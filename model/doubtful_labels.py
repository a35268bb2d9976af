"""Decides which labels are doubtful: those that fit their clips no better than labels of other clips do.

The labels of other clips show how well an exchanged label fits, so the share of exchanged labels can be estimated and
no threshold need be chosen. Storey 2002 estimates the share the same way, from the part in which no right label is.
Shapes: N labels, K other labels of each.
"""

from typing import NamedTuple

import numpy as np

LEAST_DEVIATION = 0.05
"""Nats a unit: smallest deviation of the scores of other labels, so that equal ones give no infinite fit."""
MOST_DOUBTFUL = 0.5
"""If a larger share seems to be exchanged, the model tells right labels from others too badly."""


class Doubt(NamedTuple):
    fit_N: np.ndarray
    """(score - mean score of the other labels) / their deviation."""
    share: float
    """Estimated share of exchanged labels."""
    is_doubtful_N: np.ndarray


def doubt_of(score_N: np.ndarray, other_scores_NK: np.ndarray) -> Doubt:
    """Returns the fit of each label, and which are doubtful: more likely exchanged than right.

    The threshold maximises the number of exchanged labels below it minus that of right ones. If `share` is above
    MOST_DOUBTFUL, none is marked.
    """
    N, K = other_scores_NK.shape
    fit_N = _fit(score_N, other_scores_NK)
    # how an exchanged label fits: each of the others, compared with the rest of them
    exchanged = np.stack(
        [_fit(other_scores_NK[:, k], np.delete(other_scores_NK, k, axis=1)) for k in range(K)]
    )
    exchanged_M = np.sort(exchanged, axis=None)
    share = min(1.0, 2 * float((fit_N < np.median(exchanged_M)).mean()))
    if share > MOST_DOUBTFUL:
        return Doubt(fit_N, share, np.zeros(N, bool))
    threshold_N = np.sort(fit_N)
    below_N = np.searchsorted(exchanged_M, threshold_N, side="right") / len(exchanged_M)
    gain_N = 2 * share * N * below_N - np.arange(1, N + 1)
    best = int(gain_N.argmax())
    return Doubt(fit_N, share, (fit_N <= threshold_N[best]) & (gain_N[best] > 0))


def _fit(score_N: np.ndarray, other_scores_NK: np.ndarray) -> np.ndarray:
    deviation_N = np.maximum(other_scores_NK.std(axis=1, ddof=1), LEAST_DEVIATION)
    return np.asarray((score_N - other_scores_NK.mean(axis=1)) / deviation_N)
