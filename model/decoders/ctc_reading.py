"""From the log-probabilities of clips to their readings, by any decoder that takes CTC heads alone. Imports no torch.

Shapes: B clips, S encoder steps, V characters, W syllables.
"""

from collections.abc import Sequence

from model.decoders.arrays import Array
from model.decoders.choice import GREEDY
from model.decoders.ctc_beam import ctc_beam
from model.decoders.ctc_forward import SyllableScores
from model.decoders.ctc_greedy import greedy_ctc
from model.decoders.ngram import LanguageModel
from model.decoders.pinyin_beam import pinyin_beam
from model.reading import Candidate, Reading
from model.settings import DecodeParams
from model.text import SPECIAL_TOKENS, Tokenizer
from model.vocabulary import Vocabulary


def ctc_readings(
    name: str,
    log_probs_BSV: Array | None,
    syllable_log_probs_BSW: Array | None,
    vocabulary: Vocabulary,
    params: DecodeParams,
    lm: LanguageModel | None,
) -> list[Reading]:
    """By decoder `name`: ctc, syllables, ctc_beam or pinyin; a head that it does not take may be None.

    The log-probabilities are numpy's or torch's, and the search runs where they are. Behind the end of a clip the blank
    has all probability.
    """
    characters, syllables = vocabulary.characters, vocabulary.syllables
    if name in GREEDY:
        log_probs, table = (
            (log_probs_BSV, characters) if name == "ctc" else (syllable_log_probs_BSW, syllables)
        )
        assert table is not None
        return [greedy_reading(table, ids, score) for ids, score in greedy_ctc(log_probs)]
    if name == "pinyin":
        found = pinyin_beam(syllable_log_probs_BSW, vocabulary, params, lm)
    else:
        scores = None
        if params.syllable_weight > 0 and syllable_log_probs_BSW is not None and syllables is not None:
            scores = SyllableScores(syllable_log_probs_BSW, syllables)
        found = ctc_beam(log_probs_BSV, characters, params, lm, scores)
    return [best_reading(candidates) for candidates in found]


def best_reading(candidates: Sequence[Candidate]) -> Reading:
    """The first of a beam's candidates, and all of them."""
    best = candidates[0]
    return Reading(best.text, best.log_probability / max(len(best.text), 1), tuple(candidates))


def greedy_reading(table: Tokenizer, ids: Sequence[int], log_probability: float) -> Reading:
    """The text of a greedy decoder's tokens; special ones are not written, and count for no character."""
    num_written = sum(token >= len(SPECIAL_TOKENS) for token in ids)
    return Reading(table.decode(ids), log_probability / max(num_written, 1))
