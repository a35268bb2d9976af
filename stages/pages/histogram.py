"""Histograms of one quality: usable clips above the axis, rejected clips below it, limits as lines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import duckdb
import numpy as np
from numpy.typing import NDArray

from stages.settings import CropParams
from stages.statistics.charts import nice_ticks
from stages.statistics.quality import Limit, Quality

NUM_BINS = 32
TAILS = 0.005
"""Share of clips at each end that may be in the outermost bins, so that one outlier cannot flatten the others."""
REACH = 3.0
"""A limit further away than this multiple of the data's range is written at the edge, not drawn to scale."""

# The view box, px: bars of usable clips are between TOP and AXIS, of rejected clips between AXIS and BOTTOM; each kind
# has its own scale.
WIDTH, HEIGHT = 460, 216
LEFT, RIGHT, TOP, AXIS, BOTTOM = 6, 454, 32, 144, 190


@dataclass(frozen=True, slots=True)
class Counts:
    """Clips in each bin between `edges` (one more than bins); the outer bins include clips beyond them."""

    edges: NDArray[np.float64]
    ok: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bin in pixels of the view box; `kind` is usable or rejected, `text` its tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class LimitLine:
    """A limit at `x` with the zone that it rejects; if it is too far away (`is_beyond`), text at the edge names it."""

    x: float
    is_beyond: bool
    label: str
    anchor: str
    zone_x: float
    zone_width: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """A drawn histogram; positions in pixels of the view box, ticks are (position, text)."""

    quality: Quality
    counts: Counts
    summary: str
    bars: tuple[Bar, ...] = ()
    lines: tuple[LimitLine, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()

    @property
    def description(self) -> str:
        """Text for screen readers."""
        limits = ", ".join(line.label for line in self.lines) or "none"
        return (
            f"{self.quality.title}: {sum(self.counts.ok):,} usable clips, {self.summary}; "
            f"{sum(self.counts.rejected):,} rejected clips; limits: {limits}"
        )


def histograms(
    connection: duckdb.DuckDBPyConnection, qualities: Sequence[Quality], crop: CropParams
) -> list[Histogram]:
    """Draws a histogram for each measured quality, from the view `ledger` (status and the names of the qualities)."""
    drawn = []
    for quality in qualities:
        ((num, low, high, ok_5, ok_50, ok_95),) = connection.execute(
            f"""
            SELECT count(*), quantile_disc({quality.name}, $low)::DOUBLE, quantile_disc({quality.name}, $high)::DOUBLE,
                quantile_disc({quality.name}, 0.05) FILTER (status = 'ok')::DOUBLE,
                quantile_disc({quality.name}, 0.50) FILTER (status = 'ok')::DOUBLE,
                quantile_disc({quality.name}, 0.95) FILTER (status = 'ok')::DOUBLE
            FROM ledger WHERE {quality.name} IS NOT NULL
            """,
            {"low": TAILS, "high": 1 - TAILS},
        ).fetchall()
        if not num:
            continue
        limits = quality.limits(crop)
        low, high = quality.bounds or (low, high)
        counts = count(connection, quality.name, bin_edges(low, high, limits, quality.bounds is not None))
        summary = "measured only in rejected clips"
        if ok_50 is not None:
            spread = f"{quality.text(ok_5)} to {quality.text(ok_95)}"
            summary = f"median {quality.text(ok_50)}, 90 % of the usable clips {spread}"
        drawn.append(_placed(Histogram(quality, counts, summary), limits))
    return drawn


def bin_edges(
    low: float, high: float, limits: Sequence[Limit] = (), is_exact: bool = False
) -> NDArray[np.float64]:
    """Returns NUM_BINS + 1 edges over the range; unless exact, widened to round numbers and to limits within REACH."""
    if not is_exact:
        if low == high:
            low, high = low - 0.05 * max(abs(low), 1), high + 0.05 * max(abs(high), 1)
        reach = REACH * (high - low)
        near = [limit.value for limit in limits if low - reach <= limit.value <= high + reach]
        ticks = nice_ticks(min([low, *near]), max([high, *near]))
        low, high = ticks[0], ticks[-1]
    return np.linspace(low, high, NUM_BINS + 1)


def count(connection: duckdb.DuckDBPyConnection, name: str, edges: NDArray[np.float64]) -> Counts:
    """Counts like numpy.histogram the values clipped to the edges, separately for ok and rejected clips."""
    rows = connection.execute(
        f"""
        WITH bins AS (SELECT unnest($edges::DOUBLE[]) AS edge, generate_subscripts($edges::DOUBLE[], 1) - 1 AS bin),
            figures AS (
                SELECT status, greatest($low::DOUBLE, least($high::DOUBLE, {name}::DOUBLE)) AS value
                FROM ledger WHERE {name} IS NOT NULL
            )
        SELECT status, bin, count(*) FROM figures ASOF JOIN bins ON figures.value >= bins.edge GROUP BY ALL
        """,
        # the last bin includes its upper edge, so no bin begins there
        {"edges": edges[:-1].tolist(), "low": float(edges[0]), "high": float(edges[-1])},
    ).fetchall()
    counts = {"ok": [0] * (len(edges) - 1), "rejected": [0] * (len(edges) - 1)}
    for status, place, number in rows:
        counts[status][place] = number
    return Counts(edges, tuple(counts["ok"]), tuple(counts["rejected"]))


def _placed(plain: Histogram, limits: Sequence[Limit]) -> Histogram:
    quality, counts = plain.quality, plain.counts
    low, high = float(counts.edges[0]), float(counts.edges[-1])

    def x_of(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (RIGHT - LEFT), 1)

    bars = []
    for values, room, word in (
        (counts.ok, AXIS - TOP, "usable"),
        (counts.rejected, BOTTOM - AXIS, "rejected"),
    ):
        for bin_, number in enumerate(values):
            if number:
                begin, end = (float(edge) for edge in counts.edges[bin_ : bin_ + 2])
                # a single clip among 30,000 must stay visible
                height = round(max(2.0, number / max(values) * room), 1)
                y = round(AXIS - height, 1) if word == "usable" else float(AXIS)
                span = f"{quality.text(begin)} to {quality.text(end)}"
                if quality.bounds is None and bin_ in (0, len(values) - 1):
                    span += f" and {'more' if bin_ else 'less'}"
                text = f"{span}: {number:,} {word}"
                bars.append(Bar(x_of(begin), y, round(x_of(end) - x_of(begin) - 1, 1), height, word, text))
    lines = []
    for limit in limits:
        is_beyond = not low <= limit.value <= high
        x = x_of(min(high, max(low, limit.value)))
        label = f"{limit.key.removeprefix('crop.')} {quality.tick(limit.value)}"
        if is_beyond:
            label = f"{label} →" if limit.value > high else f"← {label}"
        begin, end = (LEFT, x) if limit.is_least else (x, RIGHT)
        is_left = x < (LEFT + RIGHT) / 2
        lines.append(
            LimitLine(x, is_beyond, label, "start" if is_left else "end", begin, round(end - begin, 1))
        )
    steps = nice_ticks(low, high)
    ticks = tuple((x_of(tick), quality.tick(tick)) for tick in steps if low <= tick <= high)
    return replace(plain, bars=tuple(bars), lines=tuple(lines), ticks=ticks)
