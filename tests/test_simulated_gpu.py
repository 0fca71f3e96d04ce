"""Unmodified pynvml and Zeus on simulated GPUs: readings agree with exact integrals, and every fault is an error."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests import simulated_gpu
from tests.conftest import jouleboard
from tests.simulated_gpu import (
    Gpu,
    Segment,
    SimulatedGpu,
    enforced_limit,
    fails,
    lost,
    no_driver,
    process,
    recorded,
    reset,
    sm_clock,
    square,
    temperature,
    throttle,
    violation,
)

RESOLUTION_J = 0.001
"""The counter is in whole millijoules."""

PUT = """
import json, os, sys, time
def put(text):
    path = os.environ["JOULEBOARD_SIMULATED_GPU"]
    with open(path + ".step", "w") as file:
        file.write(text)
    now = time.time_ns()
    os.utime(path + ".step", ns=(now, now))
    os.replace(path + ".step", path)
"""

ASK = PUT + """
import pynvml
rows = []
for text, calls in json.load(sys.stdin):
    put(text)
    row = {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        rows.append({"init": error.value})
        continue
    for key, (name, index, arguments) in calls.items():
        try:
            handle = [] if index is None else [pynvml.nvmlDeviceGetHandleByIndex(index)]
            value = getattr(pynvml, name)(*handle, *arguments)
        except pynvml.NVMLError as error:
            value = {"error": error.value}
        if name == "nvmlDeviceGetFieldValues":
            value = [(item.nvmlReturn, item.value.uiVal) for item in value]
        elif name == "nvmlDeviceGetComputeRunningProcesses":
            value = [(item.pid, item.usedGpuMemory) for item in value]
        elif name == "nvmlDeviceGetViolationStatus":
            value = value.violationTime
        elif name == "nvmlDeviceGetMemoryInfo":
            value = [value.total, value.free, value.used]
        row[key] = value
    rows.append(row)
    pynvml.nvmlShutdown()
print(json.dumps(rows))
"""
"""Sets the control file and calls pynvml, for each row of its input."""

OPEN = PUT + """
import warnings
warnings.simplefilter("ignore")
import pynvml
from zeus.monitor import ZeusMonitor
from jouleboard.errors import MeterError
from jouleboard.meters.gpu import GpuMeter
from jouleboard.meters.nvml import NvmlDevices
from jouleboard.meters.zeus import open_gpus, open_monitor

def ours(indices):
    gpus = open_gpus(indices, "nvml")
    devices = NvmlDevices(gpus, root_pid=os.getpid())
    devices.refuse_mig()
    return GpuMeter(devices, open_monitor(indices, gpus), method="simulated", boundary="gpu", tick_s=0.1)
"""
"""Opens our meter in this very process."""

MEASURE = OPEN + """
def attempt(row, when, work):
    try:
        return work()
    except MeterError as error:
        row["error"], row["when"] = str(error), when
        return None

def naive(row, work):
    try:
        return work()
    except Exception as error:
        row["naive_error"] = type(error).__name__
        return None

def measure(step):
    row, clock = {"error": None, "naive_error": None, "joules": None, "naive_j": None}, getattr(time, step["clock"])
    put(step["open"])
    if "visible" in step:
        os.environ["CUDA_VISIBLE_DEVICES"] = step["visible"]
    # First: ours puts numbers in the place of UUIDs.
    plain = naive(row, lambda: ZeusMonitor(gpu_indices=step["naive_indices"]))
    meter = attempt(row, "open", lambda: ours(tuple(step["indices"])))
    if plain is not None:
        naive(row, lambda: plain.begin_window("naive", sync_execution=False))
    times = [clock()]
    if meter is not None:
        meter.begin("trial-0")
    times.append(clock())
    if step["middle"] is not None:
        put(step["middle"])
        meter.poll()
    if step["sleep_s"]:
        time.sleep(step["sleep_s"])
    if step["end"]:
        put(step["end"])
    times.append(clock())
    if meter is not None:
        reading = meter.end(duration_s=1.0, cpu_s=None)
        row["joules"], row["domains"] = reading.energy.measured_j, reading.energy.domains_j
        row["error"], row["when"] = reading.void, "end"
    times.append(clock())
    if plain is not None and not row["naive_error"]:
        reading = naive(row, lambda: plain.end_window("naive", sync_execution=False))
        row["naive_j"] = None if reading is None else reading.total_energy
    return {**row, "times_ns": times}

rows = [measure(step) for step in json.load(sys.stdin)]
print(json.dumps({"rows": rows, "called": sorted(pynvml._nvmlGetFunctionPointer_cache)}))
"""
"""For each row of its input: opens our meter and a plain Zeus monitor beside it and measures one window with both."""


def within(simulated: SimulatedGpu, script: str, given: object, **environment: str) -> Any:
    """Run a script in a process that sees the simulated GPUs; it reads and prints JSON."""
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", script], input=json.dumps(given), capture_output=True, text=True, check=False,
            env={**clean, **simulated.environment(), **environment}, timeout=300,
        )
        # Zeus gives its own subprocess ten seconds, which a busy machine may not have for it.
        if "failed to start within 10 seconds" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def call(name: str, *arguments: object, index: int | None = 0) -> tuple[str, int | None, tuple[object, ...]]:
    return f"nvml{name}", index, arguments


def ask(simulated: SimulatedGpu, at_s: list[float], **calls: object) -> list[dict[str, Any]]:
    """Ask pynvml the same questions at several times of a manual clock."""
    rows: list[dict[str, Any]] = within(simulated, ASK, [(simulated.text(now_s=now_s), calls) for now_s in at_s])
    return rows


def step(
    simulated: SimulatedGpu, *, window_s: tuple[float, float] | None = None, sleep_s: float = 0.0,
    indices: tuple[int, ...] = (0,), naive_indices: tuple[int, ...] | None = None, clock: str = "monotonic_ns",
    poll_s: float | None = None,
) -> dict[str, Any]:
    """One window: between two times of a manual clock, perhaps with a poll inside, or for a while of a real one."""
    start_s, end_s = window_s or (None, None)
    return {"open": simulated.text(now_s=start_s), "end": None if end_s is None else simulated.text(now_s=end_s),
            "middle": None if poll_s is None else simulated.text(now_s=poll_s), "sleep_s": sleep_s, "indices": indices, "naive_indices": naive_indices, "clock": clock}


def manual(folder: Path, *gpus: Gpu) -> SimulatedGpu:
    return SimulatedGpu(folder, *gpus, clock="manual")


def random_trace(dice: random.Random) -> tuple[Segment, ...]:
    """A dozen steps and ramps between a millisecond and two seconds, 20 W to 700 W."""
    return tuple(
        Segment(10 ** dice.uniform(-3, 0.3), dice.uniform(20, 700), dice.choice([None, dice.uniform(20, 700)]))
        for _ in range(dice.randint(1, 12))
    )


def random_gpu(seed: int, *, tick_s: float = 0.1) -> Gpu:
    dice = random.Random(seed)
    return Gpu(trace=random_trace(dice), repeat=dice.random() < 0.8, tick_s=tick_s,
               tick_phase_s=dice.uniform(0, tick_s), base_j=dice.choice([0.0, 1.0, 3e6]))


# --- the reference itself ---------------------------------------------------------------------------------------------


def test_the_reference_integrates_steps_ramps_and_rests_exactly() -> None:
    gpu = Gpu(trace=(Segment(2.0, 100.0), Segment(4.0, 100.0, 300.0)))
    assert gpu.energy_j(0, 2) == 200.0
    assert gpu.energy_j(2, 6) == 800.0
    assert gpu.energy_j(3, 4) == 175.0
    assert gpu.energy_j(1, 8) == 100.0 + 800.0 + 200.0
    assert gpu.energy_j(0, 600) == 100_000.0
    assert replace(gpu, repeat=False).energy_j(5, 10) == 275.0 + 4 * 300.0
    assert gpu.energy_j(-5, 1) == 100.0
    assert gpu.max_power_w == 300.0


def test_the_reference_is_additive_over_random_traces() -> None:
    dice = random.Random(5)
    for seed in range(60):
        gpu = random_gpu(seed)
        times = sorted(dice.randrange(10**11) for _ in range(3))
        parts = gpu.energy_pj(times[0], times[1]) + gpu.energy_pj(times[1], times[2])
        assert gpu.energy_pj(times[0], times[2]) == parts


def test_a_recorded_trace_goes_straight_from_sample_to_sample() -> None:
    trace = recorded([(10.0, 100.0), (10.5, 200.0), (12.0, 200.0)])
    assert trace == (Segment(0.5, 100.0, 200.0), Segment(1.5, 200.0, 200.0))


# --- pynvml -----------------------------------------------------------------------------------------------------------


def test_every_compiler_at_hand_builds_it(tmp_path: Path) -> None:
    for number, compiler in enumerate(simulated_gpu.compilers()):
        target = tmp_path / str(number) / simulated_gpu.LIBRARY
        target.parent.mkdir()
        simulated_gpu.build(compiler, target)
        rows = within(manual(tmp_path, Gpu()), ASK, [(manual(tmp_path, Gpu()).text(), {"name": call("DeviceGetName")})],
                      LD_LIBRARY_PATH=str(target.parent))
        assert rows == [{"name": "SIMULATED GPU"}]


def test_nothing_it_says_can_be_taken_for_a_real_device(tmp_path: Path) -> None:
    simulated = manual(tmp_path, Gpu(), Gpu(name="NVIDIA H100 80GB HBM3"))
    row = ask(simulated, [0.0], first=call("DeviceGetName"), second=call("DeviceGetName", index=1),
              driver=call("SystemGetDriverVersion", index=None), uuid=call("DeviceGetUUID", index=1),
              count=call("DeviceGetCount", index=None), none=call("DeviceGetName", index=2))[0]
    assert row == {"first": "SIMULATED GPU", "second": "SIMULATED NVIDIA H100 80GB HBM3", "driver": "SIMULATED 1.0",
                   "uuid": "GPU-SIMULATED-0001", "count": 2, "none": {"error": 2}}


def test_the_counter_is_the_exact_integral_at_its_last_tick(tmp_path: Path) -> None:
    """Over 1,200 readings of 60 random traces, to the millijoule; so |counter - true| <= power x tick + 1 mJ."""
    dice = random.Random(1)
    questions, expected = [], []
    for seed in range(60):
        gpu = random_gpu(seed, tick_s=dice.choice([0.02, 0.1, 0.25]))
        for _ in range(20):
            now_s = dice.randrange(round(10 ** dice.uniform(7, 13))) / 1e9
            questions.append((manual(tmp_path, gpu).text(now_s=now_s), {"mj": call("DeviceGetTotalEnergyConsumption")}))
            expected.append((gpu, now_s))
    rows = within(manual(tmp_path, Gpu()), ASK, questions)
    assert [row["mj"] for row in rows] == [gpu.counter_mj(round(now_s * 1e9)) for gpu, now_s in expected]
    for row, (gpu, now_s) in zip(rows, expected, strict=True):
        late_j = gpu.base_j + gpu.energy_j(0, now_s) - row["mj"] / 1000
        assert -1e-6 <= late_j <= gpu.max_power_w * gpu.tick_s + RESOLUTION_J


def test_power_is_instant_in_field_186_and_a_second_s_mean_elsewhere(tmp_path: Path) -> None:
    gpu = Gpu(trace=(Segment(1.0, 100.0, 300.0), Segment(0.5, 700.0), Segment(0.5, 50.0)))
    simulated = manual(tmp_path, gpu)
    times = [0.25, 1.25, 1.75, 7.6]
    rows = ask(simulated, times, usage=call("DeviceGetPowerUsage"), fields=call("DeviceGetFieldValues", [185, 186]),
               memory=call("DeviceGetFieldValues", [(185, 2)]))
    assert [row["fields"][1] for row in rows] == [[0, 150_000], [0, 700_000], [0, 50_000], [0, 50_000]]
    means = [math.floor(gpu.energy_j(max(now - 1, 0), now) / min(now, 1) * 1000 + 1e-6) for now in times]
    assert [row["usage"] for row in rows] == means
    assert [row["fields"][0] for row in rows] == [[0, mean] for mean in means]
    assert {row["memory"][0][0] for row in rows} == {3}
    old = ask(manual(tmp_path, replace(gpu, numbers={"architecture": 5})), [1.25], usage=call("DeviceGetPowerUsage"))
    assert old == [{"usage": 700_000}]


def test_faults_show_over_their_own_time_and_no_longer(tmp_path: Path) -> None:
    gpu = Gpu(spans=(
        throttle(0x4, from_s=10, to_s=20), throttle(0x40, from_s=15, to_s=20), process(4321, from_s=10, to_s=20),
        enforced_limit(350, from_s=10, to_s=20), violation(1, from_s=10, to_s=20), sm_clock(900, from_s=10, to_s=20),
        temperature(40, 80, from_s=10, to_s=20),
    ))
    rows = ask(
        manual(tmp_path, gpu), [5, 16, 25], reasons=call("DeviceGetCurrentClocksEventReasons"),
        processes=call("DeviceGetComputeRunningProcesses"), limit=call("DeviceGetEnforcedPowerLimit"),
        declared=call("DeviceGetPowerManagementLimit"), violation_ns=call("DeviceGetViolationStatus", 1),
        other_ns=call("DeviceGetViolationStatus", 0), sm=call("DeviceGetClockInfo", 1),
        memory=call("DeviceGetClockInfo", 2), celsius=call("DeviceGetTemperature", 0),
        celsius_v=call("DeviceGetTemperatureV", 0),
    )
    still = {"declared": 700_000, "other_ns": 0, "memory": 2619}
    assert rows == [
        {"reasons": 0, "processes": [], "limit": 700_000, "violation_ns": 0, "sm": 1980, "celsius": 40, "celsius_v": 40,
         **still},
        {"reasons": 0x44, "processes": [[4321, 10**9]], "limit": 350_000, "violation_ns": 6 * 10**9, "sm": 900,
         "celsius": 64, "celsius_v": 64, **still},
        {"reasons": 0, "processes": [], "limit": 700_000, "violation_ns": 10**10, "sm": 1980, "celsius": 80,
         "celsius_v": 80, **still},
    ]


def test_what_the_gates_read_is_there_or_not_supported(tmp_path: Path) -> None:
    questions = {
        "mig": call("DeviceGetMigMode"), "ecc": call("DeviceGetEccMode"), "errors": call("DeviceGetTotalEccErrors", 1, 0),
        "persistence": call("DeviceGetPersistenceMode"), "range": call("DeviceGetPowerManagementLimitConstraints"),
        "default": call("DeviceGetPowerManagementDefaultLimit"), "memory": call("DeviceGetMemoryInfo"),
        "c2c": call("DeviceGetC2cModeInfoV"), "architecture": call("DeviceGetArchitecture"),
        "set": call("DeviceSetPowerManagementLimit", 1),
    }
    changed = Gpu(numbers={"mig": 1, "ecc": -1, "ecc_uncorrected": 3, "persistence": 0, "used_bytes": 5 * 10**9})
    first, second = (ask(manual(tmp_path, gpu), [0.0], **questions)[0] for gpu in (Gpu(), changed))
    same = {"range": [100_000, 700_000], "default": 700_000, "c2c": {"error": 3}, "architecture": 9, "set": {"error": 4}}
    assert first == {"mig": [0, 0], "ecc": [1, 1], "errors": 0, "persistence": 1, "memory": [80 * 10**9, 80 * 10**9, 0],
                     **same}
    assert second == {"mig": [1, 1], "ecc": {"error": 3}, "errors": 3, "persistence": 0,
                      "memory": [80 * 10**9, 75 * 10**9, 5 * 10**9], **same}


def test_a_lost_gpu_answers_nothing_and_a_failing_function_only_for_itself(tmp_path: Path) -> None:
    gpus = (Gpu(spans=(lost(10),)), Gpu(spans=(fails(999, function="nvmlDeviceGetName"),)))
    questions = {"name": call("DeviceGetName"), "mj": call("DeviceGetTotalEnergyConsumption"),
                 "name1": call("DeviceGetName", index=1), "mj1": call("DeviceGetTotalEnergyConsumption", index=1)}
    before, after = ask(manual(tmp_path, *gpus), [5.0, 10.0], **questions)
    assert before == {"name": "SIMULATED GPU", "mj": 1_000_500_000, "name1": {"error": 999}, "mj1": 1_000_500_000}
    assert after == {"name": {"error": 15}, "mj": {"error": 15}, "name1": {"error": 999}, "mj1": 1_001_000_000}


def test_nvml_starts_again_when_its_failure_is_over(tmp_path: Path) -> None:
    simulated = SimulatedGpu(tmp_path, Gpu(), clock="manual", faults=(no_driver(10, 20),))
    rows = ask(simulated, [5.0, 15.0, 25.0], name=call("DeviceGetName"))
    assert rows == [{"name": "SIMULATED GPU"}, {"init": 9}, {"name": "SIMULATED GPU"}]


WATCH = """
import pynvml, sys
pynvml.nvmlInit()
for _ in sys.stdin:
    print(pynvml.nvmlDeviceGetPowerUsage(pynvml.nvmlDeviceGetHandleByIndex(0)), flush=True)
"""


@pytest.mark.parametrize("clock", ["monotonic", "realtime"])
def test_a_running_machine_can_be_changed(clock: simulated_gpu.Clock, tmp_path: Path) -> None:
    simulated = SimulatedGpu(tmp_path, Gpu(), clock=clock)
    with subprocess.Popen(
        [sys.executable, "-c", WATCH],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **simulated.environment()},
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        found = []
        for power_w in (100.0, 250.0, 75.0):
            simulated.set(trace=(Segment(1.0, power_w),))
            running.stdin.write("?\n")
            running.stdin.flush()
            found.append(int(running.stdout.readline()))
        running.stdin.close()
    assert found == [100_000, 250_000, 75_000]


@pytest.mark.parametrize("text", ["gpu\nsegment 0 1 1\n", "nonsense 1\n", "gpu\nsegment 5\n", None])
def test_a_control_file_that_cannot_be_understood_stops_nvml(text: str | None, tmp_path: Path) -> None:
    simulated = manual(tmp_path, Gpu())
    path = simulated.file if text is not None else tmp_path / "absent"
    code = "import pynvml\ntry:\n    pynvml.nvmlInit()\nexcept pynvml.NVMLError as error:\n    print(error.value)"
    if text is not None:
        path.write_text(text)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, **simulated.environment(), simulated_gpu.VARIABLE: str(path)})
    assert done.stdout == "999\n"
    assert str(path) in done.stderr


# --- Zeus: windows against the truth ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Error:
    """How far a measured window is from the truth, and how far it may be."""

    error_j: float
    bound_j: float


def compare(simulated: SimulatedGpu, row: dict[str, Any], window_s: tuple[float, float] | None) -> Error:
    """|measured - true| <= maximum power x (tick + read latency), and the counter's resolution."""
    gpu = simulated.gpus[0]
    latency_s = 0.0
    if window_s is None:
        before, begun, ending, after = (simulated.device_ns(reading) / 1e9 for reading in row["times_ns"])
        window_s = before, ending
        latency_s = max(begun - before, after - ending)
    assert row["error"] is None
    return Error(error_j=abs(row["joules"] - gpu.energy_j(*window_s)),
                 bound_j=gpu.max_power_w * (gpu.tick_s + latency_s) + RESOLUTION_J)


def live(folder: Path, seed: int, *, clock: simulated_gpu.Clock, scale: int) -> SimulatedGpu:
    """A random trace that began a random time ago."""
    now_ns = time.time_ns() if clock == "realtime" else time.monotonic_ns()
    return SimulatedGpu(folder, random_gpu(seed), clock=clock, scale=scale,
                        start_ns=now_ns - random.Random(seed).randrange(10**10))


def test_measured_windows_hold_the_bound_over_random_traces_and_phases(tmp_path: Path, capsys: Any) -> None:
    """12 windows of the real clocks, 40 of 30 s and more at 200-fold speed, 300 on a clock that stands still."""
    dice = random.Random(7)
    cases: list[tuple[SimulatedGpu, tuple[float, float] | None, float]] = [
        (live(tmp_path, seed, clock="realtime" if seed % 3 == 0 else "monotonic", scale=1), None,
         dice.uniform(0.12, 0.7))
        for seed in range(12)
    ]
    cases += [(live(tmp_path, seed, clock="monotonic", scale=200), None, dice.uniform(0.15, 0.2))
              for seed in range(100, 140)]
    for seed in range(1000, 1300):
        start_s = dice.randrange(10**11) / 1e9
        cases.append((manual(tmp_path, random_gpu(seed)), (start_s, start_s + 10 ** dice.uniform(-0.5, 2.5)), 0.0))
    steps = [
        step(simulated, window_s=window_s, sleep_s=sleep_s,
             clock="time_ns" if "clock realtime" in simulated.text() else "monotonic_ns")
        for simulated, window_s, sleep_s in cases
    ]
    answer = within(manual(tmp_path, Gpu()), MEASURE, steps)
    errors = [compare(simulated, row, window_s)
              for (simulated, window_s, _), row in zip(cases, answer["rows"], strict=True)]
    with capsys.disabled():
        for title, part in (("real time", errors[:12]), ("200-fold", errors[12:52]), ("still clock", errors[52:])):
            worst = max(part, key=lambda error: error.error_j / error.bound_j)
            print(f"\n  {title}: {len(part)} windows, worst |measured - true| {worst.error_j:.3f} J, "
                  f"its bound {worst.bound_j:.3f} J", end="")
        print()
    assert all(error.error_j <= error.bound_j for error in errors)
    # The bound is no empty one: the errors come near it, as random phases must.
    assert max(error.error_j / error.bound_j for error in errors) > 0.5
    assert {
        "nvmlDeviceGetArchitecture", "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetFieldValues", "nvmlDeviceGetMigMode", "nvmlDeviceGetUUID",
        "nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetViolationStatus",
    } <= set(answer["called"])
    # A mean over a second: not asked where instant power is to be had.
    assert "nvmlDeviceGetPowerUsage" not in answer["called"]


# --- Zeus: faults and traps, plain Zeus beside ours -------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Windows on a clock that stands still, all measured in one process."""
    folder = tmp_path_factory.mktemp("windows")
    steady = Gpu(trace=(Segment(1.0, 300.0),))
    wave = Gpu(trace=square(high_w=700, low_w=100, period_s=0.7), tick_phase_s=0.051)
    whole = (100.0, 160.0)
    cases: dict[str, tuple[tuple[Gpu, ...], tuple[float, float], tuple[int, ...]]] = {
        "good": ((steady,), whole, (0,)),
        "two": ((steady, replace(wave, base_j=7.0)), whole, (0, 1)),
        "second of two": ((steady, replace(wave, base_j=7.0)), whole, (1,)),
        "reset": ((replace(steady, spans=(reset(130.0),)),), whole, (0,)),
        "reset of one of two": ((steady, replace(steady, spans=(reset(130.0),))), whole, (0, 1)),
        "reset to where it was": ((replace(steady, base_j=0.0, spans=(reset(100.5),)),), (100.0, 200.5), (0,)),
        "reset, and past where it was": ((replace(steady, base_j=0.0, spans=(reset(110.0),)),), (100.0, 260.0), (0,)),
        "reset, and past, polled": ((replace(steady, base_j=0.0, spans=(reset(110.0),)),), (100.0, 260.0), (0,)),
        "frozen": ((replace(steady, freeze_s=90.0),), whole, (0,)),
        "lost inside": ((replace(steady, spans=(lost(130.0),)),), whole, (0,)),
        "lost before": ((replace(steady, spans=(lost(90.0),)),), whole, (0,)),
        "cannot be read at first": ((replace(steady, spans=(
            fails(999, to_s=130.0, function="nvmlDeviceGetTotalEnergyConsumption"),)),), whole, (0,)),
        "after all that": ((steady,), whole, (0,)),
        "MIG": ((replace(steady, numbers={"mig": 1}),), whole, (0,)),
        "MIG on the other": ((steady, replace(steady, numbers={"mig": 1})), whole, (0,)),
        "no MIG known": ((replace(steady, numbers={"mig": -1}),), whole, (0,)),
        "20 ms with a tick": ((wave,), (100.4505, 100.4705), (0,)),
        "20 ms without a tick": ((wave,), (100.46, 100.48), (0,)),
        "0.5 s": ((wave,), (100.25, 100.75), (0,)),
        "60 s": ((wave,), (100.25, 160.25), (0,)),
    }
    # The largest machine opens first: Zeus keeps the GPUs that it saw when it started.
    names = ["two", *(name for name in cases if name != "two")]
    steps = [step(manual(folder, *cases[name][0]), window_s=cases[name][1], indices=cases[name][2],
                  naive_indices=tuple(range(len(cases[name][0]))),
                  poll_s=120.0 if name == "reset, and past, polled" else None) for name in names]
    rows = within(manual(folder, Gpu()), MEASURE, steps)["rows"]
    truths = {name: sum(gpus[index].energy_j(*window) for index in indices)
              for name, (gpus, window, indices) in cases.items()}
    return {name: {**row, "true_j": truths[name]} for name, row in zip(names, rows, strict=True)}


def test_without_a_fault_plain_zeus_and_ours_agree_with_the_truth(windows: dict[str, dict[str, Any]]) -> None:
    assert windows["good"]["joules"] == windows["good"]["naive_j"] == windows["good"]["true_j"] == 18_000.0


def test_two_gpus_are_told_apart_and_summed(windows: dict[str, dict[str, Any]]) -> None:
    row = windows["two"]
    assert row["joules"] == pytest.approx(row["true_j"], abs=700 * 0.1)
    assert row["domains"]["gpu0"] == 18_000.0
    assert row["joules"] == sum(row["domains"].values())
    assert windows["second of two"]["domains"] == {"gpu1": row["domains"]["gpu1"]}


@pytest.mark.parametrize("name", ["reset", "reset of one of two"])
def test_a_reset_is_a_negative_energy_from_plain_zeus_and_an_error_from_ours(
    name: str, windows: dict[str, dict[str, Any]]
) -> None:
    row = windows[name]
    assert row["naive_error"] is None
    assert row["naive_j"] < 0
    assert row["joules"] is None
    assert row["domains"] == {}
    assert row["error"].startswith("counter-reset: ")


def test_a_reset_that_ends_where_the_window_began_is_an_error_too(windows: dict[str, dict[str, Any]]) -> None:
    assert windows["reset to where it was"]["naive_j"] == 0
    assert "0.0 J" in windows["reset to where it was"]["error"]


def test_a_reset_that_counts_past_its_start_looks_like_any_reading(windows: dict[str, dict[str, Any]]) -> None:
    """No meter that reads a counter at both ends alone can see it; ours reads it inside the window too."""
    row = windows["reset, and past where it was"]
    assert row["joules"] == row["naive_j"] == 15_000.0
    assert row["true_j"] == 48_000.0
    polled = windows["reset, and past, polled"]
    assert polled["naive_j"] == 15_000.0
    assert polled["joules"] is None
    assert polled["error"].startswith("counter-reset: ")


def test_a_frozen_counter_is_0_j_from_plain_zeus_and_an_error_from_ours(windows: dict[str, dict[str, Any]]) -> None:
    assert windows["frozen"]["naive_j"] == 0
    assert "0.0 J" in windows["frozen"]["error"]


@pytest.mark.parametrize(("name", "when", "naive"), [
    ("lost inside", "end", "ZeusGPULostError"), ("lost before", "open", "ZeusGPULostError"),
    ("cannot be read at first", "end", "ZeusGPUUnknownError"),
])
def test_a_gpu_that_does_not_answer_is_refused_or_voids_its_window(
    name: str, when: str, naive: str, windows: dict[str, dict[str, Any]]
) -> None:
    row = windows[name]
    assert row["when"] == when
    assert row["naive_error"] == naive
    assert row["joules"] is None
    codes = {"lost inside": "device-lost: ", "lost before": "GPU 0 is not there", "cannot be read at first": "sensor-error: "}
    assert row["error"].startswith(codes[name])


def test_after_a_window_that_failed_the_next_one_is_measured(windows: dict[str, dict[str, Any]]) -> None:
    assert windows["after all that"]["joules"] == 18_000.0


def test_mig_is_refused_where_plain_zeus_measures_the_whole_gpu(windows: dict[str, dict[str, Any]]) -> None:
    assert windows["MIG"]["naive_j"] == 18_000.0
    assert windows["MIG"]["when"] == "open"
    assert "GPU 0 is in MIG mode" in windows["MIG"]["error"]
    assert windows["MIG on the other"]["joules"] == windows["no MIG known"]["joules"] == 18_000.0


def test_a_20_ms_window_is_far_off_without_a_warning_and_a_60_s_window_is_not(windows: dict[str, dict[str, Any]]) -> None:
    """Plain Zeus and ours alike: the gate on window length has to refuse it; without a tick inside, ours does."""
    errors = {name: windows[name]["naive_j"] / windows[name]["true_j"] - 1
              for name in ("20 ms with a tick", "20 ms without a tick", "0.5 s", "60 s")}
    assert errors["20 ms with a tick"] > 3
    assert errors["20 ms without a tick"] == -1.0
    assert errors["0.5 s"] > 0.15
    assert abs(errors["60 s"]) < 0.003
    assert windows["60 s"]["joules"] == windows["60 s"]["naive_j"]
    assert windows["20 ms without a tick"]["joules"] is None


SAME_WINDOW_AGAIN = OPEN + """
plain, meter = ZeusMonitor(gpu_indices=[0], cpu_indices=[]), ours((0,))
plain.begin_window("trial", sync_execution=False)
meter.begin("trial-0")
try:
    plain.begin_window("trial", sync_execution=False)
except ValueError as error:
    naive = str(error)
meter.begin("trial-0")
time.sleep(0.15)
print(json.dumps([naive, meter.end(duration_s=0.15, cpu_s=None).energy.measured_j]))
"""


def test_a_window_left_open_by_a_trial_that_died_does_not_stop_the_next(tmp_path: Path) -> None:
    naive, joules = within(SimulatedGpu(tmp_path, Gpu(tick_s=0.01)), SAME_WINDOW_AGAIN, None)
    assert "already exists" in naive
    assert 10 < joules < 1000


def test_hidden_gpus_are_refused_where_plain_zeus_gives_0_j_or_a_traceback(tmp_path: Path) -> None:
    simulated = manual(tmp_path, *([Gpu(trace=(Segment(1.0, 300.0),))] * 2))
    # The one that Zeus accepts comes last: it keeps its GPUs, and has none to keep while it refuses.
    expected = {"": 0, "MIG-GPU-SIMULATED-0000/1/0": 0, "GPU-SIMULATED-0000": "ValueError", "0": 18_000.0}
    given = [{**step(simulated, window_s=(100.0, 160.0), indices=(0, 1)), "visible": visible} for visible in expected]
    rows = within(simulated, MEASURE, given)["rows"]
    assert [row["naive_j"] if row["naive_error"] is None else row["naive_error"] for row in rows] == [*expected.values()]
    for row in rows:
        assert row["when"] == "open"
        assert "CUDA_VISIBLE_DEVICES" in row["error"]
        assert row["joules"] is None


def test_nvml_that_does_not_start_is_0_j_from_plain_zeus_and_an_error_from_ours(tmp_path: Path) -> None:
    simulated = SimulatedGpu(tmp_path, Gpu(), clock="manual", faults=(no_driver(),))
    row = within(simulated, MEASURE, [step(simulated, window_s=(100.0, 160.0))])["rows"][0]
    assert (row["naive_error"], row["naive_j"]) == (None, 0)
    assert row["when"] == "open"
    assert "NVML does not start" in row["error"]


POLL = OPEN + """
from zeus.monitor import PowerMonitor
from zeus.monitor.power import infer_counter_update_period
meter, polling = ours((0,)), PowerMonitor(gpu_indices=[0], update_period=0.1)
started_s = time.time()
meter.begin("trial-0")
for _ in range(10):
    time.sleep(0.1)
    meter.poll()
energy = meter.end(duration_s=1.0, cpu_s=None).energy
naive = polling.get_energy(started_s, time.time())
polling.stop()
print(json.dumps([infer_counter_update_period([0]), naive[0], energy.measured_j, energy.integral_j]))
"""


def test_zeus_s_power_monitor_polls_without_pause_and_loses_a_constant_power(tmp_path: Path) -> None:
    """Its inferred period is 0 s on any GPU (it starts the minimum at 0), and 300 W for a second are 0 J."""
    gpu = Gpu(trace=(Segment(1.0, 300.0),))
    period_s, naive_j, joules, integral_j = within(SimulatedGpu(tmp_path, gpu), POLL, None)
    assert period_s == 0.0
    assert naive_j == 0.0
    assert 300 - 31 < joules < 300 * 2
    assert abs(integral_j - joules) < 300 * 0.2


APPROXIMATE = OPEN + """
plain, meter = ZeusMonitor(gpu_indices=[0], cpu_indices=[], approx_instant_energy=True), ours((0,))
meter.begin("trial-0")
plain.begin_window("trial", sync_execution=False)
time.sleep(0.5)
naive = plain.end_window("trial", sync_execution=False).total_energy
reading = meter.end(duration_s=0.5, cpu_s=None)
print(json.dumps([naive, reading.energy.measured_j, reading.void]))
"""


def test_zeus_s_approximation_makes_up_joules_for_a_frozen_counter(tmp_path: Path) -> None:
    gpu = Gpu(trace=(Segment(1.0, 300.0),), freeze_s=0.0)
    naive_j, joules, void = within(SimulatedGpu(tmp_path, gpu), APPROXIMATE, None)
    assert naive_j == pytest.approx(150, rel=0.2)
    assert joules is None
    assert void.startswith(("counter-frozen: ", "counter-still: "))


# --- the suite --------------------------------------------------------------------------------------------------------


def test_detect_lists_all_gpus_or_says_why_not(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import json
        from jouleboard.meters import detect
        found = detect.gpus()
        print(json.dumps([found.devices, found.reason]))
    """)
    both = manual(tmp_path, Gpu(), Gpu(name="SIMULATED B"))
    assert within(both, code, None) == [["SIMULATED GPU", "SIMULATED B"], None]
    gone = manual(tmp_path, Gpu(), Gpu(spans=(lost(0.0),)))
    assert within(gone, code, None) == [[], "NVML lists no GPU: GPU is lost"]


def test_the_doctor_names_the_simulated_gpu_and_that_no_profile_declares_it(tmp_path: Path) -> None:
    done = jouleboard("doctor", "--json", **SimulatedGpu(tmp_path, Gpu()).environment())
    assert done.returncode == 0, done.stderr
    finding = next(row for row in json.loads(done.stdout)["findings"] if row["topic"] == "NVIDIA GPU")
    assert (finding["ok"], finding["found"]) == (False, "SIMULATED GPU")
    assert "no declared profile fits this GPU" in finding["remedy"]
