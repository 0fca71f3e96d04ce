"""What a correct answer costs when items are scored, in its three factors. Pure.

Example: 0.0041 CPU-seconds a token x 119 tokens an answer / 0.593 right = 0.823 CPU-seconds a correct answer::

    found = correct_answer(report, pairing.counted, [task.variant_scores for task in pairing.counted])
    found.cost         Estimate(value=0.823, low=0.781, high=0.869)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jouleboard.declared import Cell, Noun
from jouleboard.estimates import Estimate
from jouleboard.pairs import PairedTask, trial_costs
from jouleboard.records import Report
from jouleboard.rows import REPLAY
from jouleboard.statistics import intervals
from jouleboard.statistics.measured import scaled, total


class CorrectAnswer(Noun, frozen=True, kw_only=True):
    """What a correct answer costs: cost a token x tokens an answer / accuracy."""

    cost_per_token: float
    """In the replay cell."""
    tokens_per_answer: float
    """That the engine fed, a mean over the tasks."""
    accuracy: float
    """Mean over the tasks, of the paired items; not chance-corrected."""
    cost: Estimate
    """With the interval of a ratio of two things that were measured apart: costs by window, answers by item (log-delta)."""


def correct_answer(
    report: Report, tasks: Sequence[PairedTask], answers: Sequence[Sequence[float]], *, cpu_time: bool = False
) -> CorrectAnswer | None:
    """Return what a correct answer costs by an entry's replay; None where one of the factors is not known or zero.

    Args:
        report: the entry.
        tasks: that count, each of the same weight.
        answers: the entry's scores of the paired items of each.
        cpu_time: in CPU-seconds also where energy was measured.
    """
    spent = trial_costs(report, Cell(workload=REPLAY), cpu_time=cpu_time)
    if not tasks or not spent:
        return None
    results = {result.task: result for result in report.tasks}
    weight = 1 / len(tasks)
    accuracy = total([scaled(intervals.clustered_mean(values, task.clusters), weight)
                      for task, values in zip(tasks, answers, strict=True)])
    tokens = weight * math.fsum(results[task.task].fed_tokens / results[task.task].items_used for task in tasks)
    price = scaled(intervals.costs_mean(spent), 1 / 1000)
    if accuracy.value <= 0 or price.value <= 0 or tokens <= 0:
        return None
    return CorrectAnswer(cost_per_token=price.value, tokens_per_answer=tokens, accuracy=accuracy.value,
                         cost=intervals.log_delta(scaled(price, tokens), accuracy))
