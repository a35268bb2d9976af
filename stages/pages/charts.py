"""Places lines on the axes of a chart, in pixels of its view box; the templates draw it as SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

Point = tuple[float, float, str]
"""(x, y, tooltip)."""


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
