"""From the log-probabilities of one clip to its reading, by any decoder that takes CTC heads alone. Imports no torch.

Shapes: S encoder steps, V characters, W syllables.
"""

from collections.abc import Sequence

import numpy as np

from model.decoders.ctc_beam import ctc_beam
from model.decoders.ctc_forward import SyllableScores
from model.decoders.ctc_greedy import greedy_ctc
from model.decoders.ngram import LanguageModel
from model.decoders.pinyin_beam import pinyin_beam
from model.reading import Candidate, Reading
from model.settings import DecodeParams
from model.text import SPECIAL_TOKENS, Tokenizer
from model.vocabulary import Vocabulary


def reading_by_ctc(
    name: str,
    log_probs_SV: np.ndarray | None,
    syllable_log_probs_SW: np.ndarray | None,
    vocabulary: Vocabulary,
    params: DecodeParams,
    lm: LanguageModel | None,
) -> Reading:
    """By decoder `name`: ctc, syllables, ctc_beam or pinyin; a head that it does not take may be None."""
    if name in ("syllables", "pinyin"):
        assert syllable_log_probs_SW is not None and vocabulary.syllables is not None
        if name == "syllables":
            return greedy_reading(vocabulary.syllables, *greedy_ctc(syllable_log_probs_SW))
        assert lm is not None
        return best_reading(pinyin_beam(syllable_log_probs_SW, vocabulary, params, lm))
    assert log_probs_SV is not None
    if name == "ctc":
        return greedy_reading(vocabulary.characters, *greedy_ctc(log_probs_SV))
    assert name == "ctc_beam", name
    syllables = None
    if params.syllable_weight > 0 and syllable_log_probs_SW is not None and vocabulary.syllables is not None:
        syllables = SyllableScores(syllable_log_probs_SW, vocabulary.syllables)
    return best_reading(ctc_beam(log_probs_SV, vocabulary.characters, params, lm, syllables))


def best_reading(candidates: Sequence[Candidate]) -> Reading:
    """The first of a beam's candidates, and all of them."""
    best = candidates[0]
    return Reading(best.text, best.log_probability / max(len(best.text), 1), tuple(candidates))


def greedy_reading(table: Tokenizer, ids: Sequence[int], log_probability: float) -> Reading:
    """The text of a greedy decoder's tokens; special ones are not written, and count for no character."""
    num_written = sum(token >= len(SPECIAL_TOKENS) for token in ids)
    return Reading(table.decode(ids), log_probability / max(num_written, 1))
