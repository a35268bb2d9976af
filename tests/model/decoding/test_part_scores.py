"""Candidates' scores by each part of a model: against sums over all paths, and against the ranks of the searches."""

import math

import numpy as np
import pytest
import torch

from model.decoding.ctc_beam import ctc_readings
from model.decoding.part_scores import with_part_scores
from model.decoding.reader import LipReader
from model.decoding.result import Candidate, PartScores, Reading
from model.settings import DecodeParams, ModelParams
from model.text import BLANK_ID, SPECIAL_TOKENS
from tests.support.every_path import every_text, lm_score, scores
from tests.support.networks import FRAMES, LM, NUM_FRAMES_B, SMALL, SMALL_CONFORMER, VOCABULARY, reader_of

TABLE, SYLLABLES = VOCABULARY.characters, VOCABULARY.syllables
assert SYLLABLES is not None
LM_OF_CHARACTERS = LM.of_tokens(TABLE)
WEIGHTS = {"lm_weight": 0.4, "length_bonus": -0.3, "syllable_weight": 0.2}


def weighted(
    parts: PartScores, params: DecodeParams, ctc: float, attention: float, syllables: float
) -> float:
    """Returns the sum of the parts that the docs give, by these weights of the heads."""
    heads = ((parts.ctc, ctc), (parts.attention, attention), (parts.syllables, syllables))
    score = sum(weight * part for part, weight in heads if weight and part is not None)
    assert parts.language_model is not None
    return score + params.lm_weight * parts.language_model + params.length_bonus * parts.length


def head_of(num_steps: int, num_tokens: int, seed: int) -> np.ndarray:
    """Returns random log-probabilities of a head that has learnt to output no special token but the blank."""
    log_probs_SV = scores(num_steps, num_tokens, seed)
    log_probs_SV[:, BLANK_ID + 1 : len(SPECIAL_TOKENS)] = -np.inf
    return log_probs_SV


def test_parts_are_the_sums_over_all_paths() -> None:
    log_probs_SV, log_probs_SW = head_of(5, TABLE.num_tokens, 0), head_of(5, SYLLABLES.num_tokens, 1)
    texts = ["", "一", "三三", "二一四", "五二三一", "一二三四五一"]
    reading = Reading("", 0.0, tuple(Candidate(text, 0.0, 0.0) for text in texts))
    found = with_part_scores(reading, log_probs_SV, log_probs_SW, VOCABULARY, LM_OF_CHARACTERS)
    characters, sounds = every_text(log_probs_SV, TABLE), every_text(log_probs_SW, SYLLABLES)
    for text, candidate in zip(texts, found.candidates, strict=True):
        parts = candidate.parts
        assert parts is not None
        assert parts.ctc == pytest.approx(characters.get(text, -math.inf), abs=1e-6)
        assert parts.syllables == pytest.approx(sounds.get(VOCABULARY.pinyin_of(text), -math.inf), abs=1e-6)
        assert parts.language_model == pytest.approx(lm_score(text, LM_OF_CHARACTERS, TABLE), abs=1e-5)
        assert (parts.attention, parts.length) == (None, len(text))
    assert found.candidates[-1].parts.ctc == -math.inf, "six characters in five steps"  # type: ignore[union-attr]
    bare = with_part_scores(reading, None, None, VOCABULARY, None, [0.0] * len(texts)).candidates[1]
    assert bare.parts == PartScores(None, 0.0, None, None, 1)


@pytest.mark.parametrize("name", ["ctc_beam", "pinyin"])
def test_a_wide_ctc_search_ranks_by_the_parts(name: str) -> None:
    """It keeps all paths here, so its score is exact."""
    log_probs_SV, log_probs_SW = head_of(5, TABLE.num_tokens, 2), head_of(5, SYLLABLES.num_tokens, 3)
    params = DecodeParams(decoder=name, beam=500, num_candidates=50, **WEIGHTS)
    heads = (log_probs_SV[None], log_probs_SW[None])
    (reading,) = ctc_readings(name, *heads, VOCABULARY, params, LM_OF_CHARACTERS)
    found = with_part_scores(reading, log_probs_SV, log_probs_SW, VOCABULARY, LM_OF_CHARACTERS)
    assert len(found.candidates) == 50
    ctc, syllables = (1.0, params.syllable_weight) if name == "ctc_beam" else (0.0, 1.0)
    for one in found.candidates[:20]:
        assert one.parts is not None
        assert one.rank_score == pytest.approx(weighted(one.parts, params, ctc, 0.0, syllables), abs=1e-3)


@pytest.mark.parametrize("model", [SMALL, SMALL_CONFORMER], ids=["cnn3d", "conformer"])
@pytest.mark.parametrize(("name", "share"), [("joint_beam", 0.3), ("attention_beam", 0.0)])
def test_searches_with_an_attention_decoder_rank_by_the_parts(
    model: ModelParams, name: str, share: float
) -> None:
    reader = reader_of(model)
    params = DecodeParams(decoder=name, num_candidates=4, ctc_share=0.3, **WEIGHTS)
    torch.manual_seed(1)
    video_BTHW = torch.randint(0, 256, (len(FRAMES), max(FRAMES), 96, 96), dtype=torch.uint8)
    texts = set()
    for row, frames in enumerate(FRAMES):
        reading = reader.read_clip(video_BTHW[row, :frames].numpy(), params)
        for one in reading.candidates:
            assert one.parts is not None
            expected = weighted(one.parts, params, share, 1 - share, params.syllable_weight)
            assert one.rank_score == pytest.approx(expected, abs=1e-3)
            texts.add(one.text)
    assert len({len(text) for text in texts}) > 1, "texts of different lengths, padded in one pass"
    assert_a_batch_gives_the_same(reader, video_BTHW, params)


@torch.no_grad()
def assert_a_batch_gives_the_same(reader: LipReader, video_BTHW: torch.Tensor, params: DecodeParams) -> None:
    encoded_BSE, num_steps_B = reader.encode(video_BTHW, NUM_FRAMES_B)
    readings = reader.decode(encoded_BSE, num_steps_B, NUM_FRAMES_B, params)
    together = reader.with_part_scores(readings, encoded_BSE, num_steps_B)
    for row, frames in enumerate(FRAMES):
        alone = reader.read_clip(video_BTHW[row, :frames].numpy(), params)
        for ours, theirs in zip(together[row].candidates, alone.candidates, strict=True):
            assert ours.parts is not None and theirs.parts is not None
            for name in PartScores.__slots__:
                assert getattr(ours.parts, name) == pytest.approx(getattr(theirs.parts, name), abs=1e-3)


def test_greedy_decoders_have_no_candidates_to_score() -> None:
    reader = reader_of(SMALL_CONFORMER)
    clip_THW = np.zeros((9, 96, 96), np.uint8)
    assert reader.read_clip(clip_THW, DecodeParams(decoder="ctc")).candidates == ()
