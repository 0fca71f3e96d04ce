"""Reports into boards: quality, cost, their ratio, and an order where an order is fair. Pure: no I/O, no clock.

A board holds entries that were measured alike. On a CPU-time board the cost is measured CPU-seconds; joules there are the
power model's estimates, shown beside it and never ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import pandas as pd

from jouleboard import costs, scores, store
from jouleboard.costs import per_ktoken, probe_tokens, trial_cost
from jouleboard.records import Item, Probe, Report, TaskResult, Trial
from jouleboard.rows import Board, Estimate, Row, TaskCell


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """What the probes of one kind say, by batch size."""

    cpu_s_per_ktoken: dict[int, float]
    tokens_per_s: dict[int, float]


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
    """Give each report the key of its board; one without trials goes to the board of its family's base."""
    bases = sorted((report for report in reports if report.is_base and report.status != "failed"),
                   key=lambda report: (not report.trials, board_key(report)))
    own = {board_key(base) for base in bases}
    alike: dict[str, str] = {}
    homes: dict[str, str] = {}
    for base in bases:
        alike.setdefault(store.digest([_family(base), _inputs(base)]), board_key(base))
        homes.setdefault(_family(base), board_key(base))
    found = []
    for report in reports:
        key = board_key(report)
        if report.status == "failed":
            # It may lack tasks.
            key = key if key in own else homes.get(_family(report), key)
        elif not report.trials:
            key = alike.get(store.digest([_family(report), _inputs(report)]), key)
        found.append(key)
    return found


def _family(report: Report) -> str:
    return store.digest([report.model, report.model_weights_sha256, report.base, _device(report)])


def _inputs(report: Report) -> list[list[str]]:
    return sorted([result.task, result.data_sha256, result.inputs_sha256] for result in report.tasks)


def _device(report: Report) -> list[object]:
    engine = report.engine
    return [report.hardware_sha256, report.method, report.boundary, report.environment.cpu_model,
            list(report.environment.devices), engine.threads, engine.name, engine.version, engine.batch_size]


def board_key(report: Report) -> str:
    """Return what must be equal for two entries to be compared: items, workload, engine, device, method and boundary."""
    return store.digest([_inputs(report), report.replay_sha256 if report.trials else None, _device(report)])[:12]


def _board(key: str, entries: Sequence[Entry]) -> Board:
    first = next((entry.report for entry in entries if entry.report.trials and entry.report.status != "failed"),
                 max(entries, key=lambda entry: len(entry.report.tasks)).report)
    bases = [entry.report for entry in entries if entry.report.is_base and entry.report.tasks]
    rows = [_row(entry, [base for base in bases if _shares_base(base, entry.report)]) for entry in entries]
    cpu_time = first.method == "model"
    ranked = sorted((row for row in rows if row.unranked is None), key=lambda row: (_cost(row, cpu_time), row.entry))
    numbered = [_with_rank(row, index) for index, row in enumerate(ranked, start=1)]
    models = sorted({entry.report.model_title for entry in entries})
    return Board(
        key=key, title=f"{first.hardware_title}: {', '.join(models)}", hardware=first.hardware, method=first.method,
        boundary=first.boundary, is_cpu_time=cpu_time, tasks=tuple(result.task for result in first.tasks),
        no_signal=_no_signal(bases), ranked=tuple(numbered),
        unranked=tuple(sorted((row for row in rows if row.unranked is not None), key=lambda row: row.entry)),
    )


def _no_signal(bases: Sequence[Report]) -> tuple[str, ...]:
    """Name the tasks on which no base of the board is clearly above chance; without a base nothing is known."""
    known = [(task, signal) for base in bases for task, signal in _signal(base).items() if signal is not None]
    return tuple(sorted({task for task, _ in known} - {task for task, signal in known if signal}))


def _shares_base(base: Report, report: Report) -> bool:
    """Whether a base is the one that an entry names: the same recipe of the same weights by the same engine."""
    return base.recipe == report.base and _family(base) == _family(report)


def _with_rank(row: Row, rank: int) -> Row:
    return msgspec.structs.replace(row, rank=rank)


def _cost(row: Row, cpu_time: bool) -> float:  # noqa: FBT001 - one private caller
    cost = row.cpu_s_per_ktoken if cpu_time else row.energy_j_per_ktoken
    return math.inf if cost is None else cost.value


def _row(entry: Entry, bases: Sequence[Report]) -> Row:
    """Derive one row.

    Args:
        entry: what is shown.
        bases: the base that the entry names, as each session measured it.
    """
    report = entry.report
    base = next((base for base in bases if _same_session(base, report)), None)
    nearest = base or next(iter(bases), None)
    # Answers are the same in every session, costs are not.
    signal = {} if nearest is None else _signal(nearest)
    trials = _valid(report)
    estimated = report.method == "model"
    own = [trial_cost(trial, cpu_time=estimated) for trial in trials]
    theirs = [] if base is None else [trial_cost(trial, cpu_time=estimated) for trial in _valid(base)]
    cpu = costs.mean([trial_cost(trial, cpu_time=True) for trial in trials])
    energy = costs.estimated_joules(trials) if estimated else costs.mean(own)
    quality = macro_quality(report.tasks, signal)
    prefill, decode = _rates(report.probes, "prefill"), _rates(report.probes, "decode")
    return Row(
        entry=entry.name, report=report, is_base=report.is_base, badges=_badges(report),
        unranked=_unranked(report, bases, quality, cpu if estimated else energy), rank=None, quality=quality,
        tasks=tuple(_cell(result, signal.get(result.task)) for result in report.tasks), cpu_s_per_ktoken=cpu,
        cost_ratio=Estimate(value=1.0, low=None, high=None) if report.is_base else costs.ratio(own, theirs),
        energy_j_per_ktoken=energy, energy_is_estimate=estimated,
        quality_per_kilojoule=_per_kilojoule(quality, energy, estimated=estimated),
        prefill_cpu_s_per_ktoken=prefill.cpu_s_per_ktoken, decode_cpu_s_per_ktoken=decode.cpu_s_per_ktoken,
        prefill_tokens_per_s=prefill.tokens_per_s, decode_tokens_per_s=decode.tokens_per_s,
        weight_bytes=None if report.realised is None else report.realised.weight_bytes,
        peak_memory_bytes=report.peak_memory_bytes,
    )


def _same_session(base: Report, report: Report) -> bool:
    return base.status == "complete" and bool(base.trials) and base.session is not None and (
        base.session == report.session)


def _valid(report: Report) -> list[Trial]:
    return [trial for trial in report.trials if trial.void is None]


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
    factor = costs.exp(relative)
    if factor is None or not math.isfinite(value * factor):
        return Estimate(value=value, low=None, high=None)
    return Estimate(value=value, low=value / factor, high=value * factor)


def _rates(probes: Sequence[Probe], kind: str) -> _Rates:
    mine = [probe for probe in probes if probe.kind == kind]
    costs = {probe.batch: per_ktoken(probe.window.cpu_s, probe_tokens(probe)) for probe in mine}
    return _Rates(
        cpu_s_per_ktoken={batch: cost for batch, cost in costs.items() if cost is not None},
        tokens_per_s={probe.batch: probe_tokens(probe) / probe.window.duration_s for probe in mine},
    )


def _badges(report: Report) -> tuple[str, ...]:
    found = [
        ("failed", report.status == "failed"),
        ("provisional", report.provisional is not None),
        ("demonstration-base", report.prior_quantisation is not None),
        ("estimated-joules", report.method == "model"),
        (scores.BASE_GRID, any(result.withheld == scores.BASE_GRID for result in report.tasks)),
    ]
    return tuple(name for name, holds in found if holds)


def _unranked(report: Report, bases: Sequence[Report], quality: Estimate | None, cost: Estimate | None) -> str | None:
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
    if not bases:
        return "its base is not on this board, so there is nothing to compare it with"
    if not any(_same_session(base, report) for base in bases):
        return "its base was not measured in the same session"
    if quality is None:
        return "no task on which the base is clearly above chance"
    return "no cost was measured" if cost is None else None
