"""The probabilities of a beam's texts, compared with sums over every text."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.decoding.ctc import SyllableScores
from model.decoding.ctc_beam import ctc_beam, pinyin_beam
from model.decoding.kneser_ney import train
from model.decoding.ngram import LanguageModel
from model.decoding.result import Candidate, with_posteriors
from model.pinyin import syllables_of
from model.settings import DecodeParams
from model.text import SPECIAL_TOKENS
from model.vocabulary import Vocabulary
from tests.support.every_path import every_text, lm_score, scores

LABELS = ["妈骑马", "马骂妈", "妈妈骂马", "骑马"]
VOCABULARY = Vocabulary.of_labels(LABELS, with_syllables=True)
TABLE = VOCABULARY.characters
LM: LanguageModel = train(LABELS, 3).of_tokens(TABLE)
STEPS, CLIPS = 4, 20

ranked = st.lists(st.tuples(st.floats(-40, -1), st.floats(-30, 5)), min_size=1, max_size=10)


def candidates_of(pairs: list[tuple[float, float]]) -> list[Candidate]:
    return [Candidate(str(place), likely, rank) for place, (likely, rank) in enumerate(pairs)]


@given(ranked, st.floats(-20, 20))
def test_the_total_probability_is_that_of_the_heads(pairs: list[tuple[float, float]], shift: float) -> None:
    found = candidates_of(pairs)
    mass = sum(math.exp(likely) for likely, _ in pairs)
    if mass > 1:
        return
    texts = with_posteriors(found)
    assert sum(math.exp(one.log_probability) for one in texts) == pytest.approx(mass)
    assert [(one.text, one.rank_score) for one in texts] == [(one.text, one.rank_score) for one in found]
    for one, other in pairwise(texts):
        assert other.log_probability - one.log_probability == pytest.approx(other.rank_score - one.rank_score)
    # a constant added to every rank changes nothing
    moved = with_posteriors(candidates_of([(likely, rank + shift) for likely, rank in pairs]))
    assert [one.log_probability for one in moved] == pytest.approx([one.log_probability for one in texts])


def test_ranks_equal_to_the_heads_change_nothing() -> None:
    found = candidates_of([(math.log(p), math.log(p)) for p in (0.5, 0.2, 0.1)])
    assert with_posteriors(found) == found


def test_impossible_ranks() -> None:
    likely, impossible = Candidate("a", -1.0, -2.0), Candidate("b", -1.5, -math.inf)
    first, second = with_posteriors([likely, impossible])
    assert first.log_probability == pytest.approx(math.log(math.exp(-1.0) + math.exp(-1.5)))
    assert second.log_probability == -math.inf
    assert with_posteriors([impossible]) == [impossible]
    assert with_posteriors([]) == []


def plain_scores(num_tokens: int, seed: int) -> np.ndarray:
    """Returns the output of a head in which only the blank writes nothing, as the forward probability assumes."""
    log_probs_SV = scores(STEPS, num_tokens, seed, 3.0)
    log_probs_SV[:, 1 : len(SPECIAL_TOKENS)] = -np.inf
    return log_probs_SV - np.logaddexp.reduce(log_probs_SV, axis=1, keepdims=True)


@cache
def score_of_lm(text: str) -> float:
    return lm_score(text, LM, TABLE)


@cache
def spelling(text: str) -> str:
    return " ".join(syllables_of(text))


def ranks_of(
    name: str, log_probs_SV: np.ndarray, log_probs_SW: np.ndarray, params: DecodeParams
) -> dict[str, float]:
    """Returns the decoder's rank of every text, from sums over every path."""
    assert VOCABULARY.syllables is not None
    texts = every_text(log_probs_SV, TABLE)
    ranks = dict.fromkeys(texts, 0.0) if name == "pinyin" else texts
    if weight := 1.0 if name == "pinyin" else params.syllable_weight:
        spoken = every_text(log_probs_SW, VOCABULARY.syllables)
        for text in ranks:
            ranks[text] += weight * spoken.get(spelling(text), -math.inf)
    return {
        text: rank + params.lm_weight * score_of_lm(text) + params.length_bonus * len(text)
        for text, rank in ranks.items()
    }


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ctc_beam", {"lm_weight": 0.4}),
        ("ctc_beam", {"lm_weight": 1.0, "length_bonus": 0.7}),
        ("ctc_beam", {"lm_weight": 0.3, "syllable_weight": 0.5}),
        ("pinyin", {"lm_weight": 1.0}),
    ],
)
def test_probabilities_of_a_beam_agree_with_a_sum_over_every_text(
    name: str, weights: dict[str, float]
) -> None:
    """So for a correct model the confidence is calibrated. Probabilities of the heads would be 0.1 to 0.5 off."""
    assert VOCABULARY.syllables is not None
    off = []
    for seed in range(CLIPS):
        log_probs_SV = plain_scores(TABLE.num_tokens, seed)
        log_probs_SW = plain_scores(VOCABULARY.num_syllables, CLIPS + seed)
        syllables = SyllableScores(log_probs_SW[None], VOCABULARY.syllables)
        ranks = ranks_of(name, log_probs_SV, log_probs_SW, DecodeParams(**weights))  # type: ignore[arg-type]
        evidence = np.logaddexp.reduce(list(ranks.values()))
        for beam in (10, 500):
            params = DecodeParams(beam=beam, **weights)  # type: ignore[arg-type]
            if name == "pinyin":
                ((best, *_),) = pinyin_beam(log_probs_SW[None], VOCABULARY, params, LM)
            else:
                ((best, *_),) = ctc_beam(log_probs_SV[None], TABLE, params, LM, syllables)
            exact = math.exp(ranks[best.text] - evidence)
            probability = math.exp(best.log_probability)
            if beam == 10:
                off.append(abs(probability - exact))
            else:
                assert probability == pytest.approx(exact, abs=1e-6)
    assert np.mean(off) < 0.06
