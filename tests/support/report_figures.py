"""Synthetic figures of a report for a corpus of Mandarin or of English, and hostile figures."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from model.bootstrap import Over
from model.decoding.ctc import Spike, Spikes
from model.decoding.result import ScoredClip
from model.metrics import EditCounts, edit_counts
from stages.reports.figures import (
    CalibrationBin,
    Confusion,
    CountedClip,
    Figures,
    Group,
    Interval,
    ModelFacts,
    QualityBin,
    ReportContext,
)

HOSTILE = "<script>alert('嘴')</script>\"'&amp;"
HAN = [
    ("今天天气很好", "今天天气很好"),
    ("请把红色的书递给我", "请把黄色书递给我们"),
    ("电动汽车的续航里程", "电动车的续航路程"),
    ("科学家发现了新材料", ""),
    ("早上吃一个苹果", "晚上吃两个苹果"),
]
ENGLISH = [
    ("bin blue at f two now", "bin red at f two"),
    ("lay green by a one soon", "lay green by a one soon"),
    ("place white with s nine again", "place white in s nine again"),
]


def counted_clips(read: Sequence[tuple[str, str]], **changes: Any) -> list[CountedClip]:
    clips = [
        ScoredClip(f"clip_{index:03d}", "test", said, found, -0.1 * index, 75, f"s{index % 2}", "KJ")
        for index, (said, found) in enumerate(read)
    ]
    clips = [replace(clip, **changes) for clip in clips]
    return [CountedClip(clip, edit_counts(clip.reference, clip.hypothesis)) for clip in clips]


def group(
    name: str | None, errors: int, num_chars: int = 200, width: float | None = 0.05, num_speakers: int = 1
) -> Group:
    counts = EditCounts(errors - errors // 3, errors // 3, 0, num_chars)
    interval = None if width is None else Interval(max(0.0, counts.cer - width), counts.cer + width)
    over: Over = "speakers" if num_speakers > 1 else "clips"
    return Group(name, max(1, num_chars // 9), counts, interval, over, num_speakers)


def made_figures(read: Sequence[tuple[str, str]] = HAN, **changes: Any) -> Figures:
    """Makes Mandarin clips, unless `read` is given."""
    clips = counted_clips(read)
    counts = sum((one.counts for one in clips), EditCounts())
    is_han = read[0][0] > "z"
    metrics: dict[str, Any] = {
        "split": "test",
        "num_clips": len(clips),
        "num_chars": counts.num_chars,
        "cer": counts.cer,
        "cer_low": 0.7 * counts.cer,
        "cer_high": 1.25 * counts.cer,
        "cer_interval_over": "speakers",
        "cer_mean": counts.cer,
        "accuracy": counts.accuracy,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "blind_cer": 0.94,
        "chance_cer": 0.86,
        "chance_pairings": 200,
        "normaliser": "NFKC, case folded (version 3)",
        "checkpoint_normaliser": "NFKC, case folded (version 3)",
        "speaker_overlap": 0,
        "syllable_error_rate": 0.9 * counts.cer if is_han else None,
        "look_error_rate": 0.7 * counts.cer if is_han else None,
        "viseme_error_rate": 0.6 * counts.cer if is_han else None,
        "num_unwritable": 3,
        "calibration_error": 0.061,
    }
    if not is_han:
        metrics["wer"] = 0.25
    figures = Figures(
        metrics=metrics,
        groups={
            "speaker": [group(f"{name:03d}", name) for name in range(12, 84, 4)],
            "gender": [group("female", 31, num_speakers=4), group("male", 44, num_speakers=14)],
            "age": [group("20–29", 20), group("30–39", 60), group(None, 9, width=None)],
            "topic": [
                group(name, errors, num_speakers=18)
                for name, errors in (("KJ", 20), ("RWLS", 70), (None, 33))
            ],
            "length": [group("2–4 s", 50), group("4–6 s", 40), group("6–8 s", 45, width=None)],
        },
        characters=[
            Confusion("七", "一", 14, 40, True),
            Confusion("天", "年", 9, 31, False),
            Confusion("", "的", 5, 0, None),
            Confusion("x", "", 2, 3, None),
        ],
        syllables=[Confusion("qi", "yi", 14, 44, True), Confusion("tian", "nian", 9, 60, True)]
        if is_han
        else [],
        words=[] if is_han else [Confusion("with", "in", 7, 30, None), Confusion("now", "", 2, 12, None)],
        look_alikes=[["七", "一", "四"], ["九", "六"]] if is_han else [],
        calibration=[
            CalibrationBin(0.1 * i, 0.1 * i + 0.1, 12, 40 + 30 * i, 0.1 * i + 0.06, min(1.0, 0.11 * i))
            for i in range(2, 10)
        ],
        qualities={
            name: [
                QualityBin(low + i * step, low + (i + 1) * step, 9, EditCounts(30 - 5 * i, 4, 2, 180))
                for i in range(4)
            ]
            for name, low, step in (
                ("mouth_width_px", 38.0, 4.0),
                ("yaw_deg", 1.0, 5.5),
                ("jitter_px", 0.1, 0.12),
                ("sharpness", 100.0, 80.0),
                ("mean_luma", 80.0, 12.0),
                ("duration_s", 2.0, 2.0),
            )
        },
        worst=clips[3:4] or clips[:1],
        median=clips[1:3],
        best=clips[:1],
    )
    return replace(figures, **changes)


def hostile_figures() -> Figures:
    """Makes a report that strains the layout: long ids and names, long unbroken texts, and texts with markup."""
    read = [*HAN, ("x" * 200, "y" * 180), (HOSTILE, "嘴"), ("今" * 300, "")]
    clips = counted_clips(read, clip_id=f"{'L' * 100}_clip", speaker="S" * 60, topic=HOSTILE)
    figures = made_figures()
    odd = [Confusion(HOSTILE, "z" * 40, 3, 5, True), Confusion("w" * 40, HOSTILE, 2, 9, None)]
    named = [group(name, 20 + index) for index, name in enumerate(["S" * 60, HOSTILE, None])]
    return replace(
        figures,
        groups=dict.fromkeys(figures.groups, named),
        characters=odd,
        syllables=odd,
        look_alikes=[[HOSTILE, "嘴"], list("一" * 90)],
        worst=clips[5:],
        median=clips[2:4],
        best=clips[:2],
    )


def blend_figures() -> Figures:
    """Makes a report on two packs: one of the longest name, without interval and with unknown rejected clips."""
    figures = made_figures()
    one = {**figures.metrics, "num_rejected": 3, "num_speakers": 4}
    unknown = {"cer_low": None, "cer_high": None, "cer_interval_over": None, "num_rejected": None}
    corpora = {"grid": one, "W" * 40: {**one, **unknown}}
    return replace(figures, metrics={**figures.metrics, "corpora": corpora})


def bare_figures() -> Figures:
    """Makes a report of one clip without errors and without optional columns: every optional figure is unknown."""
    figures = made_figures([("好", "好")])
    unknown = ("cer_low", "cer_high", "cer_interval_over", "blind_cer", "chance_cer", "syllable_error_rate")
    unknown += ("look_error_rate", "viseme_error_rate", "num_unwritable", "calibration_error")
    unknown += ("chance_pairings", "normaliser", "checkpoint_normaliser")
    clips = counted_clips([("好", "好")], speaker=None, topic=None)
    return replace(
        figures,
        metrics={**figures.metrics, **dict.fromkeys(unknown)},
        groups={name: [group(None, 0, 1, None)] for name in figures.groups},
        characters=[],
        syllables=[],
        look_alikes=[],
        calibration=[],
        qualities={},
        worst=clips,
        median=[],
        best=[],
    )


def mouth_of(clip_id: str) -> np.ndarray:
    """Draws a dark mouth on a light face that opens and closes, 75 frames."""
    frames = np.full((75, 96, 96), 180, np.uint8)
    for index, frame in enumerate(frames):
        cv2.ellipse(frame, (48, 48), (22, 4 + index % 8), 0, 0, 360, 60, -1)
    return frames


def spikes_of(clip_id: str) -> Spikes:
    """Makes spikes at every fifth of 38 steps."""
    spikes = [
        Spike(step, text, 0.95 - 0.01 * step)
        for step, text in zip(range(3, 38, 5), "今天夭气很好了", strict=True)
    ]
    at = {spike.step: spike.probability for spike in spikes}
    return Spikes(tuple(1 - at.get(step, 0.02) for step in range(38)), tuple(spikes))


def made_context(**changes: Any) -> ReportContext:
    curves = [
        {
            "epoch": epoch,
            "train_loss": 4 / (epoch + 1),
            "val_loss": None if epoch == 0 else 5 / (epoch + 1),
            "val_cer": None if epoch == 0 else 1 / (epoch + 1),
            "learning_rate": 1e-4,
            "clips_per_s": 40.0,
            "data_wait": 0.02,
        }
        for epoch in range(12)
    ]
    context = ReportContext(
        corpus="chinese_lips",
        split="test",
        seed=0,
        num_examples=3,
        resamples=2_000,
        model=ModelFacts("tiny", 1_234_567, "11", "ctc_beam, beam 10"),
        clip_of=mouth_of,
        spikes_of=spikes_of,
        curves=curves,
        rejections={"train": {"no_face": 3}, "test": {"turned_away": 1}},
        clip_totals={"train": 240, "valid": 24, "test": 5},
    )
    return replace(context, **changes)


def bare_context() -> ReportContext:
    return made_context(curves=[], rejections={}, clip_totals={}, spikes_of=lambda clip_id: None)
