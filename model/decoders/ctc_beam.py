"""CTC beam search that writes characters. Imports no torch, so exported models can use it.

Shapes: B clips, S steps, V characters (special tokens included).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from model.decoders.arrays import Array
from model.decoders.ctc_forward import SyllableScores, syllable_log_probabilities
from model.decoders.ctc_greedy import greedy_ctc
from model.decoders.ngram import LanguageModel
from model.decoders.posterior import with_posteriors
from model.decoders.prefix_beam import Fusion, Units, prefix_beam
from model.reading import Candidate
from model.settings import DecodeParams
from model.text import SPECIAL_TOKENS, Tokenizer
from shards.errors import ConfigError


def ctc_beam(
    log_probs_BSV: Array,
    table: Tokenizer,
    params: DecodeParams,
    lm: LanguageModel | None = None,
    syllables: SyllableScores | None = None,
) -> list[list[Candidate]]:
    """The best texts of each clip, at most `params.num_candidates`, at least one.

    `rank_score` is the log-probability summed over the paths that the beam kept, plus lm_weight times the language
    model's log-probability, end of text included, length_bonus a character, and syllable_weight times the
    log-probability of the text's syllables by the syllable head, which chooses among the texts that the beam
    ended with. `log_probability` is made of both by `with_posteriors`.

    Beam 1 with none of the three weights is greedy CTC: the text of the most likely path. A beam of one prefix would
    sum paths, and now and then end with another text.
    Behind the end of a clip the blank has all probability.
    Raises ConfigError where lm_weight is above 0 and there is no language model.
    """
    fusion = fusion_of(params, lm)
    weighs_syllables = syllables is not None and params.syllable_weight > 0
    if params.beam == 1 and fusion.lm is None and not params.length_bonus and not weighs_syllables:
        return [[Candidate(table.decode(ids), score, score)] for ids, score in greedy_ctc(log_probs_BSV)]
    token_U = np.arange(len(SPECIAL_TOKENS), table.num_tokens)
    found = [
        [
            Candidate(
                "".join(table.units[unit] for unit in prefix.units),
                prefix.log_probability,
                prefix.rank_score,
            )
            for prefix in prefixes
        ]
        for prefixes in prefix_beam(log_probs_BSV, Units(token_U, token_U), params.beam, fusion)
    ]
    if syllables is not None and weighs_syllables:
        found = with_syllables(found, syllables, params.syllable_weight)
    return [best_of(with_posteriors(candidates), params) for candidates in found]


def best_of(candidates: Sequence[Candidate], params: DecodeParams) -> list[Candidate]:
    """As many as are to be told; an empty text that cannot be where no text can."""
    return list(candidates[: params.num_candidates]) or [Candidate("", -np.inf, -np.inf)]


def fusion_of(params: DecodeParams, lm: LanguageModel | None) -> Fusion:
    """What the parameters add to CTC; a ConfigError where they ask for a language model that is not there."""
    if params.lm_weight > 0 and lm is None:
        raise ConfigError(
            f"decode.lm_weight is {params.lm_weight:g}, and there is no language model; `pipeline lm` makes one"
        )
    return Fusion(lm if params.lm_weight > 0 else None, params.lm_weight, params.length_bonus)


def with_syllables(
    found: Sequence[Sequence[Candidate]], syllables: SyllableScores, weight: float
) -> list[list[Candidate]]:
    """Each clip's candidates with the syllable head's log-probability in their rank, the best first."""
    texts = [[candidate.text for candidate in candidates] for candidates in found]
    ranked = [
        [
            replace(candidate, rank_score=candidate.rank_score + weight * log_probability)
            for candidate, log_probability in zip(candidates, added, strict=True)
        ]
        for candidates, added in zip(found, syllable_log_probabilities(texts, syllables), strict=True)
    ]
    return [sorted(candidates, key=lambda candidate: -candidate.rank_score) for candidates in ranked]
