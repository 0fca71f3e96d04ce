"""Boards into SVG: quality against cost with intervals, the base marked, the frontier, and cost-only rows below.

Altair describes the chart and vl-convert draws it, without a browser. The same board gives the same bytes. Colour is
never the only mark: the base is a diamond, variants are discs, cost-only rows hollow squares, and all are named.

    quality_cost(board, words, theme=chartstyle.LIGHT, width=760)   # "<svg ...>"
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import altair as alt
import vl_convert
from altair.utils import schemapi

from jouleboard.chartstyle import Theme, Words, config
from jouleboard.estimates import Estimate
from jouleboard.formats import visible
from jouleboard.labels import LINE_PX, Box, Frame, length_px, line_offsets, name_lines, path_boxes, spot
from jouleboard.rows import Board, Row

LABELLED = 12
"""With more rows than this, points carry their rank instead of their name."""
LONGEST_NAME, LONGEST_NARROW = 48, 32  # characters of one line
_PLOT_HEIGHT, _STRIP_LINE, _NARROW = 320, 26, 400
_ABOVE = 20
"""Pixels more where a name stands above its line."""
_NAMED = 60
"""With more points than this, only those on the frontier are named."""
_CELL = 16
"""Pixels of a side of the squares in which what is not drawn by itself is counted."""
_INTERVAL: dict[str, Any] = {"strokeWidth": 2, "opacity": 0.55}


def frontier(board: Board) -> tuple[Row, ...]:
    """Return the ranked rows that no other one beats in both cost and quality, in order of cost."""
    known = sorted(_points(board), key=lambda point: (point.cost.value, -point.quality.value))
    best, found = float("-inf"), []
    for point in known:
        if point.quality.value > best:
            best = point.quality.value
            found.append(point.row)
    return tuple(found)


Crowd = Sequence[tuple[float, float]]
"""Cost and quality of rows that are counted in squares behind the others, because so many points would hide one another."""


def quality_cost(board: Board, words: Words, *, theme: Theme, width: int = 760, crowd: Crowd = ()) -> str | None:
    """Draw a board as SVG, before a crowd of others; None where no row has a cost."""
    # Checking each part against the schema takes ten times as long as drawing; a test does it once for all of them.
    with schemapi.debug_mode(arg=False):
        chart = specification(board, words, theme=theme, width=width, crowd=crowd)
        return None if chart is None else str(vl_convert.vegalite_to_svg(chart.to_dict(validate=False)))


def specification(board: Board, words: Words, *, theme: Theme, width: int = 760, crowd: Crowd = ()) -> alt.VConcatChart | None:
    """Describe the chart of a board; None where no row has a cost."""
    points = _points(board)
    shown = {point.row.entry for point in points}
    alone = [(row, found) for row in (*board.ranked, *board.unranked) if (found := row.headline_cost)]
    alone = [(row, found) for row, found in alone if row.entry not in shown]
    if not points and not alone:
        return None
    frame = _frame(points, [found for _, found in alone], width, crowd)
    panels: list[alt.LayerChart | alt.FacetChart] = []
    if points:
        title = None if alone else _cost_title(words, frame)
        axes = _Axes(frame=frame, cost=title, quality=words.quality)
        panels.append(_plot(board, points, axes, words.chance, theme, crowd=crowd))
    if alone:
        panels.append(_strip(alone, words, frame, theme, many=_many_models(board)))
    chart: alt.VConcatChart = alt.vconcat(*panels, spacing=14).configure(**config(theme))
    return chart


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """A row that has both axes."""

    row: Row
    cost: Estimate
    quality: Estimate


def _points(board: Board) -> list[_Point]:
    found = [(row, row.headline_cost, row.quality) for row in board.ranked]
    return [_Point(row=row, cost=x, quality=y) for row, x, y in found if x and y]


def _frame(points: Sequence[_Point], alone: Sequence[Estimate], width: int, crowd: Crowd) -> Frame:
    costs = [max(_ends(found)) for found in (*(point.cost for point in points), *alone)] + [cost for cost, _ in crowd]
    qualities = [end for point in points for end in _ends(point.quality)] + [quality for _, quality in crowd]
    low, high = min([0.0, *qualities]), max([0.1, *qualities])
    margin = (high - low) * 0.08
    return Frame(
        width=width - 70,
        height=_PLOT_HEIGHT,
        cost_high=max(costs) * 1.06 or 1.0,
        quality_low=low - margin,
        quality_high=high + margin,
    )


def _ends(estimate: Estimate) -> tuple[float, ...]:
    return tuple(end for end in (estimate.low, estimate.value, estimate.high) if end is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """The two axes of a panel; each layer names the field that it reads."""

    frame: Frame
    cost: str | None
    quality: str | None = None

    def x(self, field: str = "x") -> alt.X:
        """Cost, from zero; without a title the panel below carries the labels."""
        own = self.cost is not None
        ticks = 6 if self.frame.width > _NARROW else 4
        axis = alt.Axis(title=self.cost, tickCount=ticks, labels=own, ticks=own, domain=own)
        return alt.X(f"{field}:Q", scale=alt.Scale(domain=[0, self.frame.cost_high], nice=False), axis=axis)

    def y(self, field: str = "y") -> alt.Y:
        """Quality."""
        scale = alt.Scale(domain=[self.frame.quality_low, self.frame.quality_high], nice=False)
        return alt.Y(
            f"{field}:Q", scale=scale, axis=alt.Axis(title=self.quality, tickCount=6, domain=False, ticks=False)
        )


def _data(rows: Sequence[dict[str, Any]]) -> alt.InlineData:
    return alt.InlineData(values=list(rows))


def _plot(
    board: Board, points: Sequence[_Point], axes: _Axes, chance_word: str, theme: Theme, *, crowd: Crowd
) -> alt.LayerChart | alt.FacetChart:
    """Draw the main panel: chance line, frontier, intervals, points, names."""
    frame = axes.frame
    values = [_place(point) for point in points]
    on = {row.entry for row in frontier(board)}
    best = [value for value, point in zip(values, points, strict=True) if point.row.entry in on]
    colour = alt.condition("datum.base", alt.value(theme.base), alt.value(theme.variant))
    shape = alt.condition("datum.base", alt.value("diamond"), alt.value("circle"))
    size = alt.condition("datum.base", alt.value(150), alt.value(110))
    chart = alt.Chart(_data(values))
    chance = alt.Chart(_data([{"x": frame.cost_high, "y": 0.0, "text": visible(chance_word)}]))
    text: dict[str, Any] = {"align": "right", "dx": -2, "dy": -7, "fontSize": 12, "color": theme.muted}
    line: dict[str, Any] = {"interpolate": "step-after", "strokeWidth": 1.5, "strokeDash": [6, 4], "color": theme.muted}
    layers = [
        *_background(crowd, axes, theme),
        chance.mark_rule(color=theme.muted, strokeDash=[2, 3]).encode(y=axes.y()),
        chance.mark_text(**text).encode(x=axes.x(), y=axes.y(), text="text:N"),
        alt.Chart(_data(sorted(best, key=itemgetter("x")))).mark_line(**line).encode(x=axes.x(), y=axes.y()),
        chart.mark_rule(**_INTERVAL).encode(x=axes.x(), y=axes.y("y1"), y2="y2:Q", color=colour),
        chart.mark_rule(**_INTERVAL).encode(x=axes.x("x1"), x2="x2:Q", y=axes.y(), color=colour),
        chart.mark_point(filled=True, opacity=1, stroke=theme.surface, strokeWidth=1.5).encode(
            x=axes.x(), y=axes.y(), color=colour, shape=shape, size=size
        ),
        *_labels(board, points, axes, theme),
    ]
    return alt.layer(*layers).properties(width=frame.width, height=frame.height)


def _background(crowd: Crowd, axes: _Axes, theme: Theme) -> list[alt.Chart]:
    """Count the crowd in squares; the fuller, the darker."""
    frame = axes.frame
    counts = Counter((int(frame.x(cost) // _CELL), int(frame.y(quality) // _CELL)) for cost, quality in crowd)
    if not counts:
        return []
    most = max(counts.values())
    values = [{"x": frame.cost_at(column * _CELL), "x1": frame.cost_at(min((column + 1) * _CELL, frame.width)),
               "y": frame.quality_at(line * _CELL), "y1": frame.quality_at(min((line + 1) * _CELL, frame.height)),
               "shade": round(0.12 + 0.48 * math.sqrt(count / most), 3)} for (column, line), count in sorted(counts.items())]
    shade = alt.Opacity("shade:Q", scale=None, legend=None)
    return [alt.Chart(_data(values)).mark_rect(color=theme.variant).encode(x=axes.x(), x2="x1:Q", y=axes.y(), y2="y1:Q", opacity=shade)]


def _cost_title(words: Words, frame: Frame) -> str:
    return words.cost if frame.width > _NARROW else words.cost_short


def _place(point: _Point) -> dict[str, Any]:
    return {
        "x": point.cost.value,
        "x1": max(0.0, min(_ends(point.cost))),
        "x2": max(_ends(point.cost)),
        "y": point.quality.value,
        "y1": min(_ends(point.quality)),
        "y2": max(_ends(point.quality)),
        "base": point.row.is_base,
    }


def _name(row: Row, frame: Frame, *, model: bool) -> tuple[str, ...]:
    longest = LONGEST_NAME if frame.width > _NARROW else LONGEST_NARROW
    return name_lines(row.report.recipe_title, longest, model=row.report.model_title if model else None)


def _many_models(board: Board) -> bool:
    return len({row.report.model for row in (*board.ranked, *board.unranked)}) > 1


def _labels(board: Board, points: Sequence[_Point], axes: _Axes, theme: Theme) -> list[alt.Chart]:
    """Name each point where the name covers nothing: beside it, above or below."""
    frame = axes.frame
    many = _many_models(board)
    # Names of two lines take more room: a narrow chart, or many of them, has none.
    ranks = len(board.ranked) > (LABELLED if not many else LABELLED // 2 if frame.width > _NARROW else 0)
    on = {row.entry for row in frontier(board)}
    line = [(frame.x(p.cost.value), frame.y(p.quality.value)) for p in points if p.row.entry in on]
    taken = [*path_boxes(sorted(line)), *(box for point in points for box in _marks(point, frame))]
    rows = []
    named = points if len(points) <= _NAMED else [point for point in points if point.row.entry in on]
    for point in named:
        row = point.row
        lines = (str(row.rank),) if ranks and row.rank is not None else _name(row, frame, model=many)
        x, y = frame.x(point.cost.value), frame.y(point.quality.value)
        found = spot(x, y, length=length_px(lines), lines=len(lines), frame=frame, taken=taken)
        taken.append(found.box)
        for text, dy in zip(lines, line_offsets(len(lines)), strict=True):
            place = {"x": frame.cost_at(found.x), "y": frame.quality_at(found.y + dy), "align": found.align}
            rows.append({**place, "text": text, "base": row.is_base})
    chart = alt.Chart(_data(rows))
    colour = alt.condition("datum.base", alt.value(theme.base), alt.value(theme.variant))
    return [
        chart.transform_filter(f"datum.align == '{align}'")
        .mark_text(align=align, baseline="middle", fontSize=13, fontWeight=600)
        .encode(x=axes.x(), y=axes.y(), text="text:N", color=colour)
        for align in ("left", "right")
    ]


def _marks(point: _Point, frame: Frame) -> list[Box]:
    """List the point and its two intervals, as rectangles that no name may cover."""
    x, y = frame.x(point.cost.value), frame.y(point.quality.value)
    rises, runs = [frame.y(end) for end in _ends(point.quality)], [frame.x(end) for end in _ends(point.cost)]
    return [
        Box(left=x - 7, top=y - 7, right=x + 7, bottom=y + 7),
        Box(left=x - 2, top=min(rises), right=x + 2, bottom=max(rises)),
        Box(left=min(runs), top=y - 2, right=max(runs), bottom=y + 2),
    ]


def _side(found: Estimate, length: float, frame: Frame) -> Literal["right", "left", "above"]:
    """Say where the name of a line has room."""
    if frame.x(max(_ends(found))) + 10 + length < frame.width:
        return "right"
    return "left" if frame.x(min(_ends(found))) - 10 - length > 0 else "above"


def _strip(
    alone: Sequence[tuple[Row, Estimate]], words: Words, frame: Frame, theme: Theme, *, many: bool
) -> alt.LayerChart | alt.FacetChart:
    """Draw the lower panel: one line for each row that has a cost and no rank."""
    axes = _Axes(frame=frame, cost=_cost_title(words, frame))
    names = [_name(row, frame, model=many) for row, _ in alone]
    sides = [_side(found, length_px(lines), frame) for (_, found), lines in zip(alone, names, strict=True)]
    height = max(map(len, names)) * LINE_PX
    step = max(_STRIP_LINE, height + 12 + (_ABOVE if "above" in sides else 0))
    rows, texts = [], []
    for number, ((_, found), lines, side) in enumerate(zip(alone, names, sides, strict=True)):
        x1, x2 = max(0.0, min(_ends(found))), max(_ends(found))
        y = (number + 1) * step - _ABOVE / 2 if side == "above" else (number + 0.5) * step
        middle = y - 10 - len(lines) * LINE_PX / 2 if side == "above" else y
        px = {"right": frame.x(x2) + 10, "left": frame.x(x1) - 10}.get(
            side, max(0.0, min(frame.x(x1), frame.width - length_px(lines))))
        rows.append({"x": found.value, "x1": x1, "x2": x2, "y": y})
        for text, dy in zip(lines, line_offsets(len(lines)), strict=True):
            texts.append({"at": frame.cost_at(px), "y": middle + dy, "text": text,
                          "align": "right" if side == "left" else "left"})
    vertical = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[step * len(alone), 0], nice=False))
    chart = alt.Chart(_data(rows), title=alt.Title(visible(words.cost_only), color=theme.muted, offset=6))
    layers: list[alt.Chart] = [
        chart.mark_rule(**_INTERVAL, color=theme.withheld).encode(x=axes.x("x1"), x2="x2:Q", y=vertical),
        chart.mark_point(
            shape="square", filled=True, fill=theme.surface, stroke=theme.withheld, strokeWidth=2, size=70, opacity=1
        ).encode(x=axes.x(), y=vertical),
    ]
    layers += [
        alt.Chart(_data(texts))
        .transform_filter(f"datum.align == '{align}'")
        .mark_text(align=align, baseline="middle", fontSize=13, fontWeight=600, color=theme.withheld)
        .encode(x=axes.x("at"), y=vertical, text="text:N")
        for align in ("left", "right")
    ]
    return alt.layer(*layers).properties(width=frame.width, height=step * len(alone))
