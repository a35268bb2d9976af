"""Texts of overlapping windows are joined, whatever was cut or misread at the edges."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inference.text_of_video import separator, without_overlap

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
