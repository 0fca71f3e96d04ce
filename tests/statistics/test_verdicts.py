"""Verdicts say what the table of the design says, in families, and mirror where the sides are swapped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jouleboard.statistics import paired, power
from jouleboard.statistics.evidence import Evidence, TaskPair, Verdict
from jouleboard.statistics.verdicts import of_family

COSTS = (1.00, 1.01, 0.99, 1.005, 0.995)


def task(lost: int, gained: int, n: int = 4000, **overrides: Any) -> TaskPair:
    sides = [(1.0, 0.0)] * lost + [(0.0, 1.0)] * gained + [(1.0, 1.0)] * (n - lost - gained)
    return TaskPair(**{"task": "piqa", "base": tuple(a for a, _ in sides), "variant": tuple(b for _, b in sides),
                       "clusters": None, "chance": 0.5} | overrides)


def evidence(loss: float = 0.0, ratio: float = 1.0, **overrides: Any) -> Evidence:
    """A variant that loses so much on 4,000 items, of which the sides differ on 20 more, at so much of the base's cost."""
    lost, gained = (round(max(sign * loss, 0.0) * 4000) + 10 for sign in (1, -1))
    return Evidence(**{"name": "variant", "tasks": (task(lost, gained),), "base_costs": COSTS,
                       "costs": tuple(ratio * cost for cost in COSTS), "barred": None} | overrides)


def swapped(one: Evidence) -> Evidence:
    return msgspec.structs.replace(one, base_costs=one.costs, costs=one.base_costs, tasks=tuple(
        msgspec.structs.replace(pair, base=pair.variant, variant=pair.base) for pair in one.tasks))


def verdict(*family: Evidence) -> Verdict:
    return of_family(family)[0]


# --- the table ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "ratio", "kind"), [
    (0.0, 0.8, "dominates"), (0.004, 0.8, "dominates"), (-0.03, 1.0, "dominates"), (-0.03, 0.8, "dominates"),
    (0.0, 1.25, "dominated"), (-0.004, 1.25, "dominated"), (0.03, 1.0, "dominated"), (0.03, 1.25, "dominated"),
    (0.03, 0.8, "trade-off"), (-0.03, 1.25, "trade-off"), (0.0, 1.0, "undecided"), (0.01, 0.8, "undecided"),
])
def test_the_verdict_is_that_of_the_table(loss: float, ratio: float, kind: str) -> None:
    found = verdict(evidence(loss, ratio))
    assert found.kind == kind
    assert found.reason is None
    assert found.quality is not None
    assert found.quality.value == pytest.approx(-loss)
    assert found.cost_ratio is not None
    assert found.cost_ratio.value == pytest.approx(ratio)


def test_a_hand_worked_verdict() -> None:
    # 4,000 items: 10 lost, 30 gained, d = 0.005. Costs are each 0.9 of the base's.
    found = verdict(evidence(-0.005, 0.9))
    # Better than the base: McNemar's z = (30 - 10) / sqrt(40) = 3.1623, one-sided 0.000783.
    assert found.p_values["better"] == pytest.approx(stats.norm.sf(20 / math.sqrt(40)), rel=1e-9)
    # Cheaper: the logarithms differ by log 0.9 = -0.10536. Those of the base's costs 1, 1.01, 0.99, 1.005, 0.995 are 0, 0.00995033,
    # -0.01005034, 0.00498754, -0.00501254: mean -0.000025, s^2 = 0.0002500219 / 4 (see below), of either side; s^2 / 5 twice.
    logs = [0.0, 0.00995033, -0.01005034, 0.00498754, -0.00501254]
    mean = sum(logs) / 5
    variance = sum((one - mean) ** 2 for one in logs) / 4
    t = -0.1053605 / math.sqrt(2 * variance / 5)
    # Equal variances and numbers: Welch's degrees of freedom are 2 x 4.
    assert found.p_values["cheaper"] == pytest.approx(stats.t.cdf(t, 8), rel=1e-4)
    # The largest of the three tests of "dominates": not worse by a point; not dearer by 2 %; better or cheaper, by Simes.
    axes = (found.p_values["cheaper"], found.p_values["better"])
    either = min(2 * min(axes), max(axes))
    assert found.p_values["dominates"] == pytest.approx(max(found.p_values["not-worse"], found.p_values["not-dearer"], either))
    assert found.kind == "dominates"


def test_within_the_margins_on_both_axes_a_gain_for_a_loss_is_a_trade_off() -> None:
    # Half a point worse and one percent cheaper, both for certain: each side is "not worse" and better on one axis.
    many = task(220, 20, n=40_000)
    steady = (1.0, 1.0001, 0.9999)
    found = verdict(evidence(tasks=(many,), costs=tuple(0.99 * cost for cost in steady), base_costs=steady))
    assert found.p_values["dominates"] < 0.05
    assert found.p_values["dominated"] < 0.05
    assert found.kind == "trade-off"


def test_one_way_of_the_table_alone_is_tested_at_half_the_level() -> None:
    # Cheaper with p between 2.5 % and 5 %, and no better: that would err twice as often, since "better" had its chance too.
    for gap, kind in ((2.0, "undecided"), (2.4, "dominates")):
        logs = np.log(COSTS)
        shift = gap * math.sqrt(2 * logs.var(ddof=1) / 5)
        found = verdict(evidence(0.0, math.exp(-shift)))
        assert found.p_values["cheaper"] == pytest.approx(stats.t.sf(gap, 8), rel=1e-6)
        assert found.p_values["cheaper"] < 0.05
        assert found.kind == kind


# --- families -----------------------------------------------------------------------------------------------------------


def test_the_same_evidence_needs_more_in_a_larger_family() -> None:
    logs = np.log(COSTS)
    close = evidence(0.0, math.exp(-3.0 * math.sqrt(2 * logs.var(ddof=1) / 5)))
    assert verdict(close).kind == "dominates"
    others = [evidence(0.0, 1.0, name=f"equal-{place}") for place in range(9)]
    found = verdict(close, *others)
    assert found.kind == "undecided"
    assert found.p_values["dominates"] == pytest.approx(10 * verdict(close).p_values["dominates"])


def test_holms_steps_give_the_second_best_a_smaller_factor() -> None:
    first, second, third = evidence(0.0, 0.5, name="a"), evidence(0.0, 0.97, name="b"), evidence(0.0, 1.0, name="c")
    found = of_family([first, second, third])
    assert [one.kind for one in found] == ["dominates", "dominates", "undecided"]
    assert found[1].p_values["cheaper"] == pytest.approx(2 * verdict(second).p_values["cheaper"])


def test_a_claim_that_stands_has_every_test_that_it_needs() -> None:
    family = [evidence(loss, ratio, name=f"{loss}-{ratio}") for loss in (-0.03, 0.0, 0.008, 0.03) for ratio in (0.9, 0.985, 1.0, 1.1)]
    found = of_family(family)
    assert {one.kind for one in found} == {"dominates", "dominated", "trade-off", "undecided"}
    for one in found:
        p = one.p_values
        if one.kind == "dominates":
            assert (p["not-worse"] <= 0.05 and p["cheaper"] <= 0.05) or (p["not-dearer"] <= 0.05 and p["better"] <= 0.05)
        if one.kind == "dominated":
            assert (p["base-not-worse"] <= 0.05 and p["base-cheaper"] <= 0.05) or (
                p["base-not-dearer"] <= 0.05 and p["base-better"] <= 0.05)


def test_variants_without_a_verdict_are_not_part_of_the_family() -> None:
    good, barred = evidence(0.0, 0.97), evidence(0.0, 0.5, name="barred", barred="base-grid")
    found = of_family([barred, good])
    assert [one.kind for one in found] == ["none", "dominates"]
    assert found[1] == verdict(good)
    assert of_family([]) == []


# --- no verdict ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overrides", "reason"), [
    ({"barred": "the load gate failed"}, "the load gate failed"), ({"tasks": ()}, "no task counts"),
    ({"costs": (0.5, 0.5)}, "fewer than three valid trials"), ({"base_costs": ()}, "fewer than three valid trials"),
    ({"costs": (0.5, 0.51, 0.0)}, "no cost above zero"), ({"costs": (0.5, 0.51, -1.0)}, "no cost above zero"),
    ({"costs": (0.5, 0.51, math.nan)}, "no cost above zero"), ({"costs": (0.5,) * 5, "base_costs": (1.0,) * 5}, "the same"),
    ({"tasks": (task(1, 1, 20, clusters=("a",) * 20),)}, "share one source"),
])
def test_where_no_verdict_can_be_drawn_the_reason_is_said(overrides: dict[str, Any], reason: str) -> None:
    found = verdict(evidence(0.0, 0.5, **overrides))
    assert found.kind == "none"
    assert found.reason is not None
    assert reason in found.reason
    assert found.p_values == {}
    assert (found.needs_items, found.needs_trials) == (None, None)


def test_what_can_be_compared_is_shown_without_a_verdict_too() -> None:
    few = verdict(evidence(0.03, 0.5, costs=(0.5, 0.51)))
    assert few.quality is not None
    assert few.quality.low is not None
    assert few.cost_ratio is not None
    assert (few.cost_ratio.value, few.cost_ratio.low) == (pytest.approx(0.505), None)
    assert verdict(evidence(0.03, 0.5, barred="base-grid")).cost_ratio is None
    assert verdict(evidence(0.03, 0.5, tasks=())).quality is None


# --- what would decide --------------------------------------------------------------------------------------------------


def test_an_undecided_quality_says_how_many_items_would_decide() -> None:
    few = evidence(0.0, 0.8, tasks=(task(5, 5, n=300),))
    found = verdict(few)
    assert found.kind == "undecided"
    assert found.needs_trials is None
    assert found.needs_items is not None
    # As many items of the same kind decide, and a third of them do not: (1.64 + 0.84) / sqrt 3 is less than 1.64.
    for factor, kind in ((found.needs_items / 300, "dominates"), (found.needs_items / 900, "undecided")):
        flips = round(5 * factor)
        assert verdict(evidence(0.0, 0.8, tasks=(task(flips, flips, n=round(300 * factor)),))).kind == kind


def test_an_undecided_cost_says_how_many_trials_would_decide() -> None:
    wide = (0.9, 1.0, 1.1, 1.02, 0.98)
    found = verdict(evidence(0.0, base_costs=wide, costs=tuple(0.95 * one for one in wide)))
    assert found.kind == "undecided"
    assert found.needs_items is None
    spread = float(np.std(np.log(wide), ddof=1))
    assert found.needs_trials == power.trials_for(-math.log(0.95), spread=spread, alpha=0.025)


def test_what_lies_on_the_margin_is_decided_by_no_number() -> None:
    # A loss of exactly a point at exactly half the cost; equal in all at the same cost.
    found = verdict(evidence(tasks=(task(50, 10),), ratio=0.5))
    assert found.kind == "undecided"
    assert found.needs_items is None
    assert found.needs_trials is None


def test_a_decided_verdict_needs_nothing() -> None:
    found = verdict(evidence(0.0, 0.8))
    assert (found.needs_items, found.needs_trials) == (None, None)


# --- what changes nothing -----------------------------------------------------------------------------------------------

EVIDENCE = st.builds(
    lambda lost, gained, n, ratio, noise, half: evidence(
        tasks=(task(lost, gained, n + 60),) + ((task(gained // 2, lost // 2, n + 60, task="boolq"),) if half else ()),
        costs=tuple(ratio * cost * (1 + 0.001 * place * noise) for place, cost in enumerate(COSTS))),
    st.integers(0, 30), st.integers(0, 30), st.integers(0, 3000), st.floats(0.9, 1.1), st.floats(-5, 5), st.booleans())


@settings(max_examples=100, deadline=None)
@given(EVIDENCE)
def test_swapping_the_sides_mirrors_the_verdict(one: Evidence) -> None:
    before, after = verdict(one), verdict(swapped(one))
    mirrored = {"dominates": "dominated", "dominated": "dominates"}
    if before.kind in mirrored or after.kind in mirrored:
        assert after.kind == mirrored.get(before.kind, before.kind)
    for name in ("not-worse", "better", "cheaper", "not-dearer"):
        assert after.p_values[f"base-{name}"] == pytest.approx(before.p_values[name], rel=1e-6, abs=1e-9)
    assert after.p_values["dominated"] == pytest.approx(before.p_values["dominates"], rel=1e-6, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(EVIDENCE, st.sampled_from([2.0, 3600.0, 1e-6]))
def test_another_unit_of_cost_changes_no_verdict(one: Evidence, factor: float) -> None:
    other = msgspec.structs.replace(one, costs=tuple(factor * cost for cost in one.costs),
                                    base_costs=tuple(factor * cost for cost in one.base_costs))
    before, after = verdict(one), verdict(other)
    assert (after.kind, after.needs_items, after.needs_trials) == (before.kind, before.needs_items, before.needs_trials)
    assert after.p_values == pytest.approx(before.p_values, rel=1e-6, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(EVIDENCE, min_size=2, max_size=4), st.randoms())
def test_the_order_of_the_family_and_of_trials_changes_no_verdict(family: Sequence[Evidence], random: object) -> None:
    named = [msgspec.structs.replace(one, name=f"variant-{place}", costs=tuple(sorted(one.costs))) for place, one in enumerate(family)]
    order = [msgspec.structs.replace(one, costs=tuple(reversed(one.costs))) for one in named]
    random.shuffle(order)  # type: ignore[attr-defined]
    before, after = ({one.name: one for one in of_family(each)} for each in (named, order))
    for name, one in before.items():
        assert after[name].kind == one.kind
        assert after[name].p_values == pytest.approx(one.p_values, rel=1e-6, abs=1e-9)


def test_each_p_value_of_quality_is_that_of_the_mean_over_tasks() -> None:
    one = evidence(tasks=(task(9, 4, 300), task(2, 8, 500, task="boolq")))
    found, mean = verdict(one), paired.macro(one.tasks)
    assert found.p_values["not-worse"] == mean.tails(-0.01).above
    assert found.p_values["worse"] == mean.tails(-0.01).below
    assert found.p_values["base-not-worse"] == mean.tails(0.01).below
