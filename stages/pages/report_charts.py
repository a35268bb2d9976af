"""Computes the charts of the report in pixels of a view box; the templates draw them as SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stages.pages.charts import Chart, Line
from stages.pages.page import percent
from stages.reports.figures import CalibrationBin, QualityBin
from stages.statistics.axis_ticks import nice_ticks
from stages.statistics.quality import QUALITIES, Quality


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
