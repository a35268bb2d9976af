"""Characters from syllables, compared with an exhaustive search over a tiny lexicon."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decoding import ctc_beam as module
from model.decoding.kneser_ney import train
from model.decoding.ngram import LanguageModel
from model.decoding.result import Candidate
from model.pinyin import readings_of
from model.settings import DecodeParams
from model.text import BLANK_ID, Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import ConfigError
from tests.support.every_path import every_text, lm_score, scores

LABELS = ["妈骑马", "马骂妈", "妈妈骂马", "骑马"]
VOCABULARY = Vocabulary.of_labels(LABELS, with_syllables=True)
LM = train(LABELS, 3).of_tokens(VOCABULARY.characters)


def pinyin_beam(
    log_probs_SW: np.ndarray, vocabulary: Vocabulary, params: DecodeParams, lm: LanguageModel | None
) -> list[Candidate]:
    """Decodes one clip with numpy and with torch."""
    (found,) = module.pinyin_beam(log_probs_SW[None], vocabulary, params, lm)
    (by_torch,) = module.pinyin_beam(torch.from_numpy(log_probs_SW)[None], vocabulary, params, lm)
    np.testing.assert_allclose(
        [candidate.rank_score for candidate in by_torch],
        [candidate.rank_score for candidate in found],
        atol=1e-9,
    )
    return found


def test_readings() -> None:
    assert readings_of("妈") == ("ma",)
    assert set(readings_of("乐")) >= {"le", "yue"}
    assert readings_of("女") == ("nv", "ru") or "nv" in readings_of("女")
    assert readings_of("a") == ("a",)
    assert readings_of("7") == ("7",)


@given(st.integers(1, 4), st.integers(0, 10_000), st.sampled_from([0.3, 1.0]), st.sampled_from([0.0, 1.0]))
@settings(max_examples=20, deadline=None)
def test_a_wide_beam_is_an_exhaustive_search(num_steps: int, seed: int, weight: float, bonus: float) -> None:
    assert VOCABULARY.syllables is not None
    log_probs_SW = scores(num_steps, VOCABULARY.num_syllables, seed)
    of_syllables = every_text(log_probs_SW, VOCABULARY.syllables)
    characters = defaultdict(list)
    for character in VOCABULARY.characters.units:
        for reading in readings_of(character):
            characters[reading].append(character)
    rank: dict[str, float] = {}
    for spoken, log_probability in of_syllables.items():
        for choice in itertools.product(*(characters[syllable] for syllable in spoken.split())):
            text = "".join(choice)
            score = log_probability + weight * lm_score(text, LM, VOCABULARY.characters) + bonus * len(text)
            rank[text] = max(rank.get(text, -np.inf), score)
    params = DecodeParams(beam=500, num_candidates=50, lm_weight=weight, length_bonus=bonus)
    found = pinyin_beam(log_probs_SW, VOCABULARY, params, LM)
    expected = sorted(rank.values(), reverse=True)
    np.testing.assert_allclose([c.rank_score for c in found], expected[:50], atol=1e-5)
    # every text was found, so its probability is its share of the total: homophones share that of their syllables
    evidence = np.logaddexp.reduce(expected)
    for candidate in found:
        assert candidate.rank_score == pytest.approx(rank[candidate.text], abs=1e-5)
        assert candidate.log_probability == pytest.approx(rank[candidate.text] - evidence, abs=1e-5)


def spoken(syllables: list[str], vocabulary: Vocabulary) -> np.ndarray:
    """Returns the output of a confident head: one step per syllable, and a blank after it."""
    assert vocabulary.syllables is not None
    log_probs_SW = np.full((2 * len(syllables), vocabulary.num_syllables), np.log(1e-4))
    log_probs_SW[np.arange(0, len(log_probs_SW), 2), vocabulary.syllables.encode(syllables)] = np.log(0.99)
    log_probs_SW[1::2, BLANK_ID] = np.log(0.99)
    return log_probs_SW


def test_the_language_model_chooses_the_right_homophones() -> None:
    params = DecodeParams(lm_weight=0.5)
    assert pinyin_beam(spoken(["ma", "qi", "ma"], VOCABULARY), VOCABULARY, params, LM)[0].text == "妈骑马"
    assert (
        pinyin_beam(spoken(["ma", "ma", "ma", "ma"], VOCABULARY), VOCABULARY, params, LM)[0].text
        == "妈妈骂马"
    )


def test_heteronyms_and_other_scripts() -> None:
    labels = ["音乐", "快乐", "用gpu7"]
    vocabulary = Vocabulary.of_labels(labels, with_syllables=True)
    lm = train(labels, 3).of_tokens(vocabulary.characters)
    params = DecodeParams(lm_weight=0.5)
    for text, said in (
        ("音乐", ["yin", "yue"]),
        ("快乐", ["kuai", "le"]),
        ("用gpu7", ["yong", "g", "p", "u", "7"]),
    ):
        assert pinyin_beam(spoken(said, vocabulary), vocabulary, params, lm)[0].text == text


def test_no_steps() -> None:
    (found,) = pinyin_beam(
        np.zeros((0, VOCABULARY.num_syllables)), VOCABULARY, DecodeParams(lm_weight=0.5), LM
    )
    assert (found.text, found.log_probability) == ("", 0.0)


@pytest.mark.parametrize(("lm", "weight"), [(None, 0.5), (LM, 0.0)])
def test_decoding_without_a_language_model_is_refused(lm: object, weight: float) -> None:
    log_probs_SW = spoken(["ma"], VOCABULARY)
    with pytest.raises(ConfigError, match="pipeline lm"):
        pinyin_beam(log_probs_SW, VOCABULARY, DecodeParams(lm_weight=weight), lm)  # type: ignore[arg-type]


def test_units_outside_the_syllable_table_are_left_out() -> None:
    vocabulary = Vocabulary(Tokenizer.of_units("妈大"), Tokenizer.of_units(["ma"], joiner=" "))
    lm = train(["大妈"], 2).of_tokens(vocabulary.characters)
    found = pinyin_beam(spoken(["ma"], vocabulary), vocabulary, DecodeParams(lm_weight=0.5), lm)
    assert found[0].text == "妈"
    assert all("大" not in candidate.text for candidate in found)
