"""Scores each candidate by each part of the model alone, so that other programs can weigh the parts anew.

Imports no torch. Shapes: S encoder steps, V characters, W syllables, N candidates.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from model.decoding.ctc import ctc_log_probabilities
from model.decoding.ngram import LanguageModel
from model.decoding.result import PartScores, Reading
from model.vocabulary import Vocabulary


def with_part_scores(
    reading: Reading,
    log_probs_SV: np.ndarray | None,
    syllable_log_probs_SW: np.ndarray | None,
    vocabulary: Vocabulary,
    lm: LanguageModel | None,
    attention_N: Sequence[float] | None = None,
) -> Reading:
    """Returns the reading of one clip with the part scores of its candidates; None where a part is missing.

    A text counts in the units into which the vocabulary divides it, and by its syllables in the sentence. With the
    decoder's weights the parts sum to `rank_score`, except where the search itself differs: ctc_beam and pinyin sum
    only the paths that they kept (and count special tokens as blanks), pinyin takes the best syllables of a text, and
    bpe writes a text in several ways.
    """
    texts = [candidate.text for candidate in reading.candidates]
    tokens = [vocabulary.characters.encode(text) for text in texts]
    sounds = [vocabulary.syllables.encode(text) for text in texts] if vocabulary.syllables else []
    parts = zip(
        _ctc_scores(log_probs_SV, tokens),
        [None] * len(texts) if attention_N is None else attention_N,
        _ctc_scores(syllable_log_probs_SW, sounds or tokens),
        [None if lm is None else lm.text_log_probability(of_text) for of_text in tokens],
        map(len, tokens),
        strict=True,
    )
    candidates = zip(reading.candidates, parts, strict=True)
    return replace(
        reading, candidates=tuple(replace(one, parts=PartScores(*scores)) for one, scores in candidates)
    )


def _ctc_scores(
    log_probs_SV: np.ndarray | None, targets: Sequence[Sequence[int]]
) -> list[float] | list[None]:
    if log_probs_SV is None:
        return [None] * len(targets)
    return ctc_log_probabilities(log_probs_SV[None], [0] * len(targets), targets).tolist()
