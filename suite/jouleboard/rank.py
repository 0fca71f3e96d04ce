"""Reports into boards: quality, cost, their ratio, and an order where an order is fair. Pure: no I/O, no clock.

A board holds entries that were measured alike. On a CPU-time board the cost is measured CPU-seconds; joules there are the
power model's estimates, shown beside it and never ranked. Ranks order the cost inside a tier of quality: a bounded score over
an unbounded cost would crown the smallest model whatever it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pandas as pd

from jouleboard import boardstats, costmodel, gates, reasons, rowcosts, rowquality
from jouleboard.answers import Entry
from jouleboard.boardstats import Draft
from jouleboard.declared import Cell
from jouleboard.factors import Factors
from jouleboard.placing import Place, family, places, stack_key
from jouleboard.reasons import valid
from jouleboard.records import Report
from jouleboard.rows import Board, BoardKind, Row


class _Models:
    """The cost model of each report; one report stands on several boards."""

    def __init__(self) -> None:
        self._known: dict[int, costmodel.Fit | None] = {}

    def of(self, report: Report) -> costmodel.Fit | None:
        """Fit a report's probes, once."""
        if id(report) not in self._known:
            self._known[id(report)] = costmodel.fit(report.probes, "cpu_s" if report.method == "model" else "joules")
        return self._known[id(report)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Means:
    """What rows are derived with, beside the entries."""

    models: _Models
    factors: Factors | None


def boards(entries: Sequence[Entry], *, factors: Factors | None = None) -> list[Board]:
    """Group entries into boards, one for each cell that was measured, and order each.

    Args:
        entries: checked entries, in any order.
        factors: by which joules are shown as carbon, cost and charges; None: they are not.

    Returns:
        Boards: simulated ones last, those with a sensor before those of CPU time, serving cells before `replay`; the same
        entries in another order give the same boards. Behind them those that compare engines.
    """
    if not entries:
        return []
    placed = [(place, entry) for entry, found in zip(entries, places([entry.report for entry in entries]), strict=True)
              for place in found]
    means = _Means(models=_Models(), factors=factors)
    found = [_board(key, cell, mine, means) for key, cell, mine in _groups(placed)]
    found += [_board(key, cell, mine, means, kind="stacks") for key, cell, mine in _groups(_stacks(placed))]
    return sorted(found, key=lambda board: (board.kind == "stacks", board.is_simulated, board.is_cpu_time, not board.is_serving,
                                            board.title, board.workload, board.batch or 0, board.key))


def _groups(placed: Sequence[tuple[Place, Entry]]) -> list[tuple[str, Cell, list[Entry]]]:
    """Group by the key of the place."""
    frame = pd.DataFrame({"key": [place.key for place, _ in placed], "cell": [place.cell for place, _ in placed],
                          "entry": [entry for _, entry in placed]})
    return [(str(key), group["cell"].iloc[0], sorted(group["entry"], key=lambda entry: entry.name))
            for key, group in frame.groupby("key", sort=True)]


def _stacks(placed: Sequence[tuple[Place, Entry]]) -> list[tuple[Place, Entry]]:
    """Place entries of one model and machine beside each other where at least two engines served the same requests."""
    found = [(Place(key=stack_key(entry.report, place.cell), cell=place.cell), entry) for place, entry in placed
             if place.cell.batch is not None and entry.report.status == "complete" and valid(entry.report, place.cell)]
    engines: dict[str, set[str]] = {}
    for place, entry in found:
        engines.setdefault(place.key, set()).add(entry.report.engine.name)
    return [(place, entry) for place, entry in found if len(engines[place.key]) > 1]


def _board(key: str, cell: Cell, entries: Sequence[Entry], means: _Means, kind: BoardKind = "variants") -> Board:
    first = next((entry.report for entry in entries if valid(entry.report, cell) and entry.report.status != "failed"),
                 max(entries, key=lambda entry: len(entry.report.tasks)).report)
    named: dict[tuple[str, str], list[Entry]] = {}
    bases = [entry for entry in entries if entry.report.is_base and entry.report.tasks]
    for base in bases:
        named.setdefault((family(base.report), base.report.recipe), []).append(base)
    # The base that an entry names: the same recipe of the same weights.
    drafts = [_draft(entry, cell, named.get((family(entry.report), entry.report.base), []), means) for entry in entries]
    rows = boardstats.with_verdicts(drafts, cell)
    prompt, output = rowcosts.request(first, cell) or (None, None)
    mark = "SIMULATED: " if first.method == "simulated" and "SIMULATED" not in first.hardware_title else ""
    board = Board(
        key=key, title=f"{mark}{first.hardware_title}: {', '.join(sorted({entry.report.model_title for entry in entries}))}",
        hardware=first.hardware, method=first.method, boundary=first.boundary, is_cpu_time=first.method == "model",
        tasks=tuple(result.task for result in first.tasks), no_signal=rowquality.no_signal([base.report for base in bases]),
        ranked=tuple(row for row in rows if row.unranked is None),
        unranked=tuple(sorted((row for row in rows if row.unranked is not None), key=lambda row: row.entry)),
        workload=cell.workload, batch=cell.batch, prompt_tokens=prompt, output_tokens=output, kind=kind,
    )
    return boardstats.ordered(board, {entry.name: entry.answers for entry in entries})


def _draft(entry: Entry, cell: Cell, bases: Sequence[Entry], means: _Means) -> Draft:
    """Derive one row, and what it is compared by.

    Args:
        entry: what is shown.
        cell: of the board.
        bases: the base that the entry names, as each session measured it.
        means: the fitted models, the factors.
    """
    report = entry.report
    base = next((base for base in bases if _same_session(base.report, report)), None)
    theirs = None if base is None else base.report
    nearest = base or next(iter(bases), None)
    # Answers are the same in every session, costs are not.
    signal = {} if nearest is None else rowquality.signal_of(nearest.report)
    counted = rowquality.counted(report.tasks, signal)
    quality = None if counted is None else counted.quality.limits
    barred = reasons.incomparable(report, cell, theirs)
    costs = rowcosts.of_cell(report, cell)
    row = Row(
        entry=entry.name, report=report, is_base=report.is_base, badges=reasons.badges(report, cell), unranked=None, rank=None,
        quality=quality, accuracy=None if counted is None else counted.accuracy.limits,
        tasks=tuple(rowquality.cell(result, signal.get(result.task)) for result in report.tasks),
        provisional=gates.provisional(report), cost_ratio=rowcosts.ratio(report, cell, theirs, barred),
        crossover=None if barred else rowcosts.crossover(report, cell, theirs, means.models.of), cost_model=means.models.of(report),
        **costs, weight_bytes=None if report.realised is None else report.realised.weight_bytes,
        peak_memory_bytes=report.peak_memory_bytes, workload=cell.workload, batch=cell.batch,
        base_drift=None if theirs is None or report.is_base else reasons.drift(theirs, cell),
    )
    row = rowcosts.with_quality(row, counted, factors=means.factors)
    unjudged = reasons.unjudged(report, base=theirs, bases=[one.report for one in bases], barred=barred)
    unranked = unjudged or reasons.unplaced(quality, row.headline_cost)
    return Draft(row=msgspec.structs.replace(row, unranked=unranked), base=base, answers=entry.answers, signal=signal, barred=unjudged)


def _same_session(base: Report, report: Report) -> bool:
    return base.status == "complete" and bool(base.trials) and base.session is not None and (
        base.session == report.session)
