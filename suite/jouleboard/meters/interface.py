"""What a meter does, and the measured window around it."""

from __future__ import annotations

import datetime as dt
import time
from typing import Protocol

from jouleboard.declared import Boundary, Method
from jouleboard.errors import MeterError
from jouleboard.meters.cpu import ProcessClock
from jouleboard.records import Energy, Window


class Meter(Protocol):
    """Knows the energy of a window between `begin` and `end`."""

    method: Method
    boundary: Boundary

    def begin(self) -> None:
        """Start a window; the caller has made sure that the device has nothing left to do."""

    def end(self, *, duration_s: float, cpu_s: float | None) -> Energy:
        """End the window.

        Args:
            duration_s: wall time of the window in seconds.
            cpu_s: CPU time of the worker's process tree inside it.

        Raises:
            MeterError: no reading, or one that cannot be true (zero or negative joules).
        """


class OpenWindow:
    """A window that has begun: wall time, CPU time and energy at both ends.

    Energy is begun last and ended last, so it covers about a millisecond more than the wall time: the CPU reading.
    """

    def __init__(self, meter: Meter, clock: ProcessClock | None) -> None:
        """Begin now."""
        self._meter = meter
        self._clock = clock
        self._started_utc = dt.datetime.now(dt.UTC)
        self._cpu_s = None if clock is None else clock.cpu_s()
        self._start_s = time.perf_counter()
        meter.begin()

    def close(self) -> Window:
        """End now and return the window."""
        duration_s = time.perf_counter() - self._start_s
        cpu_s = None
        if self._clock is not None and self._cpu_s is not None:
            cpu_s = self._clock.cpu_s() - self._cpu_s
        if duration_s <= 0:
            raise MeterError("a window without duration", remedy="the clock went wrong: measure again")
        return Window(
            started_utc=self._started_utc.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            duration_s=duration_s,
            cpu_s=cpu_s,
            energy=self._meter.end(duration_s=duration_s, cpu_s=cpu_s),
        )
