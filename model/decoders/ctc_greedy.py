"""Greedy CTC; needs no torch, so exported models can use it.

Shapes: B clips, S steps, V tokens.
"""

import numpy as np
from array_api_compat import array_namespace

from model.decoders.arrays import Array, to_host
from model.decoders.ctc_forward import ctc_log_probabilities
from model.text import BLANK_ID


def greedy_ctc(log_probs_BSV: Array) -> list[tuple[list[int], float]]:
    """Of each clip the token ids of the best path with repeats and blanks removed, and their log-probability, nats.

    That is the sum over all paths that spell them: the best path's own is far less sure than the text is right. Behind
    the end of a clip the blank has all probability. Graves et al. 2006, section 3.2 (best path decoding).
    """
    best_BS = to_host(array_namespace(log_probs_BSV).argmax(log_probs_BSV, axis=2))
    before_BS = np.pad(best_BS, ((0, 0), (1, 0)), constant_values=BLANK_ID)[:, :-1]
    says_BS = (best_BS != before_BS) & (best_BS != BLANK_ID)
    texts = [best_S[says_S].tolist() for best_S, says_S in zip(best_BS, says_BS, strict=True)]
    log_probability_B = ctc_log_probabilities(log_probs_BSV, range(len(texts)), texts)
    return list(zip(texts, log_probability_B.tolist(), strict=True))
