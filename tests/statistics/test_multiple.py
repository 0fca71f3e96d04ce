"""Holm's adjustment is that of statsmodels; Simes's p-value holds its level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouleboard.statistics.multiple import either, holm


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_adjusted_p_values_are_those_of_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    assert holm(p_values) == pytest.approx(tuple(multipletests(p_values, method="holm")[1]), abs=1e-10)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10), st.randoms())
def test_the_order_of_the_family_changes_nothing(p_values: list[float], random: object) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    adjusted = holm(p_values)
    assert holm([p_values[place] for place in order]) == tuple(adjusted[place] for place in order)


def test_a_hand_worked_family() -> None:
    # Sorted: 0.01 x 3 = 0.03; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, but not below the one before it.
    assert holm((0.01, 0.04, 0.03)) == pytest.approx((0.03, 0.06, 0.06))


def test_a_family_of_none_or_one_is_not_adjusted() -> None:
    assert holm(()) == ()
    assert holm((0.2,)) == (0.2,)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        holm((0.5, p))


def test_either_of_two_independent_p_values_errs_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(1).random((100_000, 2))
    # Simes 1986: exact where both are independent and uniform.
    assert np.mean([either(a, b) <= 0.05 for a, b in drawn.tolist()]) == pytest.approx(0.05, abs=0.003)
