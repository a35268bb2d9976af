"""The normaliser and the tokenizer."""

import subprocess
import sys
import unicodedata
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.settings import TextParams
from model.text import (
    NORMALISER_VERSION,
    UNKNOWN_ID,
    Tokenizer,
    copied_normaliser_metadata,
    describe_normaliser,
    describe_stored_normaliser,
    is_han,
    normalise,
    normaliser_metadata,
    units_of,
    without_version,
)
from shards.errors import CheckpointError, TableError

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
        ("⻓江", "长江"),
        ("我爱你❤️", "我爱你"),
        ("1️⃣号和#️⃣", "1号和"),
        ("第❶步", "第1步"),
        ("  ", ""),
    ],
)
def test_labels(given_text: str, label: str) -> None:
    assert normalise(given_text, PARAMS) == label


def test_switches() -> None:
    assert normalise("Ab, c!", TextParams(case_fold=False, drop_punctuation=False)) == "Ab, c!"


@pytest.mark.parametrize(
    ("given_text", "label"),
    [
        ("2024年", "二零二四年"),
        ("１００ 元", "一零零元"),
        ("3.14", "三一四"),
        ("iPhone 15 和 mp3", "iphone一五和mp三"),
        ("第 ② 组", "第二组"),
        ("二〇二四年", "二零二四年"),
        ("二零二四年", "二零二四年"),
        ("二○二四年", "二零二四年"),
        ("二OO八年", "二零零八年"),
        ("2O24年", "二零二四年"),
        ("零o2", "零零二"),
        ("½O二OO八年", "一二零二零零八年"),
        ("Al2O3", "al二o三"),
        ("〡〥〇", "一五零"),
    ],
)
def test_digits_as_they_may_be_spoken(given_text: str, label: str) -> None:
    assert normalise(given_text, TextParams(digits="chinese")) == label
    assert not any(c in "零一二三四五六七八九" for c in normalise("1 2 3", PARAMS))


@pytest.mark.parametrize(
    ("given_text", "label"),
    [
        ("漢 字", "汉字"),
        ("乾隆年間很乾燥", "乾隆年间很干燥"),
        ("一目瞭然", "一目了然"),
        ("薴", "苎"),
        ("GPU 與 CPU", "gpu与cpu"),
        ("简体不变", "简体不变"),
    ],
)
def test_traditional_characters_become_simplified(given_text: str, label: str) -> None:
    assert normalise(given_text, TextParams(simplify=True)) == label
    assert normalise(given_text, PARAMS) == given_text.replace(" ", "").casefold()


def test_every_simplified_character_is_a_normal_han_character() -> None:
    params = TextParams(simplify=True)
    blocks = (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000), *range(0x20000, 0x2EBF0))
    simple = {normalise(chr(point), params) for point in blocks if unicodedata.category(chr(point)) != "Cn"}
    assert all(len(one) == 1 and is_han(one) and normalise(one, params) == one for one in simple)
    assert len(simple) < len(blocks) - 3_000


# OpenCC's traditional phrases and their parts, also separated by a space
any_text = st.text() | st.text(alphabet="乾隆燥瞭然望薴苧著作後來零2①３.ab ﬀſ'\u3000")
# zeros in every form next to numerals and units; brackets; letters, their marks, and characters removed between them
zeros_text = st.text(alphabet="0129oOОΟ○◯⭕〇零二八十百年点點比第号½⅒①〥 .:,，司aL")
bracket_text = st.text(alphabet="<>[](){}【】*#/_= aAbıİ3ǅ笑声○点&lt;gt")
marked_text = st.text(alphabet="cafeoiÉǰᾳ한ᄒ가2漢\u0301\u0327\u0345\u1161\u11ab\u200d\u200b\u00ad '<\u0338")


@settings(max_examples=1000, deadline=None)
@example("½O二OO八年", True, True, "chinese", False, False)
@example("○二OO八年", True, False, "keep", False, False)
@given(
    any_text | marked_text | zeros_text | bracket_text,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["keep", "chinese"]),
    st.booleans(),
    st.booleans(),
)
def test_normalising_twice_changes_nothing(
    text: str, fold: bool, drop: bool, digits: Literal["keep", "chinese"], simplify: bool, annotations: bool
) -> None:
    params = TextParams(
        case_fold=fold, drop_punctuation=drop, digits=digits, simplify=simplify, drop_annotations=annotations
    )
    once = normalise(text, params)
    assert normalise(once, params) == once
    assert unicodedata.is_normalized("NFKC", once)


scripts_text = st.text(
    alphabet="السَّلاٰمُـأإآٱ\u0654\u0655\u0653ىё\u0308еЕที่น้ำๆ ๓٣۴က\u103fບ don't’‘ʼ5中ᄒ\u1161Ǆ½①\u200d"
)


@settings(max_examples=400, deadline=None)
@given(
    scripts_text | any_text | marked_text,
    st.sampled_from(["keep", "unmarked", "plain"]),
    st.sampled_from(["keep", "plain"]),
    st.sampled_from(["keep", "drop"]),
    st.sampled_from(["drop", "keep"]),
    st.sampled_from(["keep", "ascii", "chinese"]),
    st.booleans(),
)
def test_options_of_scripts_change_nothing_the_second_time(
    text: str, arabic: Any, cyrillic: Any, spaces: Any, apostrophes: Any, digits: Any, drop: bool
) -> None:
    params = TextParams(
        arabic=arabic,
        cyrillic=cyrillic,
        phrase_spaces=spaces,
        apostrophes=apostrophes,
        digits=digits,
        drop_punctuation=drop,
    )
    once = normalise(text, params)
    assert normalise(once, params) == once
    assert unicodedata.is_normalized("NFKC", once)
    if digits == "ascii":
        assert not [one for one in once if one.isdecimal() and not one.isascii()]
    if arabic == "plain":
        assert not set(once) & set("أإآٱـَّ")


def test_a_letter_composes_with_its_mark_after_a_character_between_them_is_removed() -> None:
    assert normalise("cafe\u200d\u0301", PARAMS) == "café"


def test_tables_of_labels_store_their_normaliser() -> None:
    params = TextParams(digits="chinese")
    stored = normaliser_metadata(params)
    assert describe_stored_normaliser({b"table": b"samples", **stored}, "here") == describe_normaliser(params)
    assert copied_normaliser_metadata({b"table": b"clips", **stored}) == stored
    for metadata in (None, {}, {b"table": b"samples"}):
        assert (
            describe_stored_normaliser(metadata, "here") is None
            and copied_normaliser_metadata(metadata) == {}
        )
    older = {b"normaliser": stored[b"normaliser"].replace(str(NORMALISER_VERSION).encode(), b"2")}
    assert (
        describe_stored_normaliser(older, "here")
        == describe_normaliser(params, 2)
        != describe_normaliser(params)
    )


@pytest.mark.parametrize("stored", [b"", b"[]", b"{}", b'{"version": 9, "params": {"rot13": true}}'])
def test_an_unknown_normaliser_is_refused_with_the_table(stored: bytes) -> None:
    with pytest.raises(TableError, match=r"samples\.parquet: .*normaliser.*pipeline ingest"):
        describe_stored_normaliser({b"normaliser": stored}, "samples.parquet")


def test_the_line_for_reports_names_the_options_that_are_on() -> None:
    assert describe_normaliser(PARAMS) == (
        "NFKC, case folded, without punctuation and symbols, no spaces next to Han characters (version 4)"
    )
    line = describe_normaliser(TextParams(digits="chinese", simplify=True, drop_annotations=True))
    assert "without annotations" in line
    assert "digits as Chinese characters" in line and "simplified (OpenCC t2s, 著)" in line
    assert f"(version {NORMALISER_VERSION})" in line


def test_the_options_of_a_line_do_not_depend_on_its_version_or_older_wording() -> None:
    options = without_version(describe_normaliser(PARAMS))
    older = describe_normaliser(PARAMS, 2)
    assert without_version(older) == without_version(older.replace("next to", "near")) == options
    assert without_version(describe_normaliser(TextParams(simplify=True))) != options


def test_opencc_is_loaded_only_if_it_is_used() -> None:
    code = (
        "import sys; from model.settings import TextParams; from model.text import normalise\n"
        "normalise('漢字 2', TextParams(digits='chinese')); assert 'opencc' not in sys.modules\n"
        "normalise('漢字', TextParams(simplify=True)); assert 'opencc' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(any_text)
def test_units_are_the_text_without_its_spaces(text: str) -> None:
    assert "".join(units_of(text)) == "".join(text.split())
    assert all(len(unit) == 1 for unit in units_of(text) if is_han(unit))


def test_units_of_mixed_text() -> None:
    assert units_of("用gpu跑bin blue") == ["用", "gpu", "跑", "bin", "blue"]


@given(st.text())
def test_no_punctuation_and_no_double_space_is_left(text: str) -> None:
    label = normalise(text, PARAMS)
    # an ideograph that this Python does not know yet has no category
    assert not [c for c in label if unicodedata.category(c)[0] in "PSC" and not is_han(c)]
    assert "  " not in label and label == label.strip()


@given(st.lists(st.text(alphabet="一二三四abc ", max_size=8), min_size=1))
def test_encoding_and_decoding_returns_known_text(labels: list[str]) -> None:
    tokenizer = Tokenizer.of_units(c for label in labels for c in label)
    assert all(tokenizer.decode(tokenizer.encode(label)) == label for label in labels)
    assert Tokenizer.of_units(c for label in reversed(labels) for c in label) == tokenizer
    assert Tokenizer.from_json(tokenizer.to_json(), "here") == tokenizer


def test_unknown_characters_get_the_unknown_id() -> None:
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
def test_a_wrong_tokenizer_is_refused_with_its_file(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_json(value, "tokenizer.json")
