"""What transcripts say of the sound, and what they say in brackets all the same."""

import sys
import unicodedata

import pytest

from model.annotations import LONGEST, MAY_HOLD
from model.settings import TextParams
from model.text import annotations_of, normalise

PARAMS, OFF = TextParams(drop_annotations=True), TextParams()


@pytest.mark.parametrize(
    ("text", "label", "dropped"),
    [
        ("<unk> 你好", "你好", ["<unk>"]),
        ("hello [noise] world", "hello world", ["[noise]"]),
        ("我(笑)知道", "我知道", ["(笑)"]),
        ("我（笑聲）知道（掌聲）", "我知道", ["(笑聲)", "(掌聲)"]),
        ("【音乐】你好", "你好", ["【音乐】"]),
        ("{breath} well", "well", ["{breath}"]),
        ("[[Noise]] ok", "ok", ["[noise]"]),
        ("<noise>你好</noise>", "你好", ["<noise>", "</noise>"]),
        ("<i>it's</i> [door closes]", "its", ["<i>", "</i>", "[door closes]"]),
        ("&lt;unk&gt; a &#91;noise&#93;", "a", ["<unk>", "[noise]"]),
        ("AT&amp;T", "at t", []),
        ("＜ＵＮＫ＞ ［ＮＯＩＳＥ］", "", ["<unk>", "[noise]"]),
        ("(la\u200bughs) ( 背景 音乐 )", "", ["(laughs)", "( 背景 音乐 )"]),
        ("(Coughing.) so", "so", ["(coughing.)"]),
        ("<噪音>[听不清]{咳嗽}", "", ["<噪音>", "[听不清]", "{咳嗽}"]),
        ("[]", "", []),
    ],
)
def test_annotations_are_no_part_of_a_label(text: str, label: str, dropped: list[str]) -> None:
    assert normalise(text, PARAMS) == label
    assert annotations_of(text, PARAMS) == annotations_of(text, OFF) == dropped


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("我国(中国)很大", "我国中国很大"),
        ("（不要笑）他说", "不要笑他说"),
        ("we (my friends and I) laugh", "we my friends and i laugh"),
        ("【新闻联播】开始", "新闻联播开始"),
        ("我读了<红楼梦>和[水浒传]", "我读了红楼梦和水浒传"),
        ("1 < 2 and 3 > 2", "1 2 and 3 2"),
        ("f(x)", "f x"),
        ("(一)音乐", "一音乐"),
        ("no [bracket", "no bracket"),
        (f"[{'a' * (LONGEST + 1)}]", "a" * (LONGEST + 1)),
        ("《音乐》“掌声”", "音乐掌声"),
    ],
)
def test_what_is_said_in_brackets_stays(text: str, label: str) -> None:
    assert normalise(text, PARAMS) == label == normalise(text, OFF)
    assert annotations_of(text, PARAMS) == []


def test_the_option_is_off_where_a_checkpoint_does_not_know_it() -> None:
    assert normalise("[noise] (笑) &lt;", OFF) == "noise笑lt"


def test_the_pattern_for_many_texts_leaves_out_none_with_annotations() -> None:
    import re

    forms = [
        c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.normalize("NFKC", c) in set(">])}】〕")
    ]
    assert len(forms) == 21
    assert all(re.search(MAY_HOLD, text) for text in (*forms, "&gt;", "&#62;", "&#x3e;"))
