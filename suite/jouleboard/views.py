"""What the templates need beyond the rows themselves: headline facts, places of bars and dots.

Pure functions from nouns to nouns; words are in the templates, drawing by Altair in `charts`. Example: the headline of
a board whose cheapest variant needs 0.78 of its base's CPU time is `Headline(kind="cheaper", loss=0.17, ...)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jouleboard import costs
from jouleboard.records import Report, Trial
from jouleboard.rows import Board, Estimate, Row, TaskCell

FEWEST_TICKS, MOST_TICKS = 2, 8
HeadlineKind = Literal["empty", "failed", "base-only", "no-base", "no-variant", "cheaper", "unclear", "dearer"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An interval on a scale from 0 to 100."""

    value: float
    low: float
    high: float
    zero: float
    base: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One trial of the strip plot, on a scale from 0 to 100."""

    order: int
    cost: float
    x: float
    void: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A labelled place on the strip plot's axis."""

    value: float
    x: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """The trials of one entry, with the mean and interval of its row where there is one."""

    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]
    mean: float | None
    low: float | None
    high: float | None
    decimals: int


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
    rows: tuple[Row, ...]
    models: tuple[str, ...]
    """Distinct model titles, in order of rank."""
    headline: Headline
    bars: Mapping[str, Bar]
    """By entry."""
    provisional: tuple[str, ...]
    """Distinct reasons why figures are provisional."""
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


def cost(board: Board, row: Row) -> Estimate | None:
    """Return what the board is ordered by: CPU-seconds on CPU-time boards, joules elsewhere, per 1,000 tokens."""
    return row.cpu_s_per_ktoken if board.is_cpu_time else row.energy_j_per_ktoken


def standing(ratio: Estimate) -> Literal["more", "less", "unclear", "unknown"]:
    """Say on which side of 1 the whole interval of a cost ratio lies."""
    if ratio.low is None or ratio.high is None:
        return "unknown"
    if ratio.low > 1:
        return "more"
    return "less" if ratio.high < 1 else "unclear"


def board_view(board: Board) -> BoardView:
    """Derive everything that a board's page shows."""
    rows = (*board.ranked, *board.unranked)
    used = [cell.items for row in rows for cell in row.tasks]
    codes = list(dict.fromkeys(code for row in rows for code in row.badges))
    valid = [sum(trial.void is None for trial in row.report.trials) for row in rows if row.report.trials]
    return BoardView(
        board=board,
        rows=rows,
        models=tuple(dict.fromkeys(row.report.model_title for row in rows)),
        headline=headline(board),
        bars=bars(rows),
        provisional=tuple(dict.fromkeys(row.report.provisional for row in rows if row.report.provisional)),
        items=(min(used, default=0), max(used, default=0)),
        trials=(min(valid, default=0), max(valid, default=0)),
        common_badges=tuple(code for code in codes if all(code in row.badges for row in rows)),
        badges=tuple((code, next(row.report for row in rows if code in row.badges)) for code in codes),
        reasons=_reasons(board),
        columns={task: column for task in board.tasks if (column := _column(task, rows)) is not None},
        silent=_silent(rows),
        uncertainty=max(_uncertainties(rows), default=None),
        has_chart=any(cost(board, row) for row in rows),
    )


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
    ratios = [row.cost_ratio for row in rows if row.cost_ratio and not row.is_base]
    best = next((row for row in board.ranked if not row.is_base), None)
    base = next((row for row in rows if row.is_base and (best is None or row.report.model == best.report.model)), None)
    kind = _headline_kind(rows, best, base)
    ours, theirs = best.quality if best else None, base.quality if base else None
    return Headline(
        kind=kind,
        row=best,
        base=base,
        loss=theirs.value - ours.value if ours and theirs else None,
        overlap=_overlap(ours, theirs) if ours and theirs else None,
        variants=len(ratios),
        costlier=sum(standing(ratio) == "more" for ratio in ratios),
    )


def _headline_kind(rows: Sequence[Row], best: Row | None, base: Row | None) -> HeadlineKind:
    if all(row.report.status == "failed" for row in rows):
        return "failed" if rows else "empty"
    if base is None or base.report.status == "failed":
        return "no-base"
    if best is None or best.cost_ratio is None:
        return "no-variant" if any(not row.is_base for row in rows) else "base-only"
    kinds: dict[str, HeadlineKind] = {"less": "cheaper", "more": "dearer"}
    return kinds.get(standing(best.cost_ratio), "unclear")


def _overlap(one: Estimate, other: Estimate) -> bool | None:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return None
    return one.low <= other.high and other.low <= one.high


def bars(rows: Sequence[Row]) -> dict[str, Bar]:
    """Place the quality intervals of a board's rows on one scale that holds zero (chance)."""
    known = [(row, row.quality) for row in rows if row.quality]
    ends = [end for _, one in known for end in (one.value, one.low, one.high) if end is not None]
    low, high = _padded([0.0, *ends])
    bases = {row.report.model: one.value for row, one in known if row.is_base}

    def place(value: float) -> float:
        return (value - low) / (high - low) * 100

    return {
        row.entry: Bar(
            value=place(one.value),
            low=place(one.value if one.low is None else one.low),
            high=place(one.value if one.high is None else one.high),
            zero=place(0.0),
            base=place(bases[row.report.model]) if row.report.model in bases else None,
        )
        for row, one in known
    }


def _padded(ends: Sequence[float]) -> tuple[float, float]:
    low, high = min(ends), max(ends)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - margin, high + margin


def trial_cost(trial: Trial, *, cpu_time: bool) -> float | None:
    """Return CPU-seconds, or measured joules, per 1,000 tokens of one trial; None where not measured."""
    return costs.trial_cost(trial, cpu_time=cpu_time)


def strip(board: Board, row: Row) -> Strip | None:
    """Place the trials of an entry on one scale; None where none has a cost."""
    found = [(trial, trial_cost(trial, cpu_time=board.is_cpu_time)) for trial in row.report.trials]
    known = [(trial, value) for trial, value in found if value is not None]
    if not known:
        return None
    mean = cost(board, row)
    interval = [] if mean is None else [end for end in (mean.value, mean.low, mean.high) if end is not None]
    low, high = _padded([*(value for _, value in known), *interval])

    def place(value: float | None) -> float | None:
        return None if value is None else (value - low) / (high - low) * 100

    ticks, decimals = _ticks(low, high)
    return Strip(
        dots=tuple(
            Dot(order=one.order, cost=value, x=(value - low) / (high - low) * 100, void=one.void is not None)
            for one, value in known
        ),
        ticks=tuple(Tick(value=value, x=(value - low) / (high - low) * 100) for value in ticks),
        mean=place(mean.value if mean else None),
        low=place(mean.low if mean else None),
        high=place(mean.high if mean else None),
        decimals=decimals,
    )


def _ticks(low: float, high: float) -> tuple[list[float], int]:
    """Choose three to eight round values between two ends, and the decimals that they need."""
    decimals = next((place for place in range(-30, 40) if (high - low) * 10.0**place >= FEWEST_TICKS), None)
    if decimals is None:
        return [], 0
    unit = 10.0**-decimals
    step = next(unit * factor for factor in (1, 2, 5, 10) if (high - low) / (unit * factor) <= MOST_TICKS)
    first = int(low // step) + 1
    values = [number * step for number in range(first, first + 10) if number * step < high]
    return values, max(decimals, 0)
