"""When a CTC head says what: the probability of the blank and of each unit over a clip. Imports no torch.

Units are characters, or the syllables of toneless pinyin. S encoder steps, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.decoding.registry import HEADS_OF_DECODER
from model.settings import Head
from model.text import BLANK_ID, Tokenizer


@dataclass(frozen=True, slots=True)
class Spike:
    """One unit of the best path, at the step where it is surest."""

    step: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Spikes:
    """A clip's best path over time."""

    blank_S: tuple[float, ...]
    """Probability of the blank at each encoder step."""
    spikes: tuple[Spike, ...]
    """In time's order; their texts, by the table's joiner, are greedy CTC's."""
    said: Sequence[str] | None = None
    """The reference in the head's units; None: its characters."""


def spiking_head(decoder: str | None) -> Head:
    """The CTC head that shows when a decoder hears what: of the syllables where it reads by nothing else."""
    return "syllables" if HEADS_OF_DECODER.get(decoder or "") == ("syllables",) else "ctc"


def ctc_spikes(log_probs_SV: np.ndarray, table: Tokenizer, said: Sequence[str] | None = None) -> Spikes:
    """The best path of log-probabilities: one spike a run of the same token, blanks left out."""
    best_S, sure_S = log_probs_SV.argmax(axis=1), np.exp(log_probs_SV.max(axis=1))
    spikes: list[Spike] = []
    start = 0
    for step in range(1, len(best_S) + 1):
        if step == len(best_S) or best_S[step] != best_S[start]:
            text = table.decode([int(best_S[start])])
            if text:
                surest = start + int(sure_S[start:step].argmax())
                spikes.append(Spike(surest, text, float(sure_S[surest])))
            start = step
    return Spikes(tuple(np.exp(log_probs_SV[:, BLANK_ID]).tolist()), tuple(spikes), said)
