"""The simulated GPU as a machine: its power follows the load, its sensor may look away, and commands run on it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from jouleboard import catalogue, cli, simulated
from jouleboard.errors import HardwareError
from tests.conftest import jouleboard
from tests.simulated_gpu import VARIABLE, Gpu, Interval, Load, Segment, SimulatedGpu, square
from tests.simulated_gpu.__main__ import MACHINE

ROOT = Path(__file__).parents[1]

@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, no simulated GPU yet, and a strange folder to stand in."""
    for name in (VARIABLE, "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path / "cache"))
    strange = tmp_path / "a folder; with 'quotes' and $HOME"
    strange.mkdir()
    monkeypatch.chdir(strange)
    return tmp_path / "cache" / "simulated-gpu"


READ = """
import ctypes, json, os, sys, time
library = ctypes.CDLL("libnvidia-ml.so.1")
answers = []
for step in json.load(sys.stdin):
    os.environ["JOULEBOARD_SIMULATED_GPU"] = step["control"]
    with open(step["control"] + ".load", "a") as file:
        file.write(step["lines"])
    with open(step["control"] + ".step", "w") as file:
        file.write(step["text"])
    now = time.time_ns()
    os.utime(file.name, ns=(now, now))
    os.replace(file.name, step["control"])
    code = library.nvmlInitWithFlags(0)
    handle, joules, power = ctypes.c_void_p(1), ctypes.c_ulonglong(), ctypes.c_uint()
    for call, value in (("nvmlDeviceGetTotalEnergyConsumption", joules), ("nvmlDeviceGetPowerUsage", power)):
        code = code or getattr(library, call)(handle, ctypes.byref(value))
    answers.append([code, joules.value, power.value])
print(json.dumps(answers))
"""
"""For each row of its input: appends to the load file, moves the clock, and reads counter (mJ) and power (mW)."""
INSTANT = {"architecture": 6}
"""Before Ampere, `PowerUsage` is the power of the moment."""


@dataclass
class Asker:
    """Builds the steps of one manual machine, and the reference beside them."""

    simulated: SimulatedGpu
    load: Load = field(default_factory=Load)
    lines: str = ""
    steps: list[dict[str, str]] = field(default_factory=list)
    loads: list[tuple[int, tuple[Interval, ...]]] = field(default_factory=list)

    def event(self, kind: str, at_ns: int) -> None:
        self.load.event(kind, at_ns)
        self.lines += f"{kind} {at_ns}\n"

    def ask(self, now_ns: int) -> None:
        self.steps.append({"control": str(self.simulated.file), "lines": self.lines,
                           "text": self.simulated.text(now_s=now_ns / 1e9)})
        self.lines = ""
        self.load.asked(now_ns)
        self.loads.append((now_ns, self.load.intervals()))

    def expected_mj(self) -> list[int]:
        return [self.simulated.gpus[0].counter_mj(now_ns, load) for now_ns, load in self.loads]


def machine(folder: Path, gpu: Gpu) -> Asker:
    folder.mkdir(exist_ok=True)
    return Asker(SimulatedGpu(folder, gpu, clock="manual"))


def answers(*askers: Asker) -> list[list[list[int]]]:
    """Let one process read all machines one after the other; code, counter and power of each step."""
    environment = {**os.environ, **askers[0].simulated.environment()}
    given = [step for asker in askers for step in asker.steps]
    done = subprocess.run([sys.executable, "-c", READ], input=json.dumps(given), capture_output=True, text=True,
                          check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    rows: Iterator[list[int]] = iter(json.loads(done.stdout))
    return [[next(rows) for _ in asker.steps] for asker in askers]


def random_gpu(dice: random.Random, *, sparse: bool) -> Gpu:
    trace = tuple(Segment(10 ** dice.uniform(-2, 0.3), dice.uniform(20, 700), dice.choice([None, dice.uniform(20, 700)]))
                  for _ in range(dice.randint(1, 6)))
    period_s = dice.uniform(0.05, 0.3)
    return Gpu(trace=trace, repeat=dice.random() < 0.8, idle_w=dice.choice([0.0, 70.0, 690.0]), base_j=dice.choice([0.0, 1e6]),
               tick_s=dice.choice([0.0, 0.02, 0.1]), tick_phase_s=dice.uniform(0, 0.02),
               sample_period_s=period_s if sparse else 0.0,
               sample_on_s=period_s * dice.choice([0.1, 0.25, 1.0]) if sparse else 0.0)


# --- power that follows the load --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_library_and_reference_agree_to_the_millijoule_over_random_loads_late_and_early(
    *, sparse: bool, tmp_path: Path
) -> None:
    """40 machines, 30 readings each; events come in time, after somebody has read past them, or before their time."""
    askers = []
    for seed in range(40):
        dice = random.Random(seed)
        asker = machine(tmp_path / str(seed), random_gpu(dice, sparse=sparse))
        now_ns = 0
        for _ in range(30):
            before_ns, now_ns = now_ns, now_ns + dice.randrange(1, 10 ** dice.choice([7, 8] if sparse else [7, 8, 9]))
            for _ in range(dice.choice([0, 0, 1, 1, 2, 5])):
                late_ns = dice.choice([0, 0, 10**7, 10**9])
                asker.event(dice.choice(["on", "off"]), dice.randrange(before_ns - late_ns, now_ns + late_ns // 10 + 1))
            asker.ask(now_ns)
        askers.append(asker)
    found = answers(*askers)
    moved = 0
    for asker, rows in zip(askers, found, strict=True):
        assert [row[0] for row in rows] == [0] * 30
        counters = [row[1] for row in rows]
        assert counters == asker.expected_mj()
        assert counters == sorted(counters)
        moved += counters[-1] > counters[0]
    assert moved == 40


def test_the_trace_holds_while_the_machine_is_loaded_and_idle_power_else(tmp_path: Path) -> None:
    gpu = Gpu(trace=(Segment(1.0, 400.0), Segment(1.0, 200.0)), idle_w=70, base_j=0.0, tick_s=0.0, numbers=INSTANT)
    asker = machine(tmp_path, gpu)
    asker.ask(2 * 10**9)
    asker.event("on", 2_500_000_000)
    asker.event("off", 3_500_000_000)
    for now_s in (2.5, 2.75, 3.25, 3.5, 4.0):
        asker.ask(round(now_s * 1e9))
    rows = answers(asker)[0]
    assert rows == [[0, 140_000, 70_000], [0, 175_000, 400_000], [0, 275_000, 400_000], [0, 425_000, 200_000],
                    [0, 475_000, 70_000], [0, 510_000, 70_000]]
    assert gpu.energy_j(2.0, 4.0, asker.load.intervals()) == 0.5 * 70 + 0.5 * 400 + 0.5 * 200 + 0.5 * 70
    assert gpu.max_power_w == 400.0


def test_an_event_that_comes_late_counts_from_the_last_reading_and_the_counter_never_steps_back(tmp_path: Path) -> None:
    asker = machine(tmp_path, Gpu(trace=(Segment(1.0, 500.0),), idle_w=50, base_j=0.0, tick_s=0.0))
    asker.event("on", 0)
    asker.ask(10 * 10**9)
    asker.event("off", 4 * 10**9)
    asker.ask(10 * 10**9)
    asker.ask(11 * 10**9)
    assert [row[1] for row in answers(asker)[0]] == [5_000_000, 5_000_000, 5_050_000]


def test_without_idle_power_the_load_changes_nothing(tmp_path: Path) -> None:
    asker = machine(tmp_path, Gpu(trace=(Segment(1.0, 300.0),), base_j=0.0))
    asker.event("on", 10**9)
    asker.event("off", 2 * 10**9)
    asker.ask(10 * 10**9)
    assert answers(asker) == [[[0, 3_000_000, 300_000]]]


def test_only_whole_lines_count_and_a_line_that_is_none_stops_nvml(tmp_path: Path) -> None:
    gpu = Gpu(trace=(Segment(1.0, 500.0),), idle_w=50, base_j=0.0, tick_s=0.0)
    half, wrong, long = machine(tmp_path / "half", gpu), machine(tmp_path / "wrong", gpu), machine(tmp_path / "long", gpu)
    half.lines = "on 100"
    half.ask(2 * 10**9)
    half.lines = "0000000\non 3"
    half.ask(3 * 10**9)
    wrong.lines = "on 1 2\n"
    wrong.ask(10**9)
    long.lines = "on " + "1" * 100
    long.ask(10**9)
    found = answers(half, wrong, long)
    assert [row[1] for row in found[0]] == [100_000, 100_000 + 500_000]
    assert [rows[0][0] for rows in found[1:]] == [999, 999]


def test_ten_thousand_loads_are_counted_exactly(tmp_path: Path) -> None:
    asker = machine(tmp_path, Gpu(trace=square(high_w=650, low_w=111, period_s=0.37), idle_w=70, base_j=0.0))
    for number in range(10_000):
        asker.event("on", number * 10_000_000)
        asker.event("off", number * 10_000_000 + 3_333_333)
    for now_s in (1.0, 50.05, 99.999):
        asker.ask(round(now_s * 1e9))
    assert [row[1] for row in answers(asker)[0]] == asker.expected_mj()


def test_two_gpus_share_the_load_and_keep_their_own_power(tmp_path: Path) -> None:
    gpus = (Gpu(trace=(Segment(1.0, 500.0),), idle_w=50), Gpu(trace=(Segment(1.0, 500.0),)))
    both = SimulatedGpu(tmp_path, *gpus, clock="manual", now_s=10.0)
    both.load("on", 2.0)
    code = ("import pynvml, json\npynvml.nvmlInit()\nprint(json.dumps([pynvml.nvmlDeviceGetTotalEnergyConsumption("
            "pynvml.nvmlDeviceGetHandleByIndex(index)) - 10**9 for index in (0, 1)]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, **both.environment()})
    assert json.loads(done.stdout) == [2 * 50_000 + 8 * 500_000, 10 * 500_000]


def test_load_events_follow_a_clock_that_runs_and_is_scaled(tmp_path: Path) -> None:
    gpu = Gpu(trace=(Segment(1.0, 500.0),), idle_w=50, base_j=0.0, tick_s=0.0)
    running = SimulatedGpu(tmp_path, gpu, scale=1000, start_ns=time.monotonic_ns() - 10**8)
    running.load("on", 10.0)
    running.load("off", 20.0)
    code = "import pynvml\npynvml.nvmlInit()\nprint(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)))"
    before_s = running.now_s()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, **running.environment()})
    after_s, load = running.now_s(), ((10 * 10**9, 20 * 10**9),)
    assert gpu.energy_j(0, before_s, load) <= int(done.stdout) / 1000 <= gpu.energy_j(0, after_s, load)
    assert int(done.stdout) >= 50 * 1000 * before_s + 450 * 10_000 - 1


WATCH = """
import ctypes, json, os, random, sys, time
library, dice, path = ctypes.CDLL("libnvidia-ml.so.1"), random.Random(4), os.environ["JOULEBOARD_SIMULATED_GPU"] + ".load"
events, answers = [], []
library.nvmlInitWithFlags(0)
def read():
    joules, before_ns = ctypes.c_ulonglong(), time.monotonic_ns()
    code = library.nvmlDeviceGetTotalEnergyConsumption(ctypes.c_void_p(1), ctypes.byref(joules))
    answers.append([before_ns, joules.value, time.monotonic_ns()])
    assert code == 0
for number in range(60):
    time.sleep(dice.random() * 0.02)
    read()
    events.append([("on", "off")[number % 2], time.monotonic_ns()])
    with open(path, "a") as file:
        file.write("%s %d\\n" % tuple(events[-1]))
    read()
print(json.dumps([events, answers]))
"""


@pytest.mark.parametrize("sample_on_s", [0.0, 0.03])
def test_readings_of_a_running_machine_lie_between_those_before_and_after(sample_on_s: float, tmp_path: Path) -> None:
    """What the library has added up so far is used again: nothing is rewritten but the load file, which only grows."""
    gpu = Gpu(trace=square(high_w=650, low_w=111, period_s=0.37), idle_w=20, base_j=0.0, tick_s=0.01,
              sample_period_s=0.1 if sample_on_s else 0.0, sample_on_s=sample_on_s)
    running = SimulatedGpu(tmp_path, gpu, scale=10)
    done = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, check=False,
                          env={**os.environ, **running.environment()}, timeout=300)
    assert done.returncode == 0, done.stderr
    events, rows = json.loads(done.stdout)
    load = Load((kind, running.device_ns(at_ns)) for kind, at_ns in events).intervals()
    for before_ns, found_mj, after_ns in rows:
        low, high = (gpu.counter_mj(running.device_ns(at_ns), load) for at_ns in (before_ns, after_ns))
        assert low <= found_mj <= high
    exact = sum(gpu.counter_mj(running.device_ns(row[0]), load) == row[1] for row in rows)
    assert exact > len(rows) / 2
    assert rows[-1][1] > rows[0][1]


# --- a sensor that looks away -----------------------------------------------------------------------------------------

SPARSE = Gpu(trace=(Segment(1.0, 700.0),), idle_w=100, base_j=0.0, tick_s=0.1, sample_period_s=0.1, sample_on_s=0.025,
             numbers=INSTANT)
"""Looks at the power for 25 ms of each 100 ms, as arXiv 2312.02741 found it on A100 and H100 boards."""


def loops(asker: Asker, from_ns: int, count: int) -> int:
    """10 ms of work, 10 ms of rest, again and again; return when they end."""
    for number in range(count):
        asker.event("on", from_ns + number * 20_000_000)
        asker.event("off", from_ns + number * 20_000_000 + 10_000_000)
    return from_ns + count * 20_000_000


def misread(asker: Asker, from_ns: int, until_ns: int) -> float:
    """Relative error of a window over the counter, against the truth."""
    asker.ask(from_ns)
    asker.ask(until_ns)
    rows = answers(asker)[0]
    assert [row[1] for row in rows[-2:]] == asker.expected_mj()[-2:]
    truth = asker.simulated.gpus[0].energy_j(from_ns / 1e9, until_ns / 1e9, asker.load.intervals())
    return (rows[-1][1] - rows[-2][1]) / 1000 / truth - 1


def test_a_20_ms_load_is_misread_by_a_short_window_and_read_well_by_a_long_jittered_one(tmp_path: Path) -> None:
    short, dense, long = (machine(tmp_path / name, gpu) for name, gpu in (
        ("short", SPARSE), ("dense", replace(SPARSE, sample_period_s=0.0, sample_on_s=0.0)), ("long", SPARSE)))
    for asker in (short, dense):
        loops(asker, 10**9, 200)
    # 25 ms hold two loads of 10 ms and one rest, or one load and two rests, and each period begins with the same.
    assert misread(short, 2 * 10**9, 4 * 10**9) == pytest.approx((0.6 * 600 + 100) / 400 - 1, abs=0.01)
    assert abs(misread(dense, 2 * 10**9, 4 * 10**9)) < 0.001
    dice, now_ns = random.Random(1), 10**9
    for _ in range(60):
        now_ns = loops(long, now_ns + dice.randrange(10**8), 50)
    assert abs(misread(long, 10**9, now_ns)) < 0.02


def test_instant_power_is_the_mean_of_the_last_sampled_part(tmp_path: Path) -> None:
    asker = machine(tmp_path, replace(SPARSE, tick_s=0.0))
    asker.event("on", 110_000_000)
    asker.event("off", 120_000_000)
    for now_ms in (10, 30, 115, 124, 125, 224, 225):
        asker.ask(now_ms * 10**6)
    # 10 of the 25 ms at 700 W, 15 ms at 100 W.
    assert [row[2] for row in answers(asker)[0]] == [100_000] * 4 + [340_000] * 2 + [100_000]


def test_a_control_file_whose_sensor_never_looks_stops_nvml(tmp_path: Path) -> None:
    never, longer = (machine(tmp_path / name, replace(SPARSE, sample_on_s=on_s)) for name, on_s in (("0", 0.0), ("1", 0.2)))
    for asker in (never, longer):
        asker.ask(10**9)
    assert [rows[0][0] for rows in answers(never, longer)] == [999, 999]


# --- the driver says when it works ------------------------------------------------------------------------------------


def events(file: Path) -> list[tuple[str, int]]:
    return [(word, int(at_ns)) for word, at_ns in (line.split() for line in file.read_text().splitlines())]


def test_several_threads_load_the_machine_until_the_last_one_ends(tmp_path: Path) -> None:
    file = tmp_path / "control.load"
    load, inside, leave = simulated.Load(file), threading.Barrier(5), threading.Event()

    def work() -> None:
        with load.busy(), load.busy():
            inside.wait(timeout=30)
            leave.wait(timeout=30)

    threads = [threading.Thread(target=work) for _ in range(4)]
    before_ns = time.monotonic_ns()
    for thread in threads:
        thread.start()
    inside.wait(timeout=30)
    assert [word for word, _ in events(file)] == ["on"]
    leave.set()
    for thread in threads:
        thread.join()
    (first, on_ns), (second, off_ns) = events(file)
    assert (first, second) == ("on", "off")
    assert before_ns <= on_ns <= off_ns <= time.monotonic_ns()


def test_work_that_fails_unloads_the_machine(tmp_path: Path) -> None:
    file = tmp_path / "control.load"
    load = simulated.Load(file)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), load.busy():
            raise ZeroDivisionError
    assert [word for word, _ in events(file)] == ["on", "off", "on", "off"]


def test_on_any_other_machine_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with simulated.load().busy():
        assert list(tmp_path.iterdir()) == []


def test_all_workers_of_a_process_share_one_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "control"))
    with simulated.load().busy(), simulated.load().busy():
        pass
    assert [word for word, _ in events(tmp_path / "control.load")] == ["on", "off"]


MEASURE = """
import time, pynvml
from jouleboard import simulated
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
def watts():
    return pynvml.nvmlDeviceGetFieldValues(handle, [186])[0].value.uiVal / 1000
print(pynvml.nvmlDeviceGetName(handle), watts())
with simulated.load().busy():
    print(watts())
print(watts())
"""


def test_the_default_machine_draws_its_wave_while_it_works_and_idles_else(clean: Path) -> None:
    environment = simulated.machine(ROOT)
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, env=environment)
    idle, busy, after = done.stdout.split("\n")[:3]
    assert (idle, after) == ("SIMULATED GPU 70.0", "70.0")
    assert float(busy) in {430.0, 330.0}


def test_the_default_machine_is_the_declared_profile() -> None:
    profile = catalogue.hardware(simulated.PROFILE)
    assert profile.method == "simulated"
    assert profile.category == "simulated"
    assert "SIMULATED" in profile.title
    assert re.search(profile.device_pattern, MACHINE.name)
    figures = {name: getattr(profile, name).value for name in ("power_limit_w", "idle_w", "memory_bytes", "counter_tick_s")
               if getattr(profile, name) is not None}
    known = {"power_limit_w": 700.0, "idle_w": 70.0, "memory_bytes": 80e9, "counter_tick_s": 0.1}
    assert figures == {name: known[name] for name in figures}
    assert (MACHINE.idle_w, MACHINE.tick_s, MACHINE.numbers["limit_mw"]) == (70.0, 0.1, 700_000)
    assert (MACHINE.max_power_w, min(segment.power_w for segment in MACHINE.trace)) == (430.0, 330.0)
    assert sum(segment.duration_s for segment in MACHINE.trace) == 1.7


# --- commands run on it -----------------------------------------------------------------------------------------------


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return {row["topic"]: row["found"] for row in json.loads(done.stdout)["findings"]}


def test_a_command_finds_the_simulated_gpu_from_another_folder_and_leaves_no_machine(clean: Path) -> None:
    assert findings(jouleboard("doctor", "--json", "--hardware", "simulated-gpu"))["NVIDIA GPU"] == "SIMULATED GPU"
    assert list((clean / "machines").iterdir()) == []
    built = list((clean / "library").glob("*/*"))
    assert len(built) == 1
    first_ns = built[0].stat().st_mtime_ns
    assert findings(jouleboard("doctor", "--json", "--hardware", "simulated-gpu"))["NVIDIA GPU"] == "SIMULATED GPU"
    assert built[0].stat().st_mtime_ns == first_ns, "built again"


def test_a_hidden_gpu_does_not_hide_the_simulated_one(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" not in simulated.machine(ROOT)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_what_was_on_the_library_path_stays_behind_the_simulated_library(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/one:/opt/two")
    assert re.fullmatch(r".*/simulated-gpu/library/[0-9a-f]{16}:/opt/one:/opt/two",
                        simulated.machine(ROOT)["LD_LIBRARY_PATH"])


def test_a_dry_run_says_simulated(clean: Path) -> None:
    done = jouleboard("run", "quick", "--hardware", "simulated-gpu", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "simulated" in next(line for line in lines if line.startswith("hardware"))
    assert any(line.startswith("note") and "SIMULATED" in line for line in lines)
    assert list((clean / "machines").iterdir()) == []


def test_detect_looks_at_the_simulated_machine(clean: Path) -> None:
    done = jouleboard("hardware", "detect", "--hardware", "simulated-gpu")
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout.splitlines()[0]
    assert "method: simulated" in done.stdout


def test_a_machine_that_a_test_made_itself_is_used_and_kept(clean: Path, tmp_path: Path) -> None:
    own = SimulatedGpu(tmp_path, Gpu(name="SIMULATED own"))
    done = jouleboard("doctor", "--json", "--hardware", "simulated-gpu", **own.environment())
    assert findings(done)["NVIDIA GPU"] == "SIMULATED own"
    assert own.file.is_file()
    assert not clean.exists()


def test_without_a_c_compiler_the_error_says_what_to_install(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = jouleboard("doctor", "--hardware", "simulated-gpu", PATH=str(tmp_path / "empty"))
    try:
        import ziglang  # noqa: F401
    except ImportError:
        assert done.returncode == 2
        assert "there is no C compiler" in done.stderr
        assert "pip install ziglang" in done.stderr
        assert "Traceback" not in done.stderr
        assert list((clean / "machines").iterdir()) == []
    else:
        assert done.returncode == 0


def test_a_compiler_that_fails_is_named_with_its_message(clean: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "cc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    done = jouleboard("doctor", "--hardware", "simulated-gpu", PATH=str(broken.parent))
    if done.returncode != 0:
        assert done.returncode == 2
        assert "this compiler is broken" in done.stderr
    assert not [path for path in (clean / "library").glob("*/*") if "build" in path.name]


def test_outside_a_checkout_the_error_says_where_the_simulated_gpu_lives(clean: Path, tmp_path: Path) -> None:
    for checkout in (None, tmp_path):
        with pytest.raises(HardwareError, match="source checkout") as caught:
            simulated.machine(checkout)
        assert "clone" in str(caught.value.remedy)
    assert not clean.exists()


def test_a_cache_that_cannot_be_written_is_named(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = jouleboard("doctor", "--hardware", "simulated-gpu", JOULEBOARD_CACHE=str(tmp_path / "file"))
    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr
    assert "JOULEBOARD_CACHE" in done.stderr


def test_inside_another_program_it_is_refused_instead_of_replacing_it(
    clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "quick", "--hardware", "simulated-gpu", "--dry-run"]) == 2
    assert "a command of its own" in capsys.readouterr().err


@pytest.mark.parametrize("hardware", [None, "x86-vm", "nvidia-h100-sxm-80gb"])
def test_for_real_hardware_nothing_is_touched(hardware: str | None, clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*words: object) -> None:
        raise AssertionError(words)

    monkeypatch.setattr(os, "execve", forbidden)
    before = dict(os.environ)
    simulated.enter(hardware, arguments=None)
    assert dict(os.environ) == before
    assert not clean.exists()


KILLED = """
import os, signal, sys
from jouleboard import simulated
simulated.enter("simulated-gpu", arguments=None)
print(os.environ["JOULEBOARD_SIMULATED_GPU"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_swept_and_what_lives_is_not(clean: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    left = Path(done.stdout.strip()).parent
    assert left.is_dir()
    lives = Path(simulated.machine(ROOT)[VARIABLE]).parent
    assert not left.exists()
    simulated.machine(ROOT)
    assert lives.is_dir()


CHILD = """
import subprocess, sys
from jouleboard import simulated
simulated.enter("simulated-gpu", arguments=None)
code = 'from jouleboard import simulated; simulated.enter("simulated-gpu", arguments=None)'
subprocess.run([sys.executable, "-c", code], check=True)
from pathlib import Path
import os
print(Path(os.environ["JOULEBOARD_SIMULATED_GPU"]).is_file())
"""


def test_a_command_started_by_a_run_leaves_the_run_s_machine_alone(clean: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert list((clean / "machines").iterdir()) == []


def test_two_commands_at_once_build_and_run_beside_each_other(clean: Path) -> None:
    command = [sys.executable, "-m", "jouleboard", "doctor", "--json", "--hardware", "simulated-gpu"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found: dict[str, Any] = json.loads(out)
        assert next(row for row in found["findings"] if row["topic"] == "NVIDIA GPU")["found"] == "SIMULATED GPU"
