"""Roots of falling functions are those of SciPy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from jouleboard.statistics.roots import Point, falling


@given(st.floats(-5, 5), st.floats(0.1, 30), st.floats(-9, 9))
def test_the_root_is_that_of_brentq_whatever_the_guess(shift: float, slope: float, start: float) -> None:
    def function(x: float) -> float:
        return -math.tanh(slope * (x - shift)) - 0.5 * (x - shift) + 0.3

    found = falling(function, low=-10, high=10, known=Point(10, function(10)), start=start)
    assert found == pytest.approx(optimize.brentq(function, -10, 10, xtol=1e-13), abs=1e-10)


def test_a_step_is_found_by_halving() -> None:
    found = falling(lambda x: 1.0 if x < 0.3 else -1.0, low=0.0, high=1.0, known=Point(1.0, -1.0), start=0.5)
    assert found == pytest.approx(0.3, abs=1e-12)


def test_a_flat_function_ends() -> None:
    assert falling(lambda _: 0.0, low=0.0, high=1.0, known=Point(1.0, 0.0), start=0.5) == 0.5
