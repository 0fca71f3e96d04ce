"""The drawing of an entry's trace: its figures are those of the samples, whatever they are."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouleboard import tracedrawing
from jouleboard.records import Report
from jouleboard.tracedrawing import HEIGHT, WIDTH, trace_drawing
from jouleboard.traces import Sample
from tests import factory


def report(seconds: tuple[float, ...]) -> Report:
    made = []
    for order, length in enumerate(seconds):
        one = factory.serving_trial(order, factory.CostLaw())
        made.append(msgspec.structs.replace(one, order=order, window=msgspec.structs.replace(one.window, name=f"trial-{order}", duration_s=length)))
    return factory.report(factory.items(2), trials=tuple(made))


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", path)]


def test_power_is_drawn_between_its_readings() -> None:
    samples = [Sample(window="trial-0", elapsed_s=at, power_w=watts) for at, watts in ((0.0, 100.0), (1.0, 300.0), (4.0, 300.0))]
    found = trace_drawing(samples, report((4.0,)))
    assert found is not None
    assert (found.quantity, found.left_out, found.limit_y) == ("power", 0, None)
    (window,) = found.windows
    assert (window.low, window.high, window.samples) == (200.0, 300.0, 3)
    assert window.mean == pytest.approx((200 + 3 * 300) / 4)
    line = points(window.line)
    assert line[0][1] > line[-1][1], "more watts are higher"
    assert line[-1][1] == pytest.approx((1 - 300 / 315) * HEIGHT, abs=0.1)


def test_cpu_time_is_drawn_as_processors_that_were_busy() -> None:
    samples = [Sample(window="trial-0", elapsed_s=at, cpu_s=spent) for at, spent in ((0.0, 0.0), (2.0, 1.0), (3.0, 3.0))]
    found = trace_drawing(samples, report((3.0,)))
    assert found is not None
    assert found.quantity == "cpu"
    assert [(one.low, one.mean, one.high) for one in found.windows] == [(0.5, pytest.approx(1.0), 2.0)]


def test_trials_stand_side_by_side_each_as_wide_as_it_was_long() -> None:
    samples = [Sample(window=f"trial-{n}", elapsed_s=at, power_w=50.0, limit_w=52.0) for n in range(3) for at in (0.0, 1.0)]
    samples.append(Sample(window="probe-0", elapsed_s=0.5, power_w=9000.0))
    found = trace_drawing(samples, report((1.0, 2.0, 1.0)))
    assert found is not None
    assert [one.name for one in found.windows] == ["trial-0", "trial-1", "trial-2"]
    assert found.windows[1].width == pytest.approx(2 * found.windows[0].width)
    assert found.windows[2].left + found.windows[2].width == pytest.approx(WIDTH)
    assert found.limit_y == pytest.approx((1 - 52 / 52.5) * HEIGHT)
    assert max(one.high for one in found.windows) == 50.0, "a probe is no trial"


@pytest.mark.parametrize("samples", [
    [], [Sample(window="trial-0", elapsed_s=0.0, power_w=5.0)], [Sample(window="probe-0", elapsed_s=at, power_w=5.0) for at in (0.0, 1.0)],
    [Sample(window="trial-0", elapsed_s=at, temperature_c=50.0) for at in (0.0, 1.0)], [Sample(window="trial-0", elapsed_s=1.0, cpu_s=2.0)] * 3,
])
def test_where_nothing_was_sampled_inside_a_trial_there_is_no_drawing(samples: list[Sample]) -> None:
    assert trace_drawing(samples, report((1.0,))) is None


def test_of_very_many_trials_the_first_are_drawn_and_the_others_counted() -> None:
    many = tracedrawing.MOST_WINDOWS + 3
    samples = [Sample(window=f"trial-{n}", elapsed_s=at, cpu_s=at) for n in range(many) for at in (0.0, 1.0)]
    found = trace_drawing(samples, report((1.0,) * many))
    assert found is not None
    assert (len(found.windows), found.left_out) == (tracedrawing.MOST_WINDOWS, 3)


@given(st.lists(st.tuples(st.floats(min_value=1e-3, max_value=1e3), st.floats(min_value=0, max_value=1e5)), min_size=2, max_size=60))
def test_every_point_is_inside_the_plot_and_the_band_holds_the_line(made: list[tuple[float, float]]) -> None:
    at, samples = 0.0, []
    for pause, watts in made:
        samples.append(Sample(window="trial-0", elapsed_s=at, power_w=watts))
        at += pause
    found = trace_drawing(samples, report((at,)))
    assert found is not None
    (window,) = found.windows
    assert window.low <= window.mean * (1 + 1e-9)
    assert window.mean <= window.high * (1 + 1e-9)
    line, band = points(window.line), points(window.band)
    for x, y in [*line, *band]:
        assert -0.1 <= x <= WIDTH + 0.1
        assert -0.1 <= y <= HEIGHT + 0.1
    over, under = band[: len(line)], band[len(line):][::-1]
    for (_, top), (_, y), (_, bottom) in zip(over, line, under, strict=True):
        assert top - 0.11 <= y <= bottom + 0.11
    assert all(math.isfinite(one) for point in line for one in point)
