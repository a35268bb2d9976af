"""The report's page: verdict, charts of the training, groups, and the worst and best clips as film strips."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.metrics import EditCounts, Op, align
from model.scored import ScoredClip
from stages.pages import film_strip, nice_ticks, percent, rendered

# A CER below this share of both blind and chance CER counts as "far below both" (DESIGN.md names no figure).
FAR_BELOW = 0.8
# Two pictures of 8 frames: side by side they make one strip, on a phone the second moves under the first.
STRIP_FRAMES, FRAMES_PER_PICTURE = 16, 8
UNKNOWN_GROUP = "(unknown)"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What read the clips."""

    preset: str
    num_parameters: int
    epoch: int
    normaliser: str


@dataclass(frozen=True, slots=True)
class ReportContext:
    """Everything in the report that does not come from the hypotheses.

    `warnings` stand at the top of the page; `speaker_overlap` counts the speakers of the split that were also
    trained on. `curves` has a row an epoch: epoch, train_loss, val_loss, val_cer,
    learning_rate, clips_per_s, data_wait; None where not measured. `rejections` counts crops.parquet by reason,
    `clip_totals` the usable clips by split. `clip_of` gives a clip's mouth crops, uint8, frames × height × width.
    """

    corpus: str
    split: str
    seed: int
    num_examples: int
    model: ModelFacts
    clip_of: Callable[[str], np.ndarray]
    warnings: Sequence[str] = ()
    speaker_overlap: int = 0
    curves: Sequence[Mapping[str, float | None]] = ()
    rejections: Mapping[str, int] = field(default_factory=dict)
    clip_totals: Mapping[str, int] = field(default_factory=dict)
    fps: float = 25.0


@dataclass(frozen=True, slots=True)
class CountedClip:
    clip: ScoredClip
    counts: EditCounts


@dataclass(frozen=True, slots=True)
class Group:
    """The clips of one speaker or topic; name None where the corpus does not say."""

    name: str | None
    num_clips: int
    counts: EditCounts

    @property
    def label(self) -> str:
        return UNKNOWN_GROUP if self.name is None else self.name


@dataclass(frozen=True, slots=True)
class PageData:
    context: ReportContext
    metrics: Mapping[str, Any]
    speakers: Sequence[Group]
    topics: Sequence[Group]
    worst: Sequence[CountedClip]
    best: Sequence[CountedClip]


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of the aligned texts: a character over a character, either of them "" where it is missing."""

    op: Op
    reference: str
    hypothesis: str


@dataclass(frozen=True, slots=True)
class Line:
    """A curve in chart pixels; each point has its tooltip."""

    label: str
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines on axes, all positions in pixels of the view box; ticks are (position, text)."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = 460
    height: int = 260
    left: int = 46
    right: int = 448
    top: int = 14
    bottom: int = 224


def render_page(data: PageData) -> str:
    """The page as HTML text. It loads nothing, runs no script, and escapes every text that came from outside."""
    metrics = data.metrics
    return rendered(
        "report.html.j2",
        data=data,
        context=data.context,
        metrics=metrics,
        verdict=verdict(metrics["cer"], metrics["blind_cer"], metrics["chance_cer"]),
        charts=[chart for chart in training_charts(data.context.curves) if chart.lines],
        strip_of=lambda clip: film_strip(
            data.context.clip_of(clip.clip_id), STRIP_FRAMES, FRAMES_PER_PICTURE
        ),
        cells_of=lambda clip: aligned_cells(clip.reference, clip.hypothesis),
    )


def verdict(cer: float, blind_cer: float | None, chance_cer: float | None) -> tuple[str, str]:
    """Whether the figures show lip reading: ("good", "bad" or "open", a sentence for people)."""
    rivals = [
        f"{name} CER ({percent(rival)})"
        for name, rival in (("blind", blind_cer), ("chance", chance_cer))
        if rival is not None and cer > FAR_BELOW * rival
    ]
    if rivals:
        return "bad", (
            f"This model is not shown to read lips: its CER of {percent(cer)} is not far below the "
            f"{' and the '.join(rivals)}. Much of what it gets right comes without watching the mouth move."
        )
    if blind_cer is None or chance_cer is None:
        missing = "blind" if blind_cer is None else "chance"
        cause = "it was not measured" if blind_cer is None else "a split of one clip has no other clip's text"
        return "open", f"The {missing} CER is not known ({cause}), so this figure alone shows no lip reading."
    return "good", "Far below both blind and chance: most of what is right here was read from moving lips."


def aligned_cells(reference: str, hypothesis: str) -> list[Cell]:
    cells = []
    for part in align(reference, hypothesis):
        for index in range(max(len(part.reference), len(part.hypothesis))):
            # slices, not indices: one side of a deletion or an insertion is empty
            one = slice(index, index + 1)
            cells.append(Cell(part.op, part.reference[one], part.hypothesis[one]))
    return cells


def training_charts(curves: Sequence[Mapping[str, float | None]]) -> tuple[Chart, Chart]:
    return (
        _chart("Loss", curves, {"train_loss": "train", "val_loss": "valid"}, lambda value: f"{value:.4g}"),
        _chart("CER", curves, {"val_cer": "valid"}, lambda value: f"{100 * value:.3g}\u202f%"),
    )


def _chart(
    title: str,
    curves: Sequence[Mapping[str, float | None]],
    names: Mapping[str, str],
    text_of: Callable[[float], str],
) -> Chart:
    empty = Chart(title, (), (), ())
    series = {label: _measured(curves, name) for name, label in names.items()}
    points = [point for line in series.values() for point in line]
    if not points:
        return empty
    epochs, values = zip(*points, strict=True)
    y_ticks = nice_ticks(min(0.0, *values), max(values))
    x_low, x_high = min(epochs), max(max(epochs), min(epochs) + 1)
    x_ticks = [tick for tick in nice_ticks(x_low, x_high, whole=True) if x_low <= tick <= x_high]

    def x_of(epoch: float) -> float:
        return round(empty.left + (epoch - x_low) / (x_high - x_low) * (empty.right - empty.left), 1)

    def y_of(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(empty.bottom - share * (empty.bottom - empty.top), 1)

    lines = tuple(
        Line(
            label,
            tuple((x_of(e), y_of(v), f"epoch {e:g}, {label} {title} {text_of(v)}") for e, v in line),
        )
        for label, line in series.items()
        if line
    )
    return Chart(
        title,
        lines,
        tuple((x_of(tick), f"{tick:g}") for tick in x_ticks),
        tuple((y_of(tick), text_of(tick)) for tick in y_ticks),
    )


def _measured(curves: Sequence[Mapping[str, float | None]], name: str) -> list[tuple[float, float]]:
    rows = [(row["epoch"], row.get(name)) for row in curves]
    return [(e, v) for e, v in rows if e is not None and v is not None and math.isfinite(v)]
