"""Probabilities of a beam's texts, from all scores that rank them. Imports no torch.

The rank score of a beam search is not a log-probability if it includes a language model, a length bonus, the syllable
head or two heads: these scores do not sum to 1 over all texts. So the probability of a text is

    P(text) = P(the search found the correct text) * P(text | the search found the correct text)

The first factor is the total probability of all found texts by the heads. The second is the softmax of the ranks over
them. If the rank is the heads' log-probability, the result is exactly the heads' probability of the text. If every
possible text was found, it is the softmax over all texts.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from model.decoding.result import Candidate


def with_posteriors(found: Sequence[Candidate], log_mass: float | None = None) -> list[Candidate]:
    """Returns one clip's found texts with log P(text) as log-probability, which was that of the heads before.

    `log_mass` is the heads' log-probability of all texts together, nats; None: the sum over the candidates, for heads
    in which the texts exclude each other. If all ranks are -inf, the candidates stay unchanged.
    """
    log_evidence = _log_sum([candidate.rank_score for candidate in found])
    if log_evidence == -np.inf:
        return list(found)
    if log_mass is None:
        log_mass = _log_sum([candidate.log_probability for candidate in found])
    # by rounding, a sum can be slightly above 0
    shift = log_mass - log_evidence
    return [replace(candidate, log_probability=min(candidate.rank_score + shift, 0.0)) for candidate in found]


def _log_sum(terms: Sequence[float]) -> float:
    return float(np.logaddexp.reduce(terms, initial=-np.inf))
