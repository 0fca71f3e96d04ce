"""Joules as carbon, cost and requests per battery charge, by declared factors: views for readers, never an order. Pure.

Example: at 481 g of CO2 a kilowatt-hour, a request of 360 J stands for 0.0481 g, and a phone's 15.4 Wh hold 154 of them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from jouleboard.declared import Id, Noun
from jouleboard.estimates import Estimate

JOULES_A_WH = 3600.0
JOULES_A_KWH = 3.6e6
Above = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Year = Annotated[int, msgspec.Meta(ge=2000, le=2100)]
Words = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]


class Carbon(Noun, frozen=True, kw_only=True):
    """What a kilowatt-hour emits."""

    value: Above
    unit: Literal["g/kWh"]
    year: Year
    source: Words


class Price(Noun, frozen=True, kw_only=True):
    """What a kilowatt-hour costs."""

    value: Above
    unit: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}/kWh$")]
    year: Year
    source: Words

    @property
    def currency(self) -> str:
        """ISO 4217 code."""
        return self.unit.partition("/")[0]


class Battery(Noun, frozen=True, kw_only=True):
    """What one charge holds."""

    id: Id
    title: Words
    capacity_wh: Above
    source: Words


class Factors(Noun, frozen=True, kw_only=True):
    """A declared set of factors, a YAML file of `suite/factors`."""

    id: Id
    title: Words
    description: str
    carbon: Carbon
    price: Price
    batteries: Annotated[tuple[Battery, ...], msgspec.Meta(min_length=1)]


class Worth(Noun, frozen=True, kw_only=True):
    """A thousand requests by the declared factors; no part of any rank."""

    carbon_g: Estimate
    """Of CO2 equivalents, for 1,000 requests."""
    price: Estimate
    """For 1,000 requests, in the currency of the factors."""
    requests_per_charge: dict[str, Estimate]
    """By battery. The whole charge goes into requests: a device that also waits holds fewer."""


def worth(energy_j: Estimate, factors: Factors) -> Worth:
    """Express what requests cost in joules.

    Args:
        energy_j: of one request, above zero.
        factors: the declared ones.
    """
    return Worth(
        carbon_g=scaled(energy_j, 1000 * factors.carbon.value / JOULES_A_KWH),
        price=scaled(energy_j, 1000 * factors.price.value / JOULES_A_KWH),
        requests_per_charge={one.id: inverse(energy_j, one.capacity_wh * JOULES_A_WH) for one in factors.batteries},
    )


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """Multiply by an exact factor above zero."""
    return Estimate(value=estimate.value * factor, low=None if estimate.low is None else estimate.low * factor,
                    high=None if estimate.high is None else estimate.high * factor)


def inverse(estimate: Estimate, numerator: float) -> Estimate:
    """Divide an exact number by an estimate above zero: the bounds change places; one that is not above zero bounds nothing."""
    bounds = [None if bound is None or bound <= 0 else numerator / bound for bound in (estimate.high, estimate.low)]
    return Estimate(value=numerator / estimate.value, low=bounds[0], high=bounds[1])
