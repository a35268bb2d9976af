"""Synthetic scored clips, normal and blind, and the context of a report on them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from model.decoding.result import ScoredClip
from stages.reports.figures import ReportContext
from tests.support import report_figures
from tests.support.report_figures import mouth_of

READ = [
    ("今天天气很好", "今天天气很好"),
    ("请把红色的书递给我", "请把黄色书递给我们"),
    ("电动汽车的续航里程", "电动车的续航路程"),
    ("科学家发现了新材料", ""),
    ("早上吃一个苹果", "晚上吃两个苹果"),
]


def made_clips(read: list[tuple[str, str]] = READ) -> list[ScoredClip]:
    return [
        ScoredClip(
            clip_id=f"clip_{index:03d}",
            split="test",
            reference=reference,
            hypothesis=hypothesis,
            score=-0.1 * index,
            num_frames=40 + index,
            speaker=("012", "047")[index % 2],
            topic=("KJ", None)[index % 2],
        )
        for index, (reference, hypothesis) in enumerate(read)
    ]


def made_context(**changes: Any) -> ReportContext:
    """Returns a context with short clips, few resamples and no spikes."""
    own = {
        "resamples": 200,
        "clip_of": lambda clip_id: mouth_of(clip_id)[:30],
        "spikes_of": lambda clip_id: None,
    }
    return report_figures.made_context(**(own | changes))


def blind_of(clips: list[ScoredClip]) -> list[ScoredClip]:
    return [replace(clip, hypothesis="的的的") for clip in clips]


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")
