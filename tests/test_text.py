"""The normaliser and the character table."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.settings import TextParams
from model.text import UNKNOWN_ID, Tokenizer, normalise
from shards.errors import CheckpointError

PARAMS = TextParams()


@pytest.mark.parametrize(
    ("given_text", "label"),
    [
        ("你好,世界!", "你好世界"),
        ("ＡＢＣ　中 文", "abc中文"),
        ("bin  blue at f", "bin blue at f"),
        ("It’s a-ok", "its a ok"),
        ("用 GPU 跑 cuDNN", "用gpu跑cudnn"),
        ("１２３", "123"),
        ("零\u200b宽", "零宽"),
        ("  ", ""),
    ],
)
def test_labels(given_text: str, label: str) -> None:
    assert normalise(given_text, PARAMS) == label


def test_switches() -> None:
    assert normalise("Ab, c!", TextParams(case_fold=False, drop_punctuation=False)) == "Ab, c!"


@given(st.text(), st.booleans(), st.booleans())
def test_normalising_twice_changes_nothing(text: str, fold: bool, drop: bool) -> None:
    params = TextParams(case_fold=fold, drop_punctuation=drop)
    once = normalise(text, params)
    assert normalise(once, params) == once


@given(st.text())
def test_no_punctuation_and_no_double_space_is_left(text: str) -> None:
    label = normalise(text, PARAMS)
    assert not [c for c in label if unicodedata.category(c)[0] in "PSC"]
    assert "  " not in label and label == label.strip()


@given(st.lists(st.text(alphabet="一二三四abc ", max_size=8), min_size=1))
def test_known_text_survives_the_table(labels: list[str]) -> None:
    tokenizer = Tokenizer.of_units(c for label in labels for c in label)
    assert all(tokenizer.decode(tokenizer.encode(label)) == label for label in labels)
    assert Tokenizer.of_units(c for label in reversed(labels) for c in label) == tokenizer
    assert Tokenizer.from_json(tokenizer.to_json(), "here") == tokenizer


def test_unknown_characters_are_marked_not_dropped() -> None:
    assert Tokenizer(("一",)).encode("一二一") == [4, UNKNOWN_ID, 4]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"characters": ["a"]},
        {"special_tokens": ["<blank>", "<start>", "<end>", "<unknown>"], "characters": ["ab"]},
        {"special_tokens": ["<blank>", "<start>", "<end>", "<unknown>"], "characters": ["a", "a"]},
    ],
)
def test_a_foreign_tokenizer_is_refused_by_name(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_json(value, "tokenizer.json")
