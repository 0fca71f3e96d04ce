"""Intervals of means, shares, costs and ratios of them. Pure functions of numbers, no I/O.

Example: accuracy per joule from the mean of 300 items and five trials::

    per_cost(Measured(value=0.62, stderr=0.021, dof=299), costs_mean((1.22, 1.25, 1.23, 1.22, 1.24)))   # 0.50 (0.47 to 0.54)

How often each holds the truth is simulated by `tests/bench/coverage.py`; the figures are in `COVERAGE.md` beside this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jouleboard import costs, scores
from jouleboard.costs import LEVEL
from jouleboard.estimates import Estimate
from jouleboard.statistics.measured import Measured, quantile, satterthwaite, scaled, total

Floats = NDArray[np.float64]

LARGEST_RELATIVE = 0.1
"""Standard error over value up to which the logarithm of a quality is as good as normal."""


def clustered_mean(values: Sequence[float] | Floats, clusters: Sequence[str] | None = None) -> Measured:
    """Return the mean over items with its standard error, clustered where items share a source (Miller 2024, 2.2).

    SE^2 = G / (G - 1) x sum over clusters of (sum of residuals)^2 / n^2: of items that share nothing it is the usual
    s^2 / n. Degrees of freedom are those of n^2 / sum of squared sizes clusters of one size, the effective number of Carter,
    Schnepel and Steigerwald (2017), since one large cluster tells as little as a small one.

    Args:
        values: one an item, at least one.
        clusters: what each item shares with others; None: nothing.
    """
    array = np.asarray(values, dtype=np.float64)
    n, mean = len(array), math.fsum(array) / len(array)
    codes = np.arange(n) if clusters is None else codes_of(clusters)
    sums, sizes = np.bincount(codes, array - mean), np.bincount(codes).astype(np.float64)
    groups = len(sums)
    if groups < 2:  # noqa: PLR2004 - one source says nothing of the spread between sources
        return Measured(value=mean, stderr=math.inf, dof=0.0)
    stderr = math.sqrt(math.fsum(sums**2) * groups / (groups - 1)) / n
    return Measured(value=mean, stderr=stderr, dof=max(1.0, effective(sizes) - 1))


def codes_of(clusters: Sequence[str]) -> NDArray[np.intp]:
    """Number the clusters in the order in which they first occur; one number an item."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[name] for name in clusters], dtype=np.intp)


def effective(sizes: Floats) -> float:
    """Return how many clusters of one size tell as much as these do."""
    return float(sizes.sum() ** 2 / (sizes @ sizes))


def design_effect(values: Sequence[float], clusters: Sequence[str] | None) -> float:
    """Return by how much sharing a source inflates the variance of a mean (Kish 1965, 8.2), at least 1.

    Items that are all the same show no spread: then a cluster counts as one item.
    """
    if clusters is None:
        return 1.0
    alone, shared = clustered_mean(values), clustered_mean(values, clusters)
    if not math.isfinite(shared.stderr) or alone.stderr == 0:
        return len(values) / (shared.dof + 1) if math.isfinite(shared.stderr) else float(len(values))
    return max(1.0, (shared.stderr / alone.stderr) ** 2)


def share(values: Sequence[float], clusters: Sequence[str] | None = None, level: float = LEVEL) -> Estimate:
    """Return a share of items that are right or wrong with Wilson's interval (Wilson 1927).

    Items in clusters count as many independent ones as give the same standard error, and Student's t takes the place of
    the normal quantile (Korn and Graubard 1998; Dean and Pagano 2015). Its degrees of freedom are those of the clusters that hold the
    rarer outcome: with those of all clusters the interval held 0.95 over 60 clusters in 92 % of simulated cases, with these in 99 %.
    """
    mean = clustered_mean(values, clusters)
    if clusters is None:
        low, high = scores.wilson(mean.value, len(values), quantile((1 + level) / 2, math.inf))
        return Estimate(value=mean.value, low=low, high=high)
    if mean.dof <= 0:
        return Estimate(value=mean.value, low=None, high=None)
    rarer = np.asarray(values, dtype=np.float64)
    rarer = rarer if mean.value <= 0.5 else 1 - rarer  # noqa: PLR2004 - the smaller of two shares
    dof = min(mean.dof, telling(rarer, clusters))
    low, high = scores.wilson(mean.value, len(values) / design_effect(values, clusters), quantile((1 + level) / 2, dof))
    return Estimate(value=mean.value, low=low, high=high)


def telling(values: Floats, clusters: Sequence[str] | None) -> float:
    """Return the degrees of freedom, at least 1, that the items or clusters leave whose values are not zero.

    Where few differ from zero, and by much, they alone tell of the spread: (sum |x|)^2 / sum x^2 of them count as one each.
    Where none does, nothing limits them.
    """
    sums = values if clusters is None else np.bincount(codes_of(clusters), values)
    squares = float(sums @ sums)
    return max(1.0, float(np.abs(sums).sum()) ** 2 / squares - 1) if squares else math.inf


def costs_mean(values: Sequence[float]) -> Measured:
    """Return the mean cost of trials; SE = s / sqrt(R) with R - 1 degrees of freedom.

    Trials that are all the same say nothing of their spread (a sensor that is too coarse), so they have no standard error.
    """
    found = clustered_mean(values)
    if len(values) < costs.LEAST_REPEATS or len({*values}) == 1:
        return Measured(value=found.value, stderr=math.inf, dof=0.0)
    return found


def log_ratio(mine: Sequence[float | None], theirs: Sequence[float | None]) -> Measured | None:
    """Return the logarithm of a cost ratio: Welch's t over the logarithms of both sides' trials (Welch 1947).

    Args:
        mine: cost of each trial of a variant.
        theirs: of its base, in the same unit.

    Returns:
        None where a side is empty, or a trial of it has no cost above zero; without a standard error for fewer than
        `costs.LEAST_REPEATS` on a side, or trials that are all the same on both.
    """
    ours, base = _logs(mine), _logs(theirs)
    if not ours or not base or len(ours) != len(mine) or len(base) != len(theirs):
        return None
    top, bottom = clustered_mean(ours), clustered_mean(base)
    if min(len(ours), len(base)) < costs.LEAST_REPEATS or len({*mine}) + len({*theirs}) == 2:  # noqa: PLR2004 - one value a side
        return Measured(value=top.value - bottom.value, stderr=math.inf, dof=0.0)
    return total([top, Measured(value=-bottom.value, stderr=bottom.stderr, dof=bottom.dof)])


def _logs(values: Sequence[float | None]) -> list[float]:
    return [math.log(value) for value in values if value is not None and 0 < value < math.inf]


def cost_ratio(mine: Sequence[float | None], theirs: Sequence[float | None]) -> Estimate | None:
    """Return the ratio of mean costs with the interval of `log_ratio`; None where there is none.

    Of three trials a side it may be a little wider than nominal (up to 97 %).
    """
    found = log_ratio(mine, theirs)
    if found is None:
        return None
    ours, base = ([value for value in side if value is not None] for side in (mine, theirs))
    # Divided first, so that no sum overflows.
    value = math.fsum(one / len(ours) for one in ours) / math.fsum(one / len(base) for one in base)
    if not 0 < value < math.inf:
        return None
    limits = found.limits()
    low, high = (None if bound is None else costs.exp(bound) for bound in (limits.low, limits.high))
    return Estimate(value=value, low=low, high=high) if low and high else Estimate(value=value, low=None, high=None)


def per_cost(quality: Measured, cost: Measured, *, bounds: Estimate | None = None) -> Estimate | None:
    """Return quality per cost with its 95 % interval; the two are measured apart, so their covariance is zero.

    Log-delta with Satterthwaite's degrees of freedom where the quality's standard error is at most a tenth of it. MOVER where a Wilson
    or score interval enters (`bounds`), and of less certain qualities: they may be near zero, or below it, which no logarithm can
    be, and a log-delta interval of them held the truth in 87 to 92 % of simulated cases. MOVER has no degrees of freedom in common:
    with three trials that scatter by 5 % it is wider than nominal (98 %).

    Args:
        quality: a mean, chance-corrected or not; it may be negative.
        cost: mean cost, above zero.
        bounds: an interval of the quality that is not symmetric; None: Student's t.

    Returns:
        None where the cost is not above zero; without bounds where the cost may be zero: such entries are not ranked.
    """
    if not (0 < cost.value < math.inf and math.isfinite(quality.value / cost.value)):
        return None
    if bounds is not None or quality.stderr > LARGEST_RELATIVE * quality.value:
        return mover_ratio(quality.limits() if bounds is None else bounds, cost.limits())
    return log_delta(quality, cost)


def log_delta(top: Measured, bottom: Measured) -> Estimate:
    """Return a ratio of two independent means above zero, with the interval of its logarithm (delta method)."""
    value = top.value / bottom.value
    parts = [Measured(value=0.0, stderr=one.stderr / one.value, dof=one.dof) for one in (top, bottom)]
    relative = Measured(value=0.0, stderr=math.hypot(parts[0].stderr, parts[1].stderr), dof=satterthwaite(parts)).limits()
    factor = None if relative.high is None else costs.exp(relative.high)
    if factor is None or not math.isfinite(value * factor):
        return Estimate(value=value, low=None, high=None)
    return Estimate(value=value, low=value / factor, high=value * factor)


def mover_ratio(top: Estimate, bottom: Estimate) -> Estimate:
    """Return a ratio of two independent estimates with the interval that follows from theirs (Donner and Zou 2012).

    The lower limit is where the lower limit of `top - ratio x bottom` is zero (Zou and Donner 2008). Unlike in their closed form
    the top may be negative: a negative ratio meets the other limit of the bottom.

    Returns:
        Without bounds where an estimate has none, or the bottom may be zero.
    """
    value = top.value / bottom.value
    none = Estimate(value=value, low=None, high=None)
    if top.low is None or top.high is None or bottom.low is None or bottom.high is None or bottom.low <= 0:
        return none
    if top.value < 0:
        mirrored = mover_ratio(Estimate(value=-top.value, low=-top.high, high=-top.low), bottom)
        return none if mirrored.low is None or mirrored.high is None else Estimate(value=value, low=-mirrored.high, high=-mirrored.low)
    low, high = mover_lower(top, bottom), _meeting(top.value, top.high, bottom.low / bottom.value, lower=False) / bottom.value
    return none if low is None or not math.isfinite(high) else Estimate(value=value, low=low, high=high)


def mover_lower(top: Estimate, bottom: Estimate) -> float | None:
    """Return the lower limit of `mover_ratio`, which is there too where the bottom may be zero, of a top that is not.

    Args:
        top: zero or more.
        bottom: above zero.
    """
    if top.low is None or bottom.low is None or bottom.high is None or (top.low < 0 and bottom.low <= 0):
        return None
    # In units of the bottom, so that no square overflows.
    low = _meeting(top.value, top.low, (bottom.high if top.low >= 0 else bottom.low) / bottom.value, lower=True) / bottom.value
    return low if math.isfinite(low) else None


def _meeting(top: float, limit: float, bottom: float, *, lower: bool) -> float:
    """Solve R^2 A - 2 R top + C = 0, A = bottom (2 - bottom), C = limit (2 top - limit), where top is zero or more."""
    scale = max(abs(top), abs(limit))
    if scale == 0:
        return 0.0
    top, limit = top / scale, limit / scale
    a, c = bottom * (2 - bottom), limit * (2 * top - limit)
    root = top + math.sqrt(max(0.0, top * top - a * c))
    # The smaller root as C over the larger one: nothing is subtracted, and A may be zero.
    return scale * (c / root if lower and root else root / a)


def fieller(top: Measured, bottom: Measured, level: float = LEVEL) -> Estimate:
    """Return a ratio of two independent means with Fieller's interval (Fieller 1954), as a check of the others.

    Degrees of freedom are Satterthwaite's of `top - ratio x bottom` at the ratio seen.

    Returns:
        Without bounds where the bottom is not significantly different from zero: the interval is unbounded.
    """
    value = top.value / bottom.value
    t = quantile((1 + level) / 2, satterthwaite([top, scaled(bottom, value)]))
    # Relative to the bottom: (value - R)^2 = t^2 (v + R^2 w).
    v, w = (t * top.stderr / bottom.value) ** 2, (t * bottom.stderr / bottom.value) ** 2
    # Not `w >= 1`: a spread that is not known makes it NaN.
    if not w < 1 or not math.isfinite(v):
        return Estimate(value=value, low=None, high=None)
    half = math.sqrt(v * (1 - w) + value**2 * w)
    return Estimate(value=value, low=(value - half) / (1 - w), high=(value + half) / (1 - w))
