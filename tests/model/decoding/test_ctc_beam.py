"""CTC beam search, compared with a sum over every path, a search that tries every unit, and PyTorch's CTC loss."""

import math
import time
from collections import defaultdict
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decoding import ctc_beam as module
from model.decoding.ctc import (
    SyllableScores,
    ctc_log_probabilities,
    greedy_ctc,
    syllable_log_probabilities,
)
from model.decoding.kneser_ney import train
from model.decoding.ngram import LanguageModel
from model.decoding.result import Candidate
from model.pinyin import syllables_of
from model.settings import DecodeParams
from model.text import BLANK_ID, SPECIAL_TOKENS, Tokenizer
from shards.errors import ConfigError
from tests.support.every_path import every_text, lm_score, scores

TABLE = Tokenizer.of_units("ab")
LM = train(["ab", "aab", "ba", "abab", "b"], 3).of_tokens(TABLE)
FIRST = len(SPECIAL_TOKENS)
MANY_UNITS = Tokenizer.of_units("abcdefghijklmnopqrst")
LM_OF_MANY = train(["abcabc", "tsr", "abtsr", "ijk", "cab"], 3).of_tokens(MANY_UNITS)
WIDE = 500


def ctc_beam(
    log_probs_SV: np.ndarray,
    table: Tokenizer,
    params: DecodeParams,
    lm: LanguageModel | None = None,
    syllables: SyllableScores | None = None,
) -> list[Candidate]:
    """Decodes one clip with numpy and with torch."""
    (found,) = module.ctc_beam(log_probs_SV[None], table, params, lm, syllables)
    (by_torch,) = module.ctc_beam(
        torch.from_numpy(log_probs_SV)[None], table, params, lm, in_torch(syllables)
    )
    assert_alike(by_torch, found)
    return found


def in_torch(syllables: SyllableScores | None) -> SyllableScores | None:
    return syllables and SyllableScores(torch.from_numpy(syllables.log_probs_BSW), syllables.table)


def assert_alike(found: list[Candidate], expected: list[Candidate]) -> None:
    """Compares scores, and texts if no scores are equal: of equal scores either may come first or leave the beam."""
    for field in ("log_probability", "rank_score"):
        np.testing.assert_allclose(
            [getattr(candidate, field) for candidate in found],
            [getattr(candidate, field) for candidate in expected],
            atol=1e-9,
        )
    if len({round(candidate.rank_score, 6) for candidate in expected}) == len(expected):
        assert [candidate.text for candidate in found] == [candidate.text for candidate in expected]


def plain_beam(
    log_probs_SV: np.ndarray,
    table: Tokenizer,
    beam: int,
    lm: LanguageModel | None,
    weight: float,
    bonus: float,
) -> list[tuple[str, float, float]]:
    """Hannun's search with dictionaries: every prefix tries every unit. Returns (text, CTC log-probability, rank)."""
    none = -math.inf

    @lru_cache(None)
    def state_after(text: str) -> int:
        assert lm is not None
        if not text:
            return lm.start()
        before_N, tokens_N = np.array([state_after(text[:-1])]), np.array(table.encode(text[-1]))
        return int(lm.advance(before_N, tokens_N)[0])

    @lru_cache(None)
    def log_probs_after(state: int) -> np.ndarray:
        assert lm is not None
        return lm.log_probs(np.array([state]))[0]

    @lru_cache(None)
    def fused(text: str) -> float:
        if lm is None or not text:
            return bonus * len(text)
        (token,) = table.encode(text[-1])
        return fused(text[:-1]) + bonus + weight * float(log_probs_after(state_after(text[:-1]))[token])

    kept = {"": (0.0, none)}
    for log_prob_V in log_probs_SV.astype(float):
        blank = np.logaddexp.reduce(log_prob_V[:FIRST])
        grown: dict[str, list[float]] = defaultdict(lambda: [none, none])
        for text, (of_blank, of_spoken) in kept.items():
            total = np.logaddexp(of_blank, of_spoken)
            grown[text][0] = np.logaddexp(grown[text][0], total + blank)
            for token, unit in enumerate(table.units, start=FIRST):
                repeats = text.endswith(unit)
                before = of_blank if repeats else total
                grown[text + unit][1] = np.logaddexp(grown[text + unit][1], before + log_prob_V[token])
                if repeats:
                    grown[text][1] = np.logaddexp(grown[text][1], of_spoken + log_prob_V[token])
        ranked = sorted(grown, key=lambda text: -(np.logaddexp(*grown[text]) + fused(text)))
        kept = {text: (grown[text][0], grown[text][1]) for text in ranked[:beam]}
        kept = {text: pair for text, pair in kept.items() if max(pair) > none}
    sums = {text: float(np.logaddexp(*pair)) for text, pair in kept.items()}
    end = {
        text: (weight * lm_score(text, lm, table) + bonus * len(text)) if lm else fused(text) for text in sums
    }
    return sorted(((text, one, one + end[text]) for text, one in sums.items()), key=lambda item: -item[2])


@given(
    st.integers(1, 5),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.4, 1.3]),
    st.sampled_from([0, -0.7, 1.5]),
)
@settings(max_examples=40, deadline=None)
def test_a_wide_beam_is_an_exhaustive_search(num_steps: int, seed: int, weight: float, bonus: float) -> None:
    log_probs_SV = scores(num_steps, TABLE.num_tokens, seed)
    exact = every_text(log_probs_SV, TABLE)
    rank = {
        text: log_probability + bonus * len(text) + (weight * lm_score(text, LM, TABLE) if weight else 0)
        for text, log_probability in exact.items()
    }
    params = DecodeParams(beam=WIDE, num_candidates=100, lm_weight=weight, length_bonus=bonus)
    found = ctc_beam(log_probs_SV, TABLE, params, LM)
    assert [candidate.text for candidate in found] == sorted(rank, key=lambda text: -rank[text])
    # every text was found, so the probability of a text is its share of the total
    evidence = np.logaddexp.reduce(list(rank.values()))
    for candidate in found:
        assert candidate.rank_score == pytest.approx(rank[candidate.text], abs=1e-5)
        assert candidate.log_probability == pytest.approx(rank[candidate.text] - evidence, abs=1e-5)
        if weight == bonus == 0:
            assert candidate.log_probability == pytest.approx(exact[candidate.text], abs=1e-6)


@given(
    st.integers(1, 14),
    st.integers(1, 12),
    st.integers(0, 10_000),
    st.sampled_from([0.5, 2.0, 5.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0, -0.5, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_skipping_units_does_not_change_the_result(
    num_steps: int, beam: int, seed: int, sharpness: float, weight: float, bonus: float
) -> None:
    """The final beam is that of a search that tries every unit, also for narrow beams."""
    table, lm = MANY_UNITS, LM_OF_MANY if weight else None
    log_probs_SV = scores(num_steps, table.num_tokens, seed, sharpness)
    params = DecodeParams(beam=beam, num_candidates=100, lm_weight=weight, length_bonus=bonus)
    if beam == 1 and not weight and not bonus:
        return  # greedy by definition
    found = ctc_beam(log_probs_SV, table, params, lm)
    plain = plain_beam(log_probs_SV, table, beam, lm, weight, bonus)
    assert [candidate.text for candidate in found] == [text for text, _, _ in plain]
    np.testing.assert_allclose(
        [candidate.rank_score for candidate in found], [rank for _, _, rank in plain], atol=1e-5
    )
    # the total probability of the final beam is that of CTC
    total = np.logaddexp.reduce([candidate.log_probability for candidate in found])
    assert total == pytest.approx(np.logaddexp.reduce([of_text for _, of_text, _ in plain]), abs=1e-6)


@given(st.integers(0, 12), st.integers(2, 6), st.integers(0, 10_000))
@settings(deadline=None)
def test_probabilities_of_a_narrow_beam_are_lower_bounds(num_steps: int, beam: int, seed: int) -> None:
    log_probs_SV = scores(num_steps, TABLE.num_tokens, seed, 1.0)
    log_probs_SV[:, 1:FIRST] = -np.inf  # so only the blank writes nothing, as in PyTorch's loss
    found = ctc_beam(log_probs_SV, TABLE, DecodeParams(beam=beam))
    assert len({candidate.text for candidate in found}) == len(found) <= beam
    assert found == sorted(found, key=lambda candidate: -candidate.rank_score)
    exact_N = ctc_log_probabilities(
        log_probs_SV[None], [0] * len(found), [TABLE.encode(candidate.text) for candidate in found]
    )
    for candidate, exact in zip(found, exact_N, strict=True):
        assert candidate.log_probability <= min(exact + 1e-9, 0.0)
        assert candidate.rank_score == candidate.log_probability


@given(st.integers(1, 12), st.integers(0, 10_000))
def test_beam_1_is_greedy(num_steps: int, seed: int) -> None:
    log_probs_SV = scores(num_steps, TABLE.num_tokens, seed)
    ((ids, score),) = greedy_ctc(log_probs_SV[None])
    assert ctc_beam(log_probs_SV, TABLE, DecodeParams(beam=1)) == [Candidate(TABLE.decode(ids), score, score)]


@given(st.integers(1, 5), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_greedy_ctc_returns_the_probability_of_all_paths_of_its_text(num_steps: int, seed: int) -> None:
    log_probs_SV = scores(num_steps, TABLE.num_tokens, seed)
    log_probs_SV[
        :, 1:FIRST
    ] = -np.inf  # they write nothing, so a text would have the paths of several targets
    ((ids, score),) = greedy_ctc(log_probs_SV[None])
    assert score == pytest.approx(every_text(log_probs_SV, TABLE)[TABLE.decode(ids)], abs=1e-6)


def test_paths_are_summed() -> None:
    """Graves' example: the blank path is the most likely path, but the text of three paths is more likely."""
    log_probs_SV = np.full((2, TABLE.num_tokens), -np.inf)
    log_probs_SV[:, [BLANK_ID, FIRST]] = np.log([0.6, 0.4])
    assert ctc_beam(log_probs_SV, TABLE, DecodeParams(beam=1))[0].text == ""
    best, second = ctc_beam(log_probs_SV, TABLE, DecodeParams(beam=4))
    assert (best.text, second.text) == ("a", "")
    assert np.exp([best.log_probability, second.log_probability]) == pytest.approx([0.64, 0.36])


def test_the_language_model_decides_between_equal_ctc_scores() -> None:
    log_probs_SV = np.full((3, TABLE.num_tokens), -np.inf)
    log_probs_SV[[0, 2], FIRST:] = np.log(0.5)
    log_probs_SV[1, BLANK_ID] = 0
    lm = train(["ba"] * 9, 2).of_tokens(TABLE)
    assert ctc_beam(log_probs_SV, TABLE, DecodeParams(lm_weight=0.5), lm)[0].text == "ba"


def test_special_tokens_write_nothing() -> None:
    """As in greedy CTC, <unknown> and <end> in a path act like the blank."""
    log_probs_SV = np.full((3, TABLE.num_tokens), -np.inf)
    log_probs_SV[[0, 2], FIRST] = np.log(0.9)
    log_probs_SV[[0, 2], 3] = np.log(0.1)
    log_probs_SV[1, [2, 3]] = np.log(0.5)
    candidates = {c.text: c.log_probability for c in ctc_beam(log_probs_SV, TABLE, DecodeParams())}
    assert candidates == pytest.approx({"aa": math.log(0.81), "a": math.log(0.18), "": math.log(0.01)})


def test_no_steps_and_no_paths() -> None:
    nothing = np.zeros((0, TABLE.num_tokens), np.float32)
    assert ctc_beam(nothing, TABLE, DecodeParams()) == [Candidate("", 0.0, 0.0)]
    (with_lm,) = ctc_beam(nothing, TABLE, DecodeParams(lm_weight=1.0), LM)
    assert with_lm.log_probability == 0.0
    assert with_lm.rank_score == pytest.approx(lm_score("", LM, TABLE))
    impossible = np.full((2, TABLE.num_tokens), -np.inf)
    assert ctc_beam(impossible, TABLE, DecodeParams()) == [Candidate("", -math.inf, -math.inf)]


def test_a_weight_without_a_language_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="pipeline lm"):
        ctc_beam(scores(2, TABLE.num_tokens, 0), TABLE, DecodeParams(lm_weight=0.3))


@given(
    st.integers(1, 12), st.integers(0, 10_000), st.lists(st.lists(st.integers(1, 5), max_size=6), min_size=1)
)
@settings(deadline=None)
def test_the_forward_score_agrees_with_pytorchs_loss(
    num_steps: int, seed: int, targets: list[list[int]]
) -> None:
    log_probs_SV = scores(num_steps, 6, seed)
    found_N = ctc_log_probabilities(log_probs_SV[None], [0] * len(targets), targets)
    for target, found in zip(targets, found_N, strict=True):
        loss = torch.nn.functional.ctc_loss(
            torch.from_numpy(log_probs_SV).double()[:, None],
            torch.tensor([target], dtype=torch.long),
            torch.tensor([num_steps]),
            torch.tensor([len(target)]),
            reduction="sum",
        )
        assert found == pytest.approx(-float(loss), abs=1e-6)
    assert ctc_log_probabilities(log_probs_SV[None, :0], [0, 0], [[], [1]]).tolist() == [0.0, -math.inf]


def test_the_syllable_head_chooses_among_the_beams_texts() -> None:
    table = Tokenizer.of_units("妈马大")
    syllables = Tokenizer.of_units({"ma", "da"}, joiner=" ")
    log_probs_SV = scores(4, table.num_tokens, 3, 0.3)
    log_probs_SW = np.full((4, syllables.num_tokens), np.log(0.001))
    log_probs_SW[[0, 2], syllables.encode(["da"])] = np.log(0.9)
    log_probs_SW[[1, 3], BLANK_ID] = np.log(0.9)
    head = SyllableScores(log_probs_SW[None], syllables)
    alone = ctc_beam(log_probs_SV, table, DecodeParams(num_candidates=100, beam=WIDE))
    joined = ctc_beam(
        log_probs_SV, table, DecodeParams(num_candidates=100, beam=WIDE, syllable_weight=2.0), None, head
    )
    assert joined[0].text == "大大" != alone[0].text
    exact = {
        text: math.log(max(p, 1e-300))
        for text, p in zip(
            [c.text for c in joined],
            np.exp(
                ctc_log_probabilities(
                    log_probs_SW[None],
                    [0] * len(joined),
                    [syllables.encode(syllables_of(c.text)) for c in joined],
                )
            ),
            strict=True,
        )
    }
    by_characters = {c.text: c.log_probability for c in alone}
    for candidate in joined[:20]:
        expected = by_characters[candidate.text] + 2 * exact[candidate.text]
        assert candidate.rank_score == pytest.approx(expected, abs=1e-6)
        assert candidate.log_probability - joined[0].log_probability == pytest.approx(
            expected - joined[0].rank_score, abs=1e-6
        )
    # homophones are one text to the syllable head
    ((mother, horse),) = syllable_log_probabilities([["妈大", "马大"]], head)
    assert mother == horse
    assert {c.text for c in joined} == set(by_characters)
    # the syllable head changes single probabilities, but not their total
    assert np.exp([c.log_probability for c in joined]).sum() == pytest.approx(
        np.exp([c.log_probability for c in alone]).sum()
    )


def test_the_search_is_faster_than_real_time() -> None:
    """10 s at 25 steps/s, 4,500 tokens, beam 40 with a language model; processor time, since the machine is shared."""
    table = Tokenizer.of_units(chr(0x4E00 + number) for number in range(4496))
    rng = np.random.default_rng(0)
    lm = train(("".join(rng.choice(table.units, 20)) for _ in range(500)), 4).of_tokens(table)
    logits = rng.normal(size=(250, table.num_tokens))
    logits[:, BLANK_ID] += 6
    logits[np.arange(0, 250, 6)[:, None], rng.integers(FIRST, table.num_tokens, (42, 3))] += 9
    log_probs_SV = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    began = time.process_time()
    found = ctc_beam(log_probs_SV, table, DecodeParams(beam=40, lm_weight=0.2, length_bonus=1.0), lm)
    assert time.process_time() - began < 10
    assert len(found[0].text) > 20
