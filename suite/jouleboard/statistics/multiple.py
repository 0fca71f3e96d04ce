"""Holm's step-down adjustment of p-values, so that one false claim in a family is as rare as in a single test. No I/O here.

Example: `holm((0.01, 0.04, 0.03))` is `(0.03, 0.06, 0.06)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return the adjusted p-values, in the same order (Holm 1979).

    Raises:
        ValueError: one of them is no probability.
    """
    if any(math.isnan(p) or not 0 <= p <= 1 for p in p_values):
        raise ValueError("a p-value is not between 0 and 1")
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = most
    return tuple(adjusted)


def either(first: float, second: float) -> float:
    """Return the p-value of "neither holds" from two independent p-values (Simes 1986)."""
    return min(2 * min(first, second), max(first, second))
