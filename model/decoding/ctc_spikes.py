"""The output of a CTC head over time: the probability of the blank and of each unit in a clip. Imports no torch.

Units are characters or syllables of toneless pinyin. S encoder steps, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.decoding.registry import HEADS_OF_DECODER
from model.settings import Head
from model.text import BLANK_ID, Tokenizer


@dataclass(frozen=True, slots=True)
class Spike:
    """One unit of the best path, at the step where its probability is highest."""

    step: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Spikes:
    """The best path of a clip over time."""

    blank_S: tuple[float, ...]
    """Probability of the blank at each encoder step."""
    spikes: tuple[Spike, ...]
    """In order of time. Their texts, joined with the table's joiner, are the greedy CTC text."""
    reference: Sequence[str] | None = None
    """The reference in units of the head; None: its characters."""


def spiking_head(decoder: str | None) -> Head:
    """Returns the CTC head whose spikes explain a decoder: the syllable head if the decoder uses no other head."""
    return "syllables" if HEADS_OF_DECODER.get(decoder or "") == ("syllables",) else "ctc"


def ctc_spikes(log_probs_SV: np.ndarray, table: Tokenizer, reference: Sequence[str] | None = None) -> Spikes:
    """Returns the best path: one spike for each run of the same token, without blanks."""
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
    return Spikes(tuple(np.exp(log_probs_SV[:, BLANK_ID]).tolist()), tuple(spikes), reference)
