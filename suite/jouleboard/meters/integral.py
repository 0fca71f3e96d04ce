"""Joules from our own power samples, each value held until the next one.

Zeus's `PowerMonitor.get_energy` leaves out what lies between a window's edges and the nearest samples, and drops samples
equal to the one before: a constant 300 W gives 0 J there (zeus 0.16). Here edges are exact and equal samples count:

    integrate_j([0.0, 1.0], [300.0, 100.0], 0.5, 2.0)   # 0.5 s x 300 W + 1.0 s x 100 W = 250 J
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from jouleboard.errors import MeterError

_REMEDY = "measure the window again"


def integrate_j(times_s: Sequence[float], powers_w: Sequence[float], start_s: float, end_s: float) -> float:
    """Integrate power between two times.

    A sample holds from its time until the next sample; the first one also before its time, the last one for ever. Of
    samples at the same time the last one holds. Every term is a rounded product of a rounded difference and none is
    negative, so the exactly rounded sum (`math.fsum`) is within 4 x 2^-53 of the exact integral.

    Args:
        times_s: when the samples were taken, in order.
        powers_w: one power for each time.
        start_s: from when, by the clock of the samples.
        end_s: until when.

    Returns:
        Joules; zero only where every power inside is zero.

    Raises:
        MeterError: no samples, times out of order, a power that is negative or no number, or a window without length.
    """
    _require_samples(times_s, powers_w)
    if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s < end_s):
        raise MeterError(f"a window from {start_s} s to {end_s} s has no length", remedy=_REMEDY)
    # Before the first sample its value holds backwards, after the last one its value holds on.
    edges = [-math.inf, *times_s[1:], math.inf]
    terms = []
    for (since_s, until_s), power_w in zip(pairwise(edges), powers_w, strict=True):
        low_s, high_s = max(since_s, start_s), min(until_s, end_s)
        if low_s < high_s:
            terms.append(power_w * (high_s - low_s))
    try:
        joules = math.fsum(terms)
    except OverflowError:
        joules = math.inf
    if not math.isfinite(joules):
        raise MeterError("the integral of the power is larger than any number", remedy=_REMEDY)
    return joules


def _require_samples(times_s: Sequence[float], powers_w: Sequence[float]) -> None:
    if not times_s:
        raise MeterError("no power was sampled", remedy=_REMEDY)
    if len(times_s) != len(powers_w):
        raise MeterError(f"{len(times_s)} times and {len(powers_w)} powers", remedy=_REMEDY)
    for time_s in times_s:
        if not math.isfinite(time_s):
            raise MeterError(f"a sample at {time_s} s", remedy=_REMEDY)
    for before_s, after_s in pairwise(times_s):
        if after_s < before_s:
            raise MeterError(f"samples out of order: {after_s} s behind {before_s} s", remedy=_REMEDY)
    for power_w in powers_w:
        if not (math.isfinite(power_w) and power_w >= 0):
            raise MeterError(f"a power of {power_w} W cannot be true", remedy=_REMEDY)
