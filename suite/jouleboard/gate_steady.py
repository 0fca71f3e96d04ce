"""Whether power held still inside a window: blocks of whole loops, the slope of their power, and the starting temperature.

Example: a window of 70 s in 140 loops has ten blocks of 14 loops; 300 W that rise by 3 W over the window are 1 %.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from itertools import pairwise

from jouleboard.gate_facts import Facts, mean
from jouleboard.gate_rules import (
    LEAST_BLOCKS,
    LEAST_SAMPLES,
    MOST_BLOCKS,
    RULES,
    SLOPE_TICKS,
    above,
    absent,
    allowed,
    below,
    gate,
    passed,
)
from jouleboard.traces import Sample
from jouleboard.windows import Gate, Trial

Point = tuple[float, float]
"""A time in seconds, and the joules (or CPU-seconds) spent until then."""
COPIED_TICK_S = 0.1
"""Tick of the counter in a trace that a wall meter's joules stand beside: that entry's profile declares none."""


def steady(trial: Trial, rows: Sequence[Sample], known: Facts) -> Gate:
    """Evaluate the gate `steady` of one trial over the samples of its window, in order of time."""
    name = trial.window.name
    start_c = None if trial.window.start is None else trial.window.start.temperature_c
    band = known.band
    if band is not None and start_c is not None and not band.low <= start_c <= band.high:
        return gate("steady", name, "fail", "temperature", f"{start_c:.4g} °C at the start, declared are {band.low:.4g} "
                    f"to {band.high:.4g} °C", value=start_c, limit=f"{band.low:.4g} to {band.high:.4g} °C")
    if known.method == "none":
        return absent("steady", name, "no-sensor")
    points = _spent(rows, known)
    if not points:
        return gate("steady", name, "unverified" if known.asked else "not-applicable", "not-sampled",
                    RULES["steady"].codes["not-sampled"])
    if _coarse(rows, known):
        return absent("steady", name, "few-loops")
    powers = _blocks(trial.loop_ends_s, points)
    middle = mean([power for _, power in powers]) if powers else 0.0
    if len(powers) < LEAST_BLOCKS or middle <= 0:
        return absent("steady", name, "few-loops")
    drift = abs(_slope(powers)) * trial.window.duration_s / middle
    if not math.isfinite(drift):
        return absent("steady", name, "few-loops")
    # A billionth is rounding.
    drift = round(drift, 9)
    words = (f"over {len(powers)} blocks of whole loops the {'power' if known.sensor else 'CPU time a second'} moved by "
             f"{100 * drift:.4g} % of its mean")
    if above(drift, allowed("steady")):
        return gate("steady", name, "fail", "drifting", words, value=drift)
    return passed("steady", name, words, value=drift)


def _spent(rows: Sequence[Sample], known: Facts) -> list[Point]:
    """Return what was spent by when: the counter itself, else power held until the next sample; CPU time without a sensor."""
    if not known.sensor:
        return [(row.elapsed_s, row.cpu_s) for row in rows if row.cpu_s is not None]
    counted = [(row.elapsed_s, row.counter_j) for row in rows if row.counter_j is not None]
    if counted:
        return counted
    powers = [(row.elapsed_s, row.power_w) for row in rows if row.power_w is not None]
    found, joules = [(powers[0][0], 0.0)] if powers else [], 0.0
    for (since_s, power_w), (until_s, _) in pairwise(powers):
        joules += power_w * (until_s - since_s)
        found.append((until_s, joules))
    return found


def _coarse(rows: Sequence[Sample], known: Facts) -> bool:
    """Whether a counter ticks too seldom for its slope to be told from its ticks.

    The samples of power are no way out: ten a second hit the swings of power inside a loop by chance, and where a loop has
    phases of high and low power most slopes of sound windows are then above the limit, a minute long or not.
    """
    tick_s = COPIED_TICK_S if known.method == "wall" else known.tick_s
    counted_s = [row.elapsed_s for row in rows if row.counter_j is not None]
    if not known.sensor or tick_s is None or not counted_s:
        return False
    return below(counted_s[-1] - counted_s[0], SLOPE_TICKS * tick_s)


def _blocks(ends_s: Sequence[float], points: Sequence[Point]) -> list[Point]:
    """Return the middle time and the mean power of each block of whole loops that the samples cover."""
    count = min(MOST_BLOCKS, len(ends_s), len(points) // LEAST_SAMPLES)
    if count < LEAST_BLOCKS:
        return []
    first_s, last_s = points[0][0], points[-1][0]
    # Loops are shared out as evenly as whole loops can be.
    edges = [0.0, *(ends_s[round(len(ends_s) * (index + 1) / count) - 1] for index in range(count))]
    inside = [min(max(edge, first_s), last_s) for edge in edges]
    found = []
    for since_s, until_s in pairwise(inside):
        if until_s > since_s:
            found.append(((since_s + until_s) / 2, (_at(points, until_s) - _at(points, since_s)) / (until_s - since_s)))
    return found


def _at(points: Sequence[Point], time_s: float) -> float:
    """Interpolate what was spent by a time inside the samples."""
    right = bisect.bisect_right(points, time_s, key=lambda point: point[0])
    if right >= len(points):
        return points[-1][1]
    if right == 0:
        return points[0][1]
    (since_s, before), (until_s, after) = points[right - 1], points[right]
    return before + (after - before) * ((time_s - since_s) / (until_s - since_s))


def _slope(points: Sequence[Point]) -> float:
    """Return the slope of the straight line of least squares; 0 where all points have one time."""
    at_s, power = mean([time_s for time_s, _ in points]), mean([value for _, value in points])
    spread = math.fsum((time_s - at_s) ** 2 for time_s, _ in points)
    return math.fsum((time_s - at_s) * (value - power) for time_s, value in points) / spread if spread > 0 else 0.0
