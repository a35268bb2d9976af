"""Tests the pictures of the report: charts, film strips, spikes under them, and the verdict."""

import base64
import itertools
import re
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from model.decoding.ctc import Spike, Spikes
from model.metrics import EditCounts, Op
from stages.pages.compare_page import aligned_cells
from stages.pages.page import film_strip
from stages.pages.report_clips import AXIS, FULL, TILE, TimeAxis, shown_clip
from stages.pages.report_page import calibration_chart, quality_charts, training_charts
from stages.reports.figures import CalibrationBin, QualityBin
from stages.statistics.charts import log_ticks, nice_ticks
from tests.support.report_figures import counted_clips, made_context, mouth_of, spikes_of


def levels_of(uris: list[str]) -> np.ndarray:
    """Returns the gray level in the middle of each frame of a film strip."""
    pictures: list[Any] = [
        cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)
        for uri in uris
    ]
    return np.concatenate([picture[48, 48::96] for picture in pictures]).astype(int)


def rising_clip(num_frames: int) -> np.ndarray:
    """Makes frames of one gray level each, 3 more than the previous frame."""
    return np.repeat(np.arange(num_frames, dtype=np.uint8)[:, None, None] * 3, 96, axis=1).repeat(96, axis=2)


def test_film_strip_runs_from_the_first_frame_to_the_last() -> None:
    uris = film_strip(rising_clip(80), 16, 8)
    levels = levels_of(uris)
    assert len(uris) == 2 and len(levels) == 16
    assert abs(levels[0] - 0) <= 1 and abs(levels[-1] - 237) <= 1
    assert (np.diff(levels) >= 9).all()
    assert len(film_strip(rising_clip(3), 16, 8)) == 1


def test_cells_hold_one_character_each() -> None:
    cells = aligned_cells("今天好", "今年好吗")
    assert [(cell.op, cell.reference, cell.hypothesis) for cell in cells] == [
        (Op.EQUAL, "今", "今"),
        (Op.SUBSTITUTE, "天", "年"),
        (Op.EQUAL, "好", "好"),
        (Op.INSERT, "", "吗"),
    ]


@pytest.mark.parametrize("num_frames", [1, 2, 7, 16, 17, 75, 80])
def test_a_moment_is_under_its_frame(num_frames: int) -> None:
    """The pixels of the strip are the referee: the gray level of a frame identifies its moment in the clip."""
    shown = levels_of(film_strip(rising_clip(num_frames), 16, 8)) / 3
    axis = TimeAxis(num_frames, min(16, num_frames), fps=25.0)
    one_frame = axis.x_of_frame(1) - axis.x_of_frame(0)
    for place, frame in enumerate(shown.round()):
        # a strip shows whole frames, so it may be half a frame off
        assert axis.x_of_frame(frame) == pytest.approx(TILE * (place + 0.5), abs=one_frame / 2 + 1e-6)
        assert axis.x_of_second((frame + 0.5) / 25) == pytest.approx(axis.x_of_frame(frame))
    if num_frames > 2:
        steps = [axis.x_of_step(step, num_frames) for step in range(num_frames)]
        assert steps == pytest.approx([axis.x_of_frame(frame) for frame in range(num_frames)])
    assert axis.seconds[0] == 0 and axis.seconds[-1] <= num_frames / 25 + 1e-6


def test_spikes_are_in_the_piece_of_their_frames() -> None:
    (counted,) = counted_clips([("今天天气很好", "今天天气很好")])
    shown = shown_clip(counted, mouth_of(""), spikes_of(""), 25.0)
    assert [piece.left for piece in shown.pieces] == [0, 8 * TILE]
    assert [[stem.text for stem in piece.stems] for piece in shown.pieces] == [
        list("今天夭气"),
        list("很好了"),
    ]
    for piece in shown.pieces:
        assert all(piece.left <= stem.x < piece.left + piece.width for stem in piece.stems)
        outline = np.array(re.findall(r"[\d.]+", piece.blank), float).reshape(-1, 2)
        assert piece.left <= outline[:, 0].min() and outline[:, 0].max() <= piece.left + piece.width
        # at a character, the blank is as far below 1 as the character is above 0
        for stem in piece.stems:
            (blank_y,) = outline[np.abs(outline[:, 0] - stem.x) < 0.11, 1]
            assert FULL + AXIS - blank_y == pytest.approx(stem.y, abs=0.11)
    # a spike that the reference does not have is marked, even if the hypothesis is correct
    assert [stem.text for piece in shown.pieces for stem in piece.stems if not stem.is_right] == ["夭", "了"]
    assert [text for piece in shown.pieces for _, text in piece.seconds] == [
        "0",
        "0.5",
        "1",
        "1.5",
        "2",
        "2.5",
        "3",
    ]


def test_blank_outline_follows_the_probability_over_both_pieces() -> None:
    (counted,) = counted_clips([("好", "好")])
    spikes = Spikes((0.0, 0.25, 0.5, 0.75, 1.0), ())
    pieces = shown_clip(counted, mouth_of(""), spikes, 25.0).pieces
    heights = [
        np.array(re.findall(r"[\d.]+", piece.blank), float).reshape(-1, 2)[1:-1, 1] for piece in pieces
    ]
    assert (np.diff(heights[0]) <= 0).all() and (np.diff(heights[1]) <= 0).all()
    assert heights[0][-1] == heights[1][0]


def test_crowded_characters_take_two_rows_and_a_clip_without_ctc_has_none() -> None:
    (counted,) = counted_clips([("a b", "a b")])
    spikes = Spikes((0.1,) * 100, tuple(Spike(30 + i, text, 0.9) for i, text in enumerate("a b")))
    stems = [stem for piece in shown_clip(counted, mouth_of(""), spikes, 25.0).pieces for stem in piece.stems]
    assert [stem.text for stem in stems] == ["a", "␣", "b"]
    assert stems[0].text_y > stems[1].text_y and stems[2].text_y == stems[0].text_y
    assert all(stem.is_right for stem in stems)
    plain = shown_clip(counted, mouth_of(""), None, 25.0)
    assert all(not piece.blank and not piece.stems for piece in plain.pieces)
    # a head whose most probable unit is always the blank
    silent = shown_clip(counted, mouth_of("")[:1], Spikes((1.0,), ()), 25.0)
    assert len(silent.pieces) == 1 and silent.pieces[0].blank


def test_syllables_are_compared_with_syllables_and_do_not_overlap() -> None:
    """The reference in characters, the head in pinyin, as with decoder pinyin: zhuang for chang is one error."""
    (counted,) = counted_clips([("今天长城", "今天长城")])
    read = ["jin", "tian", "zhuang", "cheng", "zhuang"]
    spikes = Spikes(
        (0.1,) * 38,
        tuple(Spike(step, text, 0.9) for step, text in zip((0, 1, 2, 18, 37), read, strict=True)),
        ("jin", "tian", "chang", "cheng"),
    )
    pieces = shown_clip(counted, mouth_of(""), spikes, 25.0).pieces
    stems = [stem for piece in pieces for stem in piece.stems]
    assert [stem.text for stem in stems] == read
    assert [stem.is_right for stem in stems] == [True, True, False, True, False]
    # letters are 12 px high and half as wide; on a phone the picture is as wide as the page
    boxes = [(stem.text_x - 3 * len(stem.text), stem.text_x + 3 * len(stem.text)) for stem in stems]
    for piece in pieces:
        for stem, (left, right) in zip(stems, boxes, strict=True):
            if stem in piece.stems:
                assert piece.left <= left and right <= piece.left + piece.width
                assert stem.text_y - 12 >= piece.top
    for one, two in itertools.combinations(range(len(stems)), 2):
        apart = boxes[one][1] <= boxes[two][0] or boxes[two][1] <= boxes[one][0]
        assert apart or abs(stems[one].text_y - stems[two].text_y) >= 12


def test_charts_leave_out_what_was_not_measured() -> None:
    loss, cer = training_charts(made_context().curves)
    assert [(line.label, len(line.points)) for line in loss.lines] == [("train", 12), ("valid", 11)]
    assert cer.lines[0].points[0][2] == "epoch 1, valid CER 50\u202f%"
    assert loss.lines[0].points[0][0] == loss.left and loss.lines[0].points[-1][0] == loss.right
    for chart in (loss, cer):
        heights = [y for line in chart.lines for _, y, _ in line.points]
        assert chart.top <= min(heights) <= max(heights) <= chart.bottom
    (single, _) = training_charts([{"epoch": 0, "train_loss": 0.0, "val_loss": float("nan")}])
    assert len(single.lines) == 1


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0, 4.6, [0, 2, 4, 6]), (0, 1, [0, 0.5, 1]), (0, 0, [0, 0.5])]
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


def test_a_calibrated_model_is_on_the_diagonal() -> None:
    bins = [CalibrationBin(0.1 * i, 0.1 * i, 5, 10 * i, 0.1 * i, 0.1 * i) for i in range(1, 11)]
    chart = calibration_chart(bins)
    for dot in chart.dots:
        assert dot.x - chart.x_of(0) == pytest.approx(chart.y_of(0) - dot.y)
    assert [dot.radius for dot in chart.dots] == sorted(dot.radius for dot in chart.dots)
    sure = calibration_chart([replace(bins[4], accuracy=0.0)])
    assert sure.dots[0].y == chart.y_of(0) and calibration_chart([]).dots == ()


def test_quarters_share_one_scale_and_the_order_of_qualities() -> None:
    def bins(*errors: int) -> list[QualityBin]:
        return [
            QualityBin(10.0 * i, 10.0 * i + 10, 4, EditCounts(count, 0, 0, 100))
            for i, count in enumerate(errors)
        ]

    charts = quality_charts({"duration_s": bins(10, 20), "yaw_deg": bins(40, 10, 0), "jitter_px": bins(7)})
    assert [chart.title for chart in charts] == ["Turn of the head", "Duration"]
    assert [[column.height for column in chart.columns] for chart in charts] == [
        [1.0, 0.25, 0.0],
        [0.25, 0.5],
    ]
    assert (charts[0].columns[1].low, charts[0].columns[1].high, charts[0].unit) == ("10.0", "20.0", "°")
    flawless = quality_charts({"yaw_deg": bins(0, 0)})
    assert [column.height for column in flawless[0].columns] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (10, 40, [10, 20, 30, 50]),
        (33, 33.4, [30, 50]),
        (100, 100, [50, 100]),
        (9, 95, [5, 10, 20, 50, 100]),
        (0.0002, 3, [0.0001, 0.001, 0.01, 0.1, 1, 10]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == ticks
