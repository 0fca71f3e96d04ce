"""What a row costs: fields of `rows.Row` that come from the trials of its cell, from its probes, and from both beside the base. Pure.

Row(..., **rowcosts.of_cell(report, cell))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from jouleboard import costmodel, costs
from jouleboard.costs import headline_cost, per_ktoken, probe_tokens, request_cost, trial_cost
from jouleboard.declared import Cell
from jouleboard.estimates import Estimate
from jouleboard.factors import Factors, scaled, worth
from jouleboard.reasons import valid
from jouleboard.records import Report
from jouleboard.rowquality import Counted
from jouleboard.rows import REPLAY, Latency, PerCorrect, Row
from jouleboard.statistics import intervals
from jouleboard.statistics.measured import scaled as scaled_measure
from jouleboard.windows import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """What the probes of one kind say, by batch size."""

    cpu_s_per_ktoken: dict[int, float]
    tokens_per_s: dict[int, float]




def of_cell(report: Report, cell: Cell) -> dict[str, Any]:
    """Derive every field that trials and probes give alone."""
    return {**_from_trials(report, cell), **_from_probes(report, cell)}


def _from_trials(report: Report, cell: Cell) -> dict[str, Any]:
    """Derive the fields that come from the valid trials of a cell."""
    trials, estimated = valid(report, cell), report.method == "model"
    tokens = [trial_cost(trial, cpu_time=False) for trial in trials]
    requests = [request_cost(trial, cpu_time=False) for trial in trials]
    return {
        "cpu_s_per_ktoken": costs.mean([trial_cost(trial, cpu_time=True) for trial in trials]),
        "cpu_s_per_request": costs.mean([request_cost(trial, cpu_time=True) for trial in trials]),
        "energy_j_per_ktoken": costs.estimated_joules(trials) if estimated else costs.mean(tokens),
        "energy_j_per_request": costs.estimated_joules(trials, a_request=True) if estimated else costs.mean(requests),
        "energy_is_estimate": estimated,
        "first_token": costs.latency([one for trial in trials for one in trial.first_token_s]),
    }


def _from_probes(report: Report, cell: Cell) -> dict[str, Any]:
    """Derive the fields that come from the probes."""
    prefill, decode = _rates(report.probes, "prefill"), _rates(report.probes, "decode")
    return {
        "prefill_cpu_s_per_ktoken": prefill.cpu_s_per_ktoken, "decode_cpu_s_per_ktoken": decode.cpu_s_per_ktoken,
        "prefill_tokens_per_s": prefill.tokens_per_s, "decode_tokens_per_s": decode.tokens_per_s,
        "inter_token": _inter_token(report, cell),
    }


def _inter_token(report: Report, cell: Cell) -> Latency | None:
    """Return the latency of decode steps at the cell's batch, behind the probed prompt that is nearest to the cell's."""
    asked = request(report, cell)
    mine = [probe for probe in report.probes if (probe.kind, probe.batch) == ("decode", cell.batch) and probe.step_s]
    if asked is None or not mine:
        return None
    context = min((probe.prompt_tokens for probe in mine), key=lambda tokens: (abs(tokens - asked[0]), tokens))
    return costs.latency([one for probe in mine if probe.prompt_tokens == context for one in probe.step_s],
                         context_tokens=context)


def request(report: Report, cell: Cell) -> tuple[int, int] | None:
    """Return prompt and output tokens of each request of a cell; None for `replay`, or without a trial."""
    mine = [trial for trial in report.trials if (trial.workload, trial.batch) == (cell.workload, cell.batch)]
    return costmodel.request_tokens(mine[0]) if mine and cell.workload != REPLAY else None


def ratio(report: Report, cell: Cell, base: Report | None, barred: str | None) -> Estimate | None:
    """Cost over the base's; None where the two may not be compared."""
    if report.is_base:
        return Estimate(value=1.0, low=None, high=None)
    if base is None or barred is not None:
        return None
    cpu_time = report.method == "model"
    mine, theirs = ([headline_cost(trial, cpu_time=cpu_time) for trial in valid(one, cell)] for one in (report, base))
    return intervals.cost_ratio(mine, theirs)


def crossover(
    report: Report, cell: Cell, base: Report | None, fitted: Callable[[Report], costmodel.Fit | None]
) -> costmodel.Crossover | None:
    """Say at which batch the variant costs as much as its base, for requests of the cell; None for the base and for `replay`."""
    asked = request(report, cell)
    if base is None or report.is_base or asked is None:
        return None
    return costmodel.crossover(fitted(base), fitted(report), prompt=asked[0], output=asked[1], batch=cell.batch)


def with_quality(row: Row, counted: Counted | None, *, factors: Factors | None) -> Row:
    """Add what a row's cost and quality come to together, and what its joules are worth elsewhere.

    Args:
        row: with its costs.
        counted: its tasks with signal; None where none is left.
        factors: the declared ones; None: joules are left as they are.
    """
    cell = Cell(workload=row.workload, batch=row.batch)
    energy = row.energy_j_per_ktoken if row.workload == REPLAY else row.energy_j_per_request
    simulated = row.report.method == "simulated"
    return msgspec.structs.replace(
        row,
        quality_per_kilojoule=None if simulated or counted is None else _per_kilojoule(row, cell, counted, energy),
        cost_per_item=_per_item(row), per_correct=None if counted is None else _per_correct(row, cell, counted),
        **_per_tokens(row, cell),
        worth=worth(energy, factors) if factors and energy and energy.value > 0 and row.workload != REPLAY and not simulated else None)


def _per_kilojoule(row: Row, cell: Cell, counted: Counted, energy: Estimate | None) -> Estimate | None:
    """Return macro quality over kilojoules per request, of `replay` per 1,000 tokens."""
    if energy is None or energy.value <= 0:
        return None
    quality, bounds = counted.quality.mean, counted.quality.limits
    if row.energy_is_estimate:
        if energy.low and energy.high and bounds.low is not None and bounds.high is not None:
            # A stated uncertainty is no standard error: give the corner values.
            corners = [1000 * q / e for q in (bounds.low, bounds.high) for e in (energy.low, energy.high)]
            return Estimate(value=1000 * quality.value / energy.value, low=min(corners), high=max(corners))
        return Estimate(value=1000 * quality.value / energy.value, low=None, high=None)
    joules = [headline_cost(trial, cpu_time=False) for trial in valid(row.report, cell)]
    return intervals.per_cost(quality, intervals.costs_mean([one / 1000 for one in joules if one is not None]), bounds=bounds)


def _per_item(row: Row) -> Estimate | None:
    """Return what an eval item costs, by its tokens and the cost of a token when the recorded batches are computed again."""
    cost, results = row.cost_per_ktoken, row.report.tasks
    if row.workload != REPLAY or cost is None or not results:
        return None
    return scaled(cost, sum(one.fed_tokens for one in results) / sum(one.items_used for one in results) / 1000)


def _per_correct(row: Row, cell: Cell, counted: Counted) -> PerCorrect | None:
    """Return the cost of a correct answer of `replay`, with its factors."""
    if row.workload != REPLAY or row.cost_per_ktoken is None or counted.accuracy.mean.value <= 0:
        return None
    cpu_time = row.report.method == "model"
    spent = [one for trial in valid(row.report, cell) if (one := trial_cost(trial, cpu_time=cpu_time)) is not None]
    cost = scaled_measure(intervals.costs_mean(spent), counted.tokens_per_item / 1000)
    return PerCorrect(per_token=row.cost_per_ktoken.value / 1000, tokens_per_answer=counted.tokens_per_item,
                      share_correct=counted.accuracy.mean.value,
                      value=intervals.mover_ratio(cost.limits(), counted.accuracy.limits))


def _per_tokens(row: Row, cell: Cell) -> dict[str, float | None]:
    """Return what a prompt token, and an output token behind the first, adds to a request by the fitted model."""
    asked = request(row.report, cell)
    if row.cost_model is None or asked is None or cell.batch is None:
        return {}
    prompt, output = asked
    prefill = costmodel.line(row.cost_model, prompt=prompt, output=1).request(cell.batch)
    whole = costmodel.line(row.cost_model, prompt=prompt, output=output).request(cell.batch)
    return {"per_prompt_token": prefill / prompt, "per_output_token": (whole - prefill) / (output - 1) if output > 1 else None}


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
