"""Calibration finds the tick and the gain of sensors that are known exactly, and says which declared figures do not hold."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jouleboard import catalogue
from jouleboard.declared import Figure
from jouleboard.errors import MeterError
from jouleboard.meters import calibrate as calibrate_module
from jouleboard.meters import powercap, ticks
from jouleboard.meters.calibrate import calibrate
from jouleboard.meters.ticks import Polled
from tests import factory
from tests.simulated_gpu import Gpu, Segment, SimulatedGpu, lost, no_driver, process, reset, square

# --- what follows from what was read ----------------------------------------------------------------------------------


def polled(*, tick_s: float, gain: float = 1.0, watts: float = 300.0, seconds: float = 5.0, period_s: float = 0.0025):
    """Read a constant power, and a counter that shows `gain` of it at each tick."""
    times = [index * period_s for index in range(round(seconds / period_s))]
    # Half a nanosecond keeps ticks that fall on a reading on one side of it.
    counters = [gain * watts * tick_s * math.floor((time_s + 5e-10) / tick_s) for time_s in times]
    return Polled(counter_times_s=times, counters_j=counters, counter_latencies_s=[1e-5] * len(times),
                  power_times_s=times, powers_w=[watts] * len(times), power_latencies_s=[1e-5] * len(times))


@pytest.mark.parametrize("tick_s", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("gain", [0.9, 1.0, 1.05])
def test_tick_and_gain_of_a_known_counter_are_found(tick_s, gain):
    seen = polled(tick_s=tick_s, gain=gain)
    assert ticks.interval(seen.counter_times_s, seen.counters_j).median == pytest.approx(tick_s, abs=0.0025)
    agreed = ticks.agreement(seen)
    assert agreed.counter_w == pytest.approx(300 * gain, rel=1e-3)
    assert agreed.integral_w == pytest.approx(300)
    assert agreed.gain == pytest.approx(gain, rel=1e-3)


def test_too_few_moves_say_nothing():
    seen = polled(tick_s=1.0)
    assert ticks.interval(seen.counter_times_s, seen.counters_j) is None
    assert ticks.agreement(seen) is None


def test_a_power_of_zero_has_no_gain():
    seen = polled(tick_s=0.1)
    zero = Polled(counter_times_s=seen.counter_times_s, counters_j=seen.counters_j, counter_latencies_s=[],
                  power_times_s=seen.power_times_s, powers_w=[0.0] * len(seen.powers_w), power_latencies_s=[])
    assert ticks.agreement(zero).gain is None


def test_a_fall_of_the_counter_is_found():
    assert ticks.fall_j([1.0, 2.0, 1.5, 3.0, 0.5]) == 2.5
    assert ticks.fall_j([1.0, 1.0, 2.0]) == 0.0
    assert ticks.fall_j([]) == 0.0


@given(st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=50), st.floats(min_value=0, max_value=1))
def test_a_percentile_lies_between_the_least_and_the_most(values, share):
    assert min(values) <= ticks.percentile(values, share) <= max(values)
    assert ticks.percentile(values, 0) == min(values)
    assert ticks.percentile(values, 1) == max(values)


def test_a_percentile_interpolates():
    assert ticks.percentile([10.0, 0.0], 0.25) == 2.5
    assert ticks.spread([]) is None


# --- on a simulated GPU -----------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import msgspec
from jouleboard.declared import Hardware
from jouleboard.errors import MeterError
from jouleboard.meters.calibrate import calibrate
profile = msgspec.json.decode(sys.argv[1], type=Hardware)
try:
    raise SystemExit(calibrate(profile, seconds=float(sys.argv[2])))
except MeterError as error:
    print(error, file=sys.stderr)
    raise SystemExit(2)
"""
WAVE = square(high_w=300, low_w=100, period_s=0.5)


def run(tmp_path, *gpus, seconds=2.6, faults=(), environment=None, **declared):
    """Calibrate against simulated GPUs, with declared figures changed."""
    simulated = SimulatedGpu(tmp_path, *gpus, faults=faults)
    profile = msgspec.structs.replace(catalogue.hardware("simulated-gpu"), **declared)
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, msgspec.json.encode(profile).decode(), str(seconds)], capture_output=True,
        text=True, check=False, timeout=120, env={**os.environ, **simulated.environment(), **(environment or {})})


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


def tick_ms(text: str) -> float:
    return number(r"counter   moves every ([\d.]+) ms", text)


@pytest.mark.parametrize("tick_s", [0.1, 0.25, 0.02])
def test_tick_and_gain_of_a_square_wave_are_found(tmp_path, tick_s):
    done = run(tmp_path, Gpu(trace=WAVE, tick_s=tick_s, tick_phase_s=0.007))
    assert done.returncode == 0, done.stderr
    assert tick_ms(done.stdout) == pytest.approx(tick_s * 1000, abs=5)
    assert number(r"counter / integral = ([\d.]+)", done.stdout) == pytest.approx(1, abs=0.02)
    assert number(r"mean      ([\d.]+) W by the counter", done.stdout) == pytest.approx(200, rel=0.06)
    # The wave changes each quarter of a second.
    assert number(r"power     moves every ([\d.]+) ms", done.stdout) == pytest.approx(250, abs=10)


def test_a_sensor_that_looks_only_now_and_then_shows_how_often(tmp_path):
    """20 ms of every 250 ms: counter and power agree with each other, whatever the GPU used in between."""
    trace = square(high_w=420, low_w=60, period_s=0.37)
    done = run(tmp_path, Gpu(trace=trace, tick_s=0.1, sample_period_s=0.25, sample_on_s=0.02), seconds=4.0)
    assert done.returncode == 0, done.stderr
    assert tick_ms(done.stdout) == pytest.approx(100, abs=5)
    assert number(r"power     moves every ([\d.]+) ms", done.stdout) % 250 == pytest.approx(0, abs=10)
    assert number(r"counter / integral = ([\d.]+)", done.stdout) == pytest.approx(1, abs=0.05)


def test_every_line_says_that_the_device_is_simulated(tmp_path):
    done = run(tmp_path, Gpu(trace=WAVE), seconds=1.5)
    lines = done.stdout.splitlines()
    assert len(lines) >= 8
    assert all("SIMULATED" in line for line in lines), done.stdout


def test_what_is_printed_can_be_pasted_into_a_profile(tmp_path):
    done = run(tmp_path, Gpu(trace=((Segment(1.0, 71.0),))), seconds=1.5)
    text = done.stdout.partition("to paste into the profile:")[2].partition("\n")[2]
    found = {name: msgspec.convert(value, Figure) for name, value in yaml.safe_load(text).items()}
    assert set(found) == {"counter_tick_s", "idle_w", "min_power_limit_w", "max_power_limit_w"}
    assert found["idle_w"].value == pytest.approx(71, rel=0.02)
    assert found["counter_tick_s"].value == pytest.approx(0.1, abs=0.005)
    assert re.fullmatch(r"measured by `jouleboard hardware calibrate` on \d{4}-\d\d-\d\d, driver SIMULATED 1\.0, 1\.5 s",
                        found["idle_w"].source)


def measured(line: str) -> float:
    """Return the measured figure of a line `NAME DECLARED holds: FIGURE measured`."""
    return float(line.partition(": ")[2].split()[0])


def test_declared_figures_are_held_against_the_measured_ones(tmp_path):
    def figure(value):
        return Figure(value=value, source="a document that is wrong")

    done = run(tmp_path, Gpu(trace=(Segment(1.0, 80.0),), tick_s=0.1, numbers={"limit_mw": 650_000}), seconds=1.5,
               idle_w=figure(70.0), counter_tick_s=figure(0.02), power_limit_w=figure(700.0), max_power_limit_w=None)
    said = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("declared")}
    assert " holds: " in said["idle_w"], "14 % apart"
    assert measured(said["idle_w"]) == pytest.approx(80, rel=0.02)
    assert "DOES NOT HOLD" in said["counter_tick_s"]
    assert measured(said["counter_tick_s"]) == pytest.approx(0.1, rel=0.1)
    assert "(its source: a document that is wrong)" in said["counter_tick_s"]
    assert "DOES NOT HOLD: 650 measured" in said["power_limit_w"], "a limit is a setting: 7 % is another one"
    assert "100 holds" in said["min_power_limit_w"]
    assert "is not declared: 700 measured" in said["max_power_limit_w"]


@pytest.mark.parametrize(("gpu", "words"), [
    (Gpu(trace=WAVE, freeze_s=0.0), "the counter is frozen: it did not move in"),
    # Device time runs while the process starts: on a slow machine the counter stands from the beginning.
    (Gpu(trace=WAVE, tick_s=0.02, freeze_s=2.0), "the counter is frozen: it "),
    (Gpu(trace=WAVE, spans=tuple(reset(float(at)) for at in range(1, 60))), "the counter fell by"),
    (Gpu(trace=WAVE, tick_s=1.0), "watch longer (--seconds)"),
])
def test_a_counter_at_fault_is_named_and_nothing_is_offered_to_paste(tmp_path, gpu, words):
    done = run(tmp_path, gpu, seconds=2.5)
    assert done.returncode == 1, done.stdout
    fault = [line for line in done.stdout.splitlines() if line.startswith("fault")]
    assert len(fault) == 1
    assert words in fault[0]
    assert "to paste" not in done.stdout
    assert "declared" not in done.stdout


def test_idle_power_beside_another_process_is_not_offered(tmp_path):
    done = run(tmp_path, Gpu(trace=WAVE, spans=(process(os.getpid()),)), seconds=1.5)
    assert "1 compute process(es) are on the GPU" in done.stdout
    assert "\nidle_w:" not in done.stdout
    assert "\ncounter_tick_s:" in done.stdout


@pytest.mark.parametrize(("gpus", "options"), [
    ((Gpu(spans=(lost(0.0),)),), {}),
    ((), {}),
    ((Gpu(),), {"faults": (no_driver(),)}),
    ((Gpu(),), {"environment": {"CUDA_VISIBLE_DEVICES": ""}}),
    ((Gpu(),), {"environment": {"CUDA_VISIBLE_DEVICES": "1"}}),
])
def test_a_gpu_that_is_not_there_is_an_error_with_a_remedy(tmp_path, gpus, options):
    done = run(tmp_path, *gpus, seconds=1.0, **options)
    assert done.returncode == 2
    assert "jouleboard doctor" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_gpu_that_cuda_would_see_first_is_the_one_watched(tmp_path):
    gpus = (Gpu(trace=(Segment(1.0, 50.0),)), Gpu(trace=(Segment(1.0, 90.0),)))
    for visible in ("1,0", "GPU-SIMULATED-0001"):
        done = run(tmp_path, *gpus, seconds=1.0, environment={"CUDA_VISIBLE_DEVICES": visible})
        assert number(r"mean      ([\d.]+) W by the counter", done.stdout) == pytest.approx(90, rel=0.02), done.stderr


# --- processors, and machines without a sensor ------------------------------------------------------------------------


def rapl_profile(**changes):
    fields = {"method": "rapl", "boundary": "package", "sensor": "rapl", "power_model": None}
    return factory.profile(**(fields | changes))


WRITER = """
import sys, time
from pathlib import Path
folder, start = Path(sys.argv[1]), time.perf_counter()
while True:
    # Nothing is written late: a step that was missed is caught up in the next one.
    time.sleep(0.02 - (time.perf_counter() - start) % 0.02)
    text = f"{10**9 + 10**6 * round((time.perf_counter() - start) / 0.02)}\\n"
    (folder / "next").write_text(text, encoding="ascii")
    (folder / "next").replace(folder / "energy_uj")
"""
"""A counter that gains 1 J each 20 ms: 50 W. In a process of its own, for a thread would wait for the reader's."""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose counter stands still until somebody moves it."""
    monkeypatch.setenv(powercap.VARIABLE, str(tmp_path))
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "262143328850"), ("energy_uj", "1000000000")):
        (folder / name).write_text(f"{text}\n", encoding="ascii")
    return folder


@pytest.fixture
def moving(package):
    """The same, while it moves."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(package)])
    while (package / "energy_uj").read_text(encoding="ascii") == "1000000000\n":
        time.sleep(0.01)
    yield
    writer.kill()
    writer.wait()


def test_a_processors_tick_wrap_and_idle_power_are_found(moving, capsys):
    assert calibrate(rapl_profile(idle_w=Figure(value=20, source="wrong")), seconds=1.0) == 0
    out = capsys.readouterr().out
    assert number(r"counter   package-0 moves every ([\d.]+) ms", out) == pytest.approx(20, abs=8)
    assert number(r"package-0 ([\d.]+) W", out) == pytest.approx(50, rel=0.1)
    assert "wraps behind 262143 J, 21.8 min at 200 W" in out
    assert "idle_w 20 DOES NOT HOLD" in out
    pasted = yaml.safe_load(out.partition("profile:")[2])
    assert set(pasted) == {"counter_tick_s", "idle_w"}
    assert "SIMULATED" not in out


def test_a_processors_counter_that_stands_still_is_at_fault(package, capsys):
    assert calibrate(rapl_profile(), seconds=0.2) == 1
    out = capsys.readouterr().out
    assert "fault     rapl-frozen: package-0 did not move" in out
    assert "to paste" not in out


def test_no_processor_counter_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv(powercap.VARIABLE, str(tmp_path))
    with pytest.raises(MeterError, match="no RAPL zone"):
        calibrate(rapl_profile(), seconds=0.1)


def test_a_machine_without_a_sensor_is_told_so_in_plain_words(capsys):
    assert calibrate(catalogue.hardware("x86-vm")) == 0
    out = capsys.readouterr().out
    assert "there is no energy sensor to calibrate" in out
    assert "by the declared power model, within 50 % or worse" in out
    assert re.search(r"process CPU time counts in steps of [\d.]+ ns; smallest step seen [1-9]\d* ns", out)


def test_a_sensor_without_a_calibration_is_an_error():
    profile = factory.profile(method="soc", boundary="soc", sensor="jetson", power_model=None)
    with pytest.raises(MeterError, match="no calibration for the sensor 'jetson'"):
        calibrate(profile, seconds=0.1)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_no_time_to_watch_is_an_error(seconds):
    with pytest.raises(MeterError, match="no time to watch"):
        calibrate(catalogue.hardware("x86-vm"), seconds=seconds)


def test_no_figure_of_a_driver_can_break_the_yaml():
    found = calibrate_module.Findings(device="x", lines=(), driver='5"}\n#: [', measured=(
        calibrate_module.Measured(field="idle_w", value=70.123456),))
    lines = list(calibrate_module._yaml(found, 30.0))
    pasted = yaml.safe_load("\n".join(lines[1:]))
    assert pasted["idle_w"]["value"] == 70.12
    assert '5"}\n#: [' in pasted["idle_w"]["source"]
    assert json.dumps(pasted)
