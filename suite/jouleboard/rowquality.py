"""What a row answers: fields of `rows.Row` that come from the scores of its tasks. Pure.

Macro quality is the mean of the chance-corrected accuracies of the tasks on which the base is clearly above chance; its tier is the
band of a tenth that it lies in: 0.37 is in the tier from 0.3 to 0.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jouleboard import scores
from jouleboard.estimates import Estimate
from jouleboard.records import Report, Score, TaskResult
from jouleboard.rows import TaskCell
from jouleboard.statistics.measured import Measured, total

TIERS = 10
"""Bands of macro quality between chance (0) and perfect (1), all of one width."""


def tier(quality: Estimate) -> int:
    """Return the band of a quality, 0 (up to a tenth of the way from chance to perfect) to 9."""
    # Sums of tenths fall short by rounding: 0.3 is the beginning of its band.
    return min(max(math.floor(quality.value * TIERS + 1e-9), 0), TIERS - 1)


def reaches(quality: Estimate) -> tuple[int, int]:
    """Return the lowest and the highest tier that the interval of a quality reaches into."""
    ends = [quality.value if end is None else end for end in (quality.low, quality.high)]
    low, high = (tier(Estimate(value=end, low=None, high=None)) for end in ends)
    return low, high


def no_signal(bases: Sequence[Report]) -> tuple[str, ...]:
    """Name the tasks on which no base of the board is clearly above chance; without a base nothing is known."""
    known = [(task, signal) for base in bases for task, signal in signal_of(base).items() if signal is not None]
    return tuple(sorted({task for task, _ in known} - {task for task, signal in known if signal}))


def signal_of(base: Report) -> dict[str, bool | None]:
    """Say of each task whether the base is clearly above chance; None where its quality is withheld."""
    return {result.task: result.above_chance for result in base.tasks}


def cell(result: TaskResult, signal: bool | None) -> TaskCell:  # noqa: FBT001 - a state, not a switch
    """Return what a row shows of one task; `signal` is of its base, None where that is not known."""
    score = result.scores[result.primary_metric]
    shown = None
    if score is not None:
        low, high = scores.interval(score, result.primary_metric)
        shown = Estimate(value=score.value, low=low, high=high)
    return TaskCell(task=result.task, metric=result.primary_metric, score=shown, chance=result.chance.value,
                    signal=signal, withheld=result.withheld, items=result.items_used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Macro:
    """A mean over tasks, which are independent and weigh the same."""

    mean: Measured
    limits: Estimate
    """Its 95 % interval, from those of the tasks (`scores.interval`, Wilson's where items are few) by MOVER (Zou and Donner 2008)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The tasks with signal of an entry together."""

    quality: Macro
    """Of the chance-corrected scores."""
    accuracy: Macro
    """Of the scores themselves."""
    tokens_per_item: float
    """Tokens that went through the model for an item."""


def counts(result: TaskResult, signal: Mapping[str, bool | None]) -> bool:
    """Whether a task counts in a macro quality: it has a score of right answers, and the base is clearly above chance on it."""
    return result.primary_metric in scores.ACCURACIES and bool(signal.get(result.task))


def counted(results: Sequence[TaskResult], signal: Mapping[str, bool | None]) -> Counted | None:
    """Average the tasks with signal; None where the quality of one is withheld or none is left.

    Bits per byte, BLEU and the like are shown but not averaged in: they have no end of scale, and a share of them is no share of
    answers.
    """
    mine = [result for result in results if counts(result, signal)]
    parts = [_Part(score=score, limits=scores.interval(score, result.primary_metric), chance=result.chance.value)
             for result in mine if (score := result.scores[result.primary_metric]) is not None]
    if not parts or len(parts) < len(mine) or any(part.chance >= 1 for part in parts):
        return None
    return Counted(quality=_macro(parts), accuracy=_macro([replace(part, chance=0.0) for part in parts]),
                   tokens_per_item=math.fsum(result.fed_tokens / result.items_used for result in mine) / len(mine))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One task: its score, the interval of that, and what is subtracted as chance."""

    score: Score
    limits: tuple[float, float]
    chance: float


def _macro(parts: Sequence[_Part]) -> Macro:
    weights = [1 / (len(parts) * (1 - part.chance)) for part in parts]
    mean = total([Measured(value=weight * (part.score.value - part.chance), stderr=weight * part.score.stderr,
                           dof=(part.score.clusters or part.score.n) - 1) for weight, part in zip(weights, parts, strict=True)])
    below, above = (math.hypot(*(weight * (part.limits[end] - part.score.value) for weight, part in zip(weights, parts, strict=True)))
                    for end in (0, 1))
    return Macro(mean=mean, limits=Estimate(value=mean.value, low=mean.value - below, high=mean.value + above))
