"""Reports into boards: quality, cost, their ratio, and an order where an order is fair. Pure: no I/O, no clock.

A board holds entries that were measured alike. On a CPU-time board the cost is measured CPU-seconds; joules there are the
power model's estimates, shown beside it and never ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import pandas as pd

from jouleboard import costmodel, costs, gates, reasons, scores
from jouleboard.costs import headline_cost, per_ktoken, probe_tokens, request_cost, trial_cost
from jouleboard.declared import Cell
from jouleboard.estimates import Estimate
from jouleboard.placing import family, places
from jouleboard.reasons import valid
from jouleboard.records import Item, Report, TaskResult
from jouleboard.rows import REPLAY, Board, Latency, Row, TaskCell
from jouleboard.statistics import intervals
from jouleboard.windows import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """What the probes of one kind say, by batch size."""

    cpu_s_per_ktoken: dict[int, float]
    tokens_per_s: dict[int, float]


class _Models:
    """The cost model of each report; one report stands on several boards."""

    def __init__(self) -> None:
        self._known: dict[int, costmodel.Fit | None] = {}

    def of(self, report: Report) -> costmodel.Fit | None:
        """Fit a report's probes, once."""
        if id(report) not in self._known:
            self._known[id(report)] = costmodel.fit(report.probes, "cpu_s" if report.method == "model" else "joules")
        return self._known[id(report)]


class Entry(Protocol):
    """What is ranked: a name, a report and its items (as `check` read them)."""

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class

    @property
    def report(self) -> Report: ...  # noqa: D102

    @property
    def items(self) -> tuple[Item, ...]: ...  # noqa: D102


def boards(entries: Sequence[Entry]) -> list[Board]:
    """Group entries into boards, one for each cell that was measured, and order each.

    Args:
        entries: checked entries, in any order.

    Returns:
        Boards: simulated ones last, those with a sensor before those of CPU time, serving cells before `replay`; the same
        entries in another order give the same boards.
    """
    if not entries:
        return []
    placed = [(place, entry) for entry, found in zip(entries, places([entry.report for entry in entries]), strict=True)
              for place in found]
    frame = pd.DataFrame({"key": [place.key for place, _ in placed], "cell": [place.cell for place, _ in placed],
                          "entry": [entry for _, entry in placed]})
    models = _Models()
    found = [_board(str(key), group["cell"].iloc[0], sorted(group["entry"], key=lambda entry: entry.name), models)
             for key, group in frame.groupby("key", sort=True)]
    return sorted(found, key=lambda board: (board.is_simulated, board.is_cpu_time, not board.is_serving, board.title,
                                            board.workload, board.batch or 0, board.key))


def _board(key: str, cell: Cell, entries: Sequence[Entry], models: _Models) -> Board:
    first = next((entry.report for entry in entries if valid(entry.report, cell) and entry.report.status != "failed"),
                 max(entries, key=lambda entry: len(entry.report.tasks)).report)
    bases = [entry.report for entry in entries if entry.report.is_base and entry.report.tasks]
    named: dict[tuple[str, str], list[Report]] = {}
    for base in bases:
        named.setdefault((family(base), base.recipe), []).append(base)
    # The base that an entry names: the same recipe of the same weights by the same engine.
    rows = [_row(entry, cell, named.get((family(entry.report), entry.report.base), []), models) for entry in entries]
    ranked = sorted((row for row in rows if row.unranked is None), key=lambda row: (_cost(row), row.entry))
    numbered = [_with_rank(row, index) for index, row in enumerate(ranked, start=1)]
    titles = sorted({entry.report.model_title for entry in entries})
    prompt, output = _request(first, cell) or (None, None)
    mark = "SIMULATED: " if first.method == "simulated" and "SIMULATED" not in first.hardware_title else ""
    return Board(
        key=key, title=f"{mark}{first.hardware_title}: {', '.join(titles)}",
        hardware=first.hardware, method=first.method, boundary=first.boundary, is_cpu_time=first.method == "model",
        tasks=tuple(result.task for result in first.tasks), no_signal=_no_signal(bases), ranked=tuple(numbered),
        unranked=tuple(sorted((row for row in rows if row.unranked is not None), key=lambda row: row.entry)),
        workload=cell.workload, batch=cell.batch, prompt_tokens=prompt, output_tokens=output,
    )


def _request(report: Report, cell: Cell) -> tuple[int, int] | None:
    """Return prompt and output tokens of each request of a cell; None for `replay`, or without a trial."""
    mine = [trial for trial in report.trials if (trial.workload, trial.batch) == (cell.workload, cell.batch)]
    return costmodel.request_tokens(mine[0]) if mine and cell.workload != REPLAY else None


def _no_signal(bases: Sequence[Report]) -> tuple[str, ...]:
    """Name the tasks on which no base of the board is clearly above chance; without a base nothing is known."""
    known = [(task, signal) for base in bases for task, signal in _signal(base).items() if signal is not None]
    return tuple(sorted({task for task, _ in known} - {task for task, signal in known if signal}))


def _with_rank(row: Row, rank: int) -> Row:
    return msgspec.structs.replace(row, rank=rank)


def _cost(row: Row) -> float:
    return math.inf if row.headline_cost is None else row.headline_cost.value


def _row(entry: Entry, cell: Cell, bases: Sequence[Report], models: _Models) -> Row:
    """Derive one row.

    Args:
        entry: what is shown.
        cell: of the board.
        bases: the base that the entry names, as each session measured it.
        models: the fitted ones.
    """
    report = entry.report
    base = next((base for base in bases if _same_session(base, report)), None)
    nearest = base or next(iter(bases), None)
    # Answers are the same in every session, costs are not.
    signal = {} if nearest is None else _signal(nearest)
    quality = macro_quality(report.tasks, signal)
    barred = reasons.incomparable(report, cell, base)
    row = Row(
        entry=entry.name, report=report, is_base=report.is_base, badges=reasons.badges(report, cell), unranked=None,
        rank=None, quality=quality, tasks=tuple(_cell(result, signal.get(result.task)) for result in report.tasks),
        provisional=gates.provisional(report), cost_ratio=_ratio(report, cell, base, barred),
        crossover=_crossover(report, cell, base, models) if barred is None else None, cost_model=models.of(report),
        **_costs(report, cell), **_probed(report, cell),
        weight_bytes=None if report.realised is None else report.realised.weight_bytes,
        peak_memory_bytes=report.peak_memory_bytes, workload=cell.workload, batch=cell.batch,
        base_drift=None if base is None or report.is_base else reasons.drift(base, cell),
    )
    return msgspec.structs.replace(
        row, quality_per_kilojoule=_headline(row),
        unranked=reasons.unranked(report, base=base, bases=bases, quality=quality, cost=row.headline_cost, barred=barred))


def _costs(report: Report, cell: Cell) -> dict[str, Any]:
    """Derive the fields that come from the valid trials of a cell."""
    trials, estimated = valid(report, cell), report.method == "model"
    tokens = [trial_cost(trial, cpu_time=False) for trial in trials]
    requests = [request_cost(trial, cpu_time=False) for trial in trials]
    return {
        "cpu_s_per_ktoken": costs.mean([trial_cost(trial, cpu_time=True) for trial in trials]),
        "cpu_s_per_request": costs.mean([request_cost(trial, cpu_time=True) for trial in trials]),
        "energy_j_per_ktoken": costs.estimated_joules(trials) if estimated else costs.mean(tokens),
        "energy_j_per_request": costs.estimated_joules(trials, a_request=True) if estimated else costs.mean(requests),
        "energy_is_estimate": estimated, "quality_per_kilojoule": None,
        "first_token": costs.latency([one for trial in trials for one in trial.first_token_s]),
    }


def _probed(report: Report, cell: Cell) -> dict[str, Any]:
    """Derive the fields that come from the probes."""
    prefill, decode = _rates(report.probes, "prefill"), _rates(report.probes, "decode")
    return {
        "prefill_cpu_s_per_ktoken": prefill.cpu_s_per_ktoken, "decode_cpu_s_per_ktoken": decode.cpu_s_per_ktoken,
        "prefill_tokens_per_s": prefill.tokens_per_s, "decode_tokens_per_s": decode.tokens_per_s,
        "inter_token": _inter_token(report, cell),
    }


def _inter_token(report: Report, cell: Cell) -> Latency | None:
    """Return the latency of decode steps at the cell's batch, behind the probed prompt that is nearest to the cell's."""
    request = _request(report, cell)
    mine = [probe for probe in report.probes if (probe.kind, probe.batch) == ("decode", cell.batch) and probe.step_s]
    if request is None or not mine:
        return None
    context = min((probe.prompt_tokens for probe in mine), key=lambda tokens: (abs(tokens - request[0]), tokens))
    return costs.latency([one for probe in mine if probe.prompt_tokens == context for one in probe.step_s],
                         context_tokens=context)


def _ratio(report: Report, cell: Cell, base: Report | None, barred: str | None) -> Estimate | None:
    """Cost over the base's; None where the two may not be compared."""
    if report.is_base:
        return Estimate(value=1.0, low=None, high=None)
    if base is None or barred is not None:
        return None
    cpu_time = report.method == "model"
    mine, theirs = ([headline_cost(trial, cpu_time=cpu_time) for trial in valid(one, cell)] for one in (report, base))
    return intervals.cost_ratio(mine, theirs)


def _crossover(report: Report, cell: Cell, base: Report | None, models: _Models) -> costmodel.Crossover | None:
    request = _request(report, cell)
    if base is None or report.is_base or request is None:
        return None
    return costmodel.crossover(models.of(base), models.of(report), prompt=request[0], output=request[1], batch=cell.batch)


def _same_session(base: Report, report: Report) -> bool:
    return base.status == "complete" and bool(base.trials) and base.session is not None and (
        base.session == report.session)


def _signal(base: Report) -> dict[str, bool | None]:
    """Say of each task whether the base is clearly above chance; None where its quality is withheld."""
    return {result.task: result.above_chance for result in base.tasks}


def _cell(result: TaskResult, signal: bool | None) -> TaskCell:  # noqa: FBT001 - a state, not a switch
    score = result.scores[result.primary_metric]
    shown = None
    if score is not None:
        low, high = scores.interval(score, result.primary_metric)
        shown = Estimate(value=score.value, low=low, high=high)
    return TaskCell(task=result.task, metric=result.primary_metric, score=shown, chance=result.chance.value,
                    signal=signal, withheld=result.withheld, items=result.items_used)


def macro_quality(results: Sequence[TaskResult], signal: Mapping[str, bool | None]) -> Estimate | None:
    """Average the chance-corrected accuracies of the tasks with signal; None where one is withheld or none is left.

    Bits per byte is shown but not averaged in: it has no natural end of scale, and a share of it is no share of answers.

    SE^2 = sum of the tasks' SE^2 over their number squared: tasks are independent, weights equal.
    """
    parts = []
    for result in results:
        if result.kind != "choice" or not signal.get(result.task):
            continue
        score = result.scores[result.primary_metric]
        if score is None or result.chance.value >= 1:
            return None
        parts.append(scores.chance_corrected(score, result.chance, result.primary_metric))
    if not parts:
        return None
    mean = math.fsum(value for value, _ in parts) / len(parts)
    stderr = math.sqrt(math.fsum(error**2 for _, error in parts)) / len(parts)
    return Estimate(value=mean, low=mean - scores.Z95 * stderr, high=mean + scores.Z95 * stderr)


def _headline(row: Row) -> Estimate | None:
    """Quality per kilojoule of a request, of `replay` per kilojoule of 1,000 tokens; none of a simulated device."""
    if row.report.method == "simulated":
        return None
    energy = row.energy_j_per_ktoken if row.workload == REPLAY else row.energy_j_per_request
    return _per_kilojoule(row.quality, energy, estimated=row.energy_is_estimate)


def _per_kilojoule(quality: Estimate | None, energy: Estimate | None, *, estimated: bool) -> Estimate | None:
    """Macro quality over kilojoules; log-delta with zero covariance (statistics of the two are apart)."""
    if quality is None or energy is None or energy.value <= 0:
        return None
    value = 1000 * quality.value / energy.value
    if estimated and energy.low and energy.high and quality.low is not None and quality.high is not None:
        # A stated uncertainty is no standard error: give the corner values.
        corners = [1000 * q / e for q in (quality.low, quality.high) for e in (energy.low, energy.high)]
        return Estimate(value=value, low=min(corners), high=max(corners))
    if energy.high is None or quality.high is None or quality.value <= 0:
        return Estimate(value=value, low=None, high=None)
    relative = math.hypot((quality.high - quality.value) / quality.value, (energy.high - energy.value) / energy.value)
    factor = costs.exp(relative)
    if factor is None or not math.isfinite(value * factor):
        return Estimate(value=value, low=None, high=None)
    return Estimate(value=value, low=value / factor, high=value * factor)


def _rates(probes: Sequence[Probe], kind: str) -> _Rates:
    mine = [probe for probe in probes if probe.kind == kind and probe.void is None]
    # One length for all batches and entries: the middle one of those probed, void or not.
    lengths = sorted({probe.prompt_tokens for probe in probes if probe.kind == kind})
    mine = [probe for probe in mine if probe.prompt_tokens == lengths[len(lengths) // 2]]
    costs = {probe.batch: per_ktoken(probe.window.cpu_s, probe_tokens(probe)) for probe in mine}
    return _Rates(
        cpu_s_per_ktoken={batch: cost for batch, cost in costs.items() if cost is not None},
        tokens_per_s={probe.batch: probe_tokens(probe) / probe.window.duration_s for probe in mine},
    )
