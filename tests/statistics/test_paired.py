"""Paired differences: published examples, other implementations, and p-values that agree with their intervals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from jouleboard.statistics import paired
from jouleboard.statistics.evidence import TaskPair
from jouleboard.statistics.paired import Counts

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500)).filter(lambda counts: sum(counts) > 0)


def pair(lost: int, gained: int, both: int = 0, neither: int = 0, **overrides: Any) -> TaskPair:
    sides = [(1.0, 0.0)] * lost + [(0.0, 1.0)] * gained + [(1.0, 1.0)] * both + [(0.0, 0.0)] * neither
    return TaskPair(**{"task": "piqa", "base": tuple(a for a, _ in sides), "variant": tuple(b for _, b in sides),
                       "clusters": None, "chance": 0.5} | overrides)


def limits(*tasks: TaskPair, level: float = 0.95) -> tuple[float, float]:
    found = paired.macro(tasks).limits(level)
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


# --- one task of items that are right or wrong --------------------------------------------------------------------------


def test_the_published_example_of_a_paired_table() -> None:
    # Complete response before and after therapy (Cavo et al. 2012; Fagerland, Lydersen and Laake 2017, chapter 8), first less
    # second: 59 both, 6 first alone, 16 second alone, 80 neither. There: -0.0621, Tango -0.1240 to -0.0054, Newcombe
    # -0.1186 to -0.0046, McNemar exact 0.052479, asymptotic Z = -2.132 and P = 0.033006. Here it is second less first.
    assert paired.tango(lost=6, gained=16, n=161) == pytest.approx((0.0054, 0.1240), abs=5e-5)
    assert paired.newcombe(both=59, lost=6, gained=16, neither=80) == pytest.approx((0.0046, 0.1186), abs=5e-5)
    assert paired.mcnemar(lost=6, gained=16) == pytest.approx(0.052479, abs=5e-7)
    # Without a difference the statistic is McNemar's: 10 / sqrt(22).
    assert paired.score(Counts(lost=6, gained=16, n=161), 0.0) == pytest.approx(10 / math.sqrt(22), abs=1e-12)
    tails = paired.macro([pair(6, 16, 59, 80)]).tails(0.0)
    assert 2 * tails.above == pytest.approx(0.033006, abs=5e-7)
    assert tails.above + tails.below == pytest.approx(1)


def independent_score(lost: int, gained: int, n: int, difference: float) -> float:
    """Tango's statistic with the constrained likelihood maximised by SciPy, not by the closed form."""
    def unlikely(q: float) -> float:
        cells = ((lost, q), (gained, q + difference), (n - lost - gained, 1 - 2 * q - difference))
        return -math.fsum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    q = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    return (gained - lost - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.floats(-0.6, 0.6))
def test_tangos_statistic_is_that_of_the_largest_likelihood(counts: tuple[int, int, int], difference: float) -> None:
    lost, gained, same = counts
    n = lost + gained + same
    assume(abs(difference) > 1e-3)
    found = paired.score(Counts(lost=lost, gained=gained, n=n), difference)
    expected = independent_score(lost, gained, n, difference)
    assert found == pytest.approx(expected, rel=2e-5, abs=2e-5)


@given(COUNTS, st.sampled_from([0.8, 0.9, 0.95, 0.999]))
def test_tangos_limits_are_where_the_statistic_is_the_quantile(counts: tuple[int, int, int], level: float) -> None:
    lost, gained, _ = counts
    one, z = Counts(lost=lost, gained=gained, n=sum(counts)), float(stats.norm.ppf((1 + level) / 2))
    low, high = paired.tango(lost=lost, gained=gained, n=one.n, z=z)
    assert -1 <= low <= (gained - lost) / one.n <= high <= 1
    if low > -1:
        assert paired.score(one, low) == pytest.approx(z, abs=1e-6)
        expected = optimize.brentq(lambda at: paired.score(one, at) - z, -1 + 1e-12, (gained - lost) / one.n)
        assert low == pytest.approx(expected, abs=1e-9)
    if high < 1:
        assert paired.score(one, high) == pytest.approx(-z, abs=1e-6)


@given(COUNTS)
def test_the_statistic_falls_as_the_difference_rises(counts: tuple[int, int, int]) -> None:
    one = Counts(lost=counts[0], gained=counts[1], n=sum(counts))
    found = [paired.score(one, at) for at in np.linspace(-0.99, 0.99, 67).tolist()]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(found))


def test_items_that_never_differ_have_an_interval_all_the_same() -> None:
    # The statistic is -n D / sqrt(n |D| (1 - |D|)) there: D = z^2 / (n + z^2).
    z = stats.norm.ppf(0.975)
    assert limits(pair(0, 0, 700, 300)) == pytest.approx((-z**2 / (1000 + z**2), z**2 / (1000 + z**2)), abs=1e-12)


@pytest.mark.parametrize(("lost", "gained", "end"), [(40, 0, (-1.0, None)), (0, 40, (None, 1.0))])
def test_items_that_all_differ_alike_reach_the_end(lost: int, gained: int, end: tuple[float | None, float | None]) -> None:
    found = limits(pair(lost, gained))
    assert all(expected is None or value == expected for value, expected in zip(found, end, strict=True))
    assert found[1] - found[0] > 0.01


def test_one_item_decides_nothing() -> None:
    found = paired.macro([pair(1, 0)])
    assert limits(pair(1, 0))[1] > 0.5
    assert found.tails(0.0).below > 0.1


@given(COUNTS, st.floats(-0.2, 0.2))
def test_a_p_value_is_the_level_at_which_the_interval_ends_at_the_bound(counts: tuple[int, int, int], bound: float) -> None:
    lost, gained, same = counts
    task = pair(lost, gained, same)
    tails = paired.macro([task]).tails(bound)
    p = min(tails)
    assume(1e-9 < p < 0.49)
    low, high = limits(task, level=1 - 2 * p)
    assert (low if tails.above < tails.below else high) == pytest.approx(bound, abs=1e-8)


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_exact_test_is_that_of_statsmodels(lost: int, gained: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    assume(lost + gained > 0)
    assert paired.mcnemar(lost=lost, gained=gained) == pytest.approx(
        min(1.0, mcnemar([[5, lost], [gained, 5]], exact=True).pvalue), abs=1e-10)


def test_the_exact_test_of_items_that_never_differ_is_one() -> None:
    assert paired.mcnemar(lost=0, gained=0) == 1.0


@given(st.integers(1, 40), st.integers(1, 40))
def test_newcombes_interval_without_correlation_is_that_of_independent_shares(right: int, wrong: int) -> None:
    from statsmodels.stats.proportion import confint_proportions_2indep

    # Both sides have the same shares and answer independently: both x neither = lost x gained, so that phi is zero.
    both, neither, off = right * right, wrong * wrong, right * wrong
    n = both + neither + 2 * off
    found = paired.newcombe(both=both, lost=off, gained=off, neither=neither)
    expected = confint_proportions_2indep(both + off, n, both + off, n, method="newcomb", compare="diff")
    assert found == pytest.approx(expected, abs=1e-10)


def test_newcombes_interval_of_a_side_that_is_always_right_has_no_correlation() -> None:
    low, high = paired.newcombe(both=90, lost=10, gained=0, neither=0)
    assert low < -0.1 < high
    assert math.isfinite(low)


# --- scores between 0 and 1, clusters -------------------------------------------------------------------------------------


def numbers(n: int, seed: int = 0, **overrides: Any) -> TaskPair:
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.2, 0.8, n)
    variant = base + rng.normal(0.01, 0.05, n)
    return TaskPair(**{"task": "rouge", "base": tuple(base.tolist()), "variant": tuple(variant.tolist()), "clusters": None,
                       "chance": 0.0} | overrides)


def test_many_scores_have_the_t_interval_of_scipy_but_for_their_skewness() -> None:
    task = numbers(4000)
    apart = np.subtract(task.variant, task.base)
    expected = stats.t.interval(0.95, 3999, loc=apart.mean(), scale=stats.sem(apart))
    assert limits(task) == pytest.approx(expected, abs=0.02 * (expected[1] - expected[0]))
    assert paired.macro([task]).tails(0.0).above == pytest.approx(
        stats.ttest_rel(task.variant, task.base, alternative="greater").pvalue, rel=0.3)


def test_rare_large_losses_stretch_the_interval_towards_more_loss() -> None:
    base = np.full(100, 0.9)
    variant = base.copy()
    variant[:4] = 0.4
    low, high = limits(numbers(100, base=tuple(base.tolist()), variant=tuple(variant.tolist())))
    # By hand: sum |d| = 2, sum d^2 = 1, n x mean^2 = 0.04, so an item tells as much as (2 - 0.04) / (1 - 0.04) = 2.0417 that are right
    # or wrong. Four equal losses leave three degrees of freedom.
    told, t = 1.96 / 0.96, float(stats.t.ppf(0.975, 3))
    assert (low, high) == pytest.approx(paired.tango(lost=2 * told, gained=0, n=100 * told, z=t), abs=1e-9)
    assert -0.02 - low > 1.2 * (high + 0.02)


def test_clusters_that_answer_alike_count_as_one_item_each() -> None:
    # 60 clusters of four: 6 lost, 12 gained.
    clusters = tuple(str(place // 4) for place in range(240))
    kinds = [-1] * 6 + [1] * 12 + [0] * 42
    base = tuple(float(kind < 0) for kind in kinds for _ in range(4))
    variant = tuple(float(kind > 0) for kind in kinds for _ in range(4))
    found = paired.difference(TaskPair(task="copa", base=base, variant=variant, clusters=clusters, chance=0.5))
    # As 60 items, but for the sample variances over 59 and 239: Kish's design effect is 4 x 60 / 59 x 239 / 240.
    n = 240 / (4 * 60 / 59 * 239 / 240)
    assert (found.counts.n, found.counts.lost, found.counts.gained) == pytest.approx((n, n / 10, n / 5), rel=1e-9)
    assert found.dof == pytest.approx(59)
    t = float(stats.t.ppf(0.975, 59))
    assert limits(TaskPair(task="copa", base=base, variant=variant, clusters=clusters, chance=0.5)) == pytest.approx(
        paired.tango(lost=n / 10, gained=n / 5, n=n, z=t), abs=1e-9)


def test_clusters_that_seem_to_differ_less_than_chance_allows_count_as_their_items() -> None:
    # Each cluster has one lost and one gained item: no spread between clusters at all.
    task = pair(20, 20, 0, 0, clusters=tuple(str(place % 20) for place in range(40)))
    assert paired.difference(task).counts.n == pytest.approx(40)


@pytest.mark.parametrize("base", [(0.5,) * 8, (1.0,) * 8])
def test_sides_that_agree_on_every_item_of_few_clusters_are_uncertain(base: tuple[float, ...]) -> None:
    low, high = limits(numbers(8, base=base, variant=base, clusters=tuple("aabbccdd")))
    assert low < -0.5
    assert high > 0.5


def test_scores_that_all_fall_alike_are_as_uncertain_as_items_that_do() -> None:
    # 0.1 less each, but for rounding: no spread to go by. As 40 items of which four are lost; their t has 39 degrees of freedom.
    base = tuple(0.3 + 0.015 * place for place in range(40))
    found = limits(numbers(40, base=base, variant=tuple(one - 0.1 for one in base)))
    assert found == pytest.approx(paired.tango(lost=4, gained=0, n=40, z=float(stats.t.ppf(0.975, 39))), abs=1e-9)


def test_items_of_one_source_have_no_interval_and_no_p_value() -> None:
    found = paired.macro([pair(3, 9, 20, 20, clusters=("a",) * 52)])
    assert found.limits().low is None
    assert found.limits().value == pytest.approx(6 / 52)
    assert found.tails(-0.5) == (1.0, 1.0)


def test_one_score_that_is_no_share_has_no_interval() -> None:
    assert paired.macro([numbers(1)]).limits().low is None


# --- the mean over tasks ------------------------------------------------------------------------------------------------


def test_the_mean_over_tasks_weighs_each_the_same() -> None:
    found = paired.macro([pair(10, 20, 70), pair(40, 0, 900, 60)])
    assert found.value == pytest.approx((0.1 - 0.04) / 2)
    # MOVER by hand: half of each, their distances from the limits squared and added.
    first, second = paired.tango(lost=10, gained=20, n=100), paired.tango(lost=40, gained=0, n=1000)
    low = 0.03 - math.hypot((0.1 - first.low) / 2, (-0.04 - second.low) / 2)
    high = 0.03 + math.hypot((first.high - 0.1) / 2, (second.high + 0.04) / 2)
    assert limits(pair(10, 20, 70), pair(40, 0, 900, 60)) == pytest.approx((low, high), abs=1e-10)


TASKS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(20, 90)), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(TASKS, st.floats(-0.05, 0.05))
def test_the_p_values_of_a_mean_agree_with_its_interval(tasks: list[tuple[int, int, int]], bound: float) -> None:
    made = [pair(*counts) for counts in tasks]
    tails = paired.macro(made).tails(bound)
    assert tails.above + tails.below == pytest.approx(1)
    p = min(tails)
    assume(1e-9 < p < 0.49)
    low, high = limits(*made, level=1 - 2 * p)
    assert (low if tails.above < tails.below else high) == pytest.approx(bound, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(TASKS, st.floats(-0.05, 0.05), st.randoms())
def test_the_order_of_items_and_tasks_changes_nothing(tasks: list[tuple[int, int, int]], bound: float, random: object) -> None:
    def shuffled(task: TaskPair) -> TaskPair:
        order = list(range(len(task.base)))
        random.shuffle(order)  # type: ignore[attr-defined]
        return TaskPair(task=task.task, base=tuple(task.base[at] for at in order), variant=tuple(task.variant[at] for at in order),
                        clusters=None if task.clusters is None else tuple(task.clusters[at] for at in order), chance=0.5)

    made = [pair(*counts, clusters=tuple(str(at % 9) for at in range(sum(counts))) if at_all % 2 else None)
            for at_all, counts in enumerate(tasks)]
    other = [shuffled(task) for task in reversed(made)]
    assert limits(*other) == pytest.approx(limits(*made), abs=1e-9)
    assert paired.macro(other).tails(bound) == pytest.approx(paired.macro(made).tails(bound), abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(TASKS, st.floats(-0.05, 0.05))
def test_swapping_the_sides_mirrors_intervals_and_p_values(tasks: list[tuple[int, int, int]], bound: float) -> None:
    made = [pair(*counts) for counts in tasks]
    swapped = [TaskPair(task=one.task, base=one.variant, variant=one.base, clusters=None, chance=0.5) for one in made]
    low, high = limits(*made)
    assert limits(*swapped) == pytest.approx((-high, -low), abs=1e-10)
    assert paired.macro(swapped).tails(-bound) == pytest.approx(tuple(reversed(paired.macro(made).tails(bound))), abs=1e-9)


def test_a_difference_far_beyond_the_bound_has_a_p_value_of_next_to_nothing() -> None:
    assert paired.macro([pair(0, 900, 100), pair(0, 900, 100)]).tails(-0.9).above < 1e-200
    assert paired.macro([pair(5, 5, 90), pair(5, 5, 90)]).tails(0.0) == (0.5, 0.5)


@pytest.mark.parametrize(("task", "problem"), [
    (pair(1, 1, variant=(1.0,)), "not of the same items"), (pair(0, 0), "not of the same items"),
    (pair(1, 1, clusters=("a",)), "not of the same items"), (pair(1, 1, variant=(1.0, 1.5)), "not between 0 and 1"),
    (pair(1, 1, base=(1.0, math.nan)), "not between 0 and 1"), (pair(1, 1, base=(1.0, -0.5)), "not between 0 and 1"),
])
def test_sides_that_do_not_pair_are_refused(task: TaskPair, problem: str) -> None:
    with pytest.raises(ValueError, match=f"piqa: .*{problem}"):
        paired.macro([task])


def test_no_task_is_no_mean() -> None:
    with pytest.raises(ValueError, match="no task"):
        paired.macro([])
