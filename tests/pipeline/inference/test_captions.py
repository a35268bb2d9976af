"""Captions as players read them: FFmpeg is the reference for SRT and WebVTT."""

import json
import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inference.caption_font import font_for
from pipeline.inference.captions import (
    LINE_COLUMNS,
    caption_lines,
    out_paths,
    rendered,
    stamp,
    write_reading,
)
from pipeline.inference.text_of_video import RankedText, Segment, VideoReading
from shards.errors import MachineError

READING = VideoReading(
    "a.mp4",
    "我们旨在搭建一个平台 a<b & c-->d",
    0.5,
    None,
    300,
    None,
    (
        Segment(
            0.0,
            2.5,
            "我们旨在",
            0.75,
            None,
            (RankedText("我们旨在", 0.75, -1.5, {"ctc": -1.25, "length": 4}),),
        ),
        Segment(2.5, 4.0, "", None, "no_face: nobody --> there\n\nat all"),
        Segment(4.0, 6.0, "", 0.1),
        Segment(3723.4567, 3725.0, "a<b & c-->d", 0.25),
    ),
)


def cues_by_ffmpeg(path: Path) -> list[tuple[float, float, str]]:
    """Returns start, duration and text of each cue, read by FFmpeg's demuxer."""
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        return [
            (
                float(packet.pts * packet.time_base),
                float((packet.duration or 0) * packet.time_base),
                bytes(packet).decode("utf-8"),
            )
            for packet in container.demux(stream)
            if packet.size
        ]


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_players_find_every_cue_and_nothing_else(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write_reading(READING, kind, path)  # type: ignore[arg-type]
    first, second = cues_by_ffmpeg(path)
    assert first == (0.0, 2.5, "我们旨在")
    assert second[:2] == (3723.457, pytest.approx(1.543))
    assert second[2] == ("a&lt;b &amp; c→d" if kind == "vtt" else "a<b & c→d")


def test_vtt_notes_confidence_and_gaps() -> None:
    notes = re.findall("^NOTE (.*)$", rendered(READING, "vtt"), re.MULTILINE)
    assert notes == [
        "confidence 0.750",
        "00:00:02.500 to 00:00:04.000 not read: no_face: nobody → there at all",
        "confidence 0.250",
    ]


def test_json_keeps_everything() -> None:
    read = json.loads(rendered(READING, "json"))
    assert list(read) == ["version", "path", "text", "confidence", "cer", "num_frames", "reason", "segments"]
    first, gap, *_ = read["segments"]
    assert first == {
        "start_s": 0.0,
        "end_s": 2.5,
        "text": "我们旨在",
        "confidence": 0.75,
        "reason": None,
        "candidates": [
            {"text": "我们旨在", "share": 0.75, "rank_score": -1.5, "scores": {"ctc": -1.25, "length": 4}}
        ],
        "characters": [],
        "words": [{"text": "我们旨在", "start_s": 0.0, "end_s": 2.5, "confidence": 0.75}],
    }
    assert gap["confidence"] is None and gap["reason"].startswith("no_face")


def test_nan_is_never_written_as_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        rendered(replace(READING, confidence=float("nan")), "json")


def test_markup_in_a_text_is_shown_as_text(tmp_path: Path) -> None:
    """SubRip has no escapes, and players obey <i> and {\\an8}; so does FFmpeg's decoder, which converts them to ASS."""
    text = r"a<b {\an8}<i>c</i> {y:i}d"
    reading = replace(READING, segments=(Segment(0.0, 2.5, text, 0.5),))
    for kind in ("srt", "vtt"):
        write_reading(reading, kind, tmp_path / f"a.{kind}")  # type: ignore[arg-type]
        with av.open(str(tmp_path / f"a.{kind}")) as container:
            stream = container.streams.subtitles[0]
            (event,) = [line for packet in container.demux(stream) for line in packet.decode()]
        shown = event.ass.decode().split(",", 8)[-1]
        # FFmpeg writes a literal brace like this, and itself separates a backslash from the next character
        assert shown.replace(r"\{{}", "{").replace("\u2060", "") == text, shown
        assert not re.search(r"\{\\", shown), "ASS obeys the text after such a brace"


@pytest.mark.parametrize(
    ("time_s", "expected"),
    [(0, "00:00:00.000"), (59.9996, "00:01:00.000"), (3599.9994, "00:59:59.999"), (360_000, "100:00:00.000")],
)
def test_times(time_s: float, expected: str) -> None:
    assert stamp(time_s, ".") == expected


@given(st.text(alphabet="ab 一二 ", max_size=200))
def test_lines_hold_the_text_and_fit(text: str) -> None:
    lines = caption_lines(" ".join(text.split()))
    assert "".join("".join(lines).split()) == "".join(text.split())
    for line in lines:
        width = sum(2 if character > "\u3000" else 1 for character in line)
        # a word longer than a line stays whole
        assert width <= LINE_COLUMNS or " " not in line.strip()


def test_words_stay_whole_and_lines_have_similar_lengths() -> None:
    assert caption_lines("set blue with h seven again and place it in the box") == [
        "set blue with h seven again",
        "and place it in the box",
    ]
    assert caption_lines("一" * 30) == ["一" * 15] * 2
    assert caption_lines("") == []


def test_videos_of_the_same_name_get_separate_files(tmp_path: Path) -> None:
    named = [Path("x/a.mp4"), Path("y/A.mov"), Path("y/b.mp4"), Path("z/a.mp4")]
    videos = {video: Path(video.name) for video in named} | {Path("w/c/a.mp4"): Path("c/a.mp4")}
    names = [str(path.relative_to(tmp_path)) for path in out_paths(videos, tmp_path, ".srt").values()]
    assert names == ["a.srt", "A-2.srt", "b.srt", "a-3.srt", "c/a.srt"]


def test_latin_captions_are_drawn_in_the_picture(tmp_path: Path) -> None:
    """matplotlib ships a font for them, so the system needs none."""
    font = font_for("lay blue at f two now")
    small = font.strip(["lay blue at f two now"], 24, 1000)
    assert small.shape[2] == 4 and 200 < small.shape[1] < 400 and 20 < small.shape[0] < 50
    assert {0, 255} <= set(np.unique(small[..., 3]).tolist())
    assert font.strip(["lay blue at f two now"], 24, 100).shape[1] <= 100


def test_characters_without_a_font_are_reported() -> None:
    with pytest.raises(MachineError, match="fonts-noto-cjk"):
        font_for("a\U0010fffd")
