"""CTC beam search that writes characters. Imports no torch, so exported models can use it.

Shapes: S steps, V characters (special tokens included).
"""

from dataclasses import replace

import numpy as np

from model.decoders.ctc_forward import SyllableScores, syllable_log_probabilities
from model.decoders.ctc_greedy import greedy_ctc
from model.decoders.ngram import LanguageModel
from model.decoders.prefix_beam import Fusion, Units, prefix_beam, without_special_tokens
from model.reading import Candidate
from model.settings import DecodeParams
from model.text import SPECIAL_TOKENS, Tokenizer
from shards.errors import ConfigError


def ctc_beam(
    log_probs_SV: np.ndarray,
    table: Tokenizer,
    params: DecodeParams,
    lm: LanguageModel | None = None,
    syllables: SyllableScores | None = None,
) -> list[Candidate]:
    """The best texts of one clip's log-probabilities, at most `params.num_candidates`, at least one.

    `log_probability` is summed over the paths that the beam kept; `rank_score` adds lm_weight times the language
    model's log-probability, end of text included, length_bonus a character, and syllable_weight times the
    log-probability of the text's syllables by the syllable head, which chooses among the texts that the beam
    ended with.

    Beam 1 with none of the three weights is greedy CTC: the text of the most likely path, and its probability alone.
    A beam of one prefix would sum paths, and now and then end with another text.
    Raises ConfigError where lm_weight is above 0 and there is no language model.
    """
    fusion = fusion_of(params, lm)
    weighs_syllables = syllables is not None and params.syllable_weight > 0
    if params.beam == 1 and fusion.lm is None and not params.length_bonus and not weighs_syllables:
        ids, score = greedy_ctc(log_probs_SV)
        return [Candidate(table.decode(ids), score, score)]
    token_U = np.arange(len(SPECIAL_TOKENS), table.num_tokens)
    prefixes = prefix_beam(without_special_tokens(log_probs_SV), Units(token_U, token_U), params.beam, fusion)
    candidates = [
        Candidate(
            "".join(table.units[unit] for unit in prefix.units), prefix.log_probability, prefix.rank_score
        )
        for prefix in prefixes
    ]
    if syllables is not None and weighs_syllables:
        candidates = with_syllables(candidates, syllables, params.syllable_weight)
    return candidates[: params.num_candidates] or [Candidate("", -np.inf, -np.inf)]


def fusion_of(params: DecodeParams, lm: LanguageModel | None) -> Fusion:
    """What the parameters add to CTC; a ConfigError where they ask for a language model that is not there."""
    if params.lm_weight > 0 and lm is None:
        raise ConfigError(
            f"decode.lm_weight is {params.lm_weight:g}, and there is no language model; `pipeline lm` makes one"
        )
    return Fusion(lm if params.lm_weight > 0 else None, params.lm_weight, params.length_bonus)


def with_syllables(candidates: list[Candidate], syllables: SyllableScores, weight: float) -> list[Candidate]:
    """The candidates with the syllable head's log-probability in their rank, the best first."""
    added = syllable_log_probabilities([candidate.text for candidate in candidates], syllables)
    ranked = [
        replace(candidate, rank_score=candidate.rank_score + weight * float(log_probability))
        for candidate, log_probability in zip(candidates, added, strict=True)
    ]
    return sorted(ranked, key=lambda candidate: -candidate.rank_score)
