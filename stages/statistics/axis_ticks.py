"""Chooses round numbers for an axis."""

import math
from bisect import bisect_left, bisect_right


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
