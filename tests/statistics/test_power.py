"""Sample sizes are those of the formulas and of statsmodels; a bill is paid back when the savings add up to it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouleboard.estimates import Estimate
from jouleboard.statistics import paired, power
from jouleboard.statistics.measured import Measured
from jouleboard.statistics.paired import Counts
from jouleboard.statistics.power import Traffic


def exact(value: float, stderr: float = 0.0, dof: float = math.inf) -> Measured:
    return Measured(value=value, stderr=stderr, dof=dof)


# --- items --------------------------------------------------------------------------------------------------------------


def test_the_items_of_a_hand_worked_example() -> None:
    # (1.644854 sqrt(0.08) + 0.841621 sqrt(0.08 - 0.0001))^2 / 0.01^2 = (0.465235 + 0.237896)^2 / 0.0001 = 4943.9 items.
    assert power.items_for(0.01, discordance=0.08) == 4944
    # No loss at a margin of a point: (1.644854 sqrt(0.08 - 0.0001) + 0.841621 sqrt(0.08))^2 / 0.0001.
    expected = (1.6448536 * math.sqrt(0.0799) + 0.8416212 * math.sqrt(0.08)) ** 2 / 1e-4
    assert power.items_for(0.0, discordance=0.08, margin=0.01) == math.ceil(expected)


@given(st.floats(0.1, 0.5), st.integers(100, 100_000))
def test_the_least_difference_seen_is_what_those_items_are_for(discordance: float, n: int) -> None:
    least = power.detectable(n, discordance)
    assert least is not None
    needed = power.items_for(least, discordance=discordance)
    assert needed is not None
    assert needed == pytest.approx(n, abs=1.01)


@given(st.floats(0.1, 0.3), st.integers(100, 10_000))
def test_more_items_see_smaller_differences(discordance: float, n: int) -> None:
    few, many = power.detectable(n, discordance), power.detectable(4 * n, discordance)
    assert few is not None
    assert many is not None
    assert many < few
    # By the square root, but for the second moment of the difference itself.
    assert many == pytest.approx(few / 2, rel=0.2)


@pytest.mark.parametrize(("n", "discordance"), [(10, 0.05), (0, 0.1), (100, 0.0), (100, 1.5)])
def test_where_not_even_the_largest_difference_would_be_seen_there_is_none(n: int, discordance: float) -> None:
    assert power.detectable(n, discordance) is None


def test_no_number_of_items_shows_what_is_not_so() -> None:
    assert power.items_for(0.0, discordance=0.08) is None
    assert power.items_for(-0.01, discordance=0.08, margin=0.01) is None
    assert power.items_for(0.1, discordance=0.08) is None, "more is gained than differs"
    assert power.items_for(1e-5, discordance=0.08) is None, "more than anybody would measure"


@settings(max_examples=50)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 9))
def test_the_statistic_of_more_items_of_the_same_kind_grows_with_their_square_root(lost: int, gained: int, factor: int) -> None:
    one = Counts(lost=lost, gained=gained, n=200)
    more = Counts(lost=factor * lost, gained=factor * gained, n=factor * 200)
    assert paired.score(more, -0.01) == pytest.approx(math.sqrt(factor) * paired.score(one, -0.01), rel=1e-9)


def test_more_items_are_those_that_lift_the_statistic_to_both_quantiles() -> None:
    # z = 1 at 100 items: (1.644854 + 0.841621)^2 = 6.1826 times as many.
    p = 0.15865525393145707
    assert power.more_items(100, p, alpha=0.05) == 619
    assert power.more_items(100, 0.5, alpha=0.05) is None
    assert power.more_items(100, 1.0, alpha=0.05) is None
    assert power.more_items(100, 0.0, alpha=0.05) is None
    assert power.more_items(100, 0.4999, alpha=0.05) is None, "more than anybody would measure"


# --- trials -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [0.4, 0.8, 1.5, 2.5])
@pytest.mark.parametrize("alpha", [0.05, 0.025, 0.005])
def test_the_trials_are_those_of_statsmodels(effect: float, alpha: float) -> None:
    from statsmodels.stats.power import TTestIndPower

    expected = TTestIndPower().solve_power(effect_size=effect, alpha=alpha, power=0.8, alternative="larger")
    found = power.trials_for(0.02 * effect, spread=0.02, alpha=alpha)
    # By the non-central t there, by two quantiles of the central one here.
    assert found == pytest.approx(max(3, math.ceil(expected)), abs=1)


def test_no_number_of_trials_shows_what_is_not_so() -> None:
    assert power.trials_for(0.0, spread=0.02) is None
    assert power.trials_for(-0.1, spread=0.02) is None
    assert power.trials_for(1e-6, spread=0.02) is None
    assert power.trials_for(0.5, spread=0.001) == 3, "fewer have no interval"


# --- paying back --------------------------------------------------------------------------------------------------------


def test_a_bill_is_paid_back_when_the_savings_add_up_to_it() -> None:
    # 400 J at 0.4 J a request; the saving's 95 % interval is 0.4 +- 1.96 x 0.05 (3-4-5), the bill is known.
    found = power.breakeven(bill=exact(400), base=exact(1.6, 0.03), variant=exact(1.2, 0.04))
    assert found is not None
    half = 1.959964 * 0.05
    assert (found.value, found.low, found.high) == pytest.approx((1000, 400 / (0.4 + half), 400 / (0.4 - half)), rel=1e-6)


def test_a_bill_with_a_spread_of_its_own_widens_the_interval() -> None:
    known, not_known = (power.breakeven(bill=bill, base=exact(1.6, 0.03), variant=exact(1.2, 0.04))
                        for bill in (exact(400), exact(400, 30, 4)))
    assert known is not None
    assert not_known is not None
    assert not_known.low is not None
    assert known.low is not None
    assert not_known.high is not None
    assert known.high is not None
    assert not_known.low < known.low < known.high < not_known.high


def test_a_saving_that_may_be_zero_has_no_upper_bound() -> None:
    found = power.breakeven(bill=exact(400), base=exact(1.6, 0.3), variant=exact(1.2, 0.4))
    assert found is not None
    assert found.low == pytest.approx(400 / (0.4 + 1.959964 * 0.5), rel=1e-6)
    assert found.high is None


def test_costs_of_unknown_spread_leave_no_bounds() -> None:
    unknown = Measured(value=1.2, stderr=math.inf, dof=0.0)
    assert power.breakeven(bill=exact(400), base=exact(1.6, 0.03), variant=unknown) == Estimate(
        value=pytest.approx(1000), low=None, high=None)


def test_a_bill_that_saves_nothing_is_never_paid_back() -> None:
    assert power.breakeven(bill=exact(400), base=exact(1.2, 0.03), variant=exact(1.2, 0.04)) is None
    assert power.breakeven(bill=exact(400), base=exact(1.2, 0.03), variant=exact(1.6, 0.04)) is None


def test_no_bill_is_paid_back_at_once() -> None:
    assert power.breakeven(bill=exact(0), base=exact(1.6, 0.03), variant=exact(1.2, 0.04)) == Estimate(value=0, low=0, high=0)


@given(st.sampled_from([2.0, 3600.0, 1e-6]))
def test_a_unit_of_cost_changes_no_break_even(factor: float) -> None:
    before, after = (power.breakeven(bill=exact(400 * by, 10 * by, 4), base=exact(1.6 * by, 0.03 * by, 4),
                                     variant=exact(1.2 * by, 0.04 * by, 4)) for by in (1.0, factor))
    assert before is not None
    assert after is not None
    assert (after.value, after.low, after.high) == pytest.approx((before.value, before.low, before.high), rel=1e-9)


def traffic(**overrides: float) -> Traffic:
    return Traffic(**{"requests_per_day": 500.0, "idle": 0.0, "base_s": 2.0, "variant_s": 1.5} | overrides)


def test_days_are_requests_over_what_a_day_brings() -> None:
    found = power.breakeven_days(bill=exact(400), base=exact(1.6, 0.03), variant=exact(1.2, 0.04), traffic=traffic())
    requests = power.breakeven(bill=exact(400), base=exact(1.6, 0.03), variant=exact(1.2, 0.04))
    assert found is not None
    assert requests is not None
    for name in ("value", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(requests, name) / 500)


def test_a_device_that_is_never_off_idles_in_the_time_that_is_won() -> None:
    # Half a second won at 0.2 W is 0.1 J of idling: 0.3 J are saved a request, and 400 J take 1,333 of them.
    found = power.breakeven_days(bill=exact(400), base=exact(1.6, 0.03), variant=exact(1.2, 0.04), traffic=traffic(idle=0.2))
    assert found is not None
    assert found.value == pytest.approx(400 / 0.3 / 500)
    # The whole day by hand: requests, and idling for the rest of its seconds.
    day = {side: 500 * cost + 0.2 * (86_400 - 500 * busy) for side, cost, busy in (("base", 1.6, 2.0), ("variant", 1.2, 1.5))}
    assert found.value == pytest.approx(400 / (day["base"] - day["variant"]))


def test_a_faster_variant_that_only_shifts_work_to_idling_saves_nothing() -> None:
    assert power.breakeven_days(bill=exact(400), base=exact(1.6, 0.03), variant=exact(1.2, 0.04), traffic=traffic(idle=0.8)) is None


@pytest.mark.parametrize("requests", [0.0, -1.0, 43_201.0])
def test_traffic_that_one_of_both_cannot_serve_has_no_days(requests: float) -> None:
    assert power.breakeven_days(bill=exact(400), base=exact(1.6, 0.03), variant=exact(1.2, 0.04),
                                traffic=traffic(requests_per_day=requests)) is None
