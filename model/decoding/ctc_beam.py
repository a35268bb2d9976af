"""Decoders that need only CTC heads. Imports no torch, so exported models can use it.

`ctc_beam` searches over characters. `pinyin_beam` writes characters from a syllable head, and the language model
chooses among homophones. It is one search, not two: a prefix is a text of characters, its CTC paths are those of its
syllables, and both scores prune together, so the language model also decides between syllables.

Shapes: B clips, S encoder steps, V characters and W syllables (with special tokens), U characters with one of their
syllables each.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from model.decoding.arrays import Array
from model.decoding.ctc import SyllableScores, greedy_ctc, syllable_log_probabilities
from model.decoding.ngram import LanguageModel
from model.decoding.prefix_beam import Fusion, Units, prefix_beam
from model.decoding.registry import GREEDY
from model.decoding.result import Candidate, Reading, with_posteriors
from model.pinyin import readings_of
from model.settings import DecodeParams
from model.text import SPECIAL_TOKENS, Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import ConfigError


def ctc_beam(
    log_probs_BSV: Array,
    table: Tokenizer,
    params: DecodeParams,
    lm: LanguageModel | None = None,
    syllables: SyllableScores | None = None,
) -> list[list[Candidate]]:
    """Returns the best texts of each clip, at most `params.num_candidates`, at least one.

    `rank_score` is the log-probability summed over the paths that the beam kept, plus lm_weight times the language
    model's log-probability (with the end of the text), plus length_bonus per character, plus syllable_weight times the
    syllable head's log-probability of the text's syllables. The syllable head only reorders the final beam.
    `with_posteriors` makes `log_probability` from both.

    Beam 1 without the three weights is greedy CTC: the text of the most likely path. A beam of one prefix would sum
    paths, and sometimes end with another text.
    After the end of a clip the blank must have all probability.
    Raises ConfigError if lm_weight is above 0 and there is no language model.
    """
    fusion = fusion_of(params, lm)
    weighs_syllables = syllables is not None and params.syllable_weight > 0
    if params.beam == 1 and fusion.lm is None and not params.length_bonus and not weighs_syllables:
        return [[Candidate(table.decode(ids), score, score)] for ids, score in greedy_ctc(log_probs_BSV)]
    token_U = np.arange(len(SPECIAL_TOKENS), table.num_tokens)
    found = [
        [
            Candidate(
                table.splitting.join(table.units[unit] for unit in prefix.units),
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
    """Returns the first `num_candidates`; if there are none, an empty text with probability 0."""
    return list(candidates[: params.num_candidates]) or [Candidate("", -np.inf, -np.inf)]


def fusion_of(params: DecodeParams, lm: LanguageModel | None) -> Fusion:
    """Returns the scores that `params` add to CTC. Raises ConfigError if a needed language model is missing."""
    if params.lm_weight > 0 and lm is None:
        raise ConfigError(
            f"decode.lm_weight is {params.lm_weight:g}, but there is no language model; run `pipeline lm` to make one"
        )
    return Fusion(lm if params.lm_weight > 0 else None, params.lm_weight, params.length_bonus)


def with_syllables(
    found: Sequence[Sequence[Candidate]], syllables: SyllableScores, weight: float
) -> list[list[Candidate]]:
    """Adds the syllable head's weighted log-probability to each candidate's rank; returns the best first."""
    texts = [[candidate.text for candidate in candidates] for candidates in found]
    ranked = [
        [
            replace(candidate, rank_score=candidate.rank_score + weight * log_probability)
            for candidate, log_probability in zip(candidates, added, strict=True)
        ]
        for candidates, added in zip(found, syllable_log_probabilities(texts, syllables), strict=True)
    ]
    return [sorted(candidates, key=lambda candidate: -candidate.rank_score) for candidates in ranked]


def pinyin_beam(
    syllable_log_probs_BSW: Array,
    vocabulary: Vocabulary,
    params: DecodeParams,
    lm: LanguageModel | None,
) -> list[list[Candidate]]:
    """Returns the best texts of each clip by syllable log-probabilities, at most `params.num_candidates`, at least one.

    `lm` is over the vocabulary's characters. `rank_score` includes the log-probability of the text's syllables, summed
    over the paths that the beam kept; of a text with several readings, that of the best one. `with_posteriors` makes
    `log_probability`: homophones share the probability of their syllables. Texts have no spaces, since syllables have
    none. After the end of a clip the blank must have all probability.
    Raises ConfigError without a language model or with decode.lm_weight 0: nothing else can separate homophones.
    """
    if lm is None or not params.lm_weight:
        missing = "there is no language model" if lm is None else "decode.lm_weight is 0"
        raise ConfigError(
            f"decoder pinyin chooses characters by a language model, but {missing}; run `pipeline lm` to make one, "
            "and use it with --set decode.lm_weight=0.5"
        )
    assert vocabulary.syllables is not None, "a vocabulary without syllables"
    units = _units(vocabulary.characters, vocabulary.syllables)
    found = []
    for prefixes in prefix_beam(syllable_log_probs_BSW, units, params.beam, fusion_of(params, lm)):
        candidates: dict[str, Candidate] = {}
        spoken: dict[tuple[int, ...], float] = {}  # homophones count once
        for prefix in prefixes:
            spoken[tuple(units.column_U[list(prefix.units)])] = prefix.log_probability
            text = vocabulary.characters.decode([int(units.token_U[unit]) for unit in prefix.units])
            candidates.setdefault(text, Candidate(text, prefix.log_probability, prefix.rank_score))
        log_mass = float(np.logaddexp.reduce(list(spoken.values()), initial=-np.inf))
        found.append(best_of(with_posteriors(list(candidates.values()), log_mass), params))
    return found


@lru_cache(4)
def _units(characters: Tokenizer, syllables: Tokenizer) -> Units:
    """Returns every character with each of its syllables that the head knows."""
    known = set(syllables.units)
    pairs = [
        (character, reading)
        for character in characters.units
        for reading in readings_of(character, syllables.splitting.latin == "spell")
        if reading in known
    ]
    return Units(
        np.array(syllables.encode(reading for _, reading in pairs), np.int64),
        np.array(characters.encode(character for character, _ in pairs), np.int64),
    )


def ctc_readings(
    name: str,
    log_probs_BSV: Array | None,
    syllable_log_probs_BSW: Array | None,
    vocabulary: Vocabulary,
    params: DecodeParams,
    lm: LanguageModel | None,
) -> list[Reading]:
    """Decodes with `name`: ctc, syllables, ctc_beam or pinyin; a head that it does not need may be None.

    The log-probabilities are numpy arrays or torch tensors, and the search runs on their device. After the end of a
    clip the blank must have all probability.
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
    """Returns the first of a beam's candidates as the text, with all candidates."""
    best = candidates[0]
    return Reading(best.text, best.log_probability / max(len(best.text), 1), tuple(candidates))


def greedy_reading(table: Tokenizer, ids: Sequence[int], log_probability: float) -> Reading:
    """Returns the text of a greedy decoder's tokens; special tokens are not written and do not count."""
    text = table.decode(ids)
    num_written = sum(token >= len(SPECIAL_TOKENS) for token in ids) if table.joiner else len(text)
    return Reading(text, log_probability / max(num_written, 1))
