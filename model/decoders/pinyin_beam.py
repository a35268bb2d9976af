"""Characters out of a syllable head: its CTC beam search, where the language model chooses among homophones.

One search, not two: a prefix is a text of characters, its CTC paths are those of its syllables, and both scores
prune together, so the language model also decides between syllables. Imports no torch.

Shapes: B clips, S steps, W syllables (special tokens included), U characters with one of their syllables each.
"""

from functools import lru_cache

import numpy as np

from model.decoders.arrays import Array
from model.decoders.ctc_beam import best_of, fusion_of
from model.decoders.ngram import LanguageModel
from model.decoders.posterior import with_posteriors
from model.decoders.prefix_beam import Units, prefix_beam
from model.pinyin import readings_of
from model.reading import Candidate
from model.settings import DecodeParams
from model.text import Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import ConfigError


def pinyin_beam(
    syllable_log_probs_BSW: Array,
    vocabulary: Vocabulary,
    params: DecodeParams,
    lm: LanguageModel | None,
) -> list[list[Candidate]]:
    """The best texts of each clip by its syllable log-probabilities, at most `params.num_candidates`, at least one.

    `lm` is of the vocabulary's characters. `rank_score` has the log-probability of the text's syllables over the paths
    that the beam kept; of a text with several readings, the best one's. `log_probability` is the text's own by
    `with_posteriors`: homophones share that of their syllables. Texts have no spaces: syllables have none.
    Behind the end of a clip the blank has all probability.
    Raises ConfigError where there is no language model or decode.lm_weight is 0: nothing else tells homophones apart.
    """
    if lm is None or not params.lm_weight:
        missing = "there is no language model" if lm is None else "decode.lm_weight is 0"
        raise ConfigError(
            f"decoder pinyin chooses characters by a language model, and {missing}; `pipeline lm` makes one, "
            "--set decode.lm_weight=0.5 asks it"
        )
    assert vocabulary.syllables is not None, "a vocabulary without syllables"
    units = _units(vocabulary.characters, vocabulary.syllables)
    found = []
    for prefixes in prefix_beam(syllable_log_probs_BSW, units, params.beam, fusion_of(params, lm)):
        candidates: dict[str, Candidate] = {}
        heard: dict[tuple[int, ...], float] = {}  # homophones are heard once
        for prefix in prefixes:
            heard[tuple(units.column_U[list(prefix.units)])] = prefix.log_probability
            text = vocabulary.characters.decode([int(units.token_U[unit]) for unit in prefix.units])
            candidates.setdefault(text, Candidate(text, prefix.log_probability, prefix.rank_score))
        log_mass = float(np.logaddexp.reduce(list(heard.values()), initial=-np.inf))
        found.append(best_of(with_posteriors(list(candidates.values()), log_mass), params))
    return found


@lru_cache(4)
def _units(characters: Tokenizer, syllables: Tokenizer) -> Units:
    """Every character with each of its readings that the head knows."""
    known = set(syllables.units)
    pairs = [
        (character, reading)
        for character in characters.units
        for reading in readings_of(character)
        if reading in known
    ]
    return Units(
        np.array(syllables.encode(reading for _, reading in pairs), np.int64),
        np.array(characters.encode(character for character, _ in pairs), np.int64),
    )
