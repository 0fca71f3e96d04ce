"""How many items or trials would decide, what a number of items can detect, and when a compression bill is paid back. No I/O here.

Example: of 1,000 items on which the two sides differ in 8 of 100, what loss is seen in 4 of 5 cases, and how many would show a point::

    detectable(1000, 0.08)                 # 0.022: 2.2 points
    items_for(0.01, discordance=0.08)      # 4,943
"""

from __future__ import annotations

import math

from scipy import optimize, special

from jouleboard import costs
from jouleboard.declared import Noun
from jouleboard.estimates import Estimate
from jouleboard.statistics.evidence import LEVEL
from jouleboard.statistics.intervals import mover_lower, mover_ratio
from jouleboard.statistics.measured import Measured, quantile, scaled, total

POWER = 0.8
MOST_ITEMS = 1_000_000
MOST_TRIALS = 1_000
"""More than anybody would measure: then no number is given."""


def items_for(
    difference: float, *, discordance: float, margin: float = 0.0, alpha: float = LEVEL, power: float = POWER
) -> int | None:
    """Return the independent items that show a paired difference one-sided (Miettinen 1968; Connor 1987).

    Args:
        difference: the true one, variant less base; above `-margin`.
        discordance: share of items on which the two sides differ.
        margin: loss that still counts as none: what is shown is a difference above `-margin`.
        alpha: level of the test.
        power: probability that it succeeds.

    Returns:
        None where no number would, or more than `MOST_ITEMS`.
    """
    gap = difference + margin
    if gap <= 0 or discordance < abs(difference):
        return None
    # Under the bound itself at least `margin` of the items differ.
    spread = _z(alpha) * math.sqrt(max(discordance, margin) - margin**2) + _z(1 - power) * math.sqrt(discordance - difference**2)
    n = math.ceil((spread / gap) ** 2)
    return max(n, 1) if n <= MOST_ITEMS else None


def detectable(n: float, discordance: float, *, alpha: float = LEVEL, power: float = POWER) -> float | None:
    """Return the least paired difference that n independent items show one-sided; None where not even the largest would be seen.

    Args:
        n: items; of those in clusters, their number over the design effect.
        discordance: share of items on which the two sides differ, which no difference exceeds.
        alpha: level of the test.
        power: probability that it succeeds.
    """
    def short(difference: float) -> float:
        return (_z(alpha) * math.sqrt(discordance) + _z(1 - power) * math.sqrt(max(0.0, discordance - difference**2))
                - difference * math.sqrt(n))

    if not 0 < discordance <= 1 or n <= 0 or short(discordance) > 0:
        return None
    return float(optimize.brentq(short, 0.0, discordance))


def more_items(n: int, p_value: float, *, alpha: float, power: float = POWER) -> int | None:
    """Return the items with which a one-sided test succeeds at the difference that n items showed.

    The statistic of every test here grows with the square root of the items, so what it was says what it would be.

    Returns:
        None where the difference points the other way, or more than `MOST_ITEMS` would be needed.
    """
    seen = _z(p_value) if 0 < p_value < 1 else 0.0
    if seen <= 0:
        return None
    needed = n * ((_z(alpha) + _z(1 - power)) / seen) ** 2
    return max(n + 1, math.ceil(needed)) if needed <= MOST_ITEMS else None


def trials_for(gap: float, *, spread: float, alpha: float = LEVEL, power: float = POWER) -> int | None:
    """Return the trials of each side that show a difference of log costs one-sided.

    Args:
        gap: how far the true difference is from the bound, above zero.
        spread: standard deviation of the logarithm of one trial.
        alpha: level of the test.
        power: probability that it succeeds.

    Returns:
        None where no number up to `MOST_TRIALS` would.
    """
    if gap <= 0:
        return None
    for trials in range(costs.LEAST_REPEATS, MOST_TRIALS + 1):
        dof = 2.0 * trials - 2
        if gap >= (quantile(1 - alpha, dof) + quantile(power, dof)) * spread * math.sqrt(2 / trials):
            return trials
    return None


def _z(tail: float) -> float:
    """Return the normal point above which `tail` lies."""
    return -float(special.ndtri(tail))


class Traffic(Noun, frozen=True, kw_only=True):
    """What a deployment serves, on a device that is never switched off."""

    requests_per_day: float
    idle: float
    """Cost of a second without work: watts, or zero on CPU-time boards."""
    base_s: float
    """How long a request keeps the device busy."""
    variant_s: float


SECONDS_PER_DAY = 86_400
_ROUNDING = 1e-12


def breakeven(*, bill: Measured, base: Measured, variant: Measured) -> Estimate | None:
    """Return after how many requests a compression bill is paid back.

    The interval is that of a ratio by MOVER; it has no upper bound where the saving may be zero, and no bounds where the spread of
    the costs is not known. Of three trials a side it is a little wider than nominal (97 %).

    Args:
        bill: what compressing cost; with a standard error of zero where it was measured once.
        base: cost of one request of the base, in the same unit.
        variant: of the variant.

    Returns:
        None where the variant saves nothing: the bill is never paid back.
    """
    return _paid(bill, total([base, scaled(variant, -1)]), scale=base.value)


def breakeven_days(*, bill: Measured, base: Measured, variant: Measured, traffic: Traffic) -> Estimate | None:
    """Return after how many days a bill is paid back at a stated traffic, idle time included.

    A faster variant leaves more of the day idle, so each request saves its cost less that of idling in the time that it wins.

    Returns:
        None where nothing is saved, or one of the two cannot serve that many requests a day.
    """
    if not 0 < traffic.requests_per_day * max(traffic.base_s, traffic.variant_s) <= SECONDS_PER_DAY:
        return None
    idling = traffic.idle * (traffic.base_s - traffic.variant_s)
    saving = total([base, scaled(variant, -1), Measured(value=-idling, stderr=0.0, dof=math.inf)])
    return _paid(bill, scaled(saving, traffic.requests_per_day), scale=base.value * traffic.requests_per_day)


def _paid(bill: Measured, saving: Measured, *, scale: float) -> Estimate | None:
    # A difference of equal costs is rounding, and no saving.
    if saving.value <= _ROUNDING * scale:
        return None
    top, bottom = bill.limits(), saving.limits()
    found = mover_ratio(top, bottom)
    return found if found.low is not None else Estimate(value=found.value, low=mover_lower(top, bottom), high=None)
