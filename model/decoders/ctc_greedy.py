"""Greedy CTC in plain numpy: needs no torch, so exported models can use it."""

import numpy as np

from model.text import BLANK_ID


def greedy_ctc(log_probs_SV: np.ndarray) -> tuple[list[int], float]:
    """Token ids of the best path with repeats and blanks removed, and the path's log-probability.

    Graves et al. 2006, section 3.2 (best path decoding).
    """
    best_S = log_probs_SV.argmax(axis=1)
    score = float(log_probs_SV.max(axis=1).sum())
    changed_S = np.concatenate([[True], best_S[1:] != best_S[:-1]]) if len(best_S) else np.zeros(0, bool)
    return [int(token) for token in best_S[changed_S] if token != BLANK_ID], score
