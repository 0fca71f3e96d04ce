"""Meters give a true reading or an error: never a silent zero, and never an estimate in the place of a measurement."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import catalogue, meters
from jouleboard.declared import PowerModel
from jouleboard.errors import MeterError
from jouleboard.meters import cpu, detect
from jouleboard.meters.cpu import ProcessClock
from jouleboard.meters.interface import OpenWindow
from jouleboard.meters.model import PowerModelMeter, estimate_j
from jouleboard.meters.zeus import ZeusGpuMeter
from jouleboard.records import Energy

MODEL = PowerModel(idle_w_per_core=1.0, max_w_per_core=4.0, relative_uncertainty=0.5, source="invented")


# --- the power model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "duration_s", "cpu_s", "joules"), [
    (2, 10.0, 0.0, 20.0), (2, 10.0, 20.0, 80.0), (2, 10.0, 5.0, 35.0), (4, 1.0, 1.0, 7.0), (1, 0.5, 0.25, 1.25),
])
def test_the_power_model_is_idle_power_of_all_cores_and_active_power_of_cpu_seconds(
    cores: int, duration_s: float, cpu_s: float, joules: float
) -> None:
    assert estimate_j(MODEL, cores=cores, duration_s=duration_s, cpu_s=cpu_s) == joules


def test_an_estimate_never_becomes_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    profile = msgspec.structs.replace(catalogue.hardware("x86-vm"), power_model=MODEL)
    meter = PowerModelMeter(profile)
    meter.begin()
    assert meter.end(duration_s=10.0, cpu_s=20.0) == Energy(
        method="model", boundary="cpu", measured_j=None, domains_j={}, estimate_j=80.0,
        estimate_relative_uncertainty=0.5)
    assert meter.end(duration_s=10.0, cpu_s=None).estimate_j == 20.0


def test_a_profile_without_a_power_model_has_no_meter_of_that_method() -> None:
    profile = msgspec.structs.replace(catalogue.hardware("x86-vm"), power_model=None)
    with pytest.raises(MeterError) as caught:
        meters.choose(profile)
    assert caught.value.field == "power_model"


@pytest.mark.parametrize("method", ["rapl", "soc", "gpu_integral", "simulated", "none"])
def test_a_method_without_a_meter_is_refused_and_not_replaced(method: str) -> None:
    profile = msgspec.structs.replace(catalogue.hardware("x86-vm"), method=method)
    with pytest.raises(MeterError, match=method):
        meters.choose(profile)


# --- Zeus -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What Zeus gives at the end of a window."""

    gpu_energy: Mapping[int, float]


@dataclass
class FakeMonitor:
    """Stands in for `zeus.monitor.ZeusMonitor`."""

    energy: Mapping[int, float]
    calls: list[tuple[str, str, bool]] = field(default_factory=list)

    def begin_window(self, key: str, sync_execution: bool = True) -> None:  # noqa: FBT001, FBT002 - Zeus's signature
        self.calls.append(("begin", key, sync_execution))

    def end_window(self, key: str, sync_execution: bool = True) -> Reading:  # noqa: FBT001, FBT002
        self.calls.append(("end", key, sync_execution))
        return Reading(self.energy)


def read(indices: tuple[int, ...], energy: Mapping[int, float]) -> Energy:
    meter = ZeusGpuMeter(indices, monitor=FakeMonitor(energy))
    meter.begin()
    return meter.end(duration_s=10.0, cpu_s=3.0)


def test_a_good_reading_is_kept_by_gpu_and_summed() -> None:
    assert read((0,), {0: 2000.0}) == Energy(
        method="gpu_counter", boundary="gpu", measured_j=2000.0, domains_j={"gpu0": 2000.0}, estimate_j=None,
        estimate_relative_uncertainty=None)
    found = read((0, 1), {0: 2000.0, 1: 500.0, 7: 9.0})
    assert found.measured_j == 2500.0
    assert found.domains_j == {"gpu0": 2000.0, "gpu1": 500.0}


@pytest.mark.parametrize("energy", [{}, {1: 5.0}, {0: 0.0}, {0: 0}, {0: -3.0}, {0: math.nan}, {0: math.inf},
                                    {0: -math.inf}])
def test_a_reading_that_is_missing_or_cannot_be_true_is_an_error(energy: dict[int, float]) -> None:
    with pytest.raises(MeterError, match="GPU 0") as caught:
        read((0,), energy)
    assert "jouleboard doctor" in (caught.value.remedy or "")


def test_one_bad_gpu_of_several_is_enough() -> None:
    with pytest.raises(MeterError, match="GPU 1"):
        read((0, 1), {0: 100.0, 1: 0.0})


def test_zeus_is_never_asked_to_synchronise() -> None:
    """That would need torch and a device context in this process; the worker synchronises itself."""
    monitor = FakeMonitor({0: 1.0})
    meter = ZeusGpuMeter((0,), monitor=monitor)
    meter.begin()
    meter.end(duration_s=1.0, cpu_s=None)
    (begin, begin_key, begin_sync), (end, end_key, end_sync) = monitor.calls
    assert (begin, end) == ("begin", "end")
    assert begin_key == end_key
    assert (begin_sync, end_sync) == (False, False)


def test_no_gpu_index_is_refused() -> None:
    with pytest.raises(MeterError, match="no GPU was named"):
        ZeusGpuMeter((), monitor=FakeMonitor({}))


@pytest.mark.parametrize("devices", [(), ("NVIDIA H100 80GB HBM3",)])
def test_a_gpu_that_is_not_there_is_refused_before_zeus_is_asked(
    devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "gpus", lambda: detect.Gpus(devices=devices, reason=None if devices else "no driver"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    with pytest.raises(MeterError, match="GPU 1 is not there"):
        ZeusGpuMeter((0, 1))


def test_the_naive_zeus_monitor_gives_0_j_without_a_gpu_where_ours_raises() -> None:
    """The trap of zeus 0.16: it constructs, measures, and answers an empty sum, without an error."""
    if detect.gpus().devices:
        pytest.skip("this machine has a GPU")
    pytest.importorskip("zeus")
    code = textwrap.dedent("""
        import sys
        from zeus.monitor import ZeusMonitor
        monitor = ZeusMonitor()
        monitor.begin_window("x", sync_execution=False)
        reading = monitor.end_window("x", sync_execution=False)
        print("naive", reading.total_energy, dict(reading.gpu_energy))
        from jouleboard.errors import MeterError
        from jouleboard.meters.zeus import ZeusGpuMeter
        try:
            ZeusGpuMeter((0,))
        except MeterError:
            print("ours: MeterError, opening")
        ours = ZeusGpuMeter((0,), monitor=monitor)
        ours.begin()
        try:
            ours.end(duration_s=1.0, cpu_s=None)
        except MeterError:
            print("ours: MeterError, reading")
        print("torch" in sys.modules)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("naive", "ours", "True", "False"))]
    assert lines[0].replace("0.0", "0") == "naive 0 {}"
    assert lines[1:] == ["ours: MeterError, opening", "ours: MeterError, reading", "False"]


# --- CPU time ---------------------------------------------------------------------------------------------------------

BURN = """
import subprocess, sys, time
children = int(sys.argv[1])
started = [subprocess.Popen([sys.executable, "-c", sys.argv[2], "0", sys.argv[2]], stdin=subprocess.PIPE,
           stdout=subprocess.PIPE, text=True) for _ in range(children)]
for child in started:
    child.stdout.readline()
print("ready", flush=True)
sys.stdin.readline()
for child in started:
    child.stdin.write("go\\n"); child.stdin.flush()
until = time.process_time() + 0.5
while time.process_time() < until:
    pass
for child in started:
    child.stdout.readline()
print("done", flush=True)
sys.stdin.readline()
for child in started:
    child.stdin.close(); child.wait()
"""


def burnt(children: int) -> float:
    """Return what the clock counts while a process, and each of its children, computes for half a second."""
    with subprocess.Popen([sys.executable, "-c", BURN, str(children), BURN], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        clock = ProcessClock(process.pid)
        before = clock.cpu_s()
        process.stdin.write("go\n")
        process.stdin.flush()
        process.stdout.readline()
        after = clock.cpu_s()
        process.stdin.write("end\n")
    return after - before


@pytest.mark.parametrize("children", [0, 1])
def test_a_busy_process_and_its_children_are_counted(children: int) -> None:
    expected = 0.5 * (1 + children)
    assert burnt(children) == pytest.approx(expected, rel=0.2)


def test_a_sleeping_process_uses_next_to_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        clock = ProcessClock(process.pid)
        before = clock.cpu_s()
        time.sleep(0.3)
        assert clock.cpu_s() - before < 0.02
        process.communicate(b"\n")


def test_without_the_kernels_clock_the_times_of_psutil_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "ON_LINUX", False)
    clock = ProcessClock(__import__("os").getpid())
    assert clock.cpu_s() == pytest.approx(time.process_time(), abs=0.5)


# --- windows ----------------------------------------------------------------------------------------------------------


class FakeMeter:
    """Keeps what it was told."""

    method = "model"
    boundary = "cpu"

    def __init__(self) -> None:
        self.told: list[tuple[float, float | None]] = []

    def begin(self) -> None:
        self.told.clear()

    def end(self, *, duration_s: float, cpu_s: float | None) -> Energy:
        self.told.append((duration_s, cpu_s))
        return Energy(method="model", boundary="cpu", measured_j=None, domains_j={}, estimate_j=1.0,
                      estimate_relative_uncertainty=0.5)


class FakeClock:
    """Counts up by 3 seconds a reading."""

    def __init__(self) -> None:
        self.now = 100.0

    def cpu_s(self) -> float:
        self.now += 3.0
        return self.now


def test_a_window_holds_the_differences_and_not_the_readings() -> None:
    meter: Any = FakeMeter()
    clock: Any = FakeClock()
    window = OpenWindow(meter, clock).close()
    assert window.cpu_s == 3.0
    assert 0 < window.duration_s < 1
    assert meter.told == [(window.duration_s, 3.0)]
    assert window.started_utc.endswith("Z")


def test_a_window_without_a_process_has_no_cpu_time() -> None:
    meter: Any = FakeMeter()
    assert OpenWindow(meter, None).close().cpu_s is None


def test_a_window_during_which_the_clock_stood_still_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    meter: Any = FakeMeter()
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    with pytest.raises(MeterError, match="without duration"):
        OpenWindow(meter, None).close()


# --- what is there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zones", "readable", "word"), [
    ({}, False, "no RAPL zone"), ({"intel-rapl:0": True}, True, None), ({"intel-rapl:0": False}, False, "not readable"),
    ({"intel-rapl:0": True, "intel-rapl:1": False}, False, "intel-rapl:1/energy_uj"),
])
def test_rapl_is_readable_only_where_every_zone_is(
    zones: dict[str, bool], readable: bool, word: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: FBT001
) -> None:
    for name in zones:
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("1")
    monkeypatch.setattr("os.access", lambda path, _mode: zones[Path(path).parent.name])
    found = detect.rapl(tmp_path)
    assert found.zones == tuple(sorted(zones))
    assert found.readable is readable
    assert (found.reason is None) == readable
    assert word is None or word in (found.reason or "")


def test_a_missing_powercap_folder_is_no_error(tmp_path: Path) -> None:
    assert not detect.rapl(tmp_path / "none").readable


def test_asking_for_gpus_never_raises_and_says_why_there_is_none() -> None:
    found = detect.gpus()
    assert bool(found.devices) == (found.reason is None)
