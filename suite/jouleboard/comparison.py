"""Two entries side by side: answers, costs, and the verdict where one may be drawn. Pure: no I/O, no words but reasons.

Everything is A held against B: differences are A less B, ratios A over B::

    found = compare(Subject(entry=int8, label="int8"), Subject(entry=bf16, label="bf16"), family=(bf16, int8, nf4))
    found.macro.difference             Estimate(value=-0.004, low=-0.016, high=0.008)
    found.cells[0].ratio               Estimate(value=0.76, low=0.71, high=0.82)
    found.cells[0].judged.verdict      of the variant against its base, whichever of the two is A
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jouleboard import cascades, gates, pairs, rank, reasons, rowcosts, rowquality
from jouleboard.answers import Bare
from jouleboard.cascaderows import Derived, NoCascade
from jouleboard.contrasts import MacroContrast, TaskContrast, contrast, macro
from jouleboard.declared import Cell, Noun
from jouleboard.estimates import Estimate
from jouleboard.pairs import Answered, Pairing, Refused
from jouleboard.records import Item, Report
from jouleboard.rows import REPLAY, Latency, PerCorrect, Row
from jouleboard.statistics import intervals, verdicts
from jouleboard.statistics.evidence import Verdict

_REPLAY = Cell(workload=REPLAY)
Rows = dict[tuple[str, int | None], Row]
Relation = Literal["variant-and-base", "base-and-variant", "same-base", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An entry under the name that it has in a comparison."""

    name: str
    report: Report
    items: tuple[Item, ...]


class Side(Noun, frozen=True, kw_only=True):
    """What an entry is."""

    name: str
    model: str
    recipe: str
    recipe_title: str
    is_base: bool
    status: str
    created_utc: str
    hardware: str
    hardware_title: str
    engine: str
    session: str | None
    unfit: str | None
    """Why it has neither rank nor verdict, whatever it stands beside."""
    provisional: tuple[str, ...]
    weight_bytes: int | None
    peak_memory_bytes: int | None


class Judged(Noun, frozen=True, kw_only=True):
    """A verdict, and of whom: the same whichever entry is named first."""

    subject: str
    """The variant; of two variants the one whose name comes first."""
    reference: str
    """What it is held against: its base where that is the other one."""
    family: int
    """Variants over which the p-values are adjusted (Holm)."""
    verdict: Verdict
    items: int
    """Paired items of the tasks that count, all together."""
    trials: tuple[int, int]
    """Valid trials of the subject and of the reference."""


class CellContrast(Noun, frozen=True, kw_only=True):
    """Costs in one cell."""

    workload: str
    batch: int | None
    a: Estimate | None
    """Cost per request, of `replay` per 1,000 tokens, in the comparison's unit; None where it was not measured."""
    b: Estimate | None
    ratio: Estimate | None
    """A over B, with its interval; None where the two may not be compared."""
    apart: str | None
    """Why they may not."""
    a_first_token: Latency | None
    b_first_token: Latency | None
    a_inter_token: Latency | None
    b_inter_token: Latency | None
    judged: Judged


class Comparison(Noun, frozen=True, kw_only=True):
    """Two entries side by side: A held against B."""

    format: Literal["jouleboard-comparison"] = "jouleboard-comparison"
    format_version: Literal[1] = 1
    a: Side
    b: Side
    relation: Relation
    is_cpu_time: bool
    """Costs are CPU time where either entry has no measured energy: then nothing here is energy."""
    unit: Literal["CPU-seconds", "joules"]
    tasks: tuple[TaskContrast, ...]
    """A as the variant, B as its base."""
    refused: tuple[Refused, ...]
    macro: MacroContrast | None
    cells: tuple[CellContrast, ...]
    a_correct: PerCorrect | None
    """Of scoring: by the replay, over the tasks that count; None where one of its factors is not known, or the methods differ."""
    b_correct: PerCorrect | None
    correct_ratio: float | None
    """A over B; None where the costs may not be compared."""
    barred: str | None
    """Why there is no verdict, where there is no cell; others say it by themselves."""
    cascade: Derived | NoCascade | None
    """The one that costs less a token first; None where the two are not of one family."""


def relation(a: Report, b: Report) -> Relation:
    """Say how two entries are related."""
    if (a.model, a.model_weights_sha256) == (b.model, b.model_weights_sha256) and a.base == b.base:
        if b.is_base and not a.is_base:
            return "variant-and-base"
        if a.is_base and not b.is_base:
            return "base-and-variant"
        return "same-base"
    return "other"


def compare(a: Answered, b: Answered, *, others: Sequence[Answered] = (), only: Sequence[Cell] | None = None) -> Comparison:
    """Hold entry A against entry B.

    Args:
        a: one entry; its name must differ from the other's.
        b: what it is held against.
        others: entries of the sessions of both, whose base says which tasks have signal, and whose variants share the family's level.
        only: cells to look at; None: all that either was measured in.
    """
    bases = _bases(a, b, others)
    pairing = pairs.pair(b, a, signal=pairs.signal_of(*(bases or (b.report, a.report))))
    kin, rows, jury = relation(a.report, b.report), (_rows(a), _rows(b)), _Jury.of(a, b, others, bases)
    wanted = cells(a.report, b.report) if only is None else only
    cpu_time = "model" in {a.report.method, b.report.method}
    correct = [None if a.report.method != b.report.method else _correct(one, own, pairing)
               for one, own in zip((a, b), rows, strict=True)]
    apart = pairs.costs_apart(b, a, _REPLAY, bases=bases)
    found = tuple(_cell((a, b), cell, rows=rows, jury=jury, cpu_time=cpu_time) for cell in wanted)
    return Comparison(
        a=_side(a), b=_side(b), relation=kin, is_cpu_time=cpu_time, unit="CPU-seconds" if cpu_time else "joules",
        tasks=tuple(contrast(task) for task in pairing.tasks), refused=pairing.refused, macro=macro(pairing.tasks), cells=found,
        a_correct=correct[0], b_correct=correct[1],
        correct_ratio=correct[0].value.value / correct[1].value.value if correct[0] and correct[1] and apart is None else None,
        barred=None if found else jury.judge(_REPLAY).verdict.reason,
        cascade=None if kin == "other" else _cascade(a, b, bases))


def cells(*reports: Report) -> tuple[Cell, ...]:
    """Return the cells that any of the entries was measured in: serving before `replay`, by workload and batch."""
    found = {(trial.workload, trial.batch) for report in reports for trial in report.trials}
    ordered = sorted(found, key=lambda one: (one[0] == REPLAY, one[0], one[1] or 0))
    return tuple(Cell(workload=workload, batch=batch) for workload, batch in ordered)


def _side(one: Answered) -> Side:
    report = one.report
    return Side(
        name=one.name, model=report.model, recipe=report.recipe, recipe_title=report.recipe_title, is_base=report.is_base,
        status=report.status, created_utc=report.created_utc, hardware=report.hardware, hardware_title=report.hardware_title,
        engine=f"{report.engine.name} {report.engine.version}", session=report.session, unfit=reasons.by_itself(report),
        provisional=gates.provisional(report), weight_bytes=None if report.realised is None else report.realised.weight_bytes,
        peak_memory_bytes=report.peak_memory_bytes)


def _bases(a: Answered, b: Answered, others: Sequence[Answered]) -> tuple[Report, ...]:
    """Return the bases of both in their own sessions, each once."""
    found: dict[str, Report] = {}
    for one in (a, b):
        base = next((other.report for other in (a, b, *others) if _is_base_of(other.report, one.report)), None)
        if base is not None:
            found.setdefault(base.digest, base)
    return tuple(found.values())


def _is_base_of(base: Report, report: Report) -> bool:
    return base.is_base and (base.model, base.model_weights_sha256, base.recipe, base.session) == (
        report.model, report.model_weights_sha256, report.base, report.session)


def _rows(one: Answered) -> Rows:
    """Derive an entry's rows, by cell: what stands beside it changes none of what is read here."""
    return {(row.workload, row.batch): row for board in rank.boards([Bare(name=one.name, report=one.report)])
            for row in (*board.ranked, *board.unranked)}


def _cell(
    sides: tuple[Answered, Answered], cell: Cell, *, rows: tuple[Rows, Rows], jury: _Jury, cpu_time: bool
) -> CellContrast:
    a, b = (each.get((cell.workload, cell.batch)) for each in rows)
    apart = pairs.costs_apart(sides[1], sides[0], cell, bases=jury.bases)
    mine, theirs = (pairs.trial_costs(one.report, cell) for one in sides)
    return CellContrast(
        workload=cell.workload, batch=cell.batch, a=_cost(a, cpu_time=cpu_time), b=_cost(b, cpu_time=cpu_time),
        apart=apart, ratio=None if apart else intervals.cost_ratio(mine, theirs),
        a_first_token=a.first_token if a else None, b_first_token=b.first_token if b else None,
        a_inter_token=a.inter_token if a else None, b_inter_token=b.inter_token if b else None, judged=jury.judge(cell))


def _cost(row: Row | None, *, cpu_time: bool) -> Estimate | None:
    if row is None or not cpu_time:
        return None if row is None else row.headline_cost
    # Where one of the two has no measured energy, both are shown by their CPU time.
    return row.cpu_s_per_ktoken if row.workload == REPLAY else row.cpu_s_per_request


@dataclass(frozen=True, slots=True, kw_only=True)
class _Jury:
    """Who is judged with whom: the same whichever of the two entries comes first.

    A variant and its base stand in the family of all variants of that base in their session, as on a board; two variants stand alone.
    """

    reference: Answered
    family: tuple[Answered, ...]
    """The subject first."""
    pairings: tuple[Pairing, ...]
    bases: tuple[Report, ...]

    @classmethod
    def of(cls, a: Answered, b: Answered, others: Sequence[Answered], bases: tuple[Report, ...]) -> _Jury:
        """Choose the subject, what it is held against, and the family."""
        kin = relation(a.report, b.report)
        swapped = kin == "base-and-variant" or (kin != "variant-and-base" and b.name < a.name)
        subject, reference = (b, a) if swapped else (a, b)
        family = [subject]
        if _is_base_of(reference.report, subject.report):
            family += [one for one in others if one.report.digest != subject.report.digest and not one.report.is_base
                       and _is_base_of(reference.report, one.report)]
        signal = pairs.signal_of(*(bases or (reference.report, subject.report)))
        return cls(reference=reference, family=tuple(family), bases=bases,
                   pairings=tuple(pairs.pair(reference, one, signal=signal) for one in family))

    def judge(self, cell: Cell) -> Judged:
        """Draw the verdict in a cell."""
        evidence = [pairs.evidence(self.reference, one, cell, bases=self.bases, pairing=pairing)
                    for one, pairing in zip(self.family, self.pairings, strict=True)]
        first = evidence[0]
        return Judged(subject=first.name, reference=self.reference.name, verdict=verdicts.of_family(evidence)[0],
                      family=sum(one.barred is None for one in evidence), items=sum(len(task.base) for task in first.tasks),
                      trials=(len(first.costs), len(first.base_costs)))


def _correct(one: Answered, rows: Rows, pairing: Pairing) -> PerCorrect | None:
    """Return what a correct answer costs by an entry's replay, over the tasks that count; None where one of the factors is not known."""
    row = rows.get((REPLAY, None))
    counted = rowquality.counted(one.report.tasks, {task.task: True for task in pairing.counted})
    return None if row is None else rowcosts.with_quality(row, counted, factors=None).per_correct


def _cascade(a: Answered, b: Answered, bases: Sequence[Report]) -> Derived | NoCascade:
    """Derive the cascade of the one that costs less a token before the other."""
    mine, theirs = (math.fsum(found) / len(found) if (found := pairs.trial_costs(one.report, _REPLAY)) else math.inf for one in (a, b))
    small, large = (a, b) if mine < theirs else (b, a)
    return cascades.derive(small, large, bases=bases)
