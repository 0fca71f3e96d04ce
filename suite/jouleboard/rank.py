"""Reports into boards: quality, cost, their ratio, and an order where an order is fair. Pure: no I/O, no clock.

A board holds entries that were measured alike. On a CPU-time board the cost is measured CPU-seconds; joules there are the
power model's estimates, shown beside it and never ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import pandas as pd
from scipy import stats

from jouleboard import scores, store
from jouleboard.records import Item, Probe, Report, TaskResult, Trial
from jouleboard.rows import Board, Estimate, Row, TaskCell

LEVEL = 0.95


class Entry(Protocol):
    """What is ranked: a name, a report and its items (as `check` read them)."""

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class

    @property
    def report(self) -> Report: ...  # noqa: D102

    @property
    def items(self) -> tuple[Item, ...]: ...  # noqa: D102


def boards(entries: Sequence[Entry]) -> list[Board]:
    """Group entries into boards and order each.

    Args:
        entries: checked entries, in any order.

    Returns:
        Boards, those with a sensor first; the same entries in another order give the same boards.
    """
    if not entries:
        return []
    frame = pd.DataFrame({"key": _keys([entry.report for entry in entries]), "entry": list(entries)})
    found = [_board(str(key), sorted(group["entry"], key=lambda entry: entry.name))
             for key, group in frame.groupby("key", sort=True)]
    return sorted(found, key=lambda board: (board.is_cpu_time, board.title, board.key))


def _keys(reports: Sequence[Report]) -> list[str]:
    """Give each report the key of its board; one that failed may lack tasks, so it goes to its base's board."""
    homes: dict[str, str] = {}
    for report in reports:
        if report.is_base and report.status != "failed":
            family, key = _family(report), board_key(report)
            homes[family] = min(key, homes.get(family, key))
    return [homes.get(_family(report), board_key(report)) if report.status == "failed" else board_key(report)
            for report in reports]


def _family(report: Report) -> str:
    return store.digest([report.plan, report.model, report.base, report.hardware_sha256, report.method, report.boundary,
                         report.environment.cpu_model, list(report.environment.devices), report.engine.threads])


def board_key(report: Report) -> str:
    """Return what must be equal for two entries to be compared: items, workload, device profile, method and boundary."""
    return store.digest([
        sorted([result.task, result.data_sha256, result.inputs_sha256] for result in report.tasks),
        report.hardware_sha256, report.method, report.boundary, report.environment.cpu_model,
        list(report.environment.devices), report.engine.threads,
    ])[:12]


def _board(key: str, entries: Sequence[Entry]) -> Board:
    first = next((entry.report for entry in entries if entry.report.status != "failed"), entries[0].report)
    bases = {(entry.report.model, entry.report.engine.name, entry.report.recipe): entry
             for entry in entries if entry.report.is_base}
    rows = [_row(entry, bases.get((entry.report.model, entry.report.engine.name, entry.report.base)))
            for entry in entries]
    cpu_time = first.method == "model"
    ranked = sorted((row for row in rows if row.unranked is None), key=lambda row: (_cost(row, cpu_time), row.entry))
    numbered = [_with_rank(row, index) for index, row in enumerate(ranked, start=1)]
    silent = sorted({cell.task for row in rows for cell in row.tasks if not cell.signal})
    models = sorted({entry.report.model_title for entry in entries})
    return Board(
        key=key, title=f"{first.hardware_title}: {', '.join(models)}", hardware=first.hardware, method=first.method,
        boundary=first.boundary, is_cpu_time=cpu_time, tasks=tuple(result.task for result in first.tasks),
        no_signal=tuple(silent), ranked=tuple(numbered),
        unranked=tuple(sorted((row for row in rows if row.unranked is not None), key=lambda row: row.entry)),
    )


def _with_rank(row: Row, rank: int) -> Row:
    return msgspec.structs.replace(row, rank=rank)


def _cost(row: Row, cpu_time: bool) -> float:  # noqa: FBT001 - one private caller
    cost = row.cpu_s_per_ktoken if cpu_time else row.energy_j_per_ktoken
    return math.inf if cost is None else cost.value


def _row(entry: Entry, base: Entry | None) -> Row:
    report = entry.report
    signal = _signal(base.report) if base is not None else {}
    cells = tuple(_cell(result, signal.get(result.task, False)) for result in report.tasks)
    trials = [trial for trial in report.trials if trial.void is None]
    cpu = cost_per_ktoken(trials, [trial.window.cpu_s for trial in trials])
    estimated = report.method == "model"
    energy = _energy(trials, estimated=estimated)
    quality = macro_quality(report.tasks, signal)
    base_trials = [] if base is None else [trial for trial in base.report.trials if trial.void is None]
    prefill, decode = _probes(report.probes, "prefill"), _probes(report.probes, "decode")
    return Row(
        entry=entry.name, report=report, is_base=report.is_base, badges=_badges(report),
        unranked=_unranked(report, base, quality, cpu if estimated else energy), rank=None, quality=quality,
        tasks=cells, cpu_s_per_ktoken=cpu,
        cost_ratio=_cost_ratio(trials, base_trials, estimated=estimated, is_base=report.is_base),
        energy_j_per_ktoken=energy, energy_is_estimate=estimated,
        quality_per_kilojoule=_per_kilojoule(quality, energy, estimated=estimated),
        prefill_cpu_s_per_ktoken={batch: 1000 * probe.window.cpu_s / tokens
                                  for batch, (probe, tokens) in prefill.items() if probe.window.cpu_s is not None},
        decode_cpu_s_per_ktoken={batch: 1000 * probe.window.cpu_s / tokens
                                 for batch, (probe, tokens) in decode.items() if probe.window.cpu_s is not None},
        prefill_tokens_per_s={batch: tokens / probe.window.duration_s for batch, (probe, tokens) in prefill.items()},
        decode_tokens_per_s={batch: tokens / probe.window.duration_s for batch, (probe, tokens) in decode.items()},
        weight_bytes=None if report.realised is None else report.realised.weight_bytes,
        peak_memory_bytes=report.peak_memory_bytes,
    )


def _signal(base: Report) -> dict[str, bool]:
    return {result.task: bool(result.above_chance) for result in base.tasks}


def _cell(result: TaskResult, signal: bool) -> TaskCell:  # noqa: FBT001
    score = result.scores[result.primary_metric]
    shown = None
    if score is not None:
        low, high = scores.interval(score, result.primary_metric)
        shown = Estimate(value=score.value, low=low, high=high)
    return TaskCell(task=result.task, metric=result.primary_metric, score=shown, chance=result.chance.value,
                    signal=signal, withheld=result.withheld, items=result.items_used)


def macro_quality(results: Sequence[TaskResult], signal: Mapping[str, bool]) -> Estimate | None:
    """Average the chance-corrected accuracies of the tasks with signal; None where one is withheld or none is left.

    Bits per byte is shown but not averaged in: it has no natural end of scale, and a share of it is no share of answers.

    SE^2 = sum of the tasks' SE^2 over their number squared: tasks are independent, weights equal.
    """
    parts = []
    for result in results:
        if result.kind != "choice" or not signal.get(result.task, False):
            continue
        score = result.scores[result.primary_metric]
        if score is None:
            return None
        parts.append(scores.chance_corrected(score, result.chance, result.primary_metric))
    if not parts:
        return None
    mean = math.fsum(value for value, _ in parts) / len(parts)
    stderr = math.sqrt(math.fsum(error**2 for _, error in parts)) / len(parts)
    return Estimate(value=mean, low=mean - scores.Z95 * stderr, high=mean + scores.Z95 * stderr)


def cost_per_ktoken(trials: Sequence[Trial], costs: Sequence[float | None]) -> Estimate | None:
    """Mean cost of 1,000 useful tokens over repeats, with Student's t interval; None where a trial has no cost.

    Args:
        trials: the repeats.
        costs: of each repeat, in the unit of the result.
    """
    known = [cost for cost in costs if cost is not None]
    if not trials or len(known) != len(trials):
        return None
    values = [1000 * cost / (trial.prompt_tokens + trial.output_tokens)
              for cost, trial in zip(known, trials, strict=True)]
    mean, half = _mean_and_half(values)
    return Estimate(value=mean, low=None if half is None else mean - half, high=None if half is None else mean + half)


def _mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:  # noqa: PLR2004 - one value has no spread
        return mean, None
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return mean, quantile * spread / math.sqrt(len(values))


def _energy(trials: Sequence[Trial], *, estimated: bool) -> Estimate | None:
    if not estimated:
        return cost_per_ktoken(trials, [trial.window.energy.measured_j for trial in trials])
    found = cost_per_ktoken(trials, [trial.window.energy.estimate_j for trial in trials])
    share = trials[0].window.energy.estimate_relative_uncertainty if trials else None
    if found is None or share is None:
        return found
    # The model's own uncertainty is far larger than the spread of repeats, and common to all of them.
    return Estimate(value=found.value, low=found.value * (1 - share), high=found.value * (1 + share))


def _trial_cost(trial: Trial, *, estimated: bool) -> float | None:
    cost = trial.window.cpu_s if estimated else trial.window.energy.measured_j
    return None if cost is None else cost / (trial.prompt_tokens + trial.output_tokens)


def _cost_ratio(
    trials: Sequence[Trial], base: Sequence[Trial], *, estimated: bool, is_base: bool
) -> Estimate | None:
    """Ratio of mean costs, with an interval on the logarithm: Welch's t over the two sets of repeats."""
    if is_base:
        return Estimate(value=1.0, low=None, high=None)
    mine, theirs = ([cost for trial in each if (cost := _trial_cost(trial, estimated=estimated))]
                    for each in (trials, base))
    # A trial without a cost leaves the mean unknown: leaving it out would be a guess.
    if not mine or not theirs or len(mine) != len(trials) or len(theirs) != len(base):
        return None
    ratio = (math.fsum(mine) / len(mine)) / (math.fsum(theirs) / len(theirs))
    # Repeats that are all the same say nothing of their spread; rounding would make an interval of width zero.
    if min(len(mine), len(theirs)) < 2 or len({*mine}) + len({*theirs}) == 2:  # noqa: PLR2004
        return Estimate(value=ratio, low=None, high=None)
    interval = stats.ttest_ind([math.log(value) for value in mine], [math.log(value) for value in theirs],
                               equal_var=False).confidence_interval(LEVEL)
    low, high = math.exp(interval.low), math.exp(interval.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Estimate(value=ratio, low=None, high=None)
    return Estimate(value=ratio, low=low, high=high)


def _per_kilojoule(quality: Estimate | None, energy: Estimate | None, *, estimated: bool) -> Estimate | None:
    """Macro quality over kilojoules per 1,000 tokens; log-delta with zero covariance (statistics of the two are apart)."""
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
    return Estimate(value=value, low=value * math.exp(-relative), high=value * math.exp(relative))


def _probes(probes: Sequence[Probe], kind: str) -> dict[int, tuple[Probe, int]]:
    return {probe.batch: (probe, probe.batch * (probe.output_tokens if kind == "decode" else probe.prompt_tokens))
            for probe in probes if probe.kind == kind}


def _badges(report: Report) -> tuple[str, ...]:
    found = [
        ("failed", report.status == "failed"),
        ("provisional", report.provisional is not None),
        ("demonstration-base", report.prior_quantisation is not None),
        ("estimated-joules", report.method == "model"),
        (scores.BASE_GRID, any(result.withheld == scores.BASE_GRID for result in report.tasks)),
    ]
    return tuple(name for name, holds in found if holds)


def _unranked(report: Report, base: Entry | None, quality: Estimate | None, cost: Estimate | None) -> str | None:
    """Say why an entry has no rank, in words; None where it has one."""
    if report.failure is not None:
        return f"failed in {report.failure.phase}: {report.failure.reason}"
    if report.method == "simulated":
        return "its energy is simulated, not measured"
    if report.status != "complete":
        return "the run was interrupted before its energy trials were complete"
    withheld = sorted({result.withheld for result in report.tasks if result.withheld is not None})
    if scores.BASE_GRID in withheld:
        return (f"quality withheld (base-grid): the base's published weights were already {report.prior_quantisation}, "
                "so a quantiser that coarse lands on the same grid and looks lossless; the cost is shown")
    if withheld:
        return f"quality withheld ({', '.join(withheld)})"
    if base is None:
        return "its base is not on this board, so there is nothing to compare it with"
    if quality is None:
        return "no task on which the base is clearly above chance"
    return "no cost was measured" if cost is None else None
