"""What was sampled inside an entry's trials, as a drawing and a table: power, or how many processors were busy. Pure.

    found = trace_drawing(traces.decode(lines), report)
    found.unit, found.windows[0].mean        # "W", 412.5

The trials stand side by side in the order of the session, each as wide as it was long; what lies between them was not sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from jouleboard import traces
from jouleboard.axes import padded, ticks
from jouleboard.records import Report
from jouleboard.traces import Sample

WIDTH, HEIGHT, BINS, GAP = 560.0, 120.0, 280, 6.0
"""Pixels of the plot, columns in which samples are brought together, and pixels between two trials."""
MOST_WINDOWS = 40
"""Trials beyond which a drawing would be all gaps: the first ones are drawn."""

Quantity = Literal["power", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """One window's samples."""

    name: str
    seconds: float
    samples: int
    low: float
    mean: float
    high: float
    left: float
    """Pixels from the left of the plot."""
    width: float
    line: str
    """The path of the means, in pixels of the plot."""
    band: str
    """The path around the least and the most of each column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A labelled place on the vertical axis."""

    value: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceDrawing:
    """The trace of an entry's trials."""

    quantity: Quantity
    windows: tuple[Traced, ...]
    left_out: int
    """Windows with samples beyond those that are drawn."""
    marks: tuple[Mark, ...]
    decimals: int
    limit_y: float | None
    """Where the power limit lies, if it was sampled and is inside the plot."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A stretch of time with one value."""

    begin: float
    end: float
    value: float


def trace_drawing(samples: Sequence[Sample], report: Report) -> TraceDrawing | None:
    """Draw what was sampled inside the trials.

    Args:
        samples: of the whole trace.
        report: whose trace it is.

    Returns:
        None where no trial has two samples of a kind.
    """
    rows = traces.by_window(samples)
    quantity: Quantity = "power" if any(one.power_w is not None for one in samples) else "cpu"
    known = [(trial.window.name, trial.window.duration_s, _steps(rows.get(trial.window.name, ()), quantity))
             for trial in sorted(report.trials, key=lambda one: one.order)]
    known = [one for one in known if one[2]]
    if not known:
        return None
    shown = known[:MOST_WINDOWS]
    top = max(step.value for _, _, steps in shown for step in steps)
    limits = [one.limit_w for one in samples if one.limit_w is not None]
    low, high = 0.0, padded([0.0, top])[1]
    room = WIDTH - GAP * (len(shown) - 1)
    scale = room / math.fsum(seconds for _, seconds, _ in shown)
    found, at = [], 0.0
    for name, seconds, steps in shown:
        found.append(_traced(name, seconds, steps, at, scale, high))
        at += seconds * scale + GAP
    marks, decimals = ticks(low, high)
    limit = min(limits) if limits and quantity == "power" else None
    return TraceDrawing(
        quantity=quantity, windows=tuple(found), left_out=len(known) - len(shown), decimals=decimals,
        marks=tuple(Mark(value=value, y=_y(value, high)) for value in marks),
        limit_y=_y(limit, high) if limit is not None and limit <= high else None)


def _steps(rows: Sequence[Sample], quantity: Quantity) -> list[_Step]:
    """Return stretches of time with their values: watts between two readings, or CPU time over the time that it took."""
    if quantity == "power":
        read = [(row.elapsed_s, row.power_w) for row in rows if row.power_w is not None]
        return [_Step(begin, end, (one + other) / 2) for (begin, one), (end, other) in pairwise(read) if end > begin]
    spent = [(row.elapsed_s, row.cpu_s) for row in rows if row.cpu_s is not None]
    return [_Step(begin, end, max(0.0, other - one) / (end - begin)) for (begin, one), (end, other) in pairwise(spent) if end > begin]


def _traced(name: str, seconds: float, steps: Sequence[_Step], left: float, scale: float, high: float) -> Traced:
    """Bring the steps of a window together in columns of the drawing."""
    width = seconds * scale
    columns = max(1, round(width / WIDTH * BINS))
    each = max(seconds, steps[-1].end) / columns
    spent, weight = [0.0] * columns, [0.0] * columns
    least, most = [math.inf] * columns, [0.0] * columns
    for step in steps:
        first, last = int(step.begin / each), min(int(step.end / each), columns - 1)
        for column in range(min(first, columns - 1), last + 1):
            inside = min(step.end, (column + 1) * each) - max(step.begin, column * each)
            if inside > 0:
                spent[column] += step.value * inside
                weight[column] += inside
                least[column], most[column] = min(least[column], step.value), max(most[column], step.value)
    filled = [column for column in range(columns) if weight[column] > 0]
    x = [left + (column + 0.5) * width / columns for column in range(columns)]
    line = [(x[column], _y(spent[column] / weight[column], high)) for column in filled]
    over = [(x[column], _y(most[column], high)) for column in filled]
    under = [(x[column], _y(least[column], high)) for column in reversed(filled)]
    total = math.fsum(step.end - step.begin for step in steps)
    mean = math.fsum(step.value * (step.end - step.begin) for step in steps) / total
    return Traced(
        name=name, seconds=seconds, samples=len(steps) + 1, low=min(step.value for step in steps), mean=mean,
        high=max(step.value for step in steps), left=left, width=width, line=_path(line), band=_path([*over, *under], closed=True))


def _y(value: float, high: float) -> float:
    return (1 - value / high) * HEIGHT


def _path(points: Sequence[tuple[float, float]], *, closed: bool = False) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else "")
