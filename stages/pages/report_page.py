"""Renders the page of the report from its figures: the verdict, and the charts in pixels of a view box."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.decoding.ctc import spiking_head
from stages.pages import report_clips
from stages.pages.page import percent, rendered
from stages.pages.report_clips import ShownClip, shown_clip
from stages.reports.figures import (
    NARROW_NOTE,
    NO_INTERVAL_NOTE,
    NORMALISER_UNKNOWN,
    CalibrationBin,
    CountedClip,
    Figures,
    QualityBin,
    ReportContext,
    has_interval,
    interval_about,
    normaliser_warning,
    oracle_about,
    unit_of,
    why_no_interval,
)
from stages.reports.groups import confidence_of
from stages.statistics.charts import Chart, Line, nice_ticks
from stages.statistics.quality import EXPLAINED, QUALITIES, Quality

# The CER, and the upper end of its interval if there is one, must be below this share of the blind and the chance CER
# (our choice).
FAR_BELOW = 0.8
# Without an error there is no interval; from this number of clips on, a CER of 0 is accepted without one.
ENOUGH_CLIPS = 30


@dataclass(frozen=True, slots=True)
class Dot:
    """A bin of the calibration: its position, a radius by its share of the characters, its tooltip."""

    x: float
    y: float
    radius: float
    text: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence on the x axis, accuracy on the y axis, both 0 to 1 and equally long; the diagonal is ideal."""

    dots: tuple[Dot, ...]
    ticks: tuple[float, ...]
    side: int = 300
    left: int = 54
    top: int = 12

    def x_of(self, share: float) -> float:
        return round(self.left + share * self.side, 1)

    def y_of(self, share: float) -> float:
        return round(self.top + (1 - share) * self.side, 1)


@dataclass(frozen=True, slots=True)
class Column:
    """A quarter of the clips: its bar height as a share of the chart, its CER, its lowest and highest value."""

    height: float
    cer: str
    low: str
    high: str
    num_clips: int


@dataclass(frozen=True, slots=True)
class QualityChart:
    """CER by quarters of one column of crops.parquet."""

    title: str
    unit: str
    about: str
    columns: tuple[Column, ...]


def training_charts(curves: Sequence[Mapping[str, float | None]]) -> tuple[Chart, Chart]:
    """Returns the charts of loss and CER by epoch; a chart has no lines if nothing was measured."""
    return (
        _chart("Loss", curves, {"train_loss": "train", "val_loss": "valid"}, lambda value: f"{value:.4g}"),
        _chart("CER", curves, {"val_cer": "valid"}, lambda value: f"{100 * value:.3g}\u202f%"),
    )


def calibration_chart(bins: Sequence[CalibrationBin]) -> Calibration:
    chart = Calibration((), (0.0, 0.25, 0.5, 0.75, 1.0))
    most = max((one.num_chars for one in bins), default=1) or 1
    dots = tuple(
        Dot(
            chart.x_of(one.confidence),
            chart.y_of(one.accuracy),
            # the area is the weight; the smallest dot stays visible
            round(3 + 5 * math.sqrt(one.num_chars / most), 1),
            f"{one.num_clips:,} clips of {one.num_chars:,} characters: confidence {percent(one.confidence)}, "
            f"accuracy {percent(one.accuracy)}",
        )
        for one in bins
    )
    return Calibration(dots, chart.ticks)


def quality_charts(qualities: Mapping[str, Sequence[QualityBin]]) -> list[QualityChart]:
    """Returns a chart for each quality with at least two bins, in the order of QUALITIES, all with one scale."""
    highest = max((one.counts.cer for bins in qualities.values() for one in bins), default=0.0) or 1.0
    charts = []
    for quality in QUALITIES:
        bins = qualities.get(quality.name, ())
        if len(bins) < 2:
            continue
        columns = tuple(
            Column(
                one.counts.cer / highest,
                percent(one.counts.cer),
                _without_unit(quality, one.low),
                _without_unit(quality, one.high),
                one.num_clips,
            )
            for one in bins
        )
        charts.append(QualityChart(quality.title, quality.unit, quality.about, columns))
    return charts


def _without_unit(quality: Quality, value: float) -> str:
    return quality.text(value).removesuffix(quality.unit).rstrip()


def _chart(
    title: str,
    curves: Sequence[Mapping[str, float | None]],
    names: Mapping[str, str],
    text_of: Callable[[float], str],
) -> Chart:
    series = {label: _measured(curves, name) for name, label in names.items()}
    empty, points = Chart(title), [point for line in series.values() for point in line]
    if not points:
        return empty
    epochs, values = zip(*points, strict=True)
    ends = min(epochs), max(max(epochs), min(epochs) + 1)
    lines = [
        Line(label, label, tuple((e, v, f"epoch {e:g}, {label} {title} {text_of(v)}") for e, v in line))
        for label, line in series.items()
        if line
    ]
    x_ticks, y_ticks = nice_ticks(*ends, whole=True), nice_ticks(min(0.0, *values), max(values))
    return empty.with_lines(lines, ends, x_ticks, y_ticks, text_of)


def _measured(curves: Sequence[Mapping[str, float | None]], name: str) -> list[tuple[float, float]]:
    rows = [(row["epoch"], row.get(name)) for row in curves]
    return [(e, v) for e, v in rows if e is not None and v is not None and math.isfinite(v)]


def render_page(figures: Figures, context: ReportContext) -> str:
    """Returns the page as HTML text. It loads nothing, runs no script and escapes every text from outside."""

    def shown(counted: CountedClip) -> ShownClip:
        clip_id = counted.clip.clip_id
        return shown_clip(counted, context.clip_of(clip_id), context.spikes_of(clip_id), context.fps)

    metrics = figures.metrics
    return rendered(
        "report.html.j2",
        figures=figures,
        metrics=metrics,
        context=context,
        warnings=[*context.warnings, *filter(None, [normaliser_warning(metrics)])],
        verdict=verdict(metrics),
        verdict_of=verdict,
        interval_of=interval_about,
        oracle_about=oracle_about(metrics.get("decoder"), metrics.get("oracle_candidates")),
        why_no_interval=why_no_interval(metrics["num_clips"]),
        has_interval=has_interval,
        normaliser_unknown=NORMALISER_UNKNOWN,
        narrow_note=NARROW_NOTE,
        no_interval_note=NO_INTERVAL_NOTE,
        interval_about=interval_about(metrics.get("cer_interval_over"), metrics.get("num_speakers")),
        charts=[chart for chart in training_charts(context.curves) if chart.lines],
        splits=split_rows(context),
        rejections=rejection_rows(context),
        calibration=calibration_chart(figures.calibration),
        qualities=quality_charts(figures.qualities),
        unit=unit_of(metrics.get("decoder")),
        ctc_unit="syllable" if spiking_head(metrics.get("decoder")) == "syllables" else "character",
        explained=EXPLAINED,
        shown=shown,
        confidence_of=confidence_of,
        reel=report_clips,
        ticks_to=lambda high: nice_ticks(0.0, high),
    )


def split_rows(context: ReportContext) -> list[tuple[str, int, int]]:
    """Returns (split, usable clips, rejected clips) for splits that have either."""
    splits = dict.fromkeys([*context.clip_totals, *context.rejections])
    rejected = {split: sum(context.rejections.get(split, {}).values()) for split in splits}
    return [(split, context.clip_totals.get(split, 0), rejected[split]) for split in splits]


def rejection_rows(context: ReportContext) -> list[tuple[str, int, int]]:
    """Returns (reason, rejected clips of the reported split, of all splits), the most frequent first."""
    ours: Mapping[str, int] = context.rejections.get(context.split, {})
    total: Counter[str] = sum(map(Counter, context.rejections.values()), Counter())
    rows = [(reason, ours.get(reason, 0), number) for reason, number in total.items()]
    return sorted(rows, key=lambda row: (-row[1], -row[2], row[0]))


def verdict(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """Returns whether the figures show lip reading, as "good", "bad" or "open", with a sentence.

    The sentence states only the comparison: no CER can say how much was read from the lips.
    """
    cer, low, high = metrics["cer"], metrics.get("cer_low"), metrics.get("cer_high")
    rivals = {name: metrics[f"{name}_cer"] for name in ("blind", "chance")}
    known = {name: rival for name, rival in rivals.items() if rival is not None}
    if missed := [name for name, rival in known.items() if cer >= FAR_BELOW * rival]:
        return "bad", (
            f"This model is not shown to read lips: its CER of {percent(cer)} is not below {_limits(known, missed)}."
        )
    if missing := [name for name in rivals if name not in known]:
        cause = (
            "it was not measured" if missing[0] == "blind" else "a split of one clip has no other clip's text"
        )
        return (
            "open",
            f"The {missing[0]} CER is not known ({cause}), so the CER does not show lip reading.",
        )
    below = f"Its CER of {percent(cer)} is below {_limits(known, list(known))}"
    if cer == 0 and metrics["num_clips"] >= ENOUGH_CLIPS:
        return "good", f"{below}: not one error in {metrics['num_clips']} clips."
    if not has_interval(low, high):
        return "open", f"{below}, but it has no interval: the CER of other clips may differ by any amount."
    if missed := [name for name, rival in known.items() if high >= FAR_BELOW * rival]:
        return "open", (
            f"{below}, but the upper end of its interval, {percent(high)}, is not below {_limits(known, missed)}: "
            "this split does not show whether the model reads lips."
        )
    return "good", (
        f"This model needs the moving mouth of the right clip: its CER of {percent(cer)} and the upper end of its "
        f"interval, {percent(high)}, are below {_limits(known, list(known))}."
    )


def _limits(rivals: Mapping[str, float], names: Sequence[str]) -> str:
    """Returns the text of the limits: a share of each of these rivals."""
    limits = " and ".join(percent(FAR_BELOW * rivals[name]) for name in names)
    rates = " and of the ".join(f"{name} CER ({percent(rivals[name])})" for name in names)
    return f"{limits}, {100 * FAR_BELOW:.0f}\u202f% of the {rates}"
