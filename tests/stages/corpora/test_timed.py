"""Transcripts with times: alignments, subtitles and TextGrids as people write them, and broken ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import CorpusError
from stages.corpora.timed import parse_timed

SRT = """1
00:00:01,500 --> 00:00:04,000
<i>今天</i>，天气
很好。

2
00:01:02,03 --> 01:00:05,250 X1:40 X2:600
{\\an8}Tom &amp; Jerry
"""
VTT = """WEBVTT - a title
Kind: captions

NOTE
00:00 --> 00:01 is no cue

STYLE
::cue { color: red }

intro
00:01.500 --> 00:04.000 align:start position:0%
<v Mary>今天，<00:00:02.000><c>天气</c></v>
很好。

00:01:02.030 --> 01:00:05.250
Tom &amp; Jerry

00:02:00.000 --> 00:03:00.000
"""
LONG_GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 3.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 3.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 3.5
            text = "x"
    item [2]:
        class = "TextTier"
        name = "words of wisdom"
        xmin = 0
        xmax = 3.5
        points: size = 1
        points [1]:
            number = 1
            mark = "click"
    item [3]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 3.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "你 ""好"" 7 ! <b>"
        intervals [3]:
            xmin = 1.25
            xmax = 2
            text = "sil"
        intervals [4]:
            xmin = 2
            xmax = 3.5
            text = "two
lines"
"""
SHORT_GRID = """"ooTextFile"
"TextGrid"
0
3.5
<exists> ! all
1
"IntervalTier"
"S 1"
0 3.5
2
0 1e0 ""
1 3.5 "你好"
"""


def parsed(name: str, text: str, encoding: str = "utf-8") -> list[tuple[float, float, str]]:
    return [(u.start_s, u.end_s, u.text) for u in parse_timed(name, text.encode(encoding))]


def test_align() -> None:
    text = "0 23750 sil\n23750 29500 bin\n\n29500 34000 blue\n34000 34000 sp\n34000 75000 again\n"
    assert parsed("a.align", text) == [(0.95, 1.18, "bin"), (1.18, 1.36, "blue"), (1.36, 3.0, "again")]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_subtitles(newline: str, encoding: str) -> None:
    srt = parsed("a.SRT", SRT.replace("\n", newline), encoding)
    assert srt == [(1.5, 4.0, "今天，天气 很好。"), (62.03, 3605.25, "Tom &amp; Jerry")]
    vtt = parsed("a.vtt", VTT.replace("\n", newline), encoding)
    assert vtt == [(1.5, 4.0, "今天，天气 很好。"), (62.03, 3605.25, "Tom & Jerry")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_textgrids(encoding: str) -> None:
    assert parsed("a.TextGrid", LONG_GRID, encoding) == [
        (0.5, 1.25, '你 "好" 7 ! <b>'),
        (2.0, 3.5, "two lines"),
    ]
    assert parsed("a.TextGrid", SHORT_GRID, encoding) == [(1.0, 3.5, "你好")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.align", "0 1 a\n5 x b\n", r"a.align:2: '5 x b' must be"),
        ("a.align", "0 1 a\n9 5 b\n", r"a.align:2: 'b' ends at 5"),
        ("a.align", "5 9 a\n0 1 b\n", r"a.align:2: 'b' begins before line 1; sort"),
        ("a.srt", "1\n00:00:01,0 --> 00:00:02,0\nx\n\n2\nhello\n", r"a.srt:5: '2' must begin a cue"),
        ("a.srt", "00:00:05,0 --> 00:00:02,0\nx\n", r"a.srt:1: 'x' ends at 2 s"),
        ("a.srt", "1\n" * 9, r"a.srt:1: "),
        ("a.srt", "00:00:01,0 -> 00:00:02,0\nx\n", r"a.srt:1: "),
        ("a.vtt", "WEBVTT\n\nhello\n", r"a.vtt:3: 'hello' must begin a cue"),
        ("a.TextGrid", "hello", r"a.TextGrid:1: a text in quotes expected, found the end"),
        (
            "a.TextGrid",
            SHORT_GRID.replace('"你好"', '"你好""'),
            r"a.TextGrid:12: a text in quotes expected, found \"",
        ),
        ("a.TextGrid", LONG_GRID[:-30], r"a.TextGrid:48: .* expected, found the end of the file"),
        (
            "a.TextGrid",
            LONG_GRID.replace("= 4", "= 999999"),
            r"a.TextGrid:49: .* expected, found the end of the file",
        ),
        (
            "a.TextGrid",
            LONG_GRID.replace("xmax = 1.25", "xmax = x"),
            r"a.TextGrid:41: a number expected, found",
        ),
        (
            "a.TextGrid",
            LONG_GRID.replace("xmax = 1.25", "xmax = 1e99"),
            r"a.TextGrid:40: 1e\+99 is not a time",
        ),
        (
            "a.TextGrid",
            LONG_GRID.replace('"words"', '"w"'),
            r"a.TextGrid:49: .*must be named words .*phones, w",
        ),
        ("a.TextGrid", LONG_GRID.replace("size = 1", "size = 1.5"), r"a.TextGrid:14: 1.5 must be a whole"),
    ],
)
def test_malformed_transcripts_stop_with_file_and_line(name: str, text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        parsed(name, text)


def test_broken_encoding_stops_at_its_line() -> None:
    with pytest.raises(CorpusError, match=r"a.srt:2: this is not UTF-8"):
        parse_timed("a.srt", b"1\n\xff\xfe --> x")
    with pytest.raises(CorpusError, match=r"a.TextGrid:1: this is not UTF-1"):
        parse_timed("a.TextGrid", b"\xff\xfea")


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["a.align", "a.srt", "a.vtt", "a.TextGrid"]), st.data())
def test_garbage_is_an_error_or_a_transcript(name: str, data: st.DataObject) -> None:
    whole = {"a.srt": SRT, "a.vtt": VTT, "a.TextGrid": LONG_GRID, "a.align": "0 5 a\n5 9 b\n"}[name].encode()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    try:
        parse_timed(name, whole[:start] + data.draw(st.binary(max_size=9)) + whole[end:])
    except CorpusError as error:
        assert str(error).startswith(name + ":")
