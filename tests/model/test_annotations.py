"""Annotations in transcripts, and bracketed text that was said."""

import sys
import unicodedata

import pytest

from model.annotations import ANNOTATION_HINT, MAX_ANNOTATION_CHARS
from model.settings import TextParams
from model.text import in_brackets, normalise

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
        (
            "<FONT color='#fff'>it</FONT> <I>is</I><br/>",
            "it is",
            ["<font color='#fff'>", "</font>", "<i>", "</i>", "<br/>"],
        ),
        ("{\\an8}你好 [SPK_1] <v Roger>hi", "你好hi", ["{\\an8}", "[spk_1]", "<v roger>"]),
        ("<00:01:02.500>你好[00:01:02]", "你好", ["<00:01:02.500>", "[00:01:02]"]),
        ("你（狗叫）好（笑、鼓掌）", "你好", ["(狗叫)", "(笑、鼓掌)"]),
        (
            "(笑。)(笑~)(观众鼓掌)(大哭)(热烈的掌声)(停顿2秒)",
            "",
            ["(笑。)", "(笑~)", "(观众鼓掌)", "(大哭)", "(热烈的掌声)", "(停顿2秒)"],
        ),
        ("(嘈杂)(唱歌)(清嗓)〖笑〗[重叠]", "", ["(嘈杂)", "(唱歌)", "(清嗓)", "〖笑〗", "[重叠]"]),
        ("(狗吠)(咳嗽两声)(沉默三秒)(音乐响起)", "", ["(狗吠)", "(咳嗽两声)", "(沉默三秒)", "(音乐响起)"]),
        ("(sighs deeply) [Music playing]", "", ["(sighs deeply)", "[music playing]"]),
        ("《unk》⟨unk⟩〈UNK〉好#笑#的*笑*", "好的", ["《unk》", "⟨unk⟩", "〈unk〉", "#笑#", "*笑*"]),
        (
            "(throat clearing) (long pause) so (Laughter and applause)",
            "so",
            ["(throat clearing)", "(long pause)", "(laughter and applause)"],
        ),
        (
            "*coughs* (dog barking) [Background noise]",
            "",
            ["*coughs*", "(dog barking)", "[background noise]"],
        ),
    ],
)
def test_annotations_are_removed_from_labels(text: str, label: str, dropped: list[str]) -> None:
    assert normalise(text, PARAMS) == label
    assert in_brackets(text, PARAMS)[0] == in_brackets(text, OFF)[0] == dropped


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
        (f"[{'a' * (MAX_ANNOTATION_CHARS + 1)}]", "a" * (MAX_ANNOTATION_CHARS + 1)),
        ("《音乐》“掌声”", "音乐掌声"),
        ("价格是[3]元", "价格是3元"),
        ("[2024]年第{5}章", "2024年第5章"),
        ("a<b and c>d 你好", "a b and c d你好"),
        ("x<y,y>z", "x y y z"),
        ("<NBA>的[iPhone]", "nba的iphone"),
        ("[mp3] [Door closes] [12:30]", "mp3 door closes 12 30"),
        ("[ノイズ]", "ノイズ"),
        ("《Silence》", "silence"),
        ("(狗叫什么)(笑和哭都行)", "狗叫什么笑和哭都行"),
        ("#今天#2*3*4", "今天2 3 4"),
    ],
)
def test_bracketed_text_that_was_said_stays(text: str, label: str) -> None:
    assert normalise(text, PARAMS) == label == normalise(text, OFF)
    assert in_brackets(text, PARAMS)[0] == []


def test_words_kept_for_their_capitals_stay_after_case_folding() -> None:
    params = TextParams(drop_annotations=True, drop_punctuation=False)
    assert normalise("<NBA>和[3]<i>", params) == "nba和[3]"


def test_other_bracketed_parts_are_returned() -> None:
    kept = in_brackets("我(中国)[noise]<NBA>的[3]《红楼梦》(中国)〖开场〗#话题#", PARAMS)[1]
    assert kept == ["(中国)", "<nba>", "[3]", "(中国)", "〖开场〗", "#话题#"]
    assert in_brackets("1 < 2", PARAMS) == ([], [])


def test_the_option_is_off_by_default_as_for_old_checkpoints() -> None:
    assert normalise("[noise] (笑) &lt;", OFF) == "noise笑lt"


def test_the_hint_pattern_matches_every_text_with_annotations() -> None:
    import re

    forms = [
        c
        for c in map(chr, range(sys.maxunicode + 1))
        if unicodedata.normalize("NFKC", c) in set(">])}】〕〗〉⟩》*#")
    ]
    assert len(forms) == 35
    assert all(re.search(ANNOTATION_HINT, text) for text in (*forms, "&gt;", "&#62;", "&#x3e;"))
