"""Readings with times of words, as other programs read them: jsonschema, pympi (ELAN, Praat), Chromium (WebVTT)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jsonschema
import pympi
import pytest

from model.decoding.result import Alternative, TimedCharacter
from pipeline.inference.captions import Format, rendered
from pipeline.inference.text_of_video import RankedText, Segment, VideoReading
from pipeline.inference.timed_text import words_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/reading.schema.json").read_text("utf-8"))


def timed(text: str, start_s: float) -> tuple[TimedCharacter, ...]:
    """Characters of 0.25 s each, with confidence 0.5."""
    return tuple(
        TimedCharacter(one, start_s + place / 4, start_s + (place + 1) / 4, 0.5, (Alternative("x", 0.25),))
        for place, one in enumerate(text)
    )


CANDIDATES = (
    RankedText("我去北京", 0.75, -1.25, {"ctc": -0.123456, "attention": -2.0, "length": 4}),
    RankedText("我去", 0.25, None, {"ctc": None, "language_model": -8.0, "length": 2}),
)
READING = VideoReading(
    'my "film".mp4',
    "我去北京 a<b go",
    0.5,
    None,
    300,
    None,
    (
        Segment(0.5, 2.0, "我去北京", 0.75, None, CANDIDATES, timed("我去北京", 0.5)),
        Segment(2.5, 4.0, "", None, "no_face: nobody"),
        Segment(4.0, 6.0, "a<b go", 0.25, None, (), timed("a<b go", 4.0)),
        Segment(6.0, 7.0, 'so "it" is', 0.125),
    ),
)
WORDS = [
    *(("我", 0.5, 0.75), ("去", 0.75, 1.0), ("北", 1.0, 1.25), ("京", 1.25, 1.5)),
    *(("a<b", 4.0, 4.75), ("go", 5.0, 5.5), ('so "it" is', 6.0, 7.0)),
]


def read_tier(tmp_path: Path, kind: Format, name: str) -> list[tuple[str, float, float]]:
    path = tmp_path / f"file.{kind}"
    path.write_text(rendered(READING, kind), "utf-8")
    if kind == "elan":
        found = pympi.Elan.Eaf(str(path)).get_annotation_data_for_tier(name)
        return [(text, start / 1000, stop / 1000) for start, stop, text in sorted(found)]
    tier = pympi.Praat.TextGrid(str(path), codec="utf-8").get_tier(name)
    assert tier.xmin == 0 and tier.xmax == 7
    return [(text.replace('""', '"'), start, stop) for start, stop, text in tier.get_intervals() if text]


@pytest.mark.parametrize("kind", ["elan", "textgrid"])
def test_annotation_programs_find_all_words_and_segments(tmp_path: Path, kind: Format) -> None:
    assert read_tier(tmp_path, kind, "words") == WORDS
    assert [text for text, _, _ in read_tier(tmp_path, kind, "segments")] == [
        "我去北京",
        "a<b go",
        'so "it" is',
    ]


def test_ctm_has_a_line_of_six_fields_for_each_word() -> None:
    lines = [line.split(" ") for line in rendered(READING, "ctm").splitlines()]
    assert {tuple(line[:2]) for line in lines} == {('my_"film"', "1")}
    assert [(float(line[2]), float(line[3])) for line in lines] == [
        (start, stop - start) for _, start, stop in WORDS
    ]
    assert [line[4] for line in lines] == ["我", "去", "北", "京", "a<b", "go", 'so_"it"_is']
    assert [float(line[5]) for line in lines] == [0.5, 0.5, 0.5, 0.5, 0.125, 0.25, 0.125]


def test_browsers_see_the_time_of_each_word(browser: "Browser") -> None:
    page = browser.new_page()
    page.set_content("<video><track default kind='captions'></video>")
    cues = page.evaluate(
        """async (source) => {
            const track = document.querySelector("track");
            const loaded = new Promise((done, failed) => { track.onload = done; track.onerror = failed; });
            track.src = source;
            track.track.mode = "hidden";
            await loaded;
            return [...track.track.cues].map(cue => [cue.startTime, cue.endTime, cue.getCueAsHTML().textContent,
                [...cue.getCueAsHTML().childNodes].map(node => [node.nodeName, node.nodeValue ?? node.data])]);
        }""",
        "data:text/vtt," + quote(rendered(READING, "karaoke")),
    )
    page.close()
    assert [cue[:3] for cue in cues] == [
        [0.5, 2, "我去北京"],
        [4, 6, "a<b go"],
        [6, 7, 'so "it" is'],
    ]
    marks = [[text for _, text in cue[3]] for cue in cues]
    assert marks[0] == ["我", "00:00:00.750", "去", "00:00:01.000", "北", "00:00:01.250", "京"]
    assert marks[1] == ["a<b ", "00:00:05.000", "go"]
    assert marks[2] == ['so "it" is']


def test_json_follows_the_published_schema() -> None:
    read: dict[str, Any] = json.loads(rendered(READING, "json"))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(read, SCHEMA)
    first, _, third, last = read["segments"]
    assert first["candidates"] == [
        {
            "text": "我去北京",
            "share": 0.75,
            "rank_score": -1.25,
            "scores": {"ctc": -0.1235, "attention": -2.0, "length": 4},
        },
        {
            "text": "我去",
            "share": 0.25,
            "rank_score": None,
            "scores": {"ctc": None, "language_model": -8.0, "length": 2},
        },
    ]
    assert [one["pinyin"] for one in first["characters"]] == ["wǒ", "qù", "běi", "jīng"]
    assert first["characters"][0]["alternatives"] == [{"text": "x", "share": 0.25}]
    assert "".join(one["text"] for one in third["characters"]) == third["text"]
    assert [one["pinyin"] for one in third["characters"]] == [None] * 6
    assert last["characters"] == [] and last["words"][0]["text"] == last["text"]
    del read["segments"][0]["characters"][0]["confidence"]
    with pytest.raises(jsonschema.ValidationError, match="'confidence' is a required property"):
        jsonschema.validate(read, SCHEMA)


def test_words_hold_all_characters_but_spaces() -> None:
    for segment in READING.segments:
        joined = "".join(word.text for word in words_of(segment))
        assert "".join(joined.split()) == "".join(segment.text.split())
