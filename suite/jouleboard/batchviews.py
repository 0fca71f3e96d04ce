"""Cost of a request over the batch, as lines and points that a template draws and a table that says the same. Pure.

Lines are those of the fitted models, inside the batches that each entry was probed at. Discs are measured trials of this
workload; hollow marks are put together from probes: prefill between the two nearest prompt lengths, and the decode step
between the two nearest contexts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jouleboard import costmodel
from jouleboard.axes import decades
from jouleboard.costfit import Fit
from jouleboard.costs import request_cost
from jouleboard.rows import Board, Row

MOST_LINES = 8
"""More lines than this are no picture; those of least cost are drawn."""
LEFT, RIGHT, TOP, BOTTOM = 70, 600, 40, 296
_STEPS, _APART = 48, 17.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A labelled place on an axis, in pixels."""

    value: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one request cost at a batch size, in pixels and as a value."""

    batch: int
    cost: float
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One entry."""

    number: int
    row: Row
    path: str
    """Corners of the line, `x,y x,y ...`."""
    label_x: float
    label_y: float
    measured: tuple[Point, ...]
    probed: tuple[Point, ...]
    predicted: dict[int, float]
    """Cost of a request by the model, at the batches of the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The whole drawing."""

    curves: tuple[Curve, ...]
    batches: tuple[int, ...]
    """Those that were probed or measured: the ticks below, and the lines of the table."""
    below: tuple[Mark, ...]
    beside: tuple[Mark, ...]
    prompt_tokens: int
    output_tokens: int
    beyond: tuple[str, ...]
    """Where the lines reach outside of the prompts and contexts that were probed, in words."""
    left_out: int
    """Entries of the same session that may be compared, have a model, and have no line here."""
    barred: int
    """Entries of the same session that have a model and may not be compared with their base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """Both axes are logarithmic."""

    batches: tuple[float, float]
    costs: tuple[float, float]

    def x(self, batch: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(batch / self.batches[0]) / math.log(self.batches[1] / self.batches[0])

    def y(self, cost: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * math.log(cost / self.costs[0]) / math.log(self.costs[1] / self.costs[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """One entry that is drawn."""

    row: Row
    line: costmodel.Line
    span: costmodel.Span
    measured: dict[int, float]
    probed: dict[int, float]

    def costs(self) -> list[float]:
        """Everything that the axis of costs must hold."""
        ends = (self.span.low, self.span.high) if self.span.low <= self.span.high else ()
        found = [*self.measured.values(), *self.probed.values(), *(self.line.request(end) for end in ends)]
        return [cost for cost in found if 0 < cost < math.inf]

    def batches(self) -> set[int]:
        """Every batch size that was probed or measured."""
        return {*self.measured, *self.probed}


def picture(board: Board) -> Picture | None:
    """Lay out the drawing of a board; None for `replay`, and where no entry was probed at two batch sizes.

    It holds the base and what may be compared with it: two lines in one drawing are a comparison.
    """
    if not board.is_serving or board.prompt_tokens is None or board.output_tokens is None:
        return None
    request = (board.prompt_tokens, board.output_tokens)
    known = [(row, row.cost_model) for row in (*board.ranked, *board.unranked)
             if row.cost_model is not None and row.cost_model.knows_batches]
    # One session: the base, and what was measured beside it.
    alike = [pair for pair in known if _session(pair[0]) == _session(known[0][0])]
    comparable = [pair for pair in alike if pair[0].is_base or pair[0].cost_ratio is not None]
    models = sorted(comparable, key=lambda pair: not pair[0].is_base)[:MOST_LINES]
    drawn = [_drawn(row, model, request) for row, model in models]
    batches = sorted({batch for one in drawn for batch in one.batches()})
    costs = [cost for one in drawn for cost in one.costs()]
    if len(batches) < 2 or not costs:  # noqa: PLR2004 - one batch is no axis
        return None
    scale = _Scale(batches=(batches[0], batches[-1]), costs=(min(costs) / 1.15, max(costs) * 1.15))
    beyond = [costmodel.beyond(model, prompt=request[0], output=request[1]) for _, model in models]
    return Picture(
        curves=_curves(drawn, batches, scale), batches=tuple(batches),
        below=tuple(Mark(value=one, at=scale.x(one)) for one in batches),
        beside=tuple(Mark(value=one, at=scale.y(one)) for one in decades(*scale.costs)), prompt_tokens=request[0],
        output_tokens=request[1], beyond=tuple(dict.fromkeys(words for found in beyond for words in found)),
        left_out=len(comparable) - len(drawn), barred=len(alike) - len(comparable),
    )


def _drawn(row: Row, model: Fit, request: tuple[int, int]) -> _Drawn:
    return _Drawn(row=row, line=costmodel.line(model, prompt=request[0], output=request[1]),
                  span=costmodel.probed_batches(model), measured=_measured(row), probed=_probed(model, request))


def _curves(drawn: Sequence[_Drawn], batches: Sequence[int], scale: _Scale) -> tuple[Curve, ...]:
    ends = [min(max(one.span.high, scale.batches[0]), scale.batches[1]) for one in drawn]
    costs = [min(max(one.line.request(end), scale.costs[0]), scale.costs[1]) for one, end in zip(drawn, ends, strict=True)]
    heights = _apart([scale.y(cost) for cost in costs])
    return tuple(
        Curve(number=number, row=one.row, path=_path(one.line, one.span, scale), label_x=scale.x(end) + 16, label_y=height,
              measured=_points(one.measured, scale), probed=_points(one.probed, scale),
              predicted={batch: one.line.request(batch) for batch in batches if one.span.holds(batch)})
        for number, (one, end, height) in enumerate(zip(drawn, ends, heights, strict=True), start=1))


def _session(row: Row) -> tuple[str, str | None]:
    return row.report.model, row.report.session


def _measured(row: Row) -> dict[int, float]:
    """Mean cost of a request over the valid trials of this workload, by batch size; also those of other boards."""
    found: dict[int, list[float]] = {}
    for trial in row.report.trials:
        cost = request_cost(trial, cpu_time=row.energy_is_estimate)
        if trial.workload == row.workload and trial.batch is not None and trial.void is None and cost:
            found.setdefault(trial.batch, []).append(cost)
    return {batch: math.fsum(costs) / len(costs) for batch, costs in sorted(found.items())}


def _probed(model: Fit, request: tuple[int, int]) -> dict[int, float]:
    """Put the cost of a request together from what was probed at each batch size."""
    found = {}
    for batch in sorted({one.batch for one in model.residuals}):
        prefill = {one.prompt_tokens: one.measured for one in model.residuals
                   if (one.kind, one.batch) == ("prefill", batch)}
        steps = {one.prompt_tokens + one.output_tokens / 2: one.measured for one in model.residuals
                 if (one.kind, one.batch) == ("decode", batch)}
        first = _between(prefill, request[0])
        if first is not None and steps:
            found[batch] = (first + max(request[1] - 1, 0) * _step(steps, request[0] + request[1] / 2)) / batch
    return found


def _step(known: dict[float, float], context: float) -> float:
    """Interpolate the cost of a decode step on a straight line over its context; outside, the nearest one that was probed."""
    low = max((one for one in known if one <= context), default=min(known))
    high = min((one for one in known if one >= context), default=max(known))
    share = 0.0 if high == low else (context - low) / (high - low)
    return known[low] * (1 - share) + known[high] * share


def _between(known: dict[int, float], wanted: int) -> float | None:
    """Interpolate the cost of a token on a straight line over the prompt's length; None outside of what is known."""
    below, above = [one for one in known if one <= wanted], [one for one in known if one >= wanted]
    if not below or not above:
        return None
    low, high = max(below), min(above)
    share = 0.0 if high == low else (wanted - low) / (high - low)
    # Attention makes a token dearer the longer its prompt: the cost of a prefill is no straight line, that of a token nearly is.
    return wanted * (known[low] / low * (1 - share) + known[high] / high * share)


def _points(found: dict[int, float], scale: _Scale) -> tuple[Point, ...]:
    return tuple(Point(batch=batch, cost=cost, x=scale.x(batch), y=scale.y(cost)) for batch, cost in found.items())


def _path(line: costmodel.Line, span: costmodel.Span, scale: _Scale) -> str:
    if span.low >= span.high:
        return ""
    corners = []
    for step in range(_STEPS + 1):
        batch = span.low * (span.high / span.low) ** (step / _STEPS)
        cost = line.request(batch)
        if scale.costs[0] <= cost <= scale.costs[1]:
            corners.append(f"{scale.x(batch):.1f},{scale.y(cost):.1f}")
    return " ".join(corners)


def _apart(places: Sequence[float]) -> list[float]:
    """Move the labels at the ends of lines apart, keeping their order."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = [0.0] * len(places)
    least = float(TOP)
    for index in order:
        found[index] = least = max(places[index], least)
        least += _APART
    # What was pushed out at the bottom comes back up.
    most = float(BOTTOM)
    for index in reversed(order):
        found[index] = most = min(found[index], most)
        most -= _APART
    return found
