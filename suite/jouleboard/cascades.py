"""Small variant first, the larger one where the small one is unsure: accuracy and cost from recorded items. Pure; rows are derived.

Nobody ran a cascade: both variants answered every item, so what a cascade would have answered, and what it would have cost, follows::

    small first (threshold 0.35)   item 1: margin 0.82, kept      cost: small
                                   item 2: margin 0.11, deferred  cost: small + large

The confidence is the margin: the likeliest choice's probability less the second's, by a softmax over the small variant's own
log-likelihoods of the choices (per character, times their mean length, where the task's metric is `acc_norm`). The threshold that is
used on an item is chosen on other items: folds by a seeded hash of the documents, clusters whole (cross-fitting), by task.

Costs are those of scoring: an entry's cost per token in its replay, times the tokens that its engine fed for the task, shared out over
the items by their requests' tokens. Every item pays for the small variant, a deferred one for the larger one as well.

Intervals come from draws of the items in which the thresholds are chosen anew. They are on the wide side: of simulated tasks of 100 to
300 items, nominal 95 % hold the truth in 96 to 98 % for the accuracy and in 98 % and more for the difference to the larger variant,
whose thresholds give way where the small one loses. Verdicts never rest on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from jouleboard import costs, reasons, rowquality, scores
from jouleboard.cascaderows import Cascade, CurvePoint, Derived, NoCascade, TaskCascade
from jouleboard.crossfit import THRESHOLDS, CascadeItems, Floats, Outcome, Prices, sources
from jouleboard.declared import Cell, Noun
from jouleboard.estimates import Estimate
from jouleboard.pairs import Answered, PairedTask, Pairing, pair, trial_costs, unjudged
from jouleboard.records import Report, Score
from jouleboard.rows import REPLAY
from jouleboard.statistics import paired
from jouleboard.statistics.evidence import MARGIN

REPLAY_CELL = Cell(workload=REPLAY)
LEAST_ITEMS = 50
"""Items of a task below which no threshold is chosen: a fold would hold fewer than ten."""

LEAST_DIFFERING = 10
"""Answers that differ from the larger variant's below which the draws alone do not say how far the difference may be off."""


class Policy(Noun, frozen=True, kw_only=True):
    """How a threshold is chosen."""

    loss: float
    """Accuracy that may be lost to the larger variant on the folds on which the threshold is chosen."""
    rule: str


POLICIES: dict[str, Policy] = {
    "as-accurate": Policy(loss=0.0, rule="the lowest threshold that is as accurate as the larger one on the other folds"),
    "within-a-point": Policy(loss=MARGIN, rule="the lowest threshold that loses no more than 1 point to the larger one on the other folds"),
}


def of_family(base: Answered, variants: Sequence[Answered]) -> list[Derived | NoCascade]:
    """Derive the cascades of each variant before its base: as many as there are variants, not as pairs of them."""
    return [derive(variant, base) for variant in variants]


def derive(
    small: Answered, large: Answered, *, bases: Sequence[Report] = (), pairing: Pairing | None = None
) -> Derived | NoCascade:
    """Derive the cascades of two entries, or say why there is none.

    Args:
        small: answers first.
        large: is asked where the other one is unsure.
        bases: of the family, where `large` is not it.
        pairing: what `pair(large, small)` found, where it is known already.
    """
    found = pairing or pair(large, small)
    prices = Prices(small=trial_costs(small.report, REPLAY_CELL), large=trial_costs(large.report, REPLAY_CELL))
    reason = unjudged(large, small, REPLAY_CELL, bases=bases, pairing=found) or prices.reason
    reason = reason or _unplaced(small, large, found) or _unfit(found.counted)
    if reason is not None:
        return NoCascade(small=small.name, large=large.name, reason=reason)
    tasks = [CascadeItems(task, small.report, large.report) for task in found.counted if _has_choices(task)]
    drawn = zip(*(task.redrawn(*(policy.loss for policy in POLICIES.values())) for task in tasks), strict=True)
    return Derived(rows=tuple(_row((small, large), name, tasks=tasks, many=many, prices=prices)
                              for name, many in zip(POLICIES, drawn, strict=True)), curve=_curve(tasks, prices))


def _unplaced(small: Answered, large: Answered, pairing: Pairing) -> str | None:
    """Say which of the two has no rank, as on a board; None where both have one."""
    signal = {task.task: True for task in pairing.counted}
    for one in (small, large):
        counted = rowquality.counted(one.report.tasks, signal)
        cost = costs.mean(trial_costs(one.report, REPLAY_CELL))
        reason = reasons.unplaced(None if counted is None else counted.quality.limits, cost)
        if reason is not None:
            return f"{one.name}: {reason}"
    return None


def _unfit(counted: Sequence[PairedTask]) -> str | None:
    tasks = [task for task in counted if _has_choices(task)]
    if not tasks:
        return "no task that counts has choices: an answer in text has no confidence here"
    short = [task.task for task in tasks if len({*sources(task)}) < LEAST_ITEMS]
    return f"fewer than {LEAST_ITEMS} independent items to choose a threshold on: {', '.join(short)}" if short else None


def _has_choices(task: PairedTask) -> bool:
    return all(len(item.loglikelihoods) > 1 for item in task.variant)


def _cost(outcomes: Sequence[Outcome], small: float | Floats, large: float | Floats) -> Floats:
    return np.asarray(np.mean([small * one.small_tokens + large * one.deferred_tokens for one in outcomes], axis=0))


def _alone(outcomes: Sequence[Outcome], large: float | Floats) -> Floats:
    return np.asarray(np.mean([large * one.large_tokens for one in outcomes], axis=0))


def _row(
    both: tuple[Answered, Answered], name: str, *, tasks: Sequence[CascadeItems], many: Sequence[Outcome], prices: Prices
) -> Cascade:
    (small, large), policy, drawn = both, POLICIES[name], prices.drawn()
    once = [one.chosen(loss=policy.loss) for one in tasks]
    cost, alone = _cost(once, *prices.mean()), _alone(once, prices.mean()[1])
    dear = None if drawn is None else _cost(many, *drawn)
    alones = None if drawn is None else _alone(many, drawn[1])
    return Cascade(
        name=f"{small.report.recipe} first, {large.report.recipe} where it is unsure ({name})", small=small.name, large=large.name,
        policy=name, rule=policy.rule, unit="CPU-seconds" if large.report.method == "model" else "joules",
        tasks=tuple(_task(*each) for each in zip(tasks, once, many, strict=True)),
        deferred=_normal([one.deferred for one in once], [one.deferred for one in many]),
        accuracy=_accuracy(tasks, once, many), difference=difference(tasks, once, many),
        cost_per_item=_between(cost, dear),
        cost_ratio=_between(cost / alone, None if dear is None or alones is None else dear / alones),
        small_accuracy=float(np.mean([np.mean(one.task.variant_scores) for one in tasks])),
        large_accuracy=float(np.mean([np.mean(one.task.base_scores) for one in tasks])), large_cost_per_item=float(alone[0]))


def _normal(once: Sequence[Floats], many: Sequence[Floats]) -> Estimate:
    """Give the mean over tasks, whose draws are independent, with the spread of the draws as its standard error."""
    value, half = float(np.mean(once)), scores.Z95 * float(np.std(np.mean(many, axis=0), ddof=1))
    return Estimate(value=value, low=value - half, high=value + half)


def _accuracy(tasks: Sequence[CascadeItems], once: Sequence[Outcome], many: Sequence[Outcome]) -> Estimate:
    """Give the mean accuracy over tasks, whose intervals are put together by MOVER (Zou and Donner 2008)."""
    values = [float(one.score[0]) for one in once]
    ends = [interval(*each) for each in zip(tasks, once, many, strict=True)]
    value = math.fsum(values) / len(tasks)
    below, above = (math.hypot(*(one - end[side] for one, end in zip(values, ends, strict=True))) / len(tasks) for side in (0, 1))
    return Estimate(value=value, low=value - below, high=value + above)


def difference(tasks: Sequence[CascadeItems], once: Sequence[Outcome], many: Sequence[Outcome]) -> Estimate:
    """Give the mean paired difference, with the spread of the draws as its standard error.

    Where few answers differ the draws are too sure of it (certain where none does), so there it is never narrower than the score
    interval of the answers that are given. That interval alone takes the thresholds as fixed, and would be too narrow elsewhere.
    """
    found = _normal([one.score - one.large_score for one in once], [one.score - one.large_score for one in many])
    given = [one.answers(outcome) for one, outcome in zip(tasks, once, strict=True)]
    differing = sum(mine != theirs for one, answers in zip(tasks, given, strict=True)
                    for mine, theirs in zip(answers, one.task.base_scores, strict=True))
    # To defer all gives the larger one's answers by construction: there is nothing to be unsure of.
    if differing >= LEAST_DIFFERING or all(one.deferred[0] == 1 for one in once):
        return found
    seen = paired.macro([msgspec.structs.replace(one.task.evidence, variant=answers)
                         for one, answers in zip(tasks, given, strict=True)]).limits()
    if found.low is None or found.high is None or seen.low is None or seen.high is None:
        return Estimate(value=found.value, low=None, high=None)
    return Estimate(value=found.value, low=min(found.low, seen.low), high=max(found.high, seen.high))


def _between(once: Floats, many: Floats | None) -> Estimate:
    """Give the value between the 2.5 % and 97.5 % points of its draws: those of few repeats are skewed."""
    if many is None:
        return Estimate(value=float(once[0]), low=None, high=None)
    low, high = np.percentile(many, [2.5, 97.5])
    # A mean cost near zero would be drawn below it: then nothing is known of the other end either.
    return Estimate(value=float(once[0]), low=float(low), high=float(high)) if low > 0 else Estimate(
        value=float(once[0]), low=None, high=None)


def _task(items: CascadeItems, once: Outcome, many: Outcome) -> TaskCascade:
    low, high = interval(items, once, many)
    return TaskCascade(
        task=items.task.task, items=items.items, deferred=float(once.deferred[0]),
        thresholds=tuple(None if math.isinf(THRESHOLDS[one]) else THRESHOLDS[one] for one in once.used[0]),
        accuracy=Estimate(value=float(once.score[0]), low=low, high=high),
        difference=difference([items], [once], [many]))


def interval(items: CascadeItems, once: Outcome, many: Outcome) -> tuple[float, float]:
    """Return the 95 % interval of a task's accuracy: Wilson's below 300 items, of as many as the spread of the draws is worth."""
    score = Score(value=float(once.score[0]), stderr=float(np.std(many.score, ddof=1)), n=items.items, clusters=items.units)
    return scores.interval(score, items.task.metric)


def _curve(tasks: Sequence[CascadeItems], prices: Prices) -> tuple[CurvePoint, ...]:
    swept = [one.swept() for one in tasks]
    deferred, accuracy = np.mean([one.deferred for one in swept], axis=0), np.mean([one.score for one in swept], axis=0)
    cost = _cost(swept, *prices.mean())
    # Thresholds between the margins of two items all give the same: the first of them is enough.
    kept = [place for place in range(len(THRESHOLDS)) if place == 0 or deferred[place] != deferred[place - 1]]
    return tuple(CurvePoint(threshold=None if math.isinf(THRESHOLDS[place]) else THRESHOLDS[place], deferred=float(deferred[place]),
                            accuracy=float(accuracy[place]), cost_per_item=float(cost[place])) for place in kept)
