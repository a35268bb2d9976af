"""Greedy CTC; needs no torch, so exported models can use it.

Shapes: B clips, S steps, V tokens.
"""

import numpy as np
from array_api_compat import array_namespace

from model.decoders.arrays import Array, to_host
from model.text import BLANK_ID


def greedy_ctc(log_probs_BSV: Array) -> list[tuple[list[int], float]]:
    """Of each clip the token ids of the best path with repeats and blanks removed, and the path's log-probability.

    Behind the end of a clip the blank has all probability. Graves et al. 2006, section 3.2 (best path decoding).
    """
    xp = array_namespace(log_probs_BSV)
    best_BS = to_host(xp.argmax(log_probs_BSV, axis=2))
    score_B = to_host(xp.sum(xp.max(log_probs_BSV, axis=2), axis=1, dtype=xp.float64))
    before_BS = np.pad(best_BS, ((0, 0), (1, 0)), constant_values=BLANK_ID)[:, :-1]
    says_BS = (best_BS != before_BS) & (best_BS != BLANK_ID)
    return [
        (best_S[says_S].tolist(), score)
        for best_S, says_S, score in zip(best_BS, says_BS, score_B.tolist(), strict=True)
    ]
