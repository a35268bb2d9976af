"""Visemes: every syllable of the dictionary has visemes, and homophenes agree with phonetics."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypinyin.constants import PINYIN_DICT
from pypinyin.contrib.tone_convert import to_normal

from model.metrics import edit_counts, total_counts, unit_error_rate
from model.pinyin import syllables_of
from model.visemes import (
    VISEME_OF_INITIAL,
    VISEMES_OF_FINAL,
    is_mandarin,
    look_alike_classes_of,
    look_alike_units,
    look_alike_units_of_pinyin,
    look_alikes,
    viseme_units,
    visemes_of,
    visemes_of_pinyin,
)

SYLLABLES = sorted({to_normal(one) for readings in PINYIN_DICT.values() for one in readings.split(",")})
HUMMED = {"hm", "hng", "m", "n", "ng"}
mandarin = st.text(alphabet="今天气很好爸妈怕他那里是四长行了一不abc 7", max_size=12)


def test_every_syllable_of_the_dictionary_has_visemes() -> None:
    assert len(SYLLABLES) > 400
    assert {syllable for syllable in SYLLABLES if visemes_of(syllable) is None} == HUMMED


def test_there_are_far_fewer_look_alike_classes_than_syllables() -> None:
    classes = {visemes_of(syllable) for syllable in SYLLABLES}
    assert 80 < len(classes) < len(SYLLABLES) / 2


def test_initials_and_finals_are_those_of_pinyin() -> None:
    assert " ".join(VISEME_OF_INITIAL) == "b p m f d t n l g k h j q x zh ch sh r z c s"
    assert " ".join(sorted(VISEMES_OF_FINAL)) == (
        "a ai an ang ao e ei en eng er i ia ian iang iao ie in ing io iong iou o ong ou "
        "u ua uai uan uang uei uen ueng uo v van ve vn ê"
    )


@pytest.mark.parametrize(
    "alike", ["ba pa ma", "da ta la na", "zhi chi shi ri", "jing qing xing jin", "lan nai"]
)
def test_homophenes(alike: str) -> None:
    assert len({visemes_of(syllable) for syllable in alike.split()}) == 1


@pytest.mark.parametrize(
    "apart", ["ba fa da ga za zha", "yo o you", "la lu lv li le lao lou", "ji zhi", "yi wu yu a o e er"]
)
def test_syllables_that_differ_on_the_lips(apart: str) -> None:
    syllables = apart.split()
    assert len({visemes_of(syllable) for syllable in syllables}) == len(syllables)


def test_visemes_of_a_spelled_syllable() -> None:
    assert visemes_of("zhuang") == ("zh-", "u", "a")
    assert visemes_of("yu") == visemes_of("yong") == ("v",)
    assert visemes_of("xu") == ("j-", "v") and visemes_of("lv") == ("d-", "v")
    assert [visemes_of(one) for one in ("gpu", "7", "x")] == [None] * 3


@given(st.text() | mandarin)
def test_every_character_but_spaces_has_a_look_alike_class_or_none(text: str) -> None:
    characters = [character for character in text if not character.isspace()]
    classes = look_alike_classes_of(text)
    assert len(classes) == len(characters) == len(syllables_of(text))
    assert all(
        found is None for character, found in zip(characters, classes, strict=True) if character < "\u2e80"
    )


@given(mandarin, mandarin)
def test_equal_syllables_have_equal_visemes(reference: str, hypothesis: str) -> None:
    if syllables_of(reference) == syllables_of(hypothesis):
        assert viseme_units(reference) == viseme_units(hypothesis)


def test_homophenes_cost_characters_but_no_visemes() -> None:
    pairs = [("爸爸怕妈", "怕妈爸爸")]
    assert total_counts(pairs).cer == 1.0
    assert unit_error_rate(pairs, syllables_of) == 1.0
    assert unit_error_rate(pairs, viseme_units) == 0.0


def test_a_text_of_pinyin_has_the_visemes_of_its_characters() -> None:
    assert visemes_of_pinyin(" ".join(syllables_of("今天很好"))) == viseme_units("今天很好")


any_spelling = st.text(alphabet="今天气很好爸妈怕他那里是四长行了解见一不地的啊哟aogpu7 ", max_size=12)


@given(any_spelling, any_spelling)
def test_look_alike_classes_never_cost_more_than_syllables(reference: str, hypothesis: str) -> None:
    """A look-alike class is a set of syllables. Merging units keeps their number and cannot add to the edit distance.

    This does not hold for visemes, since a syllable has one to three.
    """
    said, read = syllables_of(reference), syllables_of(hypothesis)
    classes, syllables = (
        edit_counts(look_alike_units(reference), look_alike_units(hypothesis)),
        edit_counts(said, read),
    )
    assert classes.num_chars == syllables.num_chars
    assert classes.errors <= syllables.errors
    spaced = " ".join(said), " ".join(read)
    assert edit_counts(*map(look_alike_units_of_pinyin, spaced)) == classes


one_reading = st.text(alphabet="今天气很爸妈怕他她那里是四abc7", max_size=12)


@given(one_reading, one_reading)
def test_syllables_never_cost_more_than_characters_with_one_reading_each(said: str, read: str) -> None:
    assert edit_counts(syllables_of(said), syllables_of(read)).errors <= edit_counts(said, read).errors


def test_syllables_can_cost_more_than_characters_since_readings_depend_on_neighbours() -> None:
    """So the report does not claim that the syllable error rate is at most the CER."""
    pairs = [("我了解你", "我了见你")]
    assert total_counts(pairs).cer == 1 / 4 and unit_error_rate(pairs, syllables_of) == 2 / 4


def test_a_look_alike_class_is_correct_or_wrong_as_a_whole() -> None:
    # 先 for 也: "i e" and "i ai" share a viseme, but are different classes
    pairs = [("也好", "先好")]
    assert unit_error_rate(pairs, look_alike_units) == unit_error_rate(pairs, syllables_of) == 1 / 2
    assert unit_error_rate([("爸爸怕妈", "怕妈爸爸")], look_alike_units) == 0.0


def test_look_alikes_are_sorted_by_frequency() -> None:
    assert look_alikes(["爸爸怕妈", "他大", "好"]) == [["爸", "妈", "怕"], ["他", "大"]]
    assert look_alikes(["bin blue"]) == []


def test_text_is_mandarin_if_half_of_its_characters_are_han() -> None:
    assert is_mandarin(["今天", "ab"])
    assert not is_mandarin(["今天", "abc"])
    assert not is_mandarin(["   ", ""])


def test_visemes_need_neither_torch_nor_mediapipe() -> None:
    code = "import sys, model.visemes, model.bootstrap; sys.exit(bool({'torch', 'mediapipe'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)
