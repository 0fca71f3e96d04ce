"""What the rows of a board say together: verdicts, break-even, tiers, ranks with their intervals, the frontier. Pure.

rows = boardstats.with_verdicts(drafts, cell)               # each variant beside its base, Holm over the family
board = boardstats.ordered(board, answers)                  # tiers, ranks, who may be on the frontier
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import NormalDist, fmean, median

import msgspec
import numpy as np

from jouleboard import rowquality, scores, store
from jouleboard.answers import Answers, Entry, Floats, pairable
from jouleboard.declared import Cell
from jouleboard.pairs import trial_costs
from jouleboard.reasons import valid
from jouleboard.records import Report
from jouleboard.rows import REPLAY, Board, BreakEven, IsoQuality, Row, WithBase
from jouleboard.statistics import evidence, intervals, power, ranking, verdicts
from jouleboard.statistics.evidence import LEVEL
from jouleboard.statistics.measured import Measured, scaled, total
from jouleboard.withbase import with_base

REQUESTS_A_DAY = 1000
"""Traffic at which days to break even are stated: a household's or a small team's; a reader can divide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A row on its own, and what it is compared by."""

    row: Row
    base: Entry | None
    """Of its own session; None where it is not on the board."""
    answers: Mapping[str, Answers]
    signal: Mapping[str, bool | None]
    barred: str | None
    """Why it may not be held against its base; None where it may, also where it has no rank."""


def with_verdicts(drafts: Sequence[Draft], cell: Cell) -> list[Row]:
    """Return the rows, each variant with its verdict and its break-even; a family is what was measured beside one base."""
    families: dict[str, dict[str, evidence.Evidence]] = {}
    for draft in drafts:
        if draft.base is not None and not draft.row.is_base:
            families.setdefault(draft.base.name, {})[draft.row.entry] = _evidence(draft, draft.base, cell)
    found = {verdict.name: verdict for family in families.values() for verdict in verdicts.of_family(list(family.values()))}
    drawn_from = {name: one for family in families.values() for name, one in family.items()}
    rows = {draft.row.entry: draft.row for draft in drafts if draft.row.is_base}
    return [msgspec.structs.replace(
        draft.row, verdict=found.get(draft.row.entry), with_base=_with_base(draft, drawn_from.get(draft.row.entry)),
        break_even=_break_even(draft, cell, rows.get(draft.base.name) if draft.base else None)) for draft in drafts]


def _evidence(draft: Draft, base: Entry, cell: Cell) -> evidence.Evidence:
    return evidence.Evidence(name=draft.row.entry, tasks=task_pairs(base, draft), base_costs=trial_costs(base.report, cell),
                             costs=trial_costs(draft.row.report, cell), barred=draft.barred)


def _with_base(draft: Draft, drawn_from: evidence.Evidence | None) -> WithBase | None:
    if draft.base is None or drawn_from is None:
        return None
    return with_base([pair.task for pair in drawn_from.tasks], draft.base.answers, draft.answers)


def task_pairs(base: Entry, draft: Draft) -> tuple[evidence.TaskPair, ...]:
    """Pair the tasks that count, item by item; none where one of them cannot be paired."""
    theirs = {result.task: result for result in base.report.tasks}
    found = []
    for result in draft.row.report.tasks:
        if not rowquality.counts(result, draft.signal):
            continue
        one, other = theirs.get(result.task), draft.answers.get(result.task)
        if one is None or other is None or not pairable(one, result) or result.task not in base.answers:
            return ()
        clusters = None if other.clusters is None else tuple(map(str, other.clusters.tolist()))
        found.append(evidence.TaskPair(task=result.task, base=tuple(base.answers[result.task].scores.tolist()),
                                       variant=tuple(other.scores.tolist()), clusters=clusters, chance=result.chance.value))
    return tuple(found)


# --- break-even -------------------------------------------------------------------------------------------------------


def _break_even(draft: Draft, cell: Cell, base: Row | None) -> BreakEven | None:
    """Return when the bill of a variant is saved again; None where requests are not served, or nothing may be compared."""
    report = draft.row.report
    if base is None or draft.row.is_base or cell.workload == REPLAY or draft.row.cost_ratio is None or report.build is None:
        return None
    cpu_time = report.method == "model"
    spent = report.build.cpu_s if cpu_time else None if report.build.energy is None else report.build.energy.measured_j
    mine, theirs = (trial_costs(one, cell) for one in (report, base.report))
    if spent is None or not mine or not theirs:
        return None
    bill = Measured(value=spent, stderr=0.0, dof=math.inf)
    one, other = intervals.costs_mean(theirs), intervals.costs_mean(mine)
    idle_w = _idle_w(report)
    traffic = None if idle_w is None else power.Traffic(requests_per_day=REQUESTS_A_DAY, idle=idle_w,
                                                        base_s=_request_s(base.report, cell), variant_s=_request_s(report, cell))
    return BreakEven(bill=spent, saving=total([one, scaled(other, -1)]).limits(),
                     requests=power.breakeven(bill=bill, base=one, variant=other),
                     days=None if traffic is None else power.breakeven_days(bill=bill, base=one, variant=other, traffic=traffic))


def _idle_w(report: Report) -> float | None:
    """Return what a second without work costs: watts while nothing ran, on CPU-time boards nothing."""
    if report.method == "model":
        return 0.0
    drawn = [one.window.energy.measured_j / one.window.duration_s for one in report.idle if one.window.energy.measured_j is not None]
    return fmean(drawn) if drawn else None


def _request_s(report: Report, cell: Cell) -> float:
    return fmean(trial.window.duration_s / trial.requests for trial in valid(report, cell))


# --- the order --------------------------------------------------------------------------------------------------------


def ordered(board: Board, answers: Mapping[str, Mapping[str, Answers]]) -> Board:
    """Order the ranked rows by tier, then by cost, and say how sure the order is.

    Args:
        board: with its rows in any order.
        answers: of each entry.
    """
    placed = [msgspec.structs.replace(row, tier=rowquality.tier(row.quality), tiers_reached=rowquality.reaches(row.quality))
              for row in board.ranked if row.quality is not None]
    if board.kind == "stacks":
        # One model by several engines: what a request costs is the question, whatever the tier.
        placed = [msgspec.structs.replace(row, tier=None, tiers_reached=None) for row in placed]
    placed.sort(key=lambda row: (-1 if row.tier is None else -row.tier, _cost(row), row.entry))
    tiers = [list(rows) for _, rows in groupby(placed, key=lambda row: row.tier)]
    ranked = [row for rows in tiers for row in _numbered(rows)]
    shares = _frontier(ranked, answers)
    ranked = [msgspec.structs.replace(row, frontier_share=shares.get(row.entry)) for row in ranked]
    return msgspec.structs.replace(board, ranked=tuple(ranked), iso_quality=_iso_quality(ranked), least_difference=_least([*ranked, *board.unranked]))


def _cost(row: Row) -> float:
    return math.inf if row.headline_cost is None else row.headline_cost.value


def _numbered(rows: Sequence[Row]) -> list[Row]:
    """Number the rows of a tier by cost, with the ranks that the spread of their trials allows."""
    sets = ranking.rank_intervals([_log_cost(row) for row in rows]) if len(rows) <= ranking.MOST else None
    return [msgspec.structs.replace(row, rank=index + 1, rank_low=None if sets is None else sets[index].best,
                                    rank_high=None if sets is None else sets[index].worst)
            for index, row in enumerate(rows)]


def _log_cost(row: Row) -> Measured:
    """Return the logarithm of a row's cost with its standard error, so that a unit changes nothing."""
    return intervals.costs_mean([math.log(cost) for cost in trial_costs(row.report, Cell(workload=row.workload, batch=row.batch))])


def _frontier(rows: Sequence[Row], answers: Mapping[str, Mapping[str, Answers]]) -> dict[str, float]:
    """Return each row's probability of being on the frontier of quality and cost, where all spreads are known.

    Rows whose trials show no spread, or whose items are not at hand, are left out: nothing is known of them, nor can they push
    another one off the frontier.
    """
    costs = {row.entry: _log_cost(row) for row in rows}
    known = [row for row in rows if math.isfinite(costs[row.entry].stderr) and _tasks(row, answers[row.entry])]
    if not 1 < len(known) <= ranking.MOST:
        return {}
    draws = {task: _draws(task, known, answers) for task in sorted({task for row in known for task in _tasks(row, answers[row.entry])})}
    if any(one is None for one in draws.values()):
        return {}
    columns = []
    for place, row in enumerate(known):
        cells = {cell.task: cell for cell in row.tasks}
        mine = _tasks(row, answers[row.entry])
        columns.append(np.mean([(found[:, place] - cells[task].chance) / (1 - cells[task].chance)
                                for task in mine if (found := draws[task]) is not None], axis=0))
    shares = ranking.frontier_probability(np.column_stack(columns), [costs[row.entry] for row in known])
    return dict(zip((row.entry for row in known), shares, strict=True))


def _tasks(row: Row, answers: Mapping[str, Answers]) -> list[str]:
    """Return the tasks that count in a row's quality; none where the items of one are not at hand."""
    found = [result.task for result in row.report.tasks
             if rowquality.counts(result, {cell.task: cell.signal for cell in row.tasks})]
    return found if all(task in answers for task in found) else []


def _draws(task: str, rows: Sequence[Row], answers: Mapping[str, Mapping[str, Answers]]) -> Floats | None:
    """Draw every row's score of a task, the same items for all; None where they did not answer the same items."""
    mine = [answers[row.entry].get(task) for row in rows]
    known = [one for one in mine if one is not None]
    if any(not np.array_equal(one.items, known[0].items) for one in known):
        return None
    empty = np.zeros(len(known[0].items))
    clusters = known[0].clusters
    return ranking.bootstrapped(np.column_stack([empty if one is None else one.scores for one in mine]),
                                None if clusters is None else list(map(str, clusters.tolist())), seed=_seed(task))


def _seed(task: str) -> int:
    """Return the seed of a task's draws: tasks are independent of each other."""
    return int(store.digest([ranking.SEED, task])[:8], 16)


def _iso_quality(rows: Sequence[Row]) -> tuple[IsoQuality, ...]:
    """Return the least cost at the floor of each tier that a row reaches, the highest first."""
    found = []
    for tier in sorted({row.tier for row in rows if row.tier is not None}, reverse=True):
        above = sorted((row for row in rows if row.tier is not None and row.tier >= tier), key=lambda row: (_cost(row), row.entry))
        best, floor = above[0], tier / rowquality.TIERS
        if best.headline_cost is not None and best.quality is not None:
            found.append(IsoQuality(floor=floor, entry=best.entry, cost=best.headline_cost,
                                    certain=best.quality.low is not None and best.quality.low >= floor,
                                    runner_up=above[1].entry if len(above) > 1 else None))
    return tuple(found)


def _least(rows: Sequence[Row]) -> float | None:
    """Return the difference in macro accuracy that the comparisons of a board show with 80 % power, by their median standard error."""
    widths = [quality.high - quality.low for row in rows if row.verdict is not None and (quality := row.verdict.quality) is not None
              and quality.low is not None and quality.high is not None]
    if not widths:
        return None
    stderr = median(widths) / (2 * scores.Z95)
    normal = NormalDist()
    return stderr * (normal.inv_cdf(power.POWER) - normal.inv_cdf(LEVEL))
