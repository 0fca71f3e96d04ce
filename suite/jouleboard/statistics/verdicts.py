"""Verdicts of a family of variants against their base, so that a false one is as rare in the family as in one test. No I/O here.

Example::

    of_family([Evidence(name="int8", ...), Evidence(name="pruned", ...)])
    # [Verdict(name="int8", kind="dominates", quality=-0.002 (-0.008 to 0.004), cost_ratio=0.77 (0.75 to 0.79), ...), ...]

What is tested, of the loss margin M, the cost margin C, the true difference d of quality and the true cost ratio r::

    dominates   d > -M and r < 1 + C, and of d > 0 and r < 1 one at least      the table's two ways, as one claim
    dominated   the same of the base against the variant
    trade-off   d > 0 and r > 1 + C, or r < 1 and d < -M

"Dominates" is false where d <= -M, or r >= 1 + C, or neither is better. Its p-value is the largest of three tests, one of each
(an intersection-union test, Berger 1982). The third tests quality and cost at once and would err twice as often were the smaller
p-value taken as it is, so it is Simes's of the two, which are measured apart. Whoever has one way of the table then needs it at half
the level; whoever has both needs each at the whole. Each kind of claim is adjusted by Holm over the family, so that any false
claim of that kind has at most 5 %.

Where both "dominates" and "dominated" stand, each side is better by less than the other may be worse: a trade-off within the margins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jouleboard import costs
from jouleboard.statistics import intervals, paired, power
from jouleboard.statistics.evidence import COST_MARGIN, LEVEL, MARGIN, Evidence, Verdict, VerdictKind
from jouleboard.statistics.measured import Measured
from jouleboard.statistics.multiple import either, holm

LOG_MARGIN = math.log1p(COST_MARGIN)
CLAIMS: tuple[VerdictKind, ...] = ("dominates", "dominated", "trade-off")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """A variant's differences from its base."""

    quality: paired.Macro
    cost: Measured
    """Logarithm of the cost ratio."""
    items: int
    trials: tuple[int, int]

    def p_values(self) -> dict[str, float]:
        """Return the one-sided p-values of all that is tested, not adjusted."""
        loss, none, gain = (self.quality.tails(bound) for bound in (-MARGIN, 0.0, MARGIN))
        found = {
            "not-worse": loss.above, "better": none.above, "worse": loss.below,
            "cheaper": self.cost.below(0.0), "not-dearer": self.cost.below(LOG_MARGIN), "dearer": self.cost.above(LOG_MARGIN),
            "base-not-worse": gain.below, "base-better": none.below,
            "base-cheaper": self.cost.above(0.0), "base-not-dearer": self.cost.above(-LOG_MARGIN),
        }
        for claim, side in (("dominates", ""), ("dominated", "base-")):
            found[claim] = max(found[f"{side}not-worse"], found[f"{side}not-dearer"],
                               either(found[f"{side}cheaper"], found[f"{side}better"]))
        found["trade-off"] = min(max(found["better"], found["dearer"]), max(found["cheaper"], found["worse"]))
        return found


def of_family(evidence: Sequence[Evidence]) -> list[Verdict]:
    """Draw the verdicts of all variants that are compared with one base.

    Args:
        evidence: one a variant; those of which none can be drawn do not count as part of the family.

    Returns:
        Verdicts in the same order.

    Raises:
        ValueError: items of a task do not pair, or a score is not between 0 and 1.
    """
    sides = [_sides(one) for one in evidence]
    raw = {place: side.p_values() for place, side in enumerate(sides) if isinstance(side, _Sides)}
    adjusted: dict[int, dict[str, float]] = {place: {} for place in raw}
    for name in next(iter(raw.values()), {}):
        for place, p in zip(raw, holm([found[name] for found in raw.values()]), strict=True):
            adjusted[place][name] = p
    found = []
    for place, (one, side) in enumerate(zip(evidence, sides, strict=True)):
        if isinstance(side, _Sides):
            found.append(_verdict(one, side, raw[place], adjusted[place], LEVEL / len(raw)))
        else:
            found.append(_none(one, side))
    return found


def _sides(evidence: Evidence) -> _Sides | str:
    """Compare the two sides; in words where no verdict can be drawn."""
    if evidence.barred is not None:
        return evidence.barred
    if not evidence.tasks:
        return "no task counts on both sides"
    if min(len(evidence.costs), len(evidence.base_costs)) < costs.LEAST_REPEATS:
        return "fewer than three valid trials on a side"
    cost = intervals.log_ratio(evidence.costs, evidence.base_costs)
    if cost is None:
        return "a trial has no cost above zero"
    if not math.isfinite(cost.stderr):
        return "trials that all cost the same say nothing of their spread"
    quality = paired.macro(evidence.tasks)
    if not quality.is_known:
        return "all items of a task share one source, which says nothing of their spread"
    return _Sides(quality=quality, cost=cost, items=sum(len(task.base) for task in evidence.tasks),
                  trials=(len(evidence.costs), len(evidence.base_costs)))


def _none(evidence: Evidence, reason: str) -> Verdict:
    """Say why there is no verdict; what can be compared is shown all the same, costs not where no comparison is allowed."""
    return Verdict(
        name=evidence.name, kind="none", reason=reason, p_values={},
        quality=paired.macro(evidence.tasks).limits() if evidence.tasks else None,
        cost_ratio=None if evidence.barred is not None else intervals.cost_ratio(evidence.costs, evidence.base_costs),
    )


def _verdict(evidence: Evidence, sides: _Sides, raw: dict[str, float], adjusted: dict[str, float], level: float) -> Verdict:
    kind = _kind([claim for claim in CLAIMS if adjusted[claim] <= LEVEL])
    needs = _needs(sides, raw, level) if kind == "undecided" else _Needs(items=None, trials=None, effort=0.0)
    return Verdict(
        name=evidence.name, kind=kind, reason=None, quality=sides.quality.limits(),
        cost_ratio=intervals.cost_ratio(evidence.costs, evidence.base_costs), p_values=adjusted,
        needs_items=needs.items, needs_trials=needs.trials,
    )


def _kind(stand: Sequence[VerdictKind]) -> VerdictKind:
    """Choose among the claims that stand: the first of the table, a trade-off where both sides dominate within the margins."""
    if "dominates" in stand and "dominated" in stand:
        return "trade-off"
    return stand[0] if stand else "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """Items and trials that would decide one claim; None where that side is decided."""

    items: int | None
    trials: int | None
    effort: float
    """The larger factor by which either would grow; infinite where no number would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One way to a verdict: a test of quality and one of cost."""

    quality: str
    cost: str
    gap: float
    """How far the log ratio seen is on the right side of the bound; below zero: on the wrong one."""
    quality_level: float = 1.0
    """Share of the level at which the test must succeed."""
    cost_level: float = 1.0


def _needs(sides: _Sides, raw: dict[str, float], level: float) -> _Needs:
    """Return what would decide with the least effort at the differences seen, each side with a power of 80 %."""
    cost = sides.cost.value
    ways = [
        _Way(quality="not-worse", cost="cheaper", gap=-cost, cost_level=0.5),
        _Way(quality="better", cost="not-dearer", gap=LOG_MARGIN - cost, quality_level=0.5),
        _Way(quality="base-not-worse", cost="base-cheaper", gap=cost, cost_level=0.5),
        _Way(quality="base-better", cost="base-not-dearer", gap=cost + LOG_MARGIN, quality_level=0.5),
        _Way(quality="better", cost="dearer", gap=cost - LOG_MARGIN),
        _Way(quality="worse", cost="cheaper", gap=-cost),
    ]
    best = min((_effort(way, sides, raw, level) for way in ways), key=lambda needs: needs.effort)
    return best if math.isfinite(best.effort) else _Needs(items=None, trials=None, effort=math.inf)


def _effort(way: _Way, sides: _Sides, raw: dict[str, float], level: float) -> _Needs:
    items = trials = None
    effort, few = 1.0, min(sides.trials)
    if raw[way.quality] > level * way.quality_level:
        items = power.more_items(sides.items, raw[way.quality], alpha=level * way.quality_level)
        effort = max(effort, math.inf if items is None else items / sides.items)
    if raw[way.cost] > level * way.cost_level:
        spread = sides.cost.stderr / math.sqrt(1 / sides.trials[0] + 1 / sides.trials[1])
        trials = power.trials_for(way.gap, spread=spread, alpha=level * way.cost_level)
        trials = None if trials is None else max(trials, few + 1)
        effort = max(effort, math.inf if trials is None else trials / few)
    return _Needs(items=items, trials=trials, effort=effort)
