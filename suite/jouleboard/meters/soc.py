"""Method `soc`: systems on a chip, NVIDIA Jetson and Apple silicon, through Zeus.

    {"total_energy": 512.3}                                       Jetson, where the board has a rail for its whole input
    {"cpu_total": 40.1, "dram": 6.5, "gpu": 210.4, "gpu_sram": 0.0, "ane": 0.0}   Apple

Never run on such hardware: none was at hand. Tests put fakes in the place of `zeus.monitor.ZeusMonitor`. What Zeus 0.16 does
there: on a Jetson a process of its own integrates the power rails at 10 Hz (it belongs to the meter's process group and ends
with it), on Apple silicon the kernel's own energy counters are read. Zeus offers no instant power on either, so the trace
holds the cumulative joules, once a second.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable
from typing import Any

from jouleboard.declared import Boundary, Method, Sensor
from jouleboard.errors import MeterError
from jouleboard.meters import visible
from jouleboard.meters.gpu import Hurried, unhurried
from jouleboard.meters.interface import Reading
from jouleboard.meters.kernel import boot_digest
from jouleboard.meters.reasons import SensorError
from jouleboard.traces import Sample
from jouleboard.windows import DeviceState, Energy

SLOW_EVERY = 10
CLASSES: dict[Sensor, str] = {"jetson": "Jetson", "apple": "AppleSilicon"}
"""Zeus's class for each sensor."""
DOMAINS: dict[Sensor, tuple[tuple[str, ...], ...]] = {
    "jetson": (("total_energy_mj",), ("cpu_energy_mj", "gpu_energy_mj")),
    "apple": (("cpu_total_mj", "dram_mj", "gpu_mj", "gpu_sram_mj", "ane_mj"),),
}
"""Fields of Zeus's measurement that do not hold one another, best choice first: the total holds CPU and GPU, cpu_total the
cores and clusters. Those that are None are left out."""


class SocMeter:
    """Joules of a system on a chip."""

    method: Method = "soc"

    def __init__(
        self, monitor: Any, *, sensor: Sensor, boundary: Boundary, clock: Callable[[], float] = time.monotonic,
        failures: tuple[type[Exception], ...] = (),
    ) -> None:
        """Keep the monitor.

        Args:
            monitor: a `ZeusMonitor`, or a fake.
            sensor: `jetson` or `apple`.
            boundary: stands in each reading.
            clock: seconds.
            failures: what the monitor raises when the sensor fails.
        """
        self.boundary = boundary
        self._monitor = monitor
        self._choices = DOMAINS[sensor]
        self._clock = clock
        # Zeus raises queue.Empty when its poller on a Jetson has died, OSError when a rail cannot be read.
        self._failures: tuple[type[Exception], ...] = (*failures, queue.Empty, OSError)
        self._key = 0
        self._name: str | None = None
        self._start_s = 0.0
        self._polls = 0
        self._samples: list[Sample] = []
        self._start: DeviceState | None = None
        self._fault: SensorError | None = None

    def begin(self, name: str) -> None:
        """Begin a window."""
        self._name, self._samples, self._fault, self._polls = name, [], None, 0
        self._key += 1
        self._start = self.state()
        try:
            self._monitor.begin_window(f"jouleboard-{self._key}", sync_execution=False)
        except self._failures as error:
            self._fault = SensorError("sensor-error", f"{error} ({type(error).__name__})")
        self._start_s = self._clock()
        self._sample()

    def poll(self, hurried: Hurried = unhurried) -> None:
        """Take a sample every tenth time, if a window is open."""
        if self._name is None:
            return
        self._polls += 1
        if self._polls % SLOW_EVERY == 0 and not hurried():
            self._sample()

    def _sample(self) -> None:
        state = self.state()
        if self._name is None or state is None or state.counter_j is None:
            return
        if self._samples and state.counter_j < (self._samples[-1].counter_j or 0):
            self._fault = self._fault or SensorError("counter-reset", f"{state.counter_j} J")
        self._samples.append(Sample(window=self._name, elapsed_s=self._clock() - self._start_s,
                                    counter_j=state.counter_j))

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:  # noqa: ARG002 - the chip knows
        """End the window."""
        domains: dict[str, float] = {}
        fault = self._fault
        if self._name is None:
            fault = SensorError("not-begun", "no window is open")
        elif fault is None or fault.code == "counter-reset":
            try:
                measurement = self._monitor.end_window(f"jouleboard-{self._key}", sync_execution=False).soc_energy
            except self._failures as error:
                fault = SensorError("sensor-error", f"{error} ({type(error).__name__})")
            else:
                self._sample()
                domains = self._domains(measurement)
                fault = self._fault or _judge(domains, duration_s)
        reading = Reading(
            energy=Energy(
                method=self.method, boundary=self.boundary, domains_j={} if fault else domains,
                measured_j=None if fault else sum(domains.values()), estimate_j=None, estimate_relative_uncertainty=None,
            ),
            start=self._start, end=self.state(), samples=tuple(self._samples), void=fault.problem if fault else None,
        )
        self._name = None
        return reading

    def _domains(self, measurement: Any) -> dict[str, float]:
        """Return joules of the first choice of fields of which any is there."""
        for fields in self._choices:
            known = {field.removesuffix("_mj"): getattr(measurement, field, None) for field in fields}
            found = {name: float(value) / 1000 for name, value in known.items() if value is not None}
            if found:
                return found
        return {}

    def state(self) -> DeviceState | None:
        """Return the joules that Zeus has counted so far; None when it does not answer."""
        try:
            domains = self._domains(self._monitor.soc.get_total_energy_consumption())
        except self._failures:
            return None
        return DeviceState(boot=boot_digest(), counter_j=sum(domains.values())) if domains else None

    def close(self) -> None:
        """Forget an open window."""
        self._name = None


def _judge(domains: dict[str, float], duration_s: float) -> SensorError | None:
    """Return why a reading cannot be true. A part (an unused accelerator) may use nothing; the whole chip may not."""
    if not domains:
        return SensorError("counter-missing", "Zeus gave no energy of the chip")
    said = f"{domains} J in {duration_s:.3f} s"
    if not all(math.isfinite(value) for value in domains.values()):
        return SensorError("not-finite", said)
    if any(value < 0 for value in domains.values()):
        return SensorError("counter-reset", said)
    return SensorError("counter-still", said) if sum(domains.values()) == 0 else None


def open_soc(sensor: Sensor, boundary: Boundary) -> SocMeter:
    """Open the chip's sensors.

    Raises:
        MeterError: Zeus finds no such chip here.
    """
    visible.forget_daemon()
    from zeus.exception import ZeusBaseError  # noqa: PLC0415 - once the environment is set right
    from zeus.monitor import ZeusMonitor  # noqa: PLC0415 - takes seconds to import

    monitor: Any = ZeusMonitor(gpu_indices=[], cpu_indices=[], approx_instant_energy=False)
    found = type(monitor.soc).__name__ if monitor.soc_is_present else "nothing"
    if found != CLASSES[sensor]:
        raise MeterError(f"Zeus finds no {CLASSES[sensor]} here, but {found}", field="sensor",
                         remedy="run `jouleboard doctor` to see what can be measured here")
    return SocMeter(monitor, sensor=sensor, boundary=boundary, failures=(ZeusBaseError,))
