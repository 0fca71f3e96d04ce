"""How often a polled value moves, and what a counter and a power reading say of the same stretch of time. Pure.

Example: a counter of 100 ms ticks polled every 2.5 ms gives gaps of 97.5, 100 and 102.5 ms, median 100.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jouleboard.meters.integral import integrate_j

MIN_MOVES = 5
"""Fewer moves tell nothing of how often a value moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where values lie."""

    count: int
    median: float
    low: float
    """2.5 % lie below; and likewise the next ones."""
    p95: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """What was read, each value with the time in the middle of its reading, by a clock that is never set."""

    counter_times_s: Sequence[float]
    counters_j: Sequence[float]
    counter_latencies_s: Sequence[float]
    power_times_s: Sequence[float]
    powers_w: Sequence[float]
    power_latencies_s: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Mean power between the counter's first and last move, by the counter and by the integral of the power readings."""

    duration_s: float
    counter_w: float
    integral_w: float | None

    @property
    def gain(self) -> float | None:
        """Counter over integral; None where no power was read, or it was zero throughout."""
        return self.counter_w / self.integral_w if self.integral_w else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies, by linear interpolation between neighbours.

    Args:
        values: at least one.
        share: from 0 to 1.
    """
    rows = sorted(values)
    place = share * (len(rows) - 1)
    low = math.floor(place)
    high = min(low + 1, len(rows) - 1)
    return rows[low] + (place - low) * (rows[high] - rows[low])


def spread(values: Sequence[float]) -> Spread | None:
    """Return where values lie; None where there are none."""
    if not values:
        return None
    return Spread(count=len(values), median=statistics.median(values), low=percentile(values, 0.025),
                  p95=percentile(values, 0.95), high=percentile(values, 0.975))


def moves(values: Sequence[float]) -> list[int]:
    """Return the places at which a value differs from the one before."""
    return [place for place, (before, after) in enumerate(pairwise(values), start=1) if after != before]


def interval(times_s: Sequence[float], values: Sequence[float]) -> Spread | None:
    """Return the times between moves of a value; None with fewer than `MIN_MOVES`."""
    moved = [times_s[place] for place in moves(values)]
    gaps = [after - before for before, after in pairwise(moved)]
    return spread(gaps) if len(gaps) >= MIN_MOVES else None


def agreement(polled: Polled) -> Agreement | None:
    """Hold the counter against the integral between its first and its last move; None with fewer than `MIN_MOVES`.

    Both ends are seen late by less than one poll, so that error is the same at either end and mostly cancels.
    """
    moved = moves(polled.counters_j)
    if len(moved) <= MIN_MOVES:
        return None
    first, last = moved[0], moved[-1]
    start_s, end_s = polled.counter_times_s[first], polled.counter_times_s[last]
    integral_w = None
    if polled.power_times_s:
        integral_w = integrate_j(polled.power_times_s, polled.powers_w, start_s, end_s) / (end_s - start_s)
    return Agreement(duration_s=end_s - start_s, integral_w=integral_w,
                     counter_w=(polled.counters_j[last] - polled.counters_j[first]) / (end_s - start_s))


def fall_j(counters_j: Sequence[float]) -> float:
    """Return the largest step back of a counter; 0 where it never falls."""
    return max((before - after for before, after in pairwise(counters_j) if after < before), default=0.0)
