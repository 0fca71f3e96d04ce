"""Means, shares, costs and ratios have the intervals that SciPy and statsmodels give, and those of the definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from jouleboard import scores
from jouleboard.estimates import Estimate
from jouleboard.statistics import intervals
from jouleboard.statistics.measured import Measured, satterthwaite, scaled, total

NUMBERS = st.lists(st.floats(0.01, 1), min_size=3, max_size=40).filter(lambda values: max(values) - min(values) > 1e-3)
COSTS = st.lists(st.floats(0.5, 2), min_size=3, max_size=10, unique=True).filter(lambda values: max(values) - min(values) > 1e-2)
FACTORS = st.sampled_from([2.0, 1000.0, 1 / 3600, 1e-9])


def measured(value: float, stderr: float, dof: float = math.inf) -> Measured:
    return Measured(value=value, stderr=stderr, dof=dof)


def bounds(found: Estimate | None) -> tuple[float, float]:
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


# --- means and shares of items ------------------------------------------------------------------------------------------


@given(NUMBERS)
def test_a_mean_of_items_has_the_t_interval_of_scipy(values: list[float]) -> None:
    found = intervals.clustered_mean(values)
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert bounds(found.limits()) == pytest.approx(expected, abs=1e-10)
    assert found.above(0.5) == pytest.approx(stats.ttest_1samp(values, 0.5, alternative="greater").pvalue, abs=1e-10)
    assert found.below(0.5) == pytest.approx(stats.ttest_1samp(values, 0.5, alternative="less").pvalue, abs=1e-10)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=6, max_size=60).filter(
    lambda rows: len({cluster for _, cluster in rows}) > 1))
def test_the_standard_error_of_clusters_is_that_of_statsmodels(rows: list[tuple[float, int]]) -> None:
    from statsmodels.api import OLS

    values, clusters = [value for value, _ in rows], [cluster for _, cluster in rows]
    fitted = OLS(values, np.ones(len(rows))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    found = intervals.clustered_mean(values, [str(one) for one in clusters])
    assert found.value == pytest.approx(fitted.params[0], abs=1e-10)
    assert found.stderr == pytest.approx(fitted.bse[0], abs=1e-8)


def test_clusters_of_one_size_have_one_degree_of_freedom_less_than_they_are() -> None:
    assert intervals.clustered_mean([0.0, 1.0, 0.0, 0.5, 1.0, 1.0], list("aabbcc")).dof == pytest.approx(2)


def test_a_large_cluster_leaves_fewer_degrees_of_freedom() -> None:
    # 8 + 1 + 1 items: 10^2 / (64 + 1 + 1) = 1.52 clusters of one size, but never less than one degree of freedom.
    assert intervals.effective(np.array([8.0, 1.0, 1.0])) == pytest.approx(100 / 66)
    assert intervals.clustered_mean([float(i % 3) for i in range(10)], ["a"] * 8 + ["b", "c"]).dof == 1


def test_items_that_share_nothing_are_clusters_of_one() -> None:
    values = [0.0, 1.0, 1.0, 0.25]
    assert intervals.clustered_mean(values, ["a", "b", "c", "d"]) == intervals.clustered_mean(values)


def test_one_item_or_one_source_has_no_interval() -> None:
    assert intervals.clustered_mean([0.4]).limits() == Estimate(value=0.4, low=None, high=None)
    one = intervals.clustered_mean([0.0, 1.0], ["a", "a"])
    assert one.limits() == Estimate(value=0.5, low=None, high=None)
    assert (one.above(-1), one.below(2)) == (1.0, 1.0)
    assert intervals.share([0.0, 1.0], ["a", "a"]).low is None


@given(st.integers(1, 400), st.data())
def test_a_share_has_the_wilson_interval_of_statsmodels(n: int, data: st.DataObject) -> None:
    from statsmodels.stats.proportion import proportion_confint

    right = data.draw(st.integers(0, n))
    found = intervals.share([1.0] * right + [0.0] * (n - right))
    assert bounds(found) == pytest.approx(proportion_confint(right, n, method="wilson"), abs=1e-10)


@pytest.mark.parametrize(("n", "least"), [(50, 0.92), (300, 0.94)])
def test_wilsons_interval_holds_95_percent_on_average_over_shares_and_never_much_less(n: int, least: float) -> None:
    # Exactly, from the binomial distribution: it goes up and down with the share (Brown, Cai and DasGupta 2001).
    limits = np.array([bounds(intervals.share([1.0] * right + [0.0] * (n - right))) for right in range(n + 1)])
    held = [float(stats.binom.pmf(np.arange(n + 1), n, p)[(limits[:, 0] <= p) & (limits[:, 1] >= p)].sum())
            for p in np.arange(0.3, 0.99, 0.01)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.002)
    assert min(held) > least


def test_a_share_over_clusters_counts_as_few_independent_items() -> None:
    # 40 clusters of 5 items that are all right or all wrong: as much as 40 items. The sample variance is 40 / 39 of that of a share,
    # and 199 / 200 of the variance of items alone. Ten clusters are wrong, which leaves nine degrees of freedom.
    values, clusters = [float(place // 5 % 4 != 0) for place in range(200)], [str(place // 5) for place in range(200)]
    n = 200 / intervals.design_effect(values, clusters)
    assert n == pytest.approx(40 * 39 / 40 * 200 / 199, rel=1e-9)
    low, high = bounds(intervals.share(values, clusters))
    assert (low, high) == pytest.approx(scores.wilson(0.75, n, float(stats.t.ppf(0.975, 9))), abs=1e-10)


def test_a_share_of_all_over_clusters_is_that_of_the_clusters() -> None:
    low, _ = bounds(intervals.share([1.0] * 30, [str(place // 3) for place in range(30)]))
    assert low == pytest.approx(scores.wilson(1.0, 10, float(stats.t.ppf(0.975, 9)))[0], abs=1e-10)


# --- costs --------------------------------------------------------------------------------------------------------------


@given(COSTS, COSTS)
def test_the_log_ratio_of_costs_is_welchs_t_of_scipy(mine: list[float], theirs: list[float]) -> None:
    found = intervals.log_ratio(mine, theirs)
    assert found is not None
    expected = stats.ttest_ind(np.log(mine), np.log(theirs), equal_var=False)
    assert found.dof == pytest.approx(expected.df, rel=1e-9)
    assert bounds(found.limits()) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9, abs=1e-10)
    assert found.below(0.0) == pytest.approx(
        stats.ttest_ind(np.log(mine), np.log(theirs), equal_var=False, alternative="less").pvalue, abs=1e-10)


@given(COSTS, COSTS)
def test_the_log_ratio_of_costs_is_that_of_statsmodels(mine: list[float], theirs: list[float]) -> None:
    from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

    found = intervals.log_ratio(mine, theirs)
    assert found is not None
    compared = CompareMeans(DescrStatsW(np.log(mine)), DescrStatsW(np.log(theirs)))
    assert bounds(found.limits()) == pytest.approx(compared.tconfint_diff(usevar="unequal"), rel=1e-9, abs=1e-10)


@given(COSTS, COSTS, FACTORS)
def test_a_unit_changes_no_ratio_of_costs(mine: list[float], theirs: list[float], factor: float) -> None:
    before, after = intervals.cost_ratio(mine, theirs), intervals.cost_ratio([factor * a for a in mine], [factor * b for b in theirs])
    assert before is not None
    assert after is not None
    assert after.value == pytest.approx(before.value, rel=1e-9)
    assert bounds(after) == pytest.approx(bounds(before), rel=1e-6)


@given(COSTS, COSTS)
def test_swapping_the_sides_inverts_the_ratio_of_costs(mine: list[float], theirs: list[float]) -> None:
    low, high = bounds(intervals.cost_ratio(mine, theirs))
    assert bounds(intervals.cost_ratio(theirs, mine)) == pytest.approx((1 / high, 1 / low), rel=1e-9)


@pytest.mark.parametrize(("mine", "theirs"), [
    ([], [1.0, 1.1, 1.2]), ([1.0, None, 1.2], [1.0, 1.1, 1.2]), ([1.0, 0.0, 1.2], [1.0, 1.1, 1.2]),
    ([1.0, 1.1, 1.2], [-1.0, 1.1, 1.2]), ([1.0, math.inf, 1.2], [1.0, 1.1, 1.2]), ([math.nan, 1.0, 1.2], [1.0, 1.1, 1.2]),
])
def test_a_trial_without_a_cost_above_zero_leaves_no_ratio(mine: Sequence[float | None], theirs: Sequence[float | None]) -> None:
    assert intervals.log_ratio(mine, theirs) is None
    assert intervals.cost_ratio(mine, theirs) is None


def test_trials_that_are_all_the_same_have_a_ratio_without_bounds() -> None:
    assert intervals.cost_ratio([2.0] * 5, [4.0] * 5) == Estimate(value=0.5, low=None, high=None)
    assert intervals.costs_mean([2.0] * 5).limits() == Estimate(value=2.0, low=None, high=None)
    # One side's spread is known: its own degrees of freedom count.
    found = intervals.log_ratio([2.0] * 5, [4.0, 4.1, 4.2])
    assert found is not None
    assert found.dof == pytest.approx(2)


def test_costs_at_the_end_of_the_floats_have_no_false_interval() -> None:
    wide = intervals.cost_ratio([1e300, 1e-300, 1.0], [1.0, 1.1, 1.2])
    assert wide == Estimate(value=pytest.approx(1e300 / 3.3), low=None, high=None)
    assert intervals.cost_ratio([1e308] * 3, [1e-308, 2e-308, 3e-308]) is None


# --- quality per cost ---------------------------------------------------------------------------------------------------

QUALITIES = st.builds(measured, st.floats(-0.5, 1), st.floats(1e-4, 0.4), st.sampled_from([4.0, 49.0, math.inf]))
SPENT = st.builds(measured, st.floats(0.5, 2), st.floats(1e-4, 0.02), st.sampled_from([2.0, 4.0, 9.0]))


def test_quality_per_cost_of_a_hand_worked_example() -> None:
    # Relative errors 0.02 / 0.5 = 4 % (49 degrees of freedom) and 0.06 / 2 = 3 % (4): together 5 % of 0.25.
    # Satterthwaite: 0.05^4 / (0.04^4 / 49 + 0.03^4 / 4) = 6.25e-6 / (5.2245e-8 + 2.025e-7) = 24.534 degrees of freedom.
    found = intervals.per_cost(measured(0.5, 0.02, 49), measured(2.0, 0.06, 4))
    assert satterthwaite([measured(0, 0.04, 49), measured(0, 0.03, 4)]) == pytest.approx(24.534, abs=1e-3)
    # t(0.975) of 24.534 is 2.0615 (24: 2.0639, 25: 2.0595): 0.25 x exp(+-2.0615 x 0.05) = 0.25 x exp(+-0.10308).
    assert bounds(found) == pytest.approx((0.25 * math.exp(-0.10308), 0.25 * math.exp(0.10308)), abs=2e-5)


@given(QUALITIES, SPENT)
def test_mover_of_symmetric_intervals_is_fiellers(quality: Measured, cost: Measured) -> None:
    # With normal intervals of the same quantile on both sides MOVER's equation is Fieller's.
    plain = [measured(one.value, one.stderr) for one in (quality, cost)]
    found, expected = intervals.mover_ratio(plain[0].limits(), plain[1].limits()), intervals.fieller(*plain)
    assert bounds(found) == pytest.approx(bounds(expected), rel=1e-7, abs=1e-10)


@given(QUALITIES, SPENT)
def test_fiellers_ends_are_where_the_contrast_is_just_significant(quality: Measured, cost: Measured) -> None:
    found = intervals.fieller(quality, cost)
    t = stats.t.ppf(0.975, satterthwaite([quality, scaled(cost, found.value)]))
    for end in bounds(found):
        assert (quality.value - end * cost.value) ** 2 == pytest.approx(
            t**2 * (quality.stderr**2 + end**2 * cost.stderr**2), rel=1e-6, abs=1e-12)


@given(st.floats(-1, 1), st.floats(1e-3, 0.5), st.floats(1e-3, 0.5), st.floats(0.5, 2), st.floats(1e-3, 0.4), st.floats(1e-3, 3))
def test_movers_ends_are_where_the_limits_of_the_contrast_are_zero(
    top: float, below: float, above: float, bottom: float, less: float, more: float
) -> None:
    low, high = bounds(intervals.mover_ratio(Estimate(value=top, low=top - below, high=top + above),
                                             Estimate(value=bottom, low=bottom - less, high=bottom + more)))

    def lower(ratio: float) -> float:
        """Lower limit of top - ratio x bottom by Zou and Donner 2008."""
        return top - ratio * bottom - math.hypot(below, ratio * (more if ratio > 0 else less))

    def upper(ratio: float) -> float:
        return top - ratio * bottom + math.hypot(above, ratio * (less if ratio > 0 else more))

    # The scale of both is that of top and bottom, about 1.
    assert lower(low) == pytest.approx(0, abs=1e-9)
    assert upper(high) == pytest.approx(0, abs=1e-9)
    assert low <= top / bottom <= high
    # Independently: the root that SciPy finds nearest to the ratio.
    assert low == pytest.approx(optimize.brentq(lower, -1e4, top / bottom, xtol=1e-12), rel=1e-6, abs=1e-9)


@given(QUALITIES, SPENT, FACTORS)
def test_a_unit_of_cost_divides_the_ratio_and_its_bounds(quality: Measured, cost: Measured, factor: float) -> None:
    before, after = intervals.per_cost(quality, cost), intervals.per_cost(quality, scaled(cost, factor))
    assert before is not None
    assert after is not None
    assert after.value == pytest.approx(before.value / factor, rel=1e-9)
    assert (after.low is None) == (before.low is None)
    if before.low is not None:
        assert bounds(after) == pytest.approx(tuple(end / factor for end in bounds(before)), rel=1e-6, abs=1e-9 / factor)


def test_a_quality_that_may_be_negative_has_a_negative_lower_bound() -> None:
    low, high = bounds(intervals.per_cost(measured(0.02, 0.02), measured(1.0, 0.01, 4)))
    assert low < 0 < high


def test_a_quality_of_zero_has_bounds_on_both_sides() -> None:
    low, high = bounds(intervals.per_cost(measured(0.0, 0.02), measured(1.0, 0.01, 4)))
    assert low == pytest.approx(-high)
    none = Estimate(value=0, low=0, high=0)
    assert intervals.mover_ratio(none, Estimate(value=1, low=0.9, high=1.1)) == none


def test_wilsons_bounds_enter_by_mover() -> None:
    share = intervals.share([1.0] * 45 + [0.0] * 5)
    low, high = bounds(intervals.per_cost(intervals.clustered_mean([1.0] * 45 + [0.0] * 5), measured(2.0, 1e-9, 4), bounds=share))
    assert (low, high) == pytest.approx(tuple(end / 2 for end in bounds(share)), rel=1e-6)


@pytest.mark.parametrize("cost", [
    measured(0.0, 0.01, 4), measured(-1.0, 0.01, 4), measured(math.inf, 0.01, 4), measured(5e-324, 0.0, 4)])
def test_a_cost_that_divides_nothing_has_no_ratio(cost: Measured) -> None:
    assert intervals.per_cost(measured(0.5, 0.02), cost) is None


@pytest.mark.parametrize("cost", [measured(1.0, 0.5, 2), measured(1.0, math.inf, 0)])
def test_a_cost_that_may_be_zero_leaves_the_ratio_without_bounds(cost: Measured) -> None:
    for quality in (measured(0.5, 0.2), measured(-0.5, 0.2)):
        assert intervals.per_cost(quality, cost) == Estimate(value=quality.value, low=None, high=None)
    assert intervals.fieller(measured(0.5, 0.02), cost).low is None


def test_a_factor_that_no_float_holds_leaves_no_bounds() -> None:
    assert intervals.log_delta(measured(1.0, 1.0, 1), measured(1e-3, 0.5, 1)) == Estimate(value=1000.0, low=None, high=None)


# --- a value with its standard error ------------------------------------------------------------------------------------


def test_an_exact_value_is_its_own_interval() -> None:
    one = measured(2.0, 0.0)
    assert one.limits() == Estimate(value=2.0, low=2.0, high=2.0)
    assert (one.above(1.0), one.above(2.0), one.below(1.0)) == (0.0, 1.0, 1.0)


def test_sums_add_variances_and_lose_no_digits_at_the_ends_of_the_floats() -> None:
    found = total([measured(1.0, 3e200, 4), measured(2.0, 4e200, 4)])
    assert (found.value, found.stderr, found.dof) == (3.0, pytest.approx(5e200), pytest.approx(625 / (81 + 256) * 4))
    assert total([measured(1.0, 0.0), measured(2.0, 0.0)]).dof == math.inf
    assert total([measured(1.0, 0.1, 0), measured(2.0, 0.1, 4)]).limits().low is None
