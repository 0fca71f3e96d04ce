"""What a variant does to a task's answers beside its base: differences, flips, retention, divergence. Pure.

Example, of 200 pairs in which 6 right answers became wrong and 9 wrong ones right::

    found = contrast(paired)
    found.difference      Estimate(value=0.015, low=-0.023, high=0.054)
    found.flips           Flips(right_to_wrong=6, wrong_to_right=9, share=0.075, other_wrong=3)

An accuracy that stays the same hides answers that changed both ways (Dutta et al. 2024): flips and the divergence show them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from jouleboard import scores
from jouleboard.declared import Noun
from jouleboard.declared_tasks import Kind, Metric
from jouleboard.estimates import Estimate
from jouleboard.pairs import PairedTask
from jouleboard.records import Item
from jouleboard.statistics import paired
from jouleboard.statistics.intervals import clustered_mean
from jouleboard.statistics.measured import Measured, scaled, total


class Flips(Noun, frozen=True, kw_only=True):
    """Answers that changed between right and wrong."""

    right_to_wrong: int
    """The base was right, the variant is wrong."""
    wrong_to_right: int
    share: float
    """Of all items: both ways together."""
    other_wrong: int | None
    """Items on which both are wrong, by other answers; None where answers are not known."""


class TaskContrast(Noun, frozen=True, kw_only=True):
    """One task as both answered it."""

    task: str
    kind: Kind
    metric: Metric
    items: int
    left_out: tuple[str, ...]
    signal: bool | None
    counts: bool
    """Whether it counts in the macro accuracy."""
    chance: float
    lower_is_better: bool
    base: float
    """Score over the paired items."""
    variant: float
    difference: Estimate
    """Variant less base, with its paired 95 % interval."""
    flips: Flips | None
    """None where answers are not simply right or wrong."""
    mcnemar_p: float | None
    """Exact two-sided p-value of "as many answers were lost as gained"; None of items in clusters, which are not independent."""
    retention: Estimate | None
    """Score of the variant over that of the base; None where the base has none above zero, and of bits per byte."""
    retention_corrected: Estimate | None
    """The same of what is above chance; without bounds, and not to be trusted, where the base is not clearly above chance."""
    divergence_nats: Estimate | None
    """Mean KL(base || variant) an item over the probabilities of the choices; None where there are no choices."""


class MacroContrast(Noun, frozen=True, kw_only=True):
    """The mean over the tasks that count, each of the same weight."""

    tasks: tuple[str, ...]
    items: int
    base: float
    variant: float
    difference: Estimate
    retention: Estimate | None
    retention_corrected: Estimate | None


def contrast(task: PairedTask) -> TaskContrast:
    """Compare the answers of a task."""
    whole = {*task.base_scores, *task.variant_scores} <= {0.0, 1.0} and task.metric in scores.SHARES | scores.ACCURACIES
    flips = _flips(task) if whole else None
    base, variant, difference = _levels(task)
    better = task.metric not in scores.LOWER_IS_BETTER
    return TaskContrast(
        task=task.task, kind=task.kind, metric=task.metric, items=len(task.base), left_out=task.left_out, signal=task.signal,
        counts=task.counts, chance=task.chance, lower_is_better=not better, base=base, variant=variant, difference=difference,
        flips=flips, mcnemar_p=None if flips is None or task.clusters is not None else paired.mcnemar(
            lost=flips.right_to_wrong, gained=flips.wrong_to_right),
        retention=retention([task], corrected=False) if better else None,
        retention_corrected=retention([task], corrected=True) if better and task.signal else None,
        divergence_nats=_divergence(task))


def macro(tasks: Sequence[PairedTask]) -> MacroContrast | None:
    """Average the tasks that count; None where none does."""
    counted = [task for task in tasks if task.counts]
    if not counted:
        return None
    base, variant = (math.fsum(_mean(side) for side in sides) / len(counted) for sides in (
        [task.base_scores for task in counted], [task.variant_scores for task in counted]))
    return MacroContrast(
        tasks=tuple(task.task for task in counted), items=sum(len(task.base) for task in counted), base=base, variant=variant,
        difference=paired.macro([task.evidence for task in counted]).limits(), retention=retention(counted, corrected=False),
        retention_corrected=retention(counted, corrected=True))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _levels(task: PairedTask) -> tuple[float, float, Estimate]:
    """Return the score of both, and the paired difference."""
    if task.metric == "bits_per_byte":
        base, variant = (scores.aggregate(side, task.metric).value for side in (task.base, task.variant))
        # The texts are the same, so the difference is itself a ratio: bits more over bytes.
        apart = [_with_bits(one, other) for one, other in zip(task.base, task.variant, strict=True)]
        found = scores.aggregate(apart, task.metric)
        spread = Measured(value=variant - base, stderr=found.stderr if len(apart) > 1 else math.inf,
                          dof=(found.clusters or found.n) - 1)
        return base, variant, spread.limits()
    base, variant = _mean(task.base_scores), _mean(task.variant_scores)
    if task.metric in scores.SHARES | scores.ACCURACIES:
        return base, variant, paired.macro([task.evidence]).limits()
    apart_ = [mine - theirs for theirs, mine in zip(task.base_scores, task.variant_scores, strict=True)]
    return base, variant, clustered_mean(apart_, task.clusters).limits()


def _with_bits(base: Item, variant: Item) -> Item:
    return msgspec.structs.replace(variant, loglikelihoods=(variant.loglikelihoods[0] - base.loglikelihoods[0],))


# --- flips --------------------------------------------------------------------------------------------------------------


def _flips(task: PairedTask) -> Flips:
    sides = list(zip(task.base_scores, task.variant_scores, strict=True))
    lost, gained = sides.count((1.0, 0.0)), sides.count((0.0, 1.0))
    wrong = [(answer(base, task.metric), answer(variant, task.metric))
             for (one, other), base, variant in zip(sides, task.base, task.variant, strict=True) if one == other == 0]
    known = all(one is not None and other is not None for one, other in wrong)
    return Flips(right_to_wrong=lost, wrong_to_right=gained, share=(lost + gained) / len(sides),
                 other_wrong=sum(one != other for one, other in wrong) if known else None)


def answer(item: Item, metric: Metric) -> str | None:
    """Return what an item was answered: the choice that its metric picks, or the extracted text; None where it is not known."""
    if len(item.loglikelihoods) > 1:
        values = item.loglikelihoods
        if metric == "acc_norm":
            values = tuple(value / chars for value, chars in zip(values, item.choice_chars, strict=True))
        return str(max(range(len(values)), key=lambda place: (values[place], -place)))
    return item.extracted if item.extracted is not None else item.response_sha256


# --- divergence -------------------------------------------------------------------------------------------------------


def _divergence(task: PairedTask) -> Estimate | None:
    if not all(len(item.loglikelihoods) > 1 for item in task.base):
        return None
    each = [divergence(one.loglikelihoods, other.loglikelihoods) for one, other in zip(task.base, task.variant, strict=True)]
    found = clustered_mean(each, task.clusters).limits()
    # It is never negative, so neither is its lower end.
    return found if found.low is None else msgspec.structs.replace(found, low=max(found.low, 0.0))


def divergence(base: Sequence[float], variant: Sequence[float]) -> float:
    """Return KL(base || variant) in nats, of the softmax of log-likelihoods over the choices of one item."""
    p, q = _log_shares(base), _log_shares(variant)
    return max(0.0, math.fsum(math.exp(one) * (one - other) for one, other in zip(p, q, strict=True)))


def _log_shares(values: Sequence[float]) -> list[float]:
    most = max(values)
    whole = most + math.log(math.fsum(math.exp(value - most) for value in values))
    return [value - whole for value in values]


# --- retention --------------------------------------------------------------------------------------------------------


def retention(tasks: Sequence[PairedTask], *, corrected: bool) -> Estimate | None:
    """Return the variant's mean score over the base's, with its interval.

    R = V / B; the interval is that of a ratio of paired means: SE(R) = SE(mean of v_i - R b_i) / B, tasks being independent
    (delta method; Cochran 1977, 6.4).

    Args:
        tasks: at least one, each of the same weight.
        corrected: of what is above chance, (p - c) / (1 - c).
    """
    floors = [task.chance if corrected else 0.0 for task in tasks]
    if any(floor >= 1 for floor in floors):
        return None
    sides = [([(value - floor) / (1 - floor) for value in side] for side in (task.base_scores, task.variant_scores))
             for task, floor in zip(tasks, floors, strict=True)]
    pairs = [(list(theirs), list(mine)) for theirs, mine in sides]
    base = math.fsum(_mean(theirs) for theirs, _ in pairs) / len(tasks)
    variant = math.fsum(_mean(mine) for _, mine in pairs) / len(tasks)
    if base <= 0:
        return None
    value = variant / base
    parts = [scaled(clustered_mean([one - value * other for other, one in zip(theirs, mine, strict=True)], task.clusters),
                    1 / (base * len(tasks))) for (theirs, mine), task in zip(pairs, tasks, strict=True)]
    spread = total(parts)
    # Where all items kept their score, a width of zero would be certainty.
    return Measured(value=value, stderr=spread.stderr or math.inf, dof=spread.dof).limits()
