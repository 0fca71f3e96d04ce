"""Joules as carbon, cost and charges, by hand; and that factors move nothing but these."""

from __future__ import annotations

import pytest

from jouleboard import catalogue, rank
from jouleboard.estimates import Estimate
from jouleboard.factors import Factors, inverse, worth
from tests import factory

WORLD = catalogue.load("factors", "world", Factors)


def test_a_request_of_360_joules_by_hand() -> None:
    """0.1 Wh: 481 g/kWh make 0.0481 g each; 0.16 USD/kWh make 0.016 USD for a thousand; 15.4 Wh hold 154."""
    found = worth(Estimate(value=360.0, low=324.0, high=400.0), WORLD)
    assert found.carbon_g.value == pytest.approx(48.1, rel=1e-12)
    assert found.price.value == pytest.approx(0.016, rel=1e-12)
    phone = found.requests_per_charge["phone"]
    assert (phone.value, phone.low, phone.high) == pytest.approx((154.0, 138.6, 15.4 * 3600 / 324), rel=1e-12)


def test_energy_that_may_be_nothing_leaves_the_charges_without_an_upper_bound() -> None:
    assert inverse(Estimate(value=2.0, low=0.0, high=4.0), 8.0) == Estimate(value=4.0, low=2.0, high=None)


def test_factors_change_no_rank_and_no_verdict() -> None:
    entries = factory.serving_family()
    plain, shown = rank.boards(entries), rank.boards(entries, factors=WORLD)
    assert [[(row.entry, row.rank, row.tier, row.verdict) for row in board.ranked] for board in plain] == [
        [(row.entry, row.rank, row.tier, row.verdict) for row in board.ranked] for board in shown]
    assert all(row.worth is None for board in plain for row in board.ranked)
    assert any(row.worth is not None for board in shown for row in board.ranked)


def test_declared_factors_name_their_sources() -> None:
    assert WORLD.carbon.source
    assert WORLD.price.source
    assert WORLD.price.currency == "USD"
    assert len({battery.id for battery in WORLD.batteries}) == len(WORLD.batteries)
