"""Decides which labels are doubtful: those that fit their clips no better than labels of other clips do.

The labels of other clips show how well an exchanged label fits. So the share of exchanged labels can be estimated, and
no threshold need be chosen.
Shapes: N labels, K other labels of each, M = N * K.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_DEVIATION = 0.05
"""Nats a unit: smallest deviation of the scores of other labels, so that equal ones give no infinite fit."""
LEAST_MEDIAN_FIT = 1.5
"""If half of the labels fit worse, the model cannot separate right labels from wrong ones well enough to judge them."""
RANK = 0.75
"""Hardly any right label fits worse than this share of exchanged labels. With 0.5 the estimate rests on few labels."""
Floats = NDArray[np.float64]


class Doubt(NamedTuple):
    fit_N: Floats
    """(score - mean score of the other labels) / their deviation."""
    share: float | None
    """Estimated share of exchanged labels; None if the model is too weak."""
    is_doubtful_N: NDArray[np.bool_]


def doubt_of(score_N: Floats, other_scores_NK: Floats) -> Doubt:
    """Returns the fit of each label, and which are doubtful: more likely exchanged than right.

    Labels up to a threshold are doubtful; it maximises the expected number of exchanged labels below it minus that of
    right ones. None is doubtful if the model is too weak (LEAST_MEDIAN_FIT).
    """
    N = len(score_N)
    fit_N = _fit(score_N, other_scores_NK)
    if np.median(fit_N) < LEAST_MEDIAN_FIT:
        return Doubt(fit_N, None, np.zeros(N, bool))
    exchanged_M = np.sort(_fit_of_others(other_scores_NK), axis=None)
    # Storey 2002: the labels that fit worse than most exchanged ones are such labels
    share = min(1.0, float((fit_N < np.quantile(exchanged_M, RANK)).mean()) / RANK)
    threshold_N = np.sort(fit_N)
    exchanged_below_N = share * N * np.searchsorted(exchanged_M, threshold_N, side="right") / len(exchanged_M)
    gain_N = 2 * exchanged_below_N - np.arange(1, N + 1)
    best = int(gain_N.argmax())
    return Doubt(fit_N, share, (fit_N <= threshold_N[best]) & (gain_N[best] > 0))


def _fit(score_N: Floats, other_scores_NK: Floats) -> Floats:
    deviation_N = np.maximum(other_scores_NK.std(axis=1, ddof=1), LEAST_DEVIATION)
    return np.asarray((score_N - other_scores_NK.mean(axis=1)) / deviation_N)


def _fit_of_others(other_scores_NK: Floats) -> Floats:
    """Returns how exchanged labels fit: each of the others, compared with the rest of them."""
    K = other_scores_NK.shape[1]
    centred_NK = other_scores_NK - other_scores_NK.mean(axis=1, keepdims=True)
    square_NK = centred_NK**2
    # without copies of the rest: their mean is -centred / (K - 1), their squared deviations are all minus this term
    rest_NK = square_NK.sum(axis=1, keepdims=True) - square_NK * K / (K - 1)
    deviation_NK = np.maximum(np.sqrt(np.maximum(rest_NK, 0) / (K - 2)), LEAST_DEVIATION)
    return np.asarray(centred_NK * K / (K - 1) / deviation_NK)
