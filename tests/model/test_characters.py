"""Whole blocks of Unicode: labels keep every spoken character, and get no invisible one."""

import unicodedata
from collections.abc import Iterable

import pytest

from model.characters import with_zeros, with_zeros_of_letters
from model.settings import TextParams
from model.text import is_han, normalise

PARAMS = TextParams()
RADICAL_FRAGMENTS = "⺀㇀㇁㇂㇃㇄㇅㇇㇈㇉㇊㇋㇌㇍㇎㇢㇣"
"""Parts of characters for which Unicode names no ideograph."""


def assigned(*bounds: tuple[int, int]) -> list[str]:
    points = (point for first, last in bounds for point in range(first, last + 1))
    return [chr(point) for point in points if unicodedata.category(chr(point)) not in ("Cn", "Cs", "Co")]


def labels_with(characters: Iterable[str]) -> dict[str, str]:
    return {one: normalise(f"我{one}你", PARAMS) for one in characters}


RADICALS = assigned((0x2E80, 0x2FD5), (0x31C0, 0x31E3))
COMPATIBILITY = assigned((0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
# the twelve unified ideographs that Unicode names compatibility ideographs; 𫜹 is new in Unicode 15
IDEOGRAPHS = {
    *assigned((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x2F7FF), (0x30000, 0x323AF)),
    *"﨎﨏﨑﨓﨔﨟﨡﨣﨤﨧﨨﨩𫜹",
}


def test_every_radical_and_compatibility_ideograph_becomes_an_ideograph() -> None:
    labels = labels_with([*RADICALS, *COMPATIBILITY])
    assert [one for one, label in labels.items() if len(label) == 2] == list(RADICAL_FRAGMENTS)
    for one, label in labels.items():
        if one not in RADICAL_FRAGMENTS:
            assert len(label) == 3 and label[1] in IDEOGRAPHS, one
    # a few checked by eye
    assert normalise("⻓⻅⻋⻔⻢⻥⻨⻩⺠⺟⻤⻘⻬⻳⽅⾳﨑豈", PARAMS) == "长见车门马鱼麦黄民母鬼青齐龟方音﨑豈"


def test_every_ideograph_stays() -> None:
    assert all(label == f"我{one}你" for one, label in labels_with(IDEOGRAPHS).items())


def test_an_ideograph_newer_than_this_python_stays() -> None:
    newest = "\U000323b0"  # the first of extension J, Unicode 17
    assert normalise(f"我{newest}你", PARAMS) == f"我{newest}你" and is_han(newest)


INVISIBLE = [
    *assigned((0xFE00, 0xFE0F), (0xE0100, 0xE01EF), (0x180B, 0x180F)),  # variation selectors
    *assigned((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F)),  # joiners, directions
    *"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u3164\ufeff\uffa0",  # hyphen, grapheme joiner, fillers
    *assigned((0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0001, 0xE007F)),
]


@pytest.mark.parametrize("drop_punctuation", [True, False])
def test_labels_have_no_invisible_characters(drop_punctuation: bool) -> None:
    params = TextParams(drop_punctuation=drop_punctuation)
    for one in INVISIBLE:
        assert normalise(f"我{one}你", params) == "我你", hex(ord(one))
        assert normalise(f"be{one}d", params) == "bed", hex(ord(one))
    for point in (*range(0x20), *range(0x7F, 0xA0)):
        assert normalise(f"我{chr(point)}你", params) == "我你", hex(point)


def test_no_letter_and_no_number_is_lost() -> None:
    """Every visible letter, mark and number of Unicode adds at least one character."""
    written = [
        chr(point)
        for point in (*range(0x3400), *range(0xA000, 0xAC00), *range(0xD7A4, 0xF900), *range(0xFB00, 0x20000))
        if unicodedata.category(chr(point))[0] in "LMN" and unicodedata.category(chr(point)) != "Me"
    ]
    lost = [one for one in written if len(normalise(f"x{one}", PARAMS)) < 2 and one not in INVISIBLE]
    # marks that compose with the letter before them, as in é, are not lost
    assert [one for one in lost if unicodedata.normalize("NFC", f"x{one}") == f"x{one}"] == []


@pytest.mark.parametrize("mark", assigned((0x20DD, 0x20E0), (0x20E2, 0x20E4), (0x488, 0x489)))
def test_enclosing_marks_are_removed_from_labels(mark: str) -> None:
    assert normalise(f"按1\ufe0f{mark}或2{mark}", PARAMS) == "按1或2"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("一九九○年", "一九九〇年"),
        ("二○○八", "二〇〇八"),
        ("二◯⭘八", "二〇〇八"),
        ("二⭕二四年", "二〇二四年"),
        ("二 ○ 二 四", "二 〇 二 四"),
        ("2 ○ 2 4", "2 0 2 4"),
        ("1 ○○公司", "1 ○○公司"),
        ("○八年", "〇八年"),
        ("一百○八", "一百〇八"),
        ("1９○5年", "1９05年"),
        ("五○", "五〇"),
        ("○○公司", "○○公司"),
        ("○一个人走", "○一个人走"),
        ("有点○○公司", "有点○○公司"),
        ("我比○○公司", "我比○○公司"),
        ("○○分公司和○○日報", "○○分公司和○○日報"),
        ("王○○一家三口", "王○○一家三口"),
        ("現在八點○五分", "現在八點〇五分"),
        ("百分之○點五", "百分之〇點五"),
        ("百分之○", "百分之〇"),
        ("編號○○七", "編號〇〇七"),
        ("編號○○七的人", "編號〇〇七的人"),
        ("零點○五", "零點〇五"),
        ("三點○八", "三點〇八"),
        ("○點三", "〇點三"),
        ("○點○分", "〇點〇分"),
        ("第○八屆", "第〇八屆"),
        ("三比○", "三比〇"),
        ("○比三", "〇比三"),
        ("8點○5分", "8點05分"),
        ("8点○分", "8点0分"),
        ("10.○5", "10.05"),
        ("10.○", "10.0"),
        ("○.5", "0.5"),
        ("1:○", "1:0"),
        ("零下○度", "零下〇度"),
        ("○%", "〇%"),
        ("○○年, 1○○", "○○年, 100"),
        ("1○", "10"),
        ("两○", "两〇"),
        ("问1⭕ 问2×", "问1⭕ 问2×"),
        ("第一⭕", "第一⭕"),
        ("我○你", "我○你"),
        # a single circle is a zero where zero can be said, also after a sign
        ("負○", "負〇"),
        ("负○度", "负〇度"),
        ("負 ○ 點五", "負 〇 點五"),
        ("○號病人", "〇號病人"),
        ("○時○分", "〇時〇分"),
        # several circles without a number next to them are placeholders, also one circle where no date has a zero
        ("○○年", "○○年"),
        ("○○年代", "○○年代"),
        ("○ ○年", "○ ○年"),
        ("○○○年○○月○○日", "○○○年○○月○○日"),
        ("一一三年○月○日", "一一三年○月○日"),
        ("三月○○日", "三月○○日"),
        ("第○○屆", "第○○屆"),
        ("編號○○", "編號○○"),
        ("百分之○○", "百分之○○"),
        ("負○○", "負○○"),
        ("○○點○○分", "○○點○○分"),
        ("○○:○○", "○○:○○"),
        ("○○度", "○○度"),
        # next to a number they are zeros
        ("一九九○年", "一九九〇年"),
        ("二○○八年", "二〇〇八年"),
        ("○○七", "〇〇七"),
        ("○○八年", "〇〇八年"),
        ("三○二", "三〇二"),
        ("○点五", "〇点五"),
        ("○○点五", "〇〇点五"),
        ("8點○○分", "8點00分"),
        ("○點○○分", "〇點〇〇分"),
        ("10:○○", "10:00"),
        ("一○○年○月", "一〇〇年○月"),
    ],
)
def test_a_circle_is_a_zero_among_numerals(text: str, read: str) -> None:
    assert with_zeros(text) == read


def test_circles_in_labels() -> None:
    assert normalise("一九九○年，○○公司", PARAMS) == "一九九〇年公司"
    assert normalise("○○年○月，負○", PARAMS) == "年月負〇"
    assert normalise("二\u200b○二￮年", PARAMS) == "二〇二〇年"
    assert normalise("10.○5", PARAMS) == "10 05"
    # circles after a comma are not zeros
    assert normalise("第一，○○公司", PARAMS) == "第一公司"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2o24年", "2024年"),
        ("2oo年", "200年"),
        ("al2o3", "al2o3"),
        ("al二o三", "al二o三"),
        ("o2o", "o2o"),
        ("2 o 4", "2 o 4"),
        ("二oo八年", "二〇〇八年"),
        ("二О二四", "二〇二四"),
        ("三o", "三o"),
        ("一ok二", "一ok二"),
    ],
)
def test_the_letter_o_is_a_zero_between_numerals(text: str, read: str) -> None:
    assert with_zeros_of_letters(text) == read
