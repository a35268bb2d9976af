"""Beam searches and language models over units other than characters."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from model.decoding.arpa import load_language_model, read_arpa, write_arpa
from model.decoding.ctc import ctc_spikes
from model.decoding.ctc_beam import ctc_beam, greedy_reading, pinyin_beam
from model.decoding.kneser_ney import train
from model.decoding.ngram import perplexity
from model.settings import DecodeParams, TextParams
from model.text import SPECIAL_TOKENS, Tokenizer
from model.units import Splitting
from model.vocabulary import Vocabulary
from shards.errors import TableError
from tests.support.every_path import every_text, scores

FIRST = len(SPECIAL_TOKENS)
BPE = Tokenizer((" a", "a", "b", "ab"), splitting=Splitting("bpe", merges=(("a", "b"), (" ", "a"))))
LABELS = ["the cat sat", "the cat ate", "用gpu跑", "用gpu看the cat"] * 2


def test_a_text_that_bpe_can_write_in_several_ways_has_the_probability_of_all() -> None:
    log_probs_SV = scores(5, BPE.num_tokens, seed=3)
    log_probs_SV[:, 1:FIRST] = -np.inf
    expected = every_text(log_probs_SV, BPE)
    params = DecodeParams(decoder="ctc_beam", beam=500, num_candidates=20)
    for array in (log_probs_SV[None], torch.from_numpy(log_probs_SV)[None]):
        (found,) = ctc_beam(array, BPE, params)
        texts = [candidate.text for candidate in found]
        assert len(set(texts)) == len(texts) and texts[0] == max(expected, key=lambda text: expected[text])
        assert "ab" in texts, "a and b, or ab"
        for candidate in found:
            assert candidate.log_probability == pytest.approx(expected[candidate.text], abs=1e-6)


def test_the_score_of_a_greedy_text_is_per_character() -> None:
    reading = greedy_reading(BPE, BPE.encode([" a", "b", "ab"]), -4.0)
    assert (reading.text, reading.score) == ("abab", -1.0)


def test_spikes_are_named_by_their_units() -> None:
    log_probs_SV = np.full((4, BPE.num_tokens), np.log(0.01), np.float32)
    for step, token in enumerate(BPE.encode([" a", "b", "ab", "a"])):
        log_probs_SV[step, token] = np.log(0.9)
    found = ctc_spikes(log_probs_SV, BPE, BPE.splitting.split("abab"))
    assert [spike.text for spike in found.spikes] == [" a", "b", "ab", "a"]


@pytest.mark.parametrize("units", ["words", "bpe"])
def test_a_language_model_of_units_survives_its_file(tmp_path: Path, units: str) -> None:
    table = Vocabulary.of_labels(LABELS, False, TextParams(units=units, bpe_size=24)).characters  # type: ignore[arg-type]
    lines = [table.splitting.split(label) for label in LABELS]
    model = train(lines, 3)
    write_arpa(tmp_path / "lm.arpa", model, {"units": str(table.splitting)})
    again = read_arpa(tmp_path / "lm.arpa")
    assert again.words == model.words and " the" in again.words
    assert perplexity(again, lines) == perplexity(model, lines)
    lm = load_language_model(tmp_path / "lm.arpa", table)
    assert not lm.unseen_V[[table.units.index(unit) + FIRST for line in lines for unit in line]].any()
    # "the cat" continues as in the text
    state_N = np.array([lm.start()])
    for token in table.encode("the cat"):
        state_N = lm.advance(state_N, np.array([token]))
    (log_prob_V,) = lm.log_probs(state_N)
    first_of_sat, first_of_gpu = (table.encode(word)[0] for word in ("sat", "gpu"))
    assert log_prob_V[first_of_sat] > log_prob_V[first_of_gpu]


def test_a_language_model_of_other_units_is_refused(tmp_path: Path) -> None:
    words = Vocabulary.of_labels(LABELS, False, TextParams(units="words")).characters
    characters = Vocabulary.of_labels(LABELS, False).characters
    bpe, other_bpe = (
        Vocabulary.of_labels(labels, False, TextParams(units="bpe", bpe_size=24)).characters
        for labels in (LABELS, ["the cats ate that", "that cat ate"] * 2)
    )
    write_arpa(tmp_path / "of_words.arpa", train(map(words.splitting.split, LABELS), 2), {"units": "words"})
    write_arpa(tmp_path / "of_characters.arpa", train(LABELS, 2), {"learnt_from": "text"})
    units = str(bpe.splitting)
    write_arpa(tmp_path / "of_bpe.arpa", train(map(bpe.splitting.split, LABELS), 2), {"units": units})
    for name, table in (("of_words", characters), ("of_characters", words), ("of_bpe", other_bpe)):
        with pytest.raises(TableError, match=rf"{name}\.arpa is a model of other units .*pipeline lm"):
            load_language_model(tmp_path / f"{name}.arpa", table)
    with pytest.raises(TableError, match=re.escape(f"({units}) than this lip reader writes (words)")):
        load_language_model(tmp_path / "of_bpe.arpa", words)
    for name, table in (("of_words", words), ("of_characters", characters), ("of_bpe", bpe)):
        load_language_model(tmp_path / f"{name}.arpa", table)
    # a file of another program does not say its units
    write_arpa(tmp_path / "foreign.arpa", train(LABELS, 2))
    few_single = [" ", *(unit for unit in bpe.units if len(unit) > 1)]
    long_units = Tokenizer.of_units(few_single, splitting=bpe.splitting)
    for table, known in ((words, "3 of the 8 words"), (long_units, r"1 of the \d+ bpe units")):
        with pytest.raises(TableError, match=rf"foreign\.arpa knows {known}"):
            load_language_model(tmp_path / "foreign.arpa", table)


def test_the_decoder_pinyin_writes_letters_that_were_spelled() -> None:
    labels = ["用ai看", "哎用看", "用哎看"]
    found = Vocabulary.of_labels(labels, True, TextParams(units="pinyin", latin="spell"))
    assert found.syllables is not None
    lm = train(["用ai看"] * 5 + labels, 3).of_tokens(found.characters)
    log_probs_SW = np.full((7, found.num_syllables), -9.0, np.float32)
    for step, token in enumerate(found.syllables.encode("用ai看")):
        log_probs_SW[2 * step, token] = -0.01
    log_probs_SW[1::2, 0] = -0.01
    (texts,) = pinyin_beam(log_probs_SW[None], found, DecodeParams(decoder="pinyin", lm_weight=0.7), lm)
    assert found.pinyin_of("用ai看") == "yong ei ai kan"
    assert texts[0].text == "用ai看"
