"""Ends and ticks of the axes that templates draw. Pure.

`ticks(0.0, 0.47)` gives ([0.1, 0.2, 0.3, 0.4], 1), the values and the decimals that they need; `decades(0.8, 30.0)` gives
[1, 2, 5, 10, 20].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FEWEST_TICKS, MOST_TICKS = 2, 8
NARROW = 5.0
"""Between ends of no larger ratio, powers of ten and their halves are too few."""


def padded(ends: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis that holds these values with a margin."""
    low, high = min(ends), max(ends)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - margin, high + margin


def ticks(low: float, high: float) -> tuple[list[float], int]:
    """Choose three to eight round values between two ends, and the decimals that they need."""
    decimals = next((place for place in range(-30, 40) if (high - low) * 10.0**place >= FEWEST_TICKS), None)
    if decimals is None:
        return [], 0
    unit = 10.0**-decimals
    step = next(unit * factor for factor in (1, 2, 5, 10) if (high - low) / (unit * factor) <= MOST_TICKS)
    first = int(low // step) + 1
    values = [number * step for number in range(first, first + 10) if number * step < high]
    return values, max(decimals, 0)


def decades(low: float, high: float) -> list[float]:
    """Choose round values between two positive ends of a logarithmic axis, at most about eight."""
    if not 0 < low < high < math.inf:
        return []
    if high / low < NARROW:
        return ticks(low, high)[0]
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // MOST_TICKS)
    steps = (1.0, 2.0, 5.0) if last - first < MOST_TICKS / 2 else (1.0,)
    return [value for power in range(first, last + 1, every) for step in steps if low <= (value := step * 10.0**power) <= high]
