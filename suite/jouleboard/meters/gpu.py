"""The meter of one or more GPUs, inside the meter's own process: the counter through Zeus, and a trace of its own.

It is polled ten times a second (`poll`): power and counter each time, everything else once a second. Of several GPUs a
sample holds the sum of powers and counters, the number of foreign processes, the lowest clocks, all clock-event reasons, and
the temperature and the limit that are furthest from what the profile declares (`wanted`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from jouleboard.declared import Boundary, Method
from jouleboard.errors import MeterError
from jouleboard.meters.integral import integrate_j
from jouleboard.meters.interface import Reading
from jouleboard.meters.reasons import REOPEN, SensorError
from jouleboard.meters.watch import Watch
from jouleboard.traces import Sample
from jouleboard.windows import DeviceState, Energy

SLOW_EVERY = 10
"""Polls between two readings of what changes slowly: once a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quick:
    """What is read at each poll, one entry a GPU; None where it does not say."""

    powers_w: tuple[float | None, ...]
    counters_j: tuple[float | None, ...]

    @property
    def power_w(self) -> float | None:
        """Power of all GPUs together; None if one does not say."""
        return total(self.powers_w)


def total(values: tuple[float | None, ...]) -> float | None:
    """Add what was read; None if anything was not."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """What is read once a second, over all GPUs; None where they do not say."""

    temperature_c: float | None = None
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    limit_w: float | None = None
    reasons: int | None = None
    foreign: int | None = None


NOTHING = Slow()
Hurried = Callable[[], bool]
"""Says whether the driver waits for an answer: what is slow then stops, and stays unread."""


def unhurried() -> bool:
    """Nobody waits."""
    return False


class Devices(Protocol):
    """The GPUs themselves. Any reading raises `SensorError` when a GPU is lost or its driver gone."""

    def quick(self) -> Quick:
        """Read power and counters."""

    def slow(self, hurried: Hurried = unhurried) -> Slow:
        """Read everything else that belongs into the trace, as far as nobody waits."""

    def state(self) -> DeviceState:
        """Read what is kept for both ends of a window."""


class Counter(Protocol):
    """Joules between two moments, as Zeus gives them."""

    def begin(self) -> None:
        """Begin anew."""

    def end(self) -> Mapping[str, float]:
        """Return joules by domain, unchecked."""


class Host(Protocol):
    """Joules of the host beside the GPU."""

    def begin(self) -> None:
        """Begin anew."""

    def end(self) -> dict[str, float]:
        """Return joules by domain; empty where they cannot be read."""


class NoHost:
    """A host whose energy is inside the boundary already, or is not to be read."""

    def begin(self) -> None:
        """Nothing to read."""

    def end(self) -> dict[str, float]:
        """Nothing was read."""
        return {}


@dataclass(slots=True, kw_only=True)
class _Open:
    """A window that is open."""

    name: str
    start_s: float
    state: DeviceState
    watch: Watch
    polls: list[tuple[float, Quick, Slow]]
    fault: SensorError | None = None

    def take(self, elapsed_s: float, quick: Quick, slow: Slow) -> None:
        """Keep a poll."""
        self.polls.append((elapsed_s, quick, slow))
        self.watch.see(elapsed_s, quick.counters_j, quick.power_w)


class GpuMeter:
    """Joules of GPUs: from their counters, or (`gpu_integral`) from the integral of their sampled power."""

    def __init__(
        self, devices: Devices, counter: Counter | None, *, method: Method, boundary: Boundary, tick_s: float,
        host: Host | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep what is read.

        Args:
            devices: the GPUs.
            counter: their counters; None: power is integrated.
            method: stands in each reading.
            boundary: likewise.
            tick_s: how often a counter moves.
            host: energy beside the GPUs.
            clock: seconds; tests pass one of their own.
        """
        self.method = method
        self.boundary = boundary
        self._devices = devices
        self._counter = counter
        self._host = host or NoHost()
        self._tick_s = tick_s
        self._clock = clock
        self._open: _Open | None = None

    def begin(self, name: str) -> None:
        """Begin a window: everything slow first, the counter last."""
        window = _Open(name=name, start_s=self._clock(), state=DeviceState(), watch=Watch(self._tick_s), polls=[])
        self._open = window
        try:
            self._host.begin()
            window.state = self._devices.state()
            slow = self._devices.slow()
            if self._counter is not None:
                self._counter.begin()
            window.start_s = self._clock()
            window.take(0.0, self._devices.quick(), slow)
        except SensorError as fault:
            window.fault = fault

    def poll(self, hurried: Hurried = unhurried) -> None:
        """Take a sample, if a window is open.

        A query that fails for once costs a sample and no window, whose ends alone make its joules: the gates judge the gap.

        Args:
            hurried: says whether the driver waits, as it does at a window's end.
        """
        window = self._open
        if window is None or window.fault is not None:
            return
        try:
            elapsed_s, quick = self._clock() - window.start_s, self._devices.quick()
            slow = self._devices.slow(hurried) if len(window.polls) % SLOW_EVERY == 0 else NOTHING
            window.take(elapsed_s, quick, slow)
        except SensorError as fault:
            if fault.code in REOPEN:
                window.fault = fault

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:  # noqa: ARG002 - the device knows
        """End the window: the counter first, everything slow after it."""
        window, self._open = self._open, None
        if window is None:
            return self._reading({}, fault=SensorError("not-begun", "no window is open"))
        domains: Mapping[str, float] = {}
        elapsed_s = self._clock() - window.start_s
        try:
            # Ended even when a poll failed, so that Zeus keeps no open window.
            domains = {} if self._counter is None else self._counter.end()
            # What the energy covers; the driver's own duration is shorter where it was answered late.
            elapsed_s = self._clock() - window.start_s
            if window.fault is None:
                window.take(elapsed_s, self._devices.quick(), self._devices.slow())
        except SensorError as fault:
            window.fault = window.fault or fault
        integral = _integral(window, elapsed_s)
        if self._counter is None:
            domains = integral
        fault_now = window.fault or self._judge(window, domains, elapsed_s)
        return self._reading(domains, fault=fault_now, window=window, integral=integral)

    def _judge(self, window: _Open, domains: Mapping[str, float], elapsed_s: float) -> SensorError | None:
        """Return why a reading cannot be true."""
        trouble = None if self._counter is None else window.watch.trouble(elapsed_s)
        if trouble is not None:
            return trouble
        if not domains:
            return SensorError("no-power" if self._counter is None else "counter-missing", f"{len(window.polls)} polls")
        for domain, joules in domains.items():
            said = f"{domain}: {joules} J in {elapsed_s:.3f} s"
            if not math.isfinite(joules):
                return SensorError("not-finite", said)
            if joules < 0:
                return SensorError("counter-reset", said)
            if joules == 0:
                return SensorError("no-power" if self._counter is None else "counter-still", said)
        return None

    def _reading(
        self, domains: Mapping[str, float], *, fault: SensorError | None, window: _Open | None = None,
        integral: Mapping[str, float] | None = None,
    ) -> Reading:
        good = {} if fault is not None else dict(domains)
        return Reading(
            energy=Energy(
                method=self.method, boundary=self.boundary, measured_j=sum(good.values()) if good else None,
                domains_j=good, estimate_j=None, estimate_relative_uncertainty=None,
                integral_j=sum(integral.values()) if integral else None,
            ),
            host_j=self._host.end() if window is not None else {},
            start=None if window is None else window.state, end=None if window is None else self.state(),
            samples=() if window is None else tuple(_sample(window.name, *poll) for poll in window.polls),
            void=None if fault is None else fault.problem,
        )

    def state(self) -> DeviceState | None:
        """Return what the GPUs say of themselves now; None when they do not answer."""
        try:
            return self._devices.state()
        except SensorError:
            return None

    def close(self) -> None:
        """Forget an open window."""
        self._open = None


def _integral(window: _Open, elapsed_s: float) -> dict[str, float]:
    """Integrate each GPU's power; empty unless each of them was sampled."""
    found: dict[str, float] = {}
    for index in range(len(window.polls[0][1].powers_w) if window.polls else 0):
        rows = [(when_s, power_w) for when_s, quick, _ in window.polls
                if (power_w := quick.powers_w[index]) is not None]
        try:
            found[f"gpu{index}"] = integrate_j([row[0] for row in rows], [row[1] for row in rows], 0.0, elapsed_s)
        except MeterError:
            return {}
    return found


def _sample(name: str, elapsed_s: float, quick: Quick, slow: Slow) -> Sample:
    return Sample(
        window=name, elapsed_s=elapsed_s, power_w=quick.power_w, counter_j=total(quick.counters_j),
        temperature_c=slow.temperature_c, sm_mhz=slow.sm_mhz, memory_mhz=slow.memory_mhz, limit_w=slow.limit_w,
        reasons=slow.reasons, foreign=slow.foreign,
    )
