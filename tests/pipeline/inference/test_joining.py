"""Texts of overlapping windows are joined, whatever was cut or misread at the edges."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decoding.result import Reading, TimedCharacter
from pipeline.inference.text_of_video import JoinedReadings, separator, without_overlap
from stages.mouths.cropping import Figures, MouthClip
from stages.mouths.pieces import Piece

HAN = [chr(0x4E00 + i) for i in range(200)]
DISTINCT = st.integers(0, 2**32).map(lambda seed: "".join(random.Random(seed).sample(HAN, 60)))
"""Texts in which each character occurs once: equal characters are the same position."""


@given(st.text(alphabet="ab 一", min_size=1, max_size=60), st.data())
@settings(max_examples=300, deadline=None)
def test_a_text_in_overlapping_pieces_is_restored(text: str, data: st.DataObject) -> None:
    """Also if it repeats itself: the time says how much two pieces share."""
    begin = data.draw(st.integers(0, len(text)))
    shared = data.draw(st.integers(0, len(text) - begin))
    before, after = text[: begin + shared], text[begin:]
    kept, rest = without_overlap(before, after, float(shared))
    assert kept + rest == text
    assert before.startswith(kept) and after.endswith(rest)


@given(
    DISTINCT,
    st.integers(4, 12),
    st.integers(0, 1),
    st.integers(0, 1),
    st.floats(0.7, 1.4),
)
@settings(max_examples=200, deadline=None)
def test_errors_at_the_edges_are_removed(
    text: str, shared: int, wrong_before: int, wrong_after: int, rate: float
) -> None:
    """A window shows its first and last characters only in part; its neighbour shows them whole."""
    middle = 20
    before, after = text[: middle + shared], text[middle:]
    before = before[: len(before) - wrong_before] + "x" * wrong_before
    after = "y" * wrong_after + after[wrong_after:]
    assert "".join(without_overlap(before, after, rate * shared)) == text


@given(DISTINCT, st.integers(3, 9))
@settings(max_examples=100, deadline=None)
def test_a_missing_or_extra_character_at_an_edge_is_corrected(text: str, shared: int) -> None:
    before, after = text[: 30 + shared], text[30:]
    assert "".join(without_overlap(before[:-1], after, shared)) == text
    assert "".join(without_overlap(before, "z" + after, shared)) == text


def test_errors_away_from_the_overlap_stay() -> None:
    assert "".join(without_overlap("今天气很好我们", "很好我们去公元", 4.0)) == "今天气很好我们去公元"


def test_the_cut_is_between_words() -> None:
    kept, rest = without_overlap("lay blue at f tw", "e at f two now", 6.0)
    assert kept + rest == "lay blue at f two now"
    assert kept.endswith((" at", " at f", "blue")) and rest.startswith(" ")


@pytest.mark.parametrize(("before", "after"), [("", ""), ("一二三", ""), ("", "一二三")])
def test_an_empty_text(before: str, after: str) -> None:
    assert without_overlap(before, after, 0.0) == (before, after)


def test_without_equal_characters_the_time_decides() -> None:
    assert without_overlap("一二三四五六", "甲乙丙丁戊己", 4.0) == ("一二三四", "丙丁戊己")


@pytest.mark.parametrize(
    ("before", "after", "space"),
    [
        ("bin", "blue", " "),
        ("我", "们", ""),
        ("我", "blue", ""),
        ("bin", "们", ""),
        ("", "a", ""),
        ("a", "", ""),
        ("bin ", "blue", ""),
        ("bin", " blue", " "),
        ("bin ", " blue", ""),
        ("我", " blue", " "),
        ("bin", " ", ""),
    ],
)
def test_words_are_separated_and_han_characters_are_not(before: str, after: str, space: str) -> None:
    assert separator(before, after) == space


@given(st.lists(st.text(alphabet="ab 一二", max_size=12), min_size=1, max_size=5), st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_each_character_of_the_joined_text_keeps_its_time(texts: list[str], shared_frames: int) -> None:
    fps, num_frames = 25.0, 100
    mouth = MouthClip(
        np.zeros((num_frames, 4, 4), np.uint8),
        None,
        np.arange(num_frames, dtype=np.int32),
        np.zeros(0, np.int32),
        Figures(),
    )
    joined, start_s = JoinedReadings(fps), 0.0
    for text in texts:
        borders_s = np.linspace(0, num_frames / fps, len(text) + 1)
        characters = tuple(
            TimedCharacter(one, borders_s[place], borders_s[place + 1], 0.5) for place, one in enumerate(text)
        )
        joined.add(Piece(start_s, start_s + num_frames / fps, mouth), Reading(text, -0.5, (), characters))
        start_s += (num_frames - shared_frames) / fps
    all_times: list[float] = []
    for segment in joined.segments:
        assert "".join(one.text for one in segment.characters) == segment.text
        times = [time_s for one in segment.characters for time_s in (one.start_s, one.end_s)]
        assert all(segment.start_s <= time_s <= segment.end_s for time_s in times)
        all_times += times
    assert all_times == sorted(all_times)
