"""Chooses round numbers for an axis."""

import math


def nice_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Returns round numbers from at or below `low` to at or above `high`, about four steps of 1, 2 or 5 times 10^n."""
    rough = (high - low or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]
