"""Our own integral of power agrees with exact arithmetic, and is right where Zeus's is not."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jouleboard.errors import MeterError
from jouleboard.meters.integral import integrate_j
from tests.simulated_gpu import Gpu, Segment, SimulatedGpu, square

TOLERANCE = Fraction(1, 10**9)
# Below 1e-200 a product with a short time has no full precision any more; no sensor knows such powers.
WATTS = st.just(0.0) | st.floats(min_value=1e-200, max_value=1e6)
SECONDS = st.floats(min_value=-1e6, max_value=2e9, allow_nan=False)
GAPS = st.floats(min_value=1e-6, max_value=1e3, allow_nan=False)


def exact(times, powers, start, end):
    """Integrate by adding what each instant's power holds for, between all the moments at which anything changes."""
    times, powers = [Fraction(one) for one in times], [Fraction(one) for one in powers]
    start, end = Fraction(start), Fraction(end)
    moments = sorted({start, end, *(one for one in times if start < one < end)})
    total = Fraction(0)
    for low, high in itertools.pairwise(moments):
        index = max((place for place, one in enumerate(times) if one <= low), default=0)
        total += powers[index] * (high - low)
    return total


@st.composite
def traces(draw):
    """Draw samples at uneven times (repeats included) and a window that may lie anywhere around them."""
    times = sorted(draw(st.lists(SECONDS, min_size=1, max_size=30)))
    powers = [draw(WATTS) for _ in times]
    start = draw(SECONDS)
    return times, powers, start, start + draw(GAPS)


@given(traces())
def test_agrees_with_exact_arithmetic(case):
    times, powers, start, end = case
    assume(start < end)
    true = exact(times, powers, start, end)
    assert abs(Fraction(integrate_j(times, powers, start, end)) - true) <= TOLERANCE * true


@given(st.lists(st.tuples(GAPS, WATTS), min_size=1, max_size=200), st.floats(min_value=0, max_value=1), GAPS)
def test_agrees_with_exact_arithmetic_over_many_uneven_samples(steps, share, length):
    times, at = [], 1.7e9
    for gap, _ in steps:
        at += gap
        times.append(at)
    powers = [power for _, power in steps]
    start = times[0] + share * (times[-1] - times[0])
    end = start + length
    assume(start < end)
    true = exact(times, powers, start, end)
    assert abs(Fraction(integrate_j(times, powers, start, end)) - true) <= TOLERANCE * true


@given(traces(), st.floats(min_value=0.001, max_value=0.999))
def test_parts_add_up_to_the_whole(case, share):
    times, powers, start, end = case
    middle = start + share * (end - start)
    assume(start < middle < end)
    parts = integrate_j(times, powers, start, middle) + integrate_j(times, powers, middle, end)
    assert parts == pytest.approx(integrate_j(times, powers, start, end), rel=1e-9)


@given(traces(), st.integers(min_value=-20, max_value=20))
def test_twice_the_power_is_twice_the_energy(case, power_of_two):
    times, powers, start, end = case
    assume(start < end)
    # A power of two scales without rounding, so that this is exact.
    scaled = [math.ldexp(power, power_of_two) for power in powers]
    assert integrate_j(times, scaled, start, end) == math.ldexp(integrate_j(times, powers, start, end), power_of_two)


@given(st.lists(st.tuples(st.integers(1, 10**6), WATTS), min_size=1, max_size=20), st.integers(0, 10**7),
       st.integers(1, 10**7), st.integers(-(10**9), 10**9))
def test_the_origin_of_time_does_not_matter(steps, start, length, shift):
    times, at = [], 0
    for gap, _ in steps:
        at += gap
        times.append(float(at))
    powers = [power for _, power in steps]
    here = integrate_j(times, powers, start, start + length)
    assert integrate_j([one + shift for one in times], powers, start + shift, start + length + shift) == here


@given(traces(), st.data())
def test_a_sample_equal_to_the_one_before_changes_nothing(case, data):
    times, powers, start, end = case
    assume(start < end)
    place = data.draw(st.integers(0, len(times) - 1))
    until = times[place + 1] if place + 1 < len(times) else times[place] + 5.0
    extra = times[place] + data.draw(st.floats(min_value=0, max_value=1)) * (until - times[place])
    assume(times[place] <= extra <= until)
    more_times = [*times[: place + 1], extra, *times[place + 1 :]]
    more_powers = [*powers[: place + 1], powers[place], *powers[place + 1 :]]
    assert integrate_j(more_times, more_powers, start, end) == pytest.approx(
        integrate_j(times, powers, start, end), rel=1e-12)


def test_fine_samples_come_closer_to_a_ramp_than_coarse_ones():
    """Held values of a ramp from 0 to 100 W over 10 s lag by half a step: 500 J less slope x step x time / 2."""
    found = {}
    for per_s in (1, 10, 1000):
        times = [index / per_s for index in range(10 * per_s)]
        found[per_s] = integrate_j(times, [10 * one for one in times], 0.0, 10.0)
        assert found[per_s] == pytest.approx(500 - 50 / per_s, rel=1e-12)
    assert found[1] < found[10] < found[1000] < 500


def test_edges_lie_between_and_beyond_samples():
    times, powers = [0.0, 1.0, 3.0], [300.0, 100.0, 50.0]
    assert integrate_j(times, powers, 0.5, 2.0) == 0.5 * 300 + 100
    assert integrate_j(times, powers, -1.0, 0.25) == 1.25 * 300
    assert integrate_j(times, powers, 4.0, 6.0) == 100
    assert integrate_j(times, powers, 1.0, 3.0) == 200


def test_of_samples_at_one_moment_the_last_holds():
    assert integrate_j([0.0, 1.0, 1.0], [10.0, 500.0, 20.0], 0.0, 2.0) == 30


def test_no_power_is_zero_joules_and_not_an_error():
    assert integrate_j([0.0, 1.0], [0.0, 0.0], 0.0, 2.0) == 0.0


@pytest.mark.parametrize(("times", "powers", "start", "end", "words"), [
    ([], [], 0, 1, "no power was sampled"),
    ([0.0], [1.0, 2.0], 0, 1, "1 times and 2 powers"),
    ([0.0, 1.0], [1.0], 0, 1, "2 times and 1 powers"),
    ([1.0, 0.5], [1.0, 1.0], 0, 1, "out of order"),
    ([0.0, math.nan], [1.0, 1.0], 0, 1, "a sample at nan"),
    ([-math.inf, 0.0], [1.0, 1.0], 0, 1, "a sample at -inf"),
    ([0.0], [-0.001], 0, 1, "-0.001 W"),
    ([0.0], [math.nan], 0, 1, "nan W"),
    ([0.0], [math.inf], 0, 1, "inf W"),
    ([0.0, 9.0], [1.0, math.nan], 0, 1, "nan W"),
    ([0.0], [1.0], 1, 1, "no length"),
    ([0.0], [1.0], 1, 0, "no length"),
    ([0.0], [1.0], math.nan, 1, "no length"),
    ([0.0], [1.0], 0, math.inf, "no length"),
    ([0.0, 1e100], [1e300, 1e300], 0, 1e200, "larger than any number"),
    ([0.0, 1.0], [1.7e308, 1.7e308], 0, 2, "larger than any number"),
])
def test_what_cannot_be_integrated_is_an_error(times, powers, start, end, words):
    with pytest.raises(MeterError, match=words):
        integrate_j(times, powers, start, end)


ZEUS_AND_OURS = """
import json, sys, time
import pynvml
from zeus.monitor import PowerMonitor
from jouleboard.meters.integral import integrate_j

def patient(attempts):
    # Zeus gives its poller ten seconds to start, which a busy machine may take to import it.
    try:
        return PowerMonitor(gpu_indices=[0], update_period=0.1, power_domains=["device_instant"])
    except RuntimeError:
        if attempts <= 1:
            raise
        return patient(attempts - 1)

if __name__ == "__main__":
    naive = patient(5)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    times, powers = [], []
    def poll(until):
        while (now := time.time()) < until:
            times.append(now)
            powers.append(pynvml.nvmlDeviceGetFieldValues(handle, [186])[0].value.uiVal / 1000)
            time.sleep(0.02)
    poll(time.time() + 1.0)
    start = time.time()
    end = start + float(sys.argv[1])
    poll(end)
    found = {"zeus": naive.get_energy(start, end)[0], "ours": integrate_j(times, powers, start, end), "start": start, "end": end}
    naive.stop()
    print(json.dumps(found))
"""


def zeus_and_ours(folder, gpu, length_s):
    """Integrate the same window of a simulated GPU by Zeus and by ours; return both and the truth, in joules."""
    simulated = SimulatedGpu(folder, gpu, clock="realtime")
    script = folder / "both.py"
    script.write_text(ZEUS_AND_OURS, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script), str(length_s)], capture_output=True, text=True, check=False,
                          env={**os.environ, **simulated.environment()}, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    true = gpu.energy_j(*(simulated.device_ns(round(found[key] * 1e9)) / 1e9 for key in ("start", "end")))
    return found["zeus"], found["ours"], true


def test_zeus_gives_nothing_for_a_constant_power_and_ours_all_of_it(tmp_path):
    """Its poller drops samples equal to the one before, so the window holds none."""
    zeus, ours, true = zeus_and_ours(tmp_path, Gpu(trace=(Segment(1.0, 300.0),)), 1.5)
    assert zeus == 0.0
    assert true == pytest.approx(450, rel=1e-3)
    assert ours == pytest.approx(true, rel=1e-6)


def test_zeus_misses_the_edges_of_a_window_and_ours_does_not(tmp_path):
    """Power changes about once in the window: what lies before and behind the change is not Zeus's."""
    # Slow polls on a busy machine smear an edge by one poll; 10 % is far from what Zeus loses.
    zeus, ours, true = zeus_and_ours(tmp_path, Gpu(trace=square(high_w=400, low_w=200, period_s=2.2)), 2.0)
    assert zeus < 0.8 * true
    assert ours == pytest.approx(true, rel=0.1)
