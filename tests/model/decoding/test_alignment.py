"""Alignment by the CTC head, against sums over all paths (itertools) and against `ctc_log_probabilities`."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decoding.alignment import (
    EVIDENCE_HOLD_S,
    FRAME_COST,
    align,
    masked_copies,
    times_by_evidence,
    with_times,
)
from model.decoding.ctc import ctc_log_probabilities
from model.decoding.result import Reading
from model.settings import TextParams
from model.text import BLANK_ID, SPECIAL_TOKENS
from model.vocabulary import Vocabulary

FIRST = len(SPECIAL_TOKENS)
A, B, C = FIRST, FIRST + 1, FIRST + 2


def random_log_probs(seed: int, num_steps: int, num_tokens: int = FIRST + 3) -> np.ndarray:
    logits_SV = 2 * np.random.default_rng(seed).standard_normal((num_steps, num_tokens))
    return logits_SV - np.logaddexp.reduce(logits_SV, axis=1, keepdims=True)


def spelled(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK_ID)


def emissions(path: tuple[int, ...]) -> list[tuple[int, int]]:
    spans, step = [], 0
    for token, run in itertools.groupby(path):
        length = len(list(run))
        if token != BLANK_ID:
            spans.append((step, step + length - 1))
        step += length
    return spans


def probability(log_probs_SV: np.ndarray, tokens: list[int]) -> float:
    return float(np.exp(ctc_log_probabilities(log_probs_SV[None], [0], [tokens])[0]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.lists(st.sampled_from([A, B, C]), max_size=4))
def test_steps_are_those_of_the_best_of_all_paths(seed: int, num_steps: int, tokens: list[int]) -> None:
    log_probs_SV = random_log_probs(seed, num_steps)
    paths = [
        path
        for path in itertools.product([BLANK_ID, A, B, C], repeat=num_steps)
        if spelled(path) == tuple(tokens)
    ]
    units = align(log_probs_SV, tokens)
    if not paths:
        assert units is None
        return
    best = max(paths, key=lambda path: sum(log_probs_SV[step, token] for step, token in enumerate(path)))
    assert units is not None
    assert [(unit.first, unit.last) for unit in units] == emissions(best)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 9), st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=6)
)
def test_confidences_compare_the_probabilities_of_whole_texts(
    seed: int, num_steps: int, tokens: list[int]
) -> None:
    log_probs_SV = random_log_probs(seed, num_steps)
    units = align(log_probs_SV, tokens)
    if units is None:
        assert probability(log_probs_SV, tokens) == 0
        return
    own = probability(log_probs_SV, tokens)
    for place, unit in enumerate(units):
        changed = {
            token: probability(log_probs_SV, [*tokens[:place], token, *tokens[place + 1 :]])
            for token in (A, B, C)
            if token != tokens[place]
        }
        all_texts = (
            own + sum(changed.values()) + probability(log_probs_SV, tokens[:place] + tokens[place + 1 :])
        )
        assert unit.confidence == pytest.approx(own / all_texts, rel=1e-9)
        assert dict(unit.alternatives) == pytest.approx(
            {token: of_text / all_texts for token, of_text in changed.items()}, rel=1e-9
        )
        shares = [share for _, share in unit.alternatives]
        assert shares == sorted(shares, reverse=True)


def test_an_empty_text_has_no_units() -> None:
    assert align(random_log_probs(0, 4), []) == []


LABELS = ["我去北京", "bin blue at f two now", "한국어 하나", "我爱 go", "now at two"]


@pytest.mark.parametrize(
    "text",
    [
        TextParams(),
        TextParams(units="words"),
        TextParams(units="bpe", bpe_size=40),
        TextParams(hangul="letters"),
        TextParams(units="words", latin="spell"),
    ],
    ids=lambda text: f"{text.units}-{text.hangul}-{text.latin}",
)
@pytest.mark.parametrize("label", LABELS)
def test_times_of_all_characters_follow_each_other(text: TextParams, label: str) -> None:
    table = Vocabulary.of_labels(LABELS, with_syllables=False, text=text).characters
    num_frames, fps = 80, 25.0
    log_probs_SV = random_log_probs(1, num_frames // 2, table.num_tokens)
    reading = with_times(Reading(label, -0.5), log_probs_SV, table, num_frames, fps)
    characters = reading.characters
    assert "".join(one.text for one in characters) == label
    times = [time for one in characters for time in (one.start_s, one.end_s)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= num_frames / fps
    assert all(one.end_s > one.start_s and 0 < one.confidence < 1 for one in characters)


@pytest.mark.parametrize("written", ["我去北京", "wo qu bei jing", "我去 北京"])
def test_a_syllable_head_times_pinyin_and_the_characters_that_have_it(written: str) -> None:
    table = Vocabulary.of_labels(LABELS, with_syllables=True).syllables
    assert table is not None
    log_probs_SV = random_log_probs(2, 40, table.num_tokens)
    characters = with_times(Reading(written, -0.5), log_probs_SV, table, 40, 25.0).characters
    assert "".join(one.text for one in characters) == written
    times = [time for one in characters for time in (one.start_s, one.end_s)]
    assert times == sorted(times)
    units = align(log_probs_SV, table.encode(["wo", "qu", "bei", "jing"]))
    assert units is not None
    assert {one.confidence for one in characters} == {unit.confidence for unit in units}


def test_a_character_lasts_until_the_middle_before_the_next_but_not_into_a_pause() -> None:
    table = Vocabulary.of_labels(["ab"], with_syllables=False).characters
    log_probs_SV = np.full((50, table.num_tokens), -9.0)
    log_probs_SV[:, BLANK_ID] = 0.0
    for step, unit in ((10, "a"), (14, "b"), (40, "a")):
        log_probs_SV[step, [BLANK_ID, *table.encode(unit)]] = -9.0, 0.0
    first, second, third = with_times(Reading("aba", -0.1), log_probs_SV, table, 50, 25.0).characters
    assert (first.start_s, first.end_s) == pytest.approx((10 / 25 - 0.2, 12.5 / 25))
    assert (second.start_s, second.end_s) == pytest.approx((12.5 / 25, 15 / 25 + 0.2))
    assert (third.start_s, third.end_s) == pytest.approx((40 / 25 - 0.2, 41 / 25 + 0.2))


def test_a_text_that_does_not_fit_into_the_clip_has_no_times() -> None:
    table = Vocabulary.of_labels(["ab"], with_syllables=False).characters
    assert with_times(Reading("aa", -1.0), random_log_probs(0, 2, table.num_tokens), table, 2, 25.0) == (
        Reading("aa", -1.0)
    )


# -- times by evidence ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(0, 4))
def test_units_share_the_frames_so_that_their_evidence_is_largest(
    seed: int, num_units: int, more: int
) -> None:
    """Against all ways to share the frames; evidence in each frame, so that none is left out."""
    num_frames = num_units + more
    drop_TL = np.random.default_rng(seed).uniform(0.1, 1, (num_frames, num_units))
    share_TL = drop_TL / drop_TL.max(axis=0)

    def evidence(borders: tuple[int, ...]) -> float:
        return sum(
            float((share_TL[start:stop, unit] - FRAME_COST).sum())
            for unit, (start, stop) in enumerate(itertools.pairwise(borders))
        )

    best = max(itertools.combinations(range(num_frames + 1), num_units + 1), key=evidence)
    fps = 1000.0  # so that the time that a unit is held before and after the text is longer than the clip
    found = times_by_evidence(np.arange(num_frames), drop_TL, num_frames, fps)
    inner = [round(start_s * fps) for start_s, _ in found[1:]]
    assert inner == list(best[1:-1])
    assert [end_s for _, end_s in found[:-1]] == [start_s for start_s, _ in found[1:]]


def test_a_unit_ends_soon_after_its_evidence() -> None:
    fps, drop_TL = 25.0, np.zeros((100, 2))
    drop_TL[10:20, 0], drop_TL[60:70, 1] = 2.0, 0.5
    first, second = times_by_evidence(np.arange(100), drop_TL, 100, fps)
    assert first == pytest.approx((10 / fps - EVIDENCE_HOLD_S, 20 / fps + EVIDENCE_HOLD_S))
    assert second == pytest.approx((60 / fps - EVIDENCE_HOLD_S, 70 / fps + EVIDENCE_HOLD_S))


def test_masks_hide_every_frame_in_turn() -> None:
    clip_THW = np.random.default_rng(0).integers(0, 256, (40, 3, 3), dtype=np.uint8)
    mean_HW = clip_THW.mean(axis=0).round().astype(np.uint8)
    hidden_frames: list[list[int]] = []
    for middles, copies_BTHW in masked_copies(clip_THW, 25.0):
        for middle, copy_THW in zip(middles, copies_BTHW, strict=True):
            changed = np.flatnonzero((copy_THW != clip_THW).any(axis=(1, 2))).tolist()
            assert np.array_equal(copy_THW[changed], np.broadcast_to(mean_HW, (len(changed), 3, 3)))
            assert changed == [frame for frame in range(middle - 3, middle + 4) if 0 <= frame < 40]
            hidden_frames.append(changed)
    assert len(hidden_frames) == 20 and set().union(*hidden_frames) == set(range(40))
