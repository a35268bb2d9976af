"""How likely a beam's texts are, by all that the decoder ranks them by. Imports no torch.

What a beam search ranks by is no probability once a language model, a length bonus, the syllable head or two heads
together have a part in it: such scores do not sum to 1 over all texts. So a text's probability is

    P(text) = P(the text is among those that the search found) * P(text | it is among them)

The first factor is what the heads give all found texts together; the second is the softmax of the ranks over them.
Where the heads' log-probability is the rank itself this is the heads' probability of the text, exactly; where every
possible text was found, it is the softmax over all texts.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from model.decoding.result import Candidate


def with_posteriors(found: Sequence[Candidate], log_mass: float | None = None) -> list[Candidate]:
    """One clip's found texts, each with P(text) for its log-probability, which was the heads' before.

    `log_mass` is the log-probability of all of them together by the heads, nats; None: the sum of the candidates' own,
    for texts that exclude each other there. Where the ranks hold all of them impossible they stay as they are.
    """
    log_evidence = _log_sum([one.rank_score for one in found])
    if log_evidence == -np.inf:
        return list(found)
    if log_mass is None:
        log_mass = _log_sum([one.log_probability for one in found])
    # sums of rounded terms can pass 0 by a hair
    return [
        replace(one, log_probability=min(one.rank_score + (log_mass - log_evidence), 0.0)) for one in found
    ]


def _log_sum(terms: Sequence[float]) -> float:
    return float(np.logaddexp.reduce(terms, initial=-np.inf))
