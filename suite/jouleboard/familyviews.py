"""What a family's page shows: a base and all its variants on one machine, from the boards that they stand on. Pure.

`families(views)[0].groups[0].slope.points` are the lines from the base (cost ratio 1, difference 0) to each variant;
`.parts` are prefill and decode apart, as ratios to the base, at the least and the most sequences that both were probed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jouleboard import axes, costmodel
from jouleboard.costmodel import Fit
from jouleboard.estimates import Estimate
from jouleboard.rows import Board, Row
from jouleboard.views import BoardView

LEFT, RIGHT, TOP, BOTTOM = 64.0, 600.0, 24.0, 300.0
"""Of the drawing of slopes, in pixels."""
PROMPT, OUTPUT = 512, 256
"""Request of the table of parts where no board of the family serves one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A labelled place on an axis, in pixels."""

    value: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlopePoint:
    """One variant beside its base, in pixels."""

    number: int
    row: Row
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Lines from the base to its variants: cost ratio across, difference of accuracy in points upwards."""

    points: tuple[SlopePoint, ...]
    base_x: float
    base_y: float
    below: tuple[Mark, ...]
    beside: tuple[Mark, ...]
    decimals: tuple[int, int]
    left_out: int
    """Variants without a ratio or a difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Prefill and decode of one variant at a batch, each over that of the base."""

    row: Row
    batch: int
    prefill: float | None
    decode: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChange:
    """The score of one task against the base's."""

    task: str
    score: float
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A family on one machine."""

    key: str
    view: BoardView
    """The board that leads: serving at the least batch, where there is one."""
    boards: tuple[BoardView, ...]
    base: Row | None
    variants: tuple[Row, ...]
    slope: Slope | None
    parts: tuple[Part, ...]
    request: tuple[int, int]
    """Prompt and output tokens of the table of parts."""
    changes: dict[str, tuple[TaskChange, ...]]
    """By entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """All that was measured of one model."""

    model: str
    title: str
    groups: tuple[Group, ...]


def families(views: Sequence[BoardView]) -> tuple[Family, ...]:
    """Return the families on these boards, in the order in which they come; boards of engines are left out."""
    found: dict[str, list[BoardView]] = {}
    for view in views:
        if view.board.kind == "variants":
            for model in dict.fromkeys(row.report.model for row in view.rows):
                found.setdefault(model, []).append(view)
    return tuple(_family(model, mine) for model, mine in found.items())


def _family(model: str, views: Sequence[BoardView]) -> Family:
    machines: dict[tuple[str, str, str], list[BoardView]] = {}
    for view in views:
        machines.setdefault((view.board.hardware, view.board.method, view.board.boundary), []).append(view)
    title = next(row.report.model_title for view in views for row in view.rows if row.report.model == model)
    return Family(model=model, title=title, groups=tuple(
        _group(f"machine-{number}", model, mine) for number, mine in enumerate(machines.values(), start=1)))


def _group(key: str, model: str, views: Sequence[BoardView]) -> Group:
    lead = min(views, key=lambda view: (not view.board.is_serving, view.board.batch or 0))
    rows = [row for row in lead.rows if row.report.model == model]
    base = next((row for row in rows if row.is_base), None)
    variants = tuple(row for row in rows if not row.is_base)
    request = _request(lead.board)
    return Group(key=key, view=lead, boards=tuple(views), base=base, variants=variants, slope=slope(variants),
                 parts=_parts(base, variants, request), request=request,
                 changes={row.entry: _changes(base, row) for row in variants})


def _request(board: Board) -> tuple[int, int]:
    return (board.prompt_tokens or PROMPT, board.output_tokens or OUTPUT)


def slope(variants: Sequence[Row]) -> Slope | None:
    """Place the variants that have both a cost ratio and a difference of accuracy; None where none has."""
    placed = [(row, row.cost_ratio, row.verdict.quality) for row in variants
              if row.cost_ratio is not None and row.verdict is not None and row.verdict.quality is not None]
    if not placed:
        return None
    ratios = [end for _, ratio, _ in placed for end in _ends(ratio)]
    points = [end * 100 for _, _, quality in placed for end in _ends(quality)]
    (x1, x2), (y1, y2) = axes.padded([1.0, *ratios]), axes.padded([0.0, *points])

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - x1) / (x2 - x1)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - y1) / (y2 - y1)

    (below, wide), (beside, high) = axes.ticks(x1, x2), axes.ticks(y1, y2)
    return Slope(
        points=tuple(SlopePoint(
            number=number, row=row, x=x(ratio.value), y=y(quality.value * 100), x_low=x(_ends(ratio)[0]), x_high=x(_ends(ratio)[-1]),
            y_low=y(_ends(quality)[0] * 100), y_high=y(_ends(quality)[-1] * 100)) for number, (row, ratio, quality) in enumerate(placed, 1)),
        base_x=x(1.0), base_y=y(0.0), below=tuple(Mark(value=one, at=x(one)) for one in below), decimals=(wide, high),
        beside=tuple(Mark(value=one, at=y(one)) for one in beside), left_out=len(variants) - len(placed))


def _ends(one: Estimate) -> tuple[float, float]:
    return (one.value if one.low is None else one.low, one.value if one.high is None else one.high)


def _parts(base: Row | None, variants: Sequence[Row], request: tuple[int, int]) -> tuple[Part, ...]:
    """Hold the fitted models against the base's, prefill and decode apart; only where the two may be compared."""
    if base is None or base.cost_model is None:
        return ()
    found = []
    for row in variants:
        if row.cost_model is None or row.cost_ratio is None:
            continue
        span = costmodel.probed_batches(base.cost_model, row.cost_model)
        batches = sorted({int(span.low), int(span.high)}) if span.low <= span.high else []
        theirs, mine = (_costs(one.cost_model, request) for one in (base, row))
        found += [Part(row=row, batch=batch, prefill=_over(mine[0], theirs[0], batch), decode=_over(mine[1], theirs[1], batch))
                  for batch in batches]
    return tuple(found)


def _costs(fit: Fit | None, request: tuple[int, int]) -> tuple[costmodel.Line, costmodel.Line]:
    """Return the prefill of a request and one decode step behind it, as lines over the batch."""
    if fit is None:
        none = costmodel.Line(fixed=0.0, each=0.0)
        return none, none
    whole = costmodel.line(fit, prompt=request[0], output=1)
    step = costmodel.Line(fixed=fit.value("d0"), each=fit.value("d1") + fit.value("d2") * (request[0] + request[1] / 2))
    return whole, step


def _over(mine: costmodel.Line, theirs: costmodel.Line, batch: int) -> float | None:
    below = theirs.request(batch)
    return mine.request(batch) / below if below > 0 else None


def _changes(base: Row | None, row: Row) -> tuple[TaskChange, ...]:
    if base is None:
        return ()
    theirs = {cell.task: cell.score for cell in base.tasks}
    found = []
    for cell in row.tasks:
        other = theirs.get(cell.task)
        if cell.score is not None and other is not None:
            found.append(TaskChange(task=cell.task, score=cell.score.value, difference=cell.score.value - other.value))
    return tuple(found)
