"""Meters give a true reading or an error: never a silent zero, and never an estimate in the place of a measurement."""

from __future__ import annotations

import ast
import hashlib
import io
import math
import os
import queue
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from jouleboard import catalogue, meters
from jouleboard.declared import Method, PowerModel, Sensor
from jouleboard.errors import MeterError
from jouleboard.meters import alone, cpu, detect, kernel, reasons, server, wire
from jouleboard.meters.alone import Household
from jouleboard.meters.cpu import ProcessClock
from jouleboard.meters.gpu import NOTHING, GpuMeter, Hurried, Quick, Slow, unhurried
from jouleboard.meters.integral import integrate_j
from jouleboard.meters.interface import OpenWindow, Reading
from jouleboard.meters.model import PowerModelMeter, estimate_j
from jouleboard.meters.reasons import SensorError
from jouleboard.meters.server import next_poll_s
from jouleboard.meters.soc import SocMeter, open_soc
from jouleboard.meters.zeus import ZeusCounter, ZeusDevices, open_gpus
from jouleboard.windows import DeviceState, Energy

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
    meter = meters.choose(profile)
    assert isinstance(meter, PowerModelMeter)
    meter.begin("trial-0")
    reading = meter.end(duration_s=10.0, cpu_s=20.0)
    assert reading == Reading(energy=Energy(
        method="model", boundary="cpu", measured_j=None, domains_j={}, estimate_j=80.0,
        estimate_relative_uncertainty=0.5))
    assert meter.end(duration_s=10.0, cpu_s=None).energy.estimate_j == 20.0
    assert meter.state() is None
    meter.close()


def test_a_profile_without_a_power_model_has_no_meter_of_that_method() -> None:
    profile = msgspec.structs.replace(catalogue.hardware("x86-vm"), power_model=None)
    with pytest.raises(MeterError) as caught:
        meters.choose(profile)
    assert caught.value.field == "power_model"


@pytest.mark.parametrize(("method", "word"), [("none", "a method with a meter: gpu_counter"), ("wall", "import-power")])
def test_a_method_without_a_meter_is_refused_and_not_replaced(method: str, word: str) -> None:
    profile = msgspec.structs.replace(catalogue.hardware("x86-vm"), method=method)
    with pytest.raises(MeterError, match=f"'{method}'") as caught:
        meters.choose(profile)
    assert caught.value.field == "method"
    assert word in (caught.value.remedy or "")


def test_every_method_has_a_meter_or_a_reason() -> None:
    assert set(get_args(Method)) == {*meters.METERS, "wall", "none"}


def test_the_driver_imports_neither_zeus_nor_nvml_nor_torch() -> None:
    """Importing Zeus takes seconds, and NVML in the driver could hang it."""
    code = ("import sys; from jouleboard import meters; from jouleboard.meters import gpu, nvml, server, soc, zeus\n"
            "print([name for name in ('zeus', 'pynvml', 'amdsmi', 'torch') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Zeus -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """What Zeus gives at the end of a window."""

    gpu_energy: Mapping[int, float]


class ZeusError(Exception):
    """What a fake monitor raises."""


@dataclass
class FakeMonitor:
    """Stands in for `zeus.monitor.ZeusMonitor`."""

    energy: Mapping[int, float]
    calls: list[tuple[str, str, bool]] = field(default_factory=list)
    fails: str | None = None

    def begin_window(self, key: str, sync_execution: bool = True) -> None:  # noqa: FBT001, FBT002 - Zeus's signature
        self.calls.append(("begin", key, sync_execution))
        if self.fails == "begin":
            raise ZeusError("no")

    def end_window(self, key: str, sync_execution: bool = True) -> Measurement:  # noqa: FBT001, FBT002
        self.calls.append(("end", key, sync_execution))
        if self.fails == "end":
            raise ZeusError("no")
        return Measurement(self.energy)


class FakeDevices:
    """GPUs that tell what stands in `rows`, one a poll, the last one for ever; an exception is raised."""

    def __init__(self, *rows: Quick | Exception, clock: FakeSeconds | None = None, step_s: float = 0.1) -> None:
        self.rows = list(rows)
        self.clock = clock
        self.step_s = step_s

    def quick(self) -> Quick:
        row = self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]
        if isinstance(row, Exception):
            raise row
        return row

    def slow(self, hurried: Hurried = unhurried) -> Slow:
        return NOTHING if hurried() else Slow(temperature_c=50.0, limit_w=700.0, reasons=4, foreign=0)

    def state(self) -> DeviceState:
        return DeviceState(temperature_c=50.0)


class FakeSeconds:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def quick(counter_j: float | None, power_w: float | None = 300.0) -> Quick:
    return Quick(powers_w=(power_w,), counters_j=(counter_j,))


def measured(
    rows: list[Quick | Exception], energy: Mapping[int, float], *, indices: tuple[int, ...] = (0,), method: Method = "gpu_counter",
    step_s: float = 0.1, fails: str | None = None,
) -> Reading:
    """Measure one window: a row at its beginning, one for each poll, one at its end."""
    clock = FakeSeconds()
    counter = ZeusCounter(indices, FakeMonitor(energy, fails=fails), failures=(ZeusError,))
    meter = GpuMeter(FakeDevices(*rows), None if method == "gpu_integral" else counter, method=method, boundary="gpu",
                     tick_s=0.1, clock=clock)
    meter.begin("trial-3")
    for _ in rows[1:-1]:
        clock.now_s += step_s
        meter.poll()
    clock.now_s += step_s
    return meter.end(duration_s=step_s * (len(rows) - 1), cpu_s=3.0)


def ramp(n: int = 20, *, start_j: float = 1000.0, step_j: float = 30.0) -> list[Quick | Exception]:
    return [quick(start_j + step_j * i) for i in range(n)]


def test_a_good_reading_is_kept_by_gpu_and_summed() -> None:
    reading = measured(ramp(), {0: 570.0})
    assert reading.energy == Energy(
        method="gpu_counter", boundary="gpu", measured_j=570.0, domains_j={"gpu0": 570.0}, estimate_j=None,
        estimate_relative_uncertainty=None, integral_j=pytest.approx(300 * 1.9))
    assert reading.void is None
    assert [sample.window for sample in reading.samples] == ["trial-3"] * 20
    first, last = reading.samples[0], reading.samples[-1]
    assert (first.elapsed_s, first.counter_j, first.power_w) == (0.0, 1000.0, 300.0)
    assert last.elapsed_s == pytest.approx(1.9)
    assert [sample.reasons for sample in reading.samples] == [4, *[None] * 9, 4, *[None] * 8, 4]
    two = measured([Quick(powers_w=(1.0, 2.0), counters_j=(5.0, 7.0)), Quick(powers_w=(1.0, 2.0), counters_j=(6.0, 9.0))],
                   {0: 2000.0, 1: 500.0, 7: 9.0}, indices=(0, 1))
    assert two.energy.measured_j == 2500.0
    assert two.energy.domains_j == {"gpu0": 2000.0, "gpu1": 500.0}
    assert (two.samples[0].power_w, two.samples[0].counter_j) == (3.0, 12.0)


NVML_LOST = SensorError("device-lost", "GPU is lost")


@pytest.mark.parametrize(("rows", "energy", "code"), [
    (ramp(), {}, "counter-missing"),
    (ramp(), {1: 5.0}, "counter-missing"),
    (ramp(), {0: 0.0}, "counter-still"),
    (ramp(), {0: -3.0}, "counter-reset"),
    (ramp(), {0: math.nan}, "not-finite"),
    (ramp(), {0: math.inf}, "not-finite"),
    (ramp(), {0: -math.inf}, "not-finite"),
    # A reset between two polls that has counted past its start by the end, and one at the very end.
    ([*ramp(5), *ramp(100, start_j=0.0)], {0: 1970.0}, "counter-reset"),
    ([*ramp(20), quick(1.0)], {0: 570.0}, "counter-reset"),
    # Frozen from the start, and only near the end, where the difference alone looks good.
    ([quick(1000.0)] * 20, {0: 0.0}, "counter-frozen"),
    ([*ramp(60), *[quick(2770.0)] * 10], {0: 1770.0}, "counter-frozen"),
    ([*ramp(60), *[quick(2770.0, None)] * 10], {0: 1770.0}, "counter-frozen"),
    # Too short for a tick: still, not frozen.
    ([quick(1000.0)] * 4, {0: 0.0}, "counter-still"),
    ([*ramp(5), NVML_LOST, *ramp(5)], {0: 300.0}, "device-lost"),
    ([*ramp(5), NVML_LOST], {0: 300.0}, "device-lost"),
    ([NVML_LOST, *ramp(5)], {0: 300.0}, "device-lost"),
])
def test_a_reading_that_is_missing_or_cannot_be_true_is_void(
    rows: list[Quick | Exception], energy: dict[int, float], code: str
) -> None:
    reading = measured(rows, energy)
    assert reading.energy.measured_j is None
    assert reading.energy.domains_j == {}
    assert (reading.void or "").startswith(f"{code}: {reasons.VOID[code]} (")
    assert reading.energy.method == "gpu_counter"


TIMED_OUT = SensorError("sensor-error", "timeout")


def test_a_poll_that_fails_for_once_is_left_out_and_the_window_stands() -> None:
    """Both ends are sound; how large a gap may be is for the gates."""
    reading = measured([*ramp(5), TIMED_OUT, TIMED_OUT, *ramp(5, start_j=1210.0)], {0: 330.0})
    assert reading.void is None
    assert reading.energy.measured_j == 330.0
    assert [round(sample.elapsed_s, 6) for sample in reading.samples] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.7, 0.8, 0.9, 1.0, 1.1]


@pytest.mark.parametrize("rows", [[TIMED_OUT, *ramp(5)], [*ramp(5), TIMED_OUT]])
def test_an_end_of_the_window_that_fails_voids_it(rows: list[Quick | Exception]) -> None:
    reading = measured(rows, {0: 120.0})
    assert (reading.void or "").startswith("sensor-error: ")
    assert reading.energy.measured_j is None


def test_the_last_sample_stands_at_the_time_of_the_counter_s_reading() -> None:
    """A gate compares it with the driver's own duration: energy that covers more time must show."""
    clock = FakeSeconds()
    devices = FakeDevices(*ramp(3))
    monitor = FakeMonitor({0: 60.0})

    def late(key: str, sync_execution: bool = True) -> Measurement:  # noqa: FBT001, FBT002 - Zeus's signature
        clock.now_s += 0.4
        return Measurement({0: 60.0})

    monitor.end_window = late  # type: ignore[method-assign]
    devices.slow = lambda hurried=unhurried: setattr(clock, "now_s", clock.now_s + 5.0) or NOTHING  # type: ignore[method-assign]
    meter = GpuMeter(devices, ZeusCounter((0,), monitor), method="gpu_counter", boundary="gpu", tick_s=0.1, clock=clock)
    meter.begin("trial-0")
    clock.now_s += 2.0
    reading = meter.end(duration_s=2.0, cpu_s=None)
    assert [round(sample.elapsed_s, 6) for sample in reading.samples] == [0.0, 2.4]


def test_one_bad_gpu_of_several_is_enough() -> None:
    rows: list[Quick | Exception] = [
        Quick(powers_w=(1.0, 1.0), counters_j=(10.0 + i, 50.0 if i < 5 else 2.0 * i)) for i in range(50)]
    reading = measured(rows, {0: 49.0, 1: 48.0}, indices=(0, 1))
    assert (reading.void or "").startswith("counter-reset: ")
    assert "gpu1: 10.000 J after 50.000 J" in (reading.void or "")
    assert reading.energy.measured_j is None


def test_a_counter_that_ticks_more_slowly_than_declared_is_not_frozen() -> None:
    rows: list[Quick | Exception] = [quick(1000.0 + 300 * (i // 10)) for i in range(39)]
    assert measured(rows, {0: 900.0}).void is None


def test_a_counter_that_rests_while_nothing_is_drawn_is_not_frozen() -> None:
    assert measured([*ramp(60), *[quick(2770.0, 0.0)] * 10], {0: 1770.0}).void is None


@pytest.mark.parametrize("end", ["begin", "end"])
def test_a_zeus_that_fails_at_either_end_voids_the_window_with_its_words(end: str) -> None:
    reading = measured(ramp(), {0: 5.0}, fails=end)
    assert (reading.void or "").startswith("sensor-error: ")
    assert "no, ZeusError" in (reading.void or "")
    assert reading.energy.measured_j is None


def test_without_a_counter_the_integral_of_the_samples_is_what_was_measured() -> None:
    reading = measured([quick(None, power_w) for power_w in (100.0, 300.0, 500.0, 0.0)], {}, method="gpu_integral")
    assert reading.energy.method == "gpu_integral"
    assert reading.energy.measured_j == pytest.approx(0.1 * 900)
    assert reading.energy.domains_j == {"gpu0": reading.energy.measured_j}
    for rows in ([quick(None, None)] * 3, [quick(None, 0.0)] * 3):
        nothing = measured([*rows], {}, method="gpu_integral")
        assert (nothing.void or "").startswith("no-power: ")
        assert nothing.energy.measured_j is None


def test_an_end_without_a_beginning_is_void_and_a_forgotten_window_does_not_stop_the_next() -> None:
    clock = FakeSeconds()
    meter = GpuMeter(FakeDevices(*ramp(9)), ZeusCounter((0,), FakeMonitor({0: 90.0})), method="gpu_counter",
                     boundary="gpu", tick_s=0.1, clock=clock)
    assert (meter.end(duration_s=1.0, cpu_s=None).void or "").startswith("not-begun: ")
    meter.begin("trial-0")
    meter.begin("trial-1")
    clock.now_s += 0.3
    reading = meter.end(duration_s=0.3, cpu_s=None)
    assert reading.energy.measured_j == 90.0
    assert {sample.window for sample in reading.samples} == {"trial-1"}


def test_zeus_is_never_asked_to_synchronise() -> None:
    """That would need torch and a device context in this process; the worker synchronises itself."""
    monitor = FakeMonitor({0: 1.0})
    counter = ZeusCounter((0,), monitor)
    counter.begin()
    counter.end()
    (begin, begin_key, begin_sync), (end, end_key, end_sync) = monitor.calls
    assert (begin, end) == ("begin", "end")
    assert begin_key == end_key
    assert (begin_sync, end_sync) == (False, False)


def test_no_gpu_index_is_refused() -> None:
    with pytest.raises(MeterError, match="no GPU was named"):
        ZeusCounter((), FakeMonitor({}))
    with pytest.raises(MeterError, match="no GPU was named"):
        open_gpus((), "nvml")


@pytest.mark.parametrize("devices", [(), ("NVIDIA H100 80GB HBM3",)])
def test_a_gpu_that_is_not_there_is_refused_before_zeus_is_asked(
    devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "gpus", lambda: detect.Gpus(devices=devices, reason=None if devices else "no driver"))
    monkeypatch.setitem(sys.modules, "zeus.device", None)
    with pytest.raises(MeterError, match="GPU 1 is not there"):
        open_gpus((0, 1), "nvml")


def test_the_naive_zeus_monitor_gives_0_j_without_a_gpu_where_ours_refuses_or_is_void() -> None:
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
        from jouleboard.meters.zeus import ZeusCounter, open_gpus
        try:
            open_gpus((0,), "nvml")
        except MeterError:
            print("ours: MeterError, opening")
        ours = ZeusCounter((0,), monitor)
        ours.begin()
        try:
            ours.end()
        except MeterError as error:
            print("ours:", error.code)
        print("torch" in sys.modules)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("naive", "ours", "True", "False"))]
    assert lines[0].replace("0.0", "0") == "naive 0 {}"
    assert lines[1:] == ["ours: MeterError, opening", "ours: counter-missing", "False"]


# --- AMD, Jetson, Apple: fakes in the place of Zeus's classes ---------------------------------------------------------


class FakeAmdGpu:
    """Stands in for `zeus.device.gpu.amd.AMDGPU`: milliwatts and millijoules."""

    def __init__(self, power_mw: float, energy_mj: float, *, limit_mw: float | None = 750_000.0) -> None:
        self.power_mw, self.energy_mj, self.limit_mw = power_mw, energy_mj, limit_mw

    def get_instant_power_usage(self) -> float:
        return self.power_mw

    def get_total_energy_consumption(self) -> float:
        return self.energy_mj

    def get_gpu_temperature(self) -> int:
        return int(self.power_mw / 10_000)

    def get_power_management_limit(self) -> float:
        if self.limit_mw is None:
            raise ZeusGPUNotSupportedError("not supported")
        return self.limit_mw


class ZeusGPUNotSupportedError(Exception):
    """Named as Zeus's own."""


class ZeusGPULostError(Exception):
    """Named as Zeus's own."""


KINDS = (ZeusGPUNotSupportedError, ZeusGPULostError)


def test_amd_gpus_are_read_in_watts_and_joules_and_what_they_do_not_say_is_none() -> None:
    devices = ZeusDevices([FakeAmdGpu(500_000, 7_000), FakeAmdGpu(300_000, 9_000, limit_mw=700_000)], kinds=KINDS)
    assert devices.quick() == Quick(powers_w=(500.0, 300.0), counters_j=(7.0, 9.0))
    assert devices.slow() == Slow(temperature_c=50.0, limit_w=700.0)
    assert devices.state() == DeviceState(counter_j=16.0, temperature_c=50.0, power_limit_w=700.0)
    assert ZeusDevices([FakeAmdGpu(1.0, 1.0, limit_mw=None)], kinds=KINDS).slow().limit_w is None


def test_a_lost_amd_gpu_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_self: object) -> float:
        raise ZeusGPULostError("gone")

    monkeypatch.setattr(FakeAmdGpu, "get_instant_power_usage", lost)
    with pytest.raises(SensorError) as caught:
        ZeusDevices([FakeAmdGpu(1.0, 1.0)], kinds=KINDS).quick()
    assert caught.value.code == "device-lost"


@dataclass
class Chip:
    """Stands in for Zeus's `SoCMeasurement`s: millijoules, None for a rail that the board has not."""

    total_energy_mj: float | None = None
    cpu_energy_mj: float | None = None
    gpu_energy_mj: float | None = None
    cpu_total_mj: int | None = None
    performance_cores_mj: list[int] | None = None
    dram_mj: int | None = None
    gpu_mj: int | None = None
    gpu_sram_mj: int | None = None
    ane_mj: int | None = None


class FakeSocMonitor:
    """Stands in for `zeus.monitor.ZeusMonitor` on a chip."""

    def __init__(self, window: Chip, *, counted: list[float] | None = None, fails: bool = False) -> None:
        self.window = window
        self.counted = [100.0, 200.0, 300.0, 400.0] if counted is None else counted
        self.fails = fails
        self.soc = self
        self.soc_energy = window

    def get_total_energy_consumption(self) -> Chip:
        if self.fails:
            raise queue.Empty
        value = self.counted.pop(0) if len(self.counted) > 1 else self.counted[0]
        return Chip(total_energy_mj=value * 1000, cpu_total_mj=round(value * 1000))

    def begin_window(self, key: str, *, sync_execution: bool) -> None:
        assert not sync_execution

    def end_window(self, key: str, *, sync_execution: bool) -> FakeSocMonitor:
        assert not sync_execution
        if self.fails:
            raise queue.Empty
        return self


def soc(sensor: Sensor, monitor: FakeSocMonitor, polls: int = 20) -> Reading:
    meter = SocMeter(monitor, sensor=sensor, boundary="soc", clock=FakeSeconds())
    meter.begin("trial-0")
    for _ in range(polls):
        meter.poll()
    return meter.end(duration_s=2.0, cpu_s=None)


@pytest.mark.parametrize(("sensor", "chip", "domains"), [
    # The total holds CPU and GPU: never added to them.
    ("jetson", Chip(total_energy_mj=9000.0, cpu_energy_mj=2000.0, gpu_energy_mj=3000.0), {"total_energy": 9.0}),
    ("jetson", Chip(cpu_energy_mj=2000.0, gpu_energy_mj=3000.0), {"cpu_energy": 2.0, "gpu_energy": 3.0}),
    # cpu_total holds its cores.
    ("apple", Chip(cpu_total_mj=4000, performance_cores_mj=[1500, 1500], dram_mj=500, gpu_mj=6000, ane_mj=0),
     {"cpu_total": 4.0, "dram": 0.5, "gpu": 6.0, "ane": 0.0}),
])
def test_a_chip_s_domains_do_not_hold_one_another(sensor: Sensor, chip: Chip, domains: dict[str, float]) -> None:
    reading = soc(sensor, FakeSocMonitor(chip))
    assert reading.void is None
    assert reading.energy.method == "soc"
    assert reading.energy.domains_j == domains
    assert reading.energy.measured_j == sum(domains.values())
    assert [sample.counter_j for sample in reading.samples] == [200.0, 300.0, 400.0, 400.0]


@pytest.mark.parametrize(("monitor", "code"), [
    (FakeSocMonitor(Chip()), "counter-missing"), (FakeSocMonitor(Chip(total_energy_mj=0.0)), "counter-still"),
    (FakeSocMonitor(Chip(total_energy_mj=-1.0)), "counter-reset"),
    (FakeSocMonitor(Chip(total_energy_mj=math.nan)), "not-finite"),
    (FakeSocMonitor(Chip(total_energy_mj=1.0), fails=True), "sensor-error"),
    # Reset inside the window, past its start at the end.
    (FakeSocMonitor(Chip(total_energy_mj=5.0), counted=[100.0, 100.0, 3.0, 105.0]), "counter-reset"),
])
def test_a_chip_s_reading_that_cannot_be_true_is_void(monitor: FakeSocMonitor, code: str) -> None:
    reading = soc("jetson", monitor)
    assert (reading.void or "").startswith(f"{code}: ")
    assert reading.energy.measured_j is None
    assert reading.energy.domains_j == {}


def test_no_chip_is_refused_where_zeus_would_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zeus")
    with pytest.raises(MeterError, match="finds no Jetson here") as caught:
        open_soc("jetson", "soc")
    assert caught.value.field == "sensor"


# --- whose processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def strangers() -> Iterator[tuple[int, int]]:
    """A child of this process, and a process that is none."""
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3).pid, flush=True)"
    child = subprocess.Popen(["sleep", "60"])
    orphan = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    yield child.pid, orphan
    child.kill()
    child.wait()
    os.kill(orphan, signal.SIGKILL)


NOBODY = (2**22 + 1, 2**22 + 2)
"""Above the kernel's highest process id (pid_max is 2^22 at most), as a host's id may be to a container."""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A child of this process that has the file open which stands for the device's."""
    device = tmp_path / "nvidia-uvm"
    device.touch()
    monkeypatch.setattr(alone, "UVM", str(device))
    with device.open() as file, subprocess.Popen(["sleep", "60"], stdin=file) as child:
        file.close()
        yield child.pid
        child.kill()


def test_processes_that_do_not_descend_from_the_driver_are_foreign(strangers: tuple[int, int]) -> None:
    child, orphan = strangers
    household = Household(os.getpid())
    assert household.foreign([]) == 0
    assert household.foreign([os.getpid(), child]) == 0
    assert household.foreign([orphan, child, 1]) == 2


def test_a_process_that_nothing_here_names_is_foreign_whenever_it_was_there_first() -> None:
    """Inside a container NVML may name the host's process ids: another tenant's job, from the start or later."""
    household = Household(os.getpid())
    assert household.foreign(NOBODY[:1]) == 1
    assert household.foreign(NOBODY) == 2
    # One process on two GPUs.
    assert household.foreign([NOBODY[0], NOBODY[0]]) == 1
    # Where all ids are hidden, each row is a process.
    assert household.foreign([0, 0]) == 2


def test_our_own_process_behind_a_host_id_is_not_foreign(holder: int) -> None:
    """So also for a meter that is started anew while our workers are on the device."""
    household = Household(os.getpid())
    assert household.foreign(NOBODY[:1]) == 0
    assert household.foreign(NOBODY) == 1
    assert household.foreign([NOBODY[0], holder]) == 1
    assert household.foreign([holder]) == 0


def test_a_list_that_lacks_our_own_processes_says_nothing(holder: int, strangers: tuple[int, int]) -> None:
    household = Household(os.getpid())
    assert household.foreign([]) is None
    assert household.foreign([os.getpid()]) is None
    # What it does show still counts.
    assert household.foreign([strangers[1]]) == 1


# --- polling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period_s", [0.1, 0.05, 0.2, 0.7])
def test_polls_do_not_lock_in_with_a_load_that_repeats(period_s: float) -> None:
    """Ten minutes of a square wave; at equal distances the error is up to the whole amplitude, here 67 % of the mean."""

    def power_w(at_s: float) -> float:
        return 500.0 if at_s % period_s < period_s / 2 else 100.0

    dice, times = random.Random(3), [0.0]
    while times[-1] < 600:
        times.append(next_poll_s(times[-1], times[-1], dice.random()))
    assert len(times) == pytest.approx(6000, rel=0.02)
    spread = integrate_j(times, [power_w(time_s) for time_s in times], 0.0, 600.0) / 600
    assert spread == pytest.approx(300, rel=0.03)
    if period_s in {0.1, 0.05}:
        equal = [i * 0.1 + 0.001 for i in range(6000)]
        locked = integrate_j(equal, [power_w(time_s) for time_s in equal], 0.0, 600.0) / 600
        assert locked == pytest.approx(500)


class PolledMeter:
    """A meter whose poll lasts until a request waits."""

    method: Method = "gpu_counter"
    boundary = "gpu"

    def __init__(self, at_begin: bytes) -> None:
        self.requests, self.driver = os.pipe()
        self.at_begin = at_begin
        self.polling = threading.Event()
        self.hurried: list[bool] = []

    def begin(self, name: str) -> None:
        os.write(self.driver, self.at_begin)

    def poll(self, hurried: Hurried = unhurried) -> None:
        self.polling.set()
        until_s = time.monotonic() + 10
        while not hurried() and time.monotonic() < until_s:
            time.sleep(0.01)
        self.hurried.append(hurried())

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:
        return Reading(energy=Energy(method=self.method, boundary="gpu", measured_j=None, domains_j={}, estimate_j=None,
                                     estimate_relative_uncertainty=None))

    def state(self) -> DeviceState | None:
        return None

    def close(self) -> None:
        os.close(self.driver)


END = msgspec.json.encode(wire.End(turn=3, duration_s=1.0, cpu_s=None)) + b"\n"


def served(meter: PolledMeter, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Thread, io.BytesIO]:
    """Serve a meter in a thread; its window has been asked for."""
    monkeypatch.setattr(server, "make", lambda spec: meter)
    spec = wire.Spec(turn=1, method="gpu_counter", boundary="gpu", sensor="nvml", count=1, tick_s=0.1, root_pid=os.getpid())
    os.write(meter.driver, msgspec.json.encode(spec) + b"\n" + msgspec.json.encode(wire.Begin(turn=2, name="trial-0")) + b"\n")
    replies = io.BytesIO()
    thread = threading.Thread(target=server.Server(meter.requests, replies).serve, daemon=True)
    thread.start()
    return thread, replies


def test_a_poll_is_cut_short_when_the_driver_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else the counter would be read late, and its energy cover more time than the driver's clock does."""
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path))
    meter = PolledMeter(at_begin=b"")
    thread, replies = served(meter, monkeypatch)
    assert meter.polling.wait(10)
    os.write(meter.driver, END)
    meter.close()
    thread.join(20)
    assert meter.hurried == [True]
    assert b'"Ended","turn":3' in replies.getvalue()


def test_no_poll_is_begun_while_the_driver_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path))
    monkeypatch.setattr(wire, "POLL_S", 0.0)
    meter = PolledMeter(at_begin=END)
    thread, replies = served(meter, monkeypatch)
    until_s = time.monotonic() + 20
    while b'"Ended"' not in replies.getvalue() and time.monotonic() < until_s:
        time.sleep(0.01)
    meter.close()
    thread.join(20)
    assert b'"Ended","turn":3' in replies.getvalue()
    assert meter.hurried == []


def test_a_poll_in_a_hurry_leaves_out_what_is_slow() -> None:
    clock = FakeSeconds()
    meter = GpuMeter(FakeDevices(*ramp(20)), ZeusCounter((0,), FakeMonitor({0: 570.0})), method="gpu_counter", boundary="gpu",
                     tick_s=0.1, clock=clock)
    meter.begin("trial-0")
    for number in range(18):
        clock.now_s += 0.1
        meter.poll(lambda turn=number: turn == 9)
    clock.now_s += 0.1
    reading = meter.end(duration_s=1.9, cpu_s=None)
    assert [sample.reasons for sample in reading.samples] == [4, *[None] * 18, 4]
    assert {sample.power_w for sample in reading.samples} == {300.0}


def test_polls_that_were_missed_are_not_made_up_for() -> None:
    assert next_poll_s(10.0, 10.0, 0.5) == pytest.approx(10.1)
    assert next_poll_s(10.0, 50.0, 0.5) == pytest.approx(50.1)


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


def test_children_that_have_ended_are_counted_with_those_that_they_had() -> None:
    compiles = ("import subprocess, sys; code = 'import time\\nend = time.process_time() + 0.3\\nwhile time.process_time() < end: pass'\n"
                "print(1, flush=True); input()\n"
                "subprocess.run([sys.executable, '-c', code + '\\nimport subprocess, sys; subprocess.run([sys.executable, \"-c\", ' "
                "+ repr(code) + '])'])\nprint(2, flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", compiles], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
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
    # Starting two interpreters is added.
    assert 0.6 < after - before < 1.5


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
    clock = ProcessClock(os.getpid())
    ended = os.times()
    own_s = time.process_time() + ended.children_user + ended.children_system
    assert clock.cpu_s() == pytest.approx(own_s, abs=0.5)


# --- the boot ---------------------------------------------------------------------------------------------------------


def test_a_boot_is_known_by_a_digest_and_a_kernel_without_an_id_has_none(tmp_path: Path) -> None:
    file = tmp_path / "proc/sys/kernel/random/boot_id"
    assert kernel.boot_digest(tmp_path) is None
    file.parent.mkdir(parents=True)
    file.write_text("6f1c-invented\n")
    assert kernel.boot_digest(tmp_path) == hashlib.sha256(b"6f1c-invented").hexdigest()[:16]


# --- windows ----------------------------------------------------------------------------------------------------------


class FakeMeter:
    """Keeps what it was told."""

    method = "model"
    boundary = "cpu"

    def __init__(self, *, begin_s: float = 0.0) -> None:
        self.told: list[tuple[float, float | None]] = []
        self.names: list[str] = []
        self.begin_s = begin_s

    def begin(self, name: str) -> None:
        self.names.append(name)
        time.sleep(self.begin_s)

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:
        self.told.append((duration_s, cpu_s))
        return Reading(void="meter-died: gone", energy=Energy(
            method="model", boundary="cpu", measured_j=None, domains_j={}, estimate_j=1.0,
            estimate_relative_uncertainty=0.5))


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
    window, samples = OpenWindow(meter, clock, "trial-7").close()
    assert window.cpu_s == 3.0
    assert 0 < window.duration_s < 1
    assert meter.told == [(window.duration_s, 3.0)]
    assert meter.names == [window.name] == ["trial-7"]
    assert window.started_utc.endswith("Z")
    assert window.void == "meter-died: gone"
    assert samples == ()


def test_a_window_without_a_process_has_no_cpu_time() -> None:
    meter: Any = FakeMeter()
    assert OpenWindow(meter, None, "idle-0").close()[0].cpu_s is None


def test_a_meter_that_is_slow_to_begin_does_not_lengthen_the_window() -> None:
    """Its process may have to be started anew: the time before the energy is begun is none of the window's."""
    meter: Any = FakeMeter(begin_s=0.5)
    window, _ = OpenWindow(meter, None, "trial-0").close()
    assert window.duration_s < 0.4


def test_a_window_during_which_the_clock_stood_still_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    meter: Any = FakeMeter()
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    with pytest.raises(MeterError, match="without duration"):
        OpenWindow(meter, None, "trial-0").close()


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


# --- what is never used -----------------------------------------------------------------------------------------------


LIVE_SERVICES = ("zeus.monitor.carbon", "zeus.monitor.price", "zeus.monitor.energy.carbon", "codecarbon")
"""They ask the network for a grid's carbon and price while a run goes on; ours are declared, with year and source."""


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_no_live_carbon_or_price_service_and_no_polling_monitor_of_zeus_is_used() -> None:
    sources = sorted(Path(meters.__file__).parents[1].rglob("*.py"))
    assert len(sources) > 50
    used = set.union(*(imported(ast.parse(path.read_text())) for path in sources))
    assert "zeus.monitor.ZeusMonitor" in used, "this test looks in the wrong place"
    forbidden = (*LIVE_SERVICES, "zeus.monitor.power", "zeus.monitor.PowerMonitor", "zeus.monitor.CarbonEmissionMonitor",
                 "zeus.monitor.EnergyCostMonitor", "zeus.monitor.temperature", "zeus.monitor.TemperatureMonitor")
    assert not [name for name in used if name.startswith(forbidden)]


def test_the_maintained_zeus_is_what_the_package_asks_for() -> None:
    """`zeus-ml` is the name that ended in February 2025 at 0.11, whose monitor lacks what is relied on here."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]
    assert [one for one in wanted if one.startswith("zeus")] == ["zeus>=0.16"]
