"""A value with its standard error and the degrees of freedom of that: what intervals and p-values are made of. No I/O here.

Example: the logarithm of a cost ratio from five trials of each side::

    found = Measured(value=-0.26, stderr=0.011, dof=7.4)
    found.limits()       # Estimate(value=-0.26, low=-0.286, high=-0.234): Student's t
    found.below(0.0)     # 1e-7: one-sided p-value of "the variant costs no less"
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special

from jouleboard.costs import LEVEL
from jouleboard.declared import Noun
from jouleboard.estimates import Estimate


class Measured(Noun, frozen=True, kw_only=True):
    """An estimate that is normal about the truth, by a standard error that has degrees of freedom of its own."""

    value: float
    stderr: float
    """Infinite where a sample says nothing of its own spread."""
    dof: float
    """Infinite where the standard error is as good as known."""

    def limits(self, level: float = LEVEL) -> Estimate:
        """Return Student's t interval; without bounds where there is no standard error, or no float holds them."""
        half = quantile((1 + level) / 2, self.dof) * self.stderr
        low, high = self.value - half, self.value + half
        if not (math.isfinite(low) and math.isfinite(high)):
            return Estimate(value=self.value, low=None, high=None)
        return Estimate(value=self.value, low=low, high=high)

    def above(self, bound: float) -> float:
        """Return the one-sided p-value of "the truth is `bound` or less"."""
        return _tail(self.value - bound, self.stderr, self.dof)

    def below(self, bound: float) -> float:
        """Return the one-sided p-value of "the truth is `bound` or more"."""
        return _tail(bound - self.value, self.stderr, self.dof)


def _tail(distance: float, stderr: float, dof: float) -> float:
    if not math.isfinite(stderr) or dof <= 0:
        return 1.0
    if stderr == 0:
        return 0.0 if distance > 0 else 1.0
    return tail(distance / stderr, dof)


def tail(statistic: float, dof: float) -> float:
    """Return the probability that Student's t (the normal one where `dof` is infinite) is above a statistic."""
    return float(special.ndtr(-statistic) if math.isinf(dof) else special.stdtr(dof, -statistic))


def quantile(share: float, dof: float) -> float:
    """Return the point below which a share of Student's t lies; infinite where there are no degrees of freedom."""
    if dof <= 0:
        return math.inf
    return float(special.ndtri(share) if math.isinf(dof) else special.stdtrit(dof, share))


def satterthwaite(parts: Sequence[Measured]) -> float:
    """Return the degrees of freedom of a sum of independent parts (Satterthwaite 1946, Welch 1947)."""
    if any(part.dof <= 0 for part in parts):
        return 0.0
    largest = max(part.stderr for part in parts)
    if largest == 0:
        return math.inf
    # In units of the largest, so that no square overflows.
    variances = [(part.stderr / largest) ** 2 for part in parts]
    lost = math.fsum(variance**2 / part.dof for variance, part in zip(variances, parts, strict=True))
    return math.fsum(variances) ** 2 / lost if lost > 0 else math.inf


def total(parts: Sequence[Measured]) -> Measured:
    """Return the sum of independent parts."""
    return Measured(value=math.fsum(part.value for part in parts), stderr=math.hypot(*(part.stderr for part in parts)),
                    dof=satterthwaite(parts))


def scaled(one: Measured, factor: float) -> Measured:
    """Return a multiple."""
    return Measured(value=one.value * factor, stderr=one.stderr * abs(factor), dof=one.dof)
