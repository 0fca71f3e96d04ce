"""Rank intervals and frontier probabilities: textbook quantiles, brute force, and what must not change them."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jouleboard.statistics import ranking
from jouleboard.statistics.measured import Measured
from jouleboard.statistics.ranking import Ranks


def entries(values: list[float], stderr: float = 0.01, dof: float = math.inf) -> list[Measured]:
    return [Measured(value=value, stderr=stderr, dof=dof) for value in values]


@pytest.mark.parametrize("count", [2, 5, 20, 100])
def test_the_critical_value_of_known_errors_is_tukeys_studentized_range(count: int) -> None:
    expected = stats.studentized_range.ppf(0.95, count, np.inf) / math.sqrt(2)
    assert ranking.critical_value(entries([0.0] * count), draws=20_000) == pytest.approx(expected, rel=0.012)


@pytest.mark.parametrize("dof", [2.0, 4.0, 9.0])
def test_the_critical_value_of_two_entries_is_that_of_the_pooled_t_test(dof: float) -> None:
    # With as many trials on both sides Welch's statistic is the pooled one, which has twice the degrees of freedom.
    found = ranking.critical_value(entries([0.0, 1.0], dof=dof), draws=60_000)
    assert found == pytest.approx(stats.t.ppf(0.975, 2 * dof), rel=0.02)


def test_a_hand_worked_board() -> None:
    # Standard errors of 0.01 make 0.0141 of a difference; the critical value of four is 2.57 (Tukey's 3.633 / sqrt 2), so that entries
    # differ from 0.0363 on. 0.00 and 0.03 do not, 0.03 and 0.06 do not, 0.00 and 0.06 do; 1.00 is far from all.
    found = ranking.rank_intervals(entries([0.06, 0.00, 1.00, 0.03]))
    assert found == [Ranks(best=2, worst=3), Ranks(best=1, worst=2), Ranks(best=4, worst=4), Ranks(best=1, worst=3)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.randoms())
def test_the_order_of_entries_changes_no_interval(values: list[float], random: object) -> None:
    made = [Measured(value=value, stderr=0.01 * (1 + place % 3), dof=2.0 + place % 4) for place, value in enumerate(values)]
    order = list(range(len(made)))
    random.shuffle(order)  # type: ignore[attr-defined]
    before, after = ranking.rank_intervals(made), ranking.rank_intervals([made[place] for place in order])
    assert before is not None
    assert after == [before[place] for place in order]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.floats(0.001, 1))
def test_the_rank_by_value_is_inside_of_every_interval(values: list[float], stderr: float) -> None:
    found = ranking.rank_intervals(entries(values, stderr, 4.0))
    assert found is not None
    for place, one in zip(stats.rankdata(values, method="min"), found, strict=True):
        assert 1 <= one.best <= place <= one.worst <= len(values)


def test_entries_far_apart_have_their_ranks_and_equal_ones_share_them() -> None:
    assert ranking.rank_intervals(entries([3.0, 1.0, 2.0])) == [Ranks(best=3, worst=3), Ranks(best=1, worst=1), Ranks(best=2, worst=2)]
    assert ranking.rank_intervals(entries([1.0] * 3)) == [Ranks(best=1, worst=3)] * 3
    assert ranking.rank_intervals(entries([1.0, 1.0, 2.0], stderr=0.0)) == [
        Ranks(best=1, worst=2), Ranks(best=1, worst=2), Ranks(best=3, worst=3)]


def test_an_entry_of_unknown_spread_may_stand_anywhere() -> None:
    unknown = Measured(value=2.0, stderr=math.inf, dof=0.0)
    assert ranking.rank_intervals([unknown, *entries([1.0, 3.0])]) == [
        Ranks(best=1, worst=3), Ranks(best=1, worst=2), Ranks(best=2, worst=3)]
    assert ranking.rank_intervals([unknown]) == [Ranks(best=1, worst=1)]
    assert ranking.rank_intervals([]) == []


def test_a_full_board_takes_about_a_second_and_a_larger_one_has_no_intervals() -> None:
    full = entries(np.random.default_rng(1).normal(0, 1, ranking.MOST).tolist(), dof=4.0)
    started = time.process_time()
    found = ranking.rank_intervals(full)
    # About half a second; the limit is for a slow machine.
    assert time.process_time() - started < 5
    assert found is not None
    assert ranking.rank_intervals([*full, full[0]]) is None


# --- the frontier -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9))
def test_the_frontier_is_that_of_comparing_every_pair(points: list[tuple[int, int]]) -> None:
    quality, cost = (np.array([float(point[axis]) for point in points]) for axis in (0, 1))

    def beaten(place: int) -> bool:
        return any(quality[other] >= quality[place] and cost[other] <= cost[place]
                   and (quality[other] > quality[place] or cost[other] < cost[place]) for other in range(len(points)))

    assert ranking.frontier(quality, cost).tolist() == [not beaten(place) for place in range(len(points))]


def test_the_probability_of_two_equal_entries_is_that_of_winning_one_axis() -> None:
    # The other beats it with probability 1/2 on either axis: on both 1/4.
    qualities = ranking.normal(entries([0.5, 0.5]), draws=20_000, seed=1)
    assert ranking.frontier_probability(qualities, entries([1.0, 1.0], dof=4.0)) == pytest.approx([0.75, 0.75], abs=0.015)


def test_what_is_clearly_better_on_both_axes_is_alone_on_the_frontier() -> None:
    qualities = ranking.normal(entries([0.9, 0.5]))
    assert ranking.frontier_probability(qualities, entries([1.0, 2.0])) == [1.0, 0.0]


def test_few_trials_draw_costs_with_the_tails_of_students_t() -> None:
    drawn = ranking.normal(entries([1.0], 0.1, 2.0), draws=100_000)[:, 0]
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx(stats.t.ppf([0.025, 0.975], 2, loc=1.0, scale=0.1), abs=0.015)


def test_the_same_seed_gives_the_same_probabilities_in_any_order() -> None:
    costs = [Measured(value=1.0 + 0.02 * place, stderr=0.02, dof=4.0) for place in range(4)]
    qualities = ranking.bootstrapped(np.random.default_rng(1).random((200, 4)))
    first = ranking.frontier_probability(qualities, costs)
    assert first == ranking.frontier_probability(qualities, costs)
    assert first != ranking.frontier_probability(qualities, costs, seed=2)
    for order in itertools.permutations(range(4)):
        found = ranking.frontier_probability(qualities[:, list(order)], [costs[place] for place in order])
        assert found == [first[place] for place in order]


def test_resampled_items_have_the_spread_of_their_mean_and_what_they_share() -> None:
    rng = np.random.default_rng(3)
    common = rng.random(400)
    items = np.column_stack([common, common + 0.01 * rng.random(400), rng.random(400)])
    drawn = ranking.bootstrapped(items, draws=4000)
    assert drawn.std(axis=0) == pytest.approx(stats.sem(items), rel=0.06)
    assert np.corrcoef(drawn.T)[0, 1] > 0.99
    assert abs(np.corrcoef(drawn.T)[0, 2]) < 0.15


def test_resampled_clusters_have_the_spread_of_whole_clusters() -> None:
    from jouleboard.statistics.intervals import clustered_mean

    rng = np.random.default_rng(4)
    clusters = [str(place // 4) for place in range(400)]
    items = np.repeat(rng.random(100), 4)[:, None]
    expected = clustered_mean(items[:, 0].tolist(), clusters).stderr
    assert ranking.bootstrapped(items, clusters, draws=4000).std() == pytest.approx(expected, rel=0.06)
    assert ranking.bootstrapped(items, draws=4000).std() == pytest.approx(expected / 2, rel=0.06)


def test_qualities_and_costs_of_other_entries_are_refused() -> None:
    with pytest.raises(ValueError, match="2 entries have qualities, 3 have costs"):
        ranking.frontier_probability(np.zeros((10, 2)), entries([1.0, 2.0, 3.0]))
