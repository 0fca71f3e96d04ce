"""What the templates need beyond the rows themselves: headline facts, places of bars and dots.

Pure functions from nouns to nouns; words are in the templates, drawing by Altair in `charts`. Example: the headline of
a board whose cheapest variant needs 0.78 of its base's CPU time is `Headline(kind="cheaper", loss=0.17, ...)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from jouleboard.axes import padded
from jouleboard.batchviews import Picture, picture
from jouleboard.declared import Workload
from jouleboard.estimates import Estimate
from jouleboard.gates import RULES
from jouleboard.records import Report
from jouleboard.rows import REPLAY, Board, Row, TaskCell

Standing = Literal["more", "less", "unclear", "unknown", "drift"]
HeadlineKind = Literal["simulated", "empty", "failed", "base-only", "no-base", "no-variant", "cheaper", "unclear", "dearer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The one sentence that a board says first, as facts."""

    kind: HeadlineKind
    """How the least costly ranked variant stands to its base, by the interval of the cost ratio."""
    row: Row | None
    base: Row | None
    loss: float | None
    """Quality of the base less that of the variant; None where either is not known."""
    overlap: bool | None
    """Whether the two quality intervals overlap."""
    variants: int
    """Variants with a cost, ranked or not, the base left out."""
    costlier: int
    """How many of them certainly cost more than their base."""
    drift: float | None
    """How far the base itself moved, as a share, where the cost ratio is no farther from 1 than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An interval on a scale from 0 to 100."""

    value: float
    low: float
    high: float
    zero: float
    base: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Which marks the chart of quality and cost draws: its legend names these."""

    base: bool
    variant: bool
    cost_only: bool
    frontier: bool
    interval: bool
    rank: bool
    """Whether something has a place on both axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What the task table says above a task, and whether its models differ in signal."""

    cell: TaskCell
    silent: Literal["none", "some", "all"]
    """Whether no, some or every family that has a base lacks a signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardView:
    """A board with everything derived from it that its page shows."""

    board: Board
    cell: str
    """The title of the cell: `Agent, 1,500 tokens in, 40 out, batch 1`."""
    rows: tuple[Row, ...]
    models: tuple[str, ...]
    """Distinct model titles, in order of rank."""
    headline: Headline
    bars: Mapping[str, Bar]
    """By entry."""
    provisional: tuple[str, ...]
    """Distinct reasons why figures are provisional, one sentence for a gate whatever its figures."""
    items: tuple[int, int]
    """Fewest and most items of a task."""
    trials: tuple[int, int]
    """Fewest and most valid trials of an entry."""
    common_badges: tuple[str, ...]
    """Badges that every row has; they are shown once, above the table."""
    badges: tuple[tuple[str, Report], ...]
    """Every badge of the board, with the first report that carries it."""
    reasons: Mapping[str | None, tuple[Row, ...]]
    """Rows without a rank by the reason in words."""
    columns: Mapping[str, Column]
    """By task; a task that no row scored is absent."""
    silent: Mapping[str, tuple[str, ...]]
    """By model title: the tasks on which its base is not clearly above chance."""
    uncertainty: float | None
    """Largest relative uncertainty that a declared power model gives; None where nothing is estimated."""
    has_chart: bool
    marks: Marks
    batches: Picture | None
    """Cost of a request over the batch; None for `replay`, and where no entry has a cost model."""
    contexts: tuple[int, ...]
    """Prompts behind which the decode steps of the latency column were timed."""


def cell_title(workload: str, batch: int | None, declared: Mapping[str, Workload]) -> str:
    """Name a cell for people; an id that is not declared stands for itself."""
    if workload == REPLAY:
        return "Replay of the recorded eval batches"
    title = declared[workload].title if workload in declared else workload
    return title if batch is None else f"{title}, batch {batch}"


def standing(row: Row) -> Standing:
    """Say on which side of 1 the whole interval of a row's cost ratio lies; `drift`: it is no farther than its base moved."""
    ratio = row.cost_ratio
    if ratio is None:
        return "unknown"
    if row.base_drift is not None and abs(ratio.value - 1) <= row.base_drift:
        return "drift"
    if ratio.low is None or ratio.high is None:
        return "unknown"
    if ratio.low > 1:
        return "more"
    return "less" if ratio.high < 1 else "unclear"


def board_view(board: Board, declared: Mapping[str, Workload] | None = None) -> BoardView:
    """Derive everything that a board's page shows.

    Args:
        board: what `rank` made.
        declared: the workloads that have a data file, by id, for their titles.
    """
    rows = (*board.ranked, *board.unranked)
    used = [cell.items for row in rows for cell in row.tasks]
    codes = list(dict.fromkeys(code for row in rows for code in row.badges))
    valid = [found for row in rows if (found := _valid_trials(row)) is not None]
    return BoardView(
        board=board,
        cell=cell_title(board.workload, board.batch, declared or {}),
        rows=rows,
        models=tuple(dict.fromkeys(row.report.model_title for row in rows)),
        headline=headline(board),
        bars=bars(rows),
        provisional=tuple(dict.fromkeys(reason for row in rows for reason in _provisional(row))),
        items=(min(used, default=0), max(used, default=0)),
        trials=(min(valid, default=0), max(valid, default=0)),
        common_badges=tuple(code for code in codes if all(code in row.badges for row in rows)),
        badges=tuple((code, next(row.report for row in rows if code in row.badges)) for code in codes),
        reasons=_reasons(board),
        columns={task: column for task in board.tasks if (column := _column(task, rows)) is not None},
        silent=_silent(rows),
        uncertainty=max(_uncertainties(rows), default=None),
        has_chart=any(row.headline_cost for row in rows),
        marks=marks(board),
        batches=picture(board),
        contexts=tuple(sorted({row.inter_token.context_tokens for row in rows
                               if row.inter_token and row.inter_token.context_tokens is not None})),
    )


def by_tier(rows: Sequence[Row]) -> list[tuple[int | None, list[Row]]]:
    """Group rows that are in order of their tiers."""
    return [(tier, list(mine)) for tier, mine in groupby(rows, key=lambda row: row.tier)]


def floor(board: Board) -> int | None:
    """Return the tier whose floor a reader begins with: that of the best ranked base, else the highest; None where no tier is known."""
    bases = [row.tier for row in board.ranked if row.is_base and row.tier is not None]
    return max(bases or [row.tier for row in board.ranked if row.tier is not None], default=None)


def marks(board: Board) -> Marks:
    """Say which marks the chart of a board draws."""
    points = [(cost, row.quality, row) for row in board.ranked if (cost := row.headline_cost) and row.quality]
    placed = {row.entry for _, _, row in points}
    costs = [cost for row in (*board.ranked, *board.unranked) if (cost := row.headline_cost)]
    best = min(points, key=lambda point: (point[0].value, -point[1].value), default=None)
    return Marks(
        base=any(row.is_base for _, _, row in points), variant=any(not row.is_base for _, _, row in points),
        cost_only=any(row.headline_cost and row.entry not in placed for row in (*board.ranked, *board.unranked)),
        # The cheapest point is on the frontier; it is a line where a dearer one is better.
        frontier=best is not None and any(quality.value > best[1].value for _, quality, _ in points),
        interval=any(one.low is not None for one in (*costs, *(quality for _, quality, _ in points))), rank=bool(points),
    )


def _valid_trials(row: Row) -> int | None:
    mine = [trial for trial in row.report.trials if (trial.workload, trial.batch) == (row.workload, row.batch)]
    return sum(trial.void is None for trial in mine) if mine else None


def _provisional(row: Row) -> list[str]:
    """Shorten the reasons of gates, which carry figures of their own in each entry, to the sentence of their code."""
    sentences = {code: text for rule in RULES.values() for code, text in rule.codes.items()}
    own = row.report.provisional
    codes = [reason.partition(" (")[0] for reason in row.provisional if reason != own]
    return [*([own] if own else []), *(sentences.get(code, code).rstrip(".") for code in codes)]


def _reasons(board: Board) -> dict[str | None, tuple[Row, ...]]:
    found: dict[str | None, tuple[Row, ...]] = {}
    for row in board.unranked:
        found[row.unranked] = (*found.get(row.unranked, ()), row)
    return found


def _column(task: str, rows: Sequence[Row]) -> Column | None:
    cells = [cell for row in rows for cell in row.tasks if cell.task == task]
    if not cells:
        return None
    # None: the family has no base, so nothing is known of its signal.
    known = {cell.signal for cell in cells if cell.signal is not None}
    return Column(cell=cells[0], silent="none" if False not in known else "some" if True in known else "all")


def _silent(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for cell in row.tasks:
            if cell.signal is False:
                found.setdefault(row.report.model_title, {})[cell.task] = None
    return {model: tuple(tasks) for model, tasks in found.items()}


def _uncertainties(rows: Sequence[Row]) -> list[float]:
    energies = [trial.window.energy for row in rows for trial in row.report.trials]
    return [one.estimate_relative_uncertainty for one in energies if one.estimate_relative_uncertainty is not None]


def withheld_codes(row: Row) -> tuple[str, ...]:
    """Return the distinct reasons for which qualities of an entry are withheld."""
    return tuple(dict.fromkeys(cell.withheld for cell in row.tasks if cell.withheld))


def headline(board: Board) -> Headline:
    """Compare the least costly ranked variant with its own base."""
    rows = (*board.ranked, *board.unranked)
    compared = [row for row in rows if row.cost_ratio and not row.is_base]
    # Ranks order inside tiers, so the first row is not the cheapest.
    best = min((row for row in board.ranked if not row.is_base), key=_headline_cost, default=None)
    base = next((row for row in rows if row.is_base and (best is None or session_of(row) == session_of(best))), None)
    kind = "simulated" if board.is_simulated and rows else _headline_kind(rows, best, base)
    ours, theirs = best.quality if best else None, base.quality if base else None
    return Headline(
        kind=kind,
        row=best,
        base=base,
        loss=theirs.value - ours.value if ours and theirs else None,
        overlap=_overlap(ours, theirs) if ours and theirs else None,
        variants=len(compared),
        costlier=sum(standing(row) == "more" for row in compared),
        drift=best.base_drift if best and standing(best) == "drift" else None,
    )


def _headline_cost(row: Row) -> tuple[float, str]:
    return math.inf if row.headline_cost is None else row.headline_cost.value, row.entry


def session_of(row: Row) -> tuple[str, str | None, str]:
    """Return what a variant shares with the base that it was measured beside."""
    return row.report.model, row.report.session, row.report.base


def _headline_kind(rows: Sequence[Row], best: Row | None, base: Row | None) -> HeadlineKind:
    if all(row.report.status == "failed" for row in rows):
        return "failed" if rows else "empty"
    if base is None or base.report.status == "failed":
        return "no-base"
    if best is None or best.cost_ratio is None:
        return "no-variant" if any(not row.is_base for row in rows) else "base-only"
    kinds: dict[str, HeadlineKind] = {"less": "cheaper", "more": "dearer"}
    return kinds.get(standing(best), "unclear")


def _overlap(one: Estimate, other: Estimate) -> bool | None:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return None
    return one.low <= other.high and other.low <= one.high


def quality_axis(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the ends of a scale that holds zero (chance) and every quality interval of these rows."""
    return padded([0.0, *(end for row in rows if (one := row.quality) for end in (one.value, one.low, one.high) if end is not None)])


def base_qualities(rows: Sequence[Row]) -> dict[tuple[str, str | None, str], float]:
    """Return the quality of each session's base."""
    return {session_of(row): row.quality.value for row in rows if row.is_base and row.quality}


def bars(rows: Sequence[Row]) -> dict[str, Bar]:
    """Place the quality intervals of a board's rows on one scale that holds zero (chance)."""
    known = [(row, row.quality) for row in rows if row.quality]
    low, high = quality_axis(rows)
    bases = base_qualities(rows)

    def place(value: float) -> float:
        return (value - low) / (high - low) * 100

    return {
        row.entry: Bar(
            value=place(one.value),
            low=place(one.value if one.low is None else one.low),
            high=place(one.value if one.high is None else one.high),
            zero=place(0.0),
            base=place(bases[session_of(row)]) if session_of(row) in bases else None,
        )
        for row, one in known
    }
