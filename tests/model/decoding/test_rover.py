"""Votes over texts, against every possible alignment on small cases."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from model.decoding.result import Candidate, Reading
from model.decoding.rover import rover, slots_of

ALPHABET = "一二三"


def alignments(first: str, second: str) -> Iterator[list[tuple[str, str]]]:
    """Yields every alignment of two texts: pairs of units, "" for none."""
    if not first and not second:
        yield []
        return
    if first and second:
        yield from ([(first[0], second[0]), *rest] for rest in alignments(first[1:], second[1:]))
    if first:
        yield from ([(first[0], ""), *rest] for rest in alignments(first[1:], second))
    if second:
        yield from ([("", second[0]), *rest] for rest in alignments(first, second[1:]))


def test_two_texts_are_aligned_as_the_best_of_all_alignments() -> None:
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list(ALPHABET), random.integers(0, 6))) for _ in range(60)]
    for first, second in itertools.pairwise(texts):
        slots = slots_of([(first, 0.6), (second, 0.4)])
        errors = sum(max(slot.values()) < 0.99 for slot in slots)
        assert errors == min(sum(a != b for a, b in pairs) for pairs in alignments(first, second))
        assert all(math.isclose(sum(slot.values()), 1.0) for slot in slots)


def texts_of_slots(slots: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns every text that the slots can write, with the product of its shares."""
    found: dict[str, float] = {}
    for units in itertools.product(*slots):
        share = math.prod(slot[unit] for slot, unit in zip(slots, units, strict=True))
        found["".join(units)] = max(found.get("".join(units), 0.0), share)
    return found


def test_the_text_is_the_first_of_an_exhaustive_vote() -> None:
    random = np.random.default_rng(1)
    for _ in range(60):
        drawn = ["".join(random.choice(list(ALPHABET), random.integers(1, 5))) for _ in range(4)]
        texts = list(dict.fromkeys(drawn))
        shares = dict(zip(texts, random.dirichlet(np.ones(len(texts))), strict=True))
        candidates = tuple(Candidate(text, math.log(share), 0.0) for text, share in shares.items())
        reading = rover([Reading("", 0.0, candidates)])
        every = texts_of_slots(slots_of(sorted(shares.items(), key=lambda pair: -pair[1])))
        assert every[reading.text] == pytest.approx(max(every.values()))
        assert reading.score == pytest.approx(math.log(max(every.values())) / max(len(reading.text), 1))
        assert reading.candidates[0].text == reading.text
        assert {one.text for one in reading.candidates} == {*texts, reading.text}


@pytest.mark.parametrize(
    ("texts", "voted"),
    [
        (("今天天气", "今夫天气", "今天天汽"), "今天天气"),
        (("一二三", "一三", "一三"), "一三"),
        (("一三", "一二三", "一二三"), "一二三"),
        (("", "", "一"), ""),
        # words, not letters: no word is written that nobody has read
        (("bin blue now", "bit blue no", "bin glue no"), "bin blue no"),
    ],
)
def test_the_majority_of_three_wins(texts: Sequence[str], voted: str) -> None:
    for order in itertools.permutations(texts):
        assert rover([Reading(text, -0.1) for text in order]).text == voted


def test_of_two_texts_the_surer_one_wins() -> None:
    readings = [Reading("一二", -1.0), Reading("一三", -0.2)]
    assert rover(readings).text == rover(readings[::-1]).text == "一三"


def test_readings_that_are_not_sure_at_all_give_the_first_text() -> None:
    impossible = Reading("一", -math.inf, (Candidate("一", -math.inf, -math.inf),))
    assert rover([impossible, impossible]) == impossible
    assert rover([impossible, Reading("三", math.nan), Reading("二", -0.5)]).text == "二"
