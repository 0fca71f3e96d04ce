"""Paired differences of accuracies: intervals, p-values at a margin, and their mean over tasks. Pure functions, no I/O.

Example: of 161 items a variant wins 16 that the base loses, and loses 6::

    tango(lost=6, gained=16, n=161)       # Limits(low=0.005, high=0.124) about a difference of 0.062
    macro(tasks).above(-0.01)             # one-sided p-value of "worse by a point or more"

Items that are right or wrong (0 or 1) have a score interval, any others a t interval; tasks are combined by MOVER (Zou and Donner
2008), which keeps each task's own skewness. Every p-value is the level at which the interval of the same method ends at the bound, so
the two never disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from jouleboard import scores
from jouleboard.costs import LEVEL
from jouleboard.estimates import Estimate
from jouleboard.statistics.evidence import TaskPair
from jouleboard.statistics.intervals import clustered_mean, design_effect
from jouleboard.statistics.measured import Measured, quantile, scaled, tail, total

FARTHEST = 37.0
"""Standard errors beyond which a normal tail is no positive float."""
_EDGE = 1e-12


class Limits(NamedTuple):
    """Ends of an interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Items on which the two sides differ; those in clusters count as many independent ones as tell as much, so they need not be whole."""

    lost: float
    """The base is right, the variant wrong."""
    gained: float
    n: float


def score(counts: Counts, difference: float) -> float:
    """Return Tango's score statistic of a true difference; it falls as the difference rises (Tango 1998).

    T = (g - l - n D) / sqrt(n (2 q + D (1 - D))), q the likeliest share of lost items under that difference: the root of
    2 n q^2 + B q - l D (1 - D) = 0, B = (2 n - g + l) D - g - l.
    """
    lost, gained, n = counts.lost, counts.gained, counts.n
    b = (2 * n - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    root = math.sqrt(max(0.0, b * b - 8 * n * c))
    # Of the two ways to write the root, the one that subtracts nothing.
    q = (root - b) / (4 * n) if b <= 0 else -2 * c / (b + root)
    distance, variance = gained - lost - n * difference, n * (2 * q + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def tango(*, lost: float, gained: float, n: float, z: float = scores.Z95) -> Limits:
    """Return the score interval of a paired difference of shares (Tango 1998): where the statistic is z and -z."""
    return Limits(low=_lower(Counts(lost=lost, gained=gained, n=n), z), high=-_lower(Counts(lost=gained, gained=lost, n=n), z))


def _lower(counts: Counts, z: float) -> float:
    seen = (counts.gained - counts.lost) / counts.n
    least = _EDGE - 1
    if seen <= least or score(counts, least) <= z:
        return -1.0
    return float(optimize.brentq(lambda difference: score(counts, difference) - z, least, seen, xtol=1e-13, rtol=1e-13))


def newcombe(*, both: int, lost: int, gained: int, neither: int, z: float = scores.Z95) -> Limits:
    """Return the square-and-add interval of a paired difference of shares (Newcombe 1998, method 10), beside Tango's as a check.

    Wilson's intervals of both sides, and their correlation phi, less n / 2 in its numerator where that is positive.
    """
    n = both + lost + gained + neither
    mine, theirs = (both + gained) / n, (both + lost) / n
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    agreement = both * neither - lost * gained
    phi = 0.0 if not margins else (min(agreement, 0) + max(agreement - n / 2, 0)) / math.sqrt(margins)
    (l1, u1), (l2, u2) = scores.wilson(mine, n, z), scores.wilson(theirs, n, z)

    def side(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 + second**2 - 2 * phi * first * second))

    return Limits(low=mine - theirs - side(mine - l1, u2 - theirs), high=mine - theirs + side(u1 - mine, theirs - l2))


def mcnemar(*, lost: int, gained: int) -> float:
    """Return the exact two-sided p-value of "as many are lost as gained" (McNemar 1947); 1 where no item differs.

    Not of items in clusters: they are not independent.
    """
    return min(1.0, 2 * float(special.bdtr(min(lost, gained), lost + gained, 0.5))) if lost + gained else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The paired difference of one task, variant less base, times its weight."""

    mean: Measured
    counts: Counts | None
    """Of items that are right or wrong; None: the difference is a mean of numbers."""
    weight: float = 1.0

    def lower(self, z: float) -> float:
        """Return the lower limit at a normal quantile above zero; items in clusters take Student's at the same level."""
        t = z if math.isinf(self.mean.dof) else -quantile(float(special.ndtr(-z)), self.mean.dof)
        if self.counts is not None:
            return self.weight * _lower(self.counts, t)
        return max(-abs(self.weight), self.mean.value - t * self.mean.stderr)

    def mirrored(self) -> Difference:
        """Return base less variant."""
        swapped = None if self.counts is None else Counts(lost=self.counts.gained, gained=self.counts.lost, n=self.counts.n)
        return Difference(mean=scaled(self.mean, -1), counts=swapped, weight=self.weight)


def difference(pair: TaskPair, weight: float = 1.0) -> Difference:
    """Return the paired difference of one task.

    Args:
        pair: of equally many items of both sides.
        weight: of the task among those that are combined.

    Raises:
        ValueError: the sides have different numbers of items, or none, or a score is not within 0 and 1.
    """
    base, variant = (np.asarray(side, dtype=np.float64) for side in (pair.base, pair.variant))
    if base.shape != variant.shape or not base.size or (pair.clusters is not None and len(pair.clusters) != base.size):
        raise ValueError(f"{pair.task}: base, variant and clusters are not of the same items")
    if not all(((side >= 0) & (side <= 1)).all() for side in (base, variant)):
        raise ValueError(f"{pair.task}: a score is not between 0 and 1")
    apart = variant - base
    mean = clustered_mean(apart.tolist(), pair.clusters)
    whole = bool(np.isin(base, (0.0, 1.0)).all() and np.isin(variant, (0.0, 1.0)).all())
    if not whole and mean.stderr > 0:
        return Difference(mean=scaled(mean, weight), counts=None, weight=weight)
    # Where all differ alike, a standard error of zero would be certainty; scores are bounded, so shares have the widest intervals.
    alike = design_effect(apart.tolist(), pair.clusters)
    lost, gained = (float(np.maximum(side, 0.0).sum()) / alike for side in (-apart, apart))
    dof = math.inf if pair.clusters is None else mean.dof
    return Difference(mean=scaled(Measured(value=mean.value, stderr=mean.stderr, dof=dof), weight),
                      counts=Counts(lost=lost, gained=gained, n=base.size / alike), weight=weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Macro:
    """The mean paired difference over tasks of equal weight."""

    parts: tuple[Difference, ...]

    @property
    def value(self) -> float:
        """The mean difference, variant less base."""
        return math.fsum(part.mean.value for part in self.parts)

    @property
    def is_known(self) -> bool:
        """Whether every task has a spread: not where all its items share one source."""
        return all((part.counts is not None and part.mean.dof > 0) or math.isfinite(part.mean.stderr) for part in self.parts)

    def mirrored(self) -> Macro:
        """Return base less variant."""
        return Macro(parts=tuple(part.mirrored() for part in self.parts))

    def limits(self, level: float = LEVEL) -> Estimate:
        """Return the interval; without bounds where a task has no spread."""
        if not self.is_known:
            return Estimate(value=self.value, low=None, high=None)
        plain = self._plain()
        if plain is not None:
            half = quantile((1 + level) / 2, plain.dof) * plain.stderr
            return Estimate(value=self.value, low=max(-1.0, self.value - half), high=min(1.0, self.value + half))
        z = float(special.ndtri((1 + level) / 2))
        return Estimate(value=self.value, low=self.lower(z), high=-self.mirrored().lower(z))

    def above(self, bound: float) -> float:
        """Return the one-sided p-value of "the mean difference is `bound` or less"."""
        if not self.is_known:
            return 1.0
        plain = self._plain()
        if plain is not None:
            return plain.above(bound)
        counts = self.parts[0].counts if len(self.parts) == 1 else None
        if counts is not None:
            return tail(score(counts, bound), self.parts[0].mean.dof)
        if abs(self.value - bound) < _EDGE:
            return 0.5
        if self.value < bound:
            return 1 - self.mirrored().above(-bound)
        return tail(_crossing(self.lower, bound), math.inf)

    def below(self, bound: float) -> float:
        """Return the one-sided p-value of "the mean difference is `bound` or more"."""
        return self.mirrored().above(-bound)

    def _plain(self) -> Measured | None:
        """Return the mean with its standard error where no task has counts."""
        return None if any(part.counts is not None for part in self.parts) else total([part.mean for part in self.parts])

    def lower(self, z: float) -> float:
        """Return the lower limit at a normal quantile, by MOVER."""
        return self.value - math.hypot(*(part.mean.value - part.lower(z) for part in self.parts))


def _crossing(lower: Callable[[float], float], bound: float) -> float:
    """Return the normal quantile at which a lower limit, which falls as it grows, meets a bound."""
    if lower(FARTHEST) >= bound:
        return FARTHEST
    return float(optimize.brentq(lambda z: lower(z) - bound, 0.0, FARTHEST, xtol=1e-9))


def macro(tasks: Sequence[TaskPair]) -> Macro:
    """Return the mean paired difference over tasks, each of the same weight.

    Raises:
        ValueError: there is no task, or one whose sides do not pair.
    """
    if not tasks:
        raise ValueError("no task pairs")
    return Macro(parts=tuple(difference(pair, 1 / len(tasks)) for pair in tasks))
