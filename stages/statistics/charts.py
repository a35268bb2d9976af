"""Chooses round numbers for the axes of a chart and places its lines, in pixels of its view box.

The templates draw the charts as SVG.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

Point = tuple[float, float, str]
"""(x, y, tooltip)."""


def nice_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Returns round numbers from at or below `low` to at or above `high`, about four steps of 1, 2 or 5 times 10^n."""
    rough = (high - low or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2, 3 and 5 times 10^n for a logarithmic axis, from at or below `low` to at or above `high`.

    Over a factor of 10 or more without 3, over 1,000 or more only powers of 10.
    """
    digits = (1, 2, 3, 5) if high < 10 * low else (1, 2, 5) if high < 1000 * low else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    last = bisect_left(ticks, high * (1 - 1e-9))
    return ticks[min(bisect_right(ticks, low * (1 + 1e-9)), last) - 1 : last + 1]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve, with points in chart pixels; `kind` is its CSS class."""

    label: str
    kind: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines on axes; ticks are (position, text). A chart of nothing has no lines and no ticks."""

    title: str
    y_name: str = ""
    width: int = 460
    height: int = 260
    left: int = 46
    right: int = 448
    top: int = 14
    bottom: int = 224
    lines: tuple[Line, ...] = ()
    x_ticks: tuple[tuple[float, str], ...] = ()
    y_ticks: tuple[tuple[float, str], ...] = ()

    def with_lines(
        self,
        lines: Sequence[Line],
        x_ends: tuple[float, float],
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        y_text: Callable[[float], str] = "{:g}".format,
        is_log: bool = False,
    ) -> "Chart":
        """Returns the chart with `lines`, whose points are values; its y axis ends at the outermost ticks."""
        x_of = _scale(x_ends, (self.left, self.right), is_log)
        y_of = _scale((y_ticks[0], y_ticks[-1]), (self.bottom, self.top), is_log)
        return replace(
            self,
            lines=tuple(
                replace(line, points=tuple((x_of(x), y_of(y), text) for x, y, text in line.points))
                for line in lines
            ),
            x_ticks=tuple((x_of(tick), f"{tick:,g}") for tick in x_ticks if x_ends[0] <= tick <= x_ends[1]),
            y_ticks=tuple((y_of(tick), y_text(tick)) for tick in y_ticks),
        )


def _scale(
    values: tuple[float, float], pixels: tuple[float, float], is_log: bool
) -> Callable[[float], float]:
    low, high = map(math.log, values) if is_log else values
    begin, end = pixels

    def place(value: float) -> float:
        share = ((math.log(value) if is_log else value) - low) / (high - low)
        return round(begin + share * (end - begin), 1)

    return place
