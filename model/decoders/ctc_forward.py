"""CTC's exact log-probability of given texts, and of their syllables. Imports no torch.

Shapes: S steps, V columns of the head, N texts, L units of the longest, P = 2L + 1 with the blanks between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.pinyin import syllables_of
from model.text import BLANK_ID, Tokenizer


def ctc_log_probabilities(log_probs_SV: np.ndarray, targets: Sequence[Sequence[int]]) -> np.ndarray:
    """Log of the summed probability of all paths that spell each target (N,), nats; -inf: it needs more steps.

    Graves et al. 2006, section 4.1 (the forward variables).
    """
    N, L = len(targets), max(map(len, targets), default=0)
    column_NP = np.full((N, 2 * L + 1), BLANK_ID)
    for row, target in enumerate(targets):
        column_NP[row, 1 : 2 * len(target) : 2] = target
    skips_NP = np.zeros(column_NP.shape, bool)
    skips_NP[:, 2:] = (column_NP[:, 2:] != BLANK_ID) & (column_NP[:, 2:] != column_NP[:, :-2])
    last_N = 2 * np.fromiter(map(len, targets), np.int64, N)
    # two cells of log 0 in front, for positions that nothing can come from
    alpha_NP = np.full((N, 2 * L + 3), -np.inf)
    alpha_NP[:, 1] = (
        0.0  # before the first step: as if at a blank in front, which the first two positions follow
    )
    for step, log_prob_V in enumerate(log_probs_SV.astype(np.float64)):
        stayed_NP = np.logaddexp(alpha_NP[:, 2:], alpha_NP[:, 1:-1])
        if step:
            stayed_NP = np.logaddexp(stayed_NP, np.where(skips_NP, alpha_NP[:, :-2], -np.inf))
        else:
            stayed_NP[:, 1:2] = 0.0
            alpha_NP[:, 1] = -np.inf
        alpha_NP[:, 2:] = stayed_NP + log_prob_V[column_NP]
    if not len(log_probs_SV):
        return np.where(last_N == 0, 0.0, -np.inf)
    rows = np.arange(N)
    before_N = np.where(last_N > 0, alpha_NP[rows, last_N + 1], -np.inf)
    return np.minimum(np.logaddexp(alpha_NP[rows, last_N + 2], before_N), 0.0)


@dataclass(frozen=True, slots=True)
class SyllableScores:
    """What a model's syllable head says of a clip."""

    log_probs_SW: np.ndarray
    table: Tokenizer


def syllable_log_probabilities(texts: Sequence[str], syllables: SyllableScores) -> np.ndarray:
    """CTC's log-probability of each text's toneless syllables by the syllable head (N,), nats."""
    targets = [tuple(syllables.table.encode(syllables_of(text))) for text in texts]
    distinct = list(dict.fromkeys(targets))  # homophones are scored once
    scores = dict(
        zip(distinct, ctc_log_probabilities(syllables.log_probs_SW, distinct).tolist(), strict=True)
    )
    return np.array([scores[target] for target in targets])
