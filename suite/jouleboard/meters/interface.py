"""What a meter does, and the measured window around it."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass, field
from typing import Protocol

from jouleboard.declared import Boundary, Method
from jouleboard.errors import MeterError
from jouleboard.meters.cpu import Clock
from jouleboard.traces import Sample
from jouleboard.windows import DeviceState, Energy, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a meter knows of a window once it has ended."""

    energy: Energy
    host_j: dict[str, float] = field(default_factory=dict)
    start: DeviceState | None = None
    end: DeviceState | None = None
    samples: tuple[Sample, ...] = ()
    """The device's trace at about 10 Hz, first and last sample at the window's ends; empty without a device sensor."""
    void: str | None = None
    """Why the energy is not known, as `code: words` (then `energy.measured_j` is None), or None."""


class Meter(Protocol):
    """Knows the energy of a window between `begin` and `end`. One window at a time."""

    method: Method
    boundary: Boundary

    def begin(self, name: str) -> None:
        """Start a window; the caller has made sure that the device has nothing left to do.

        Never raises for a sensor that fails: `end` then says why the window is void.
        """

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:
        """End the window.

        Args:
            duration_s: wall time of the window in seconds.
            cpu_s: CPU time of the worker's process tree inside it.

        Returns:
            The energy, never zero or negative joules: a reading that cannot be true is None with `void` saying why.
        """

    def state(self) -> DeviceState | None:
        """Return what the device says of itself now; None where there is none, or it does not answer."""

    def close(self) -> None:
        """End whatever measures beside this process."""


class OpenWindow:
    """A window that has begun: wall time, CPU time and energy at both ends.

    Energy is begun first and ended last, so it covers a few milliseconds more than the wall time and never less, also when
    the meter takes its time to begin: one whose process died is started anew.
    """

    def __init__(self, meter: Meter, clock: Clock | None, name: str) -> None:
        """Begin now."""
        self._meter = meter
        self._clock = clock
        self._name = name
        meter.begin(name)
        self._open = True
        self._started_utc = dt.datetime.now(dt.UTC)
        self._cpu_s = None if clock is None else clock.cpu_s()
        self._start_s, self._wall_s = time.perf_counter(), time.time()

    def abandon(self) -> None:
        """End the window without a result: what it was opened for went wrong. Harmless on one that was closed."""
        if self._open:
            self._open = False
            self._meter.end(duration_s=time.perf_counter() - self._start_s, cpu_s=None)

    def close(self) -> tuple[Window, tuple[Sample, ...]]:
        """End now and return the window and the device's trace.

        Raises:
            MeterError: no time passed, or the measured process has ended.
        """
        duration_s, wall_s = time.perf_counter() - self._start_s, time.time() - self._wall_s
        cpu_s = None
        if self._clock is not None and self._cpu_s is not None:
            cpu_s = self._clock.cpu_s() - self._cpu_s
        self._open = False
        reading = self._meter.end(duration_s=duration_s, cpu_s=cpu_s)
        if duration_s <= 0:
            raise MeterError("a window without duration", remedy="the clock went wrong: measure again")
        window = Window(
            name=self._name, started_utc=self._started_utc.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), duration_s=duration_s,
            wall_s=wall_s, cpu_s=cpu_s, energy=reading.energy, host_j=reading.host_j, start=reading.start,
            end=reading.end, void=reading.void,
        )
        return window, reading.samples
