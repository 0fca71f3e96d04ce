"""Zeus: the energy counters of NVIDIA and AMD GPUs, opened with care.

Zeus is only trusted with explicit GPU indices: without a GPU, with an empty `CUDA_VISIBLE_DEVICES` or after a failed NVML
start its monitor constructs all the same and answers 0 J (verified with zeus 0.16), so every reading is checked. Its own
power monitors are never started: with an unknown period they poll without pause, and they outlive a killed parent.

AMD GPUs were never measured with this code: none was at hand. Tests put fakes in the place of Zeus's AMD classes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from jouleboard.declared import Sensor
from jouleboard.errors import MeterError
from jouleboard.meters import reasons, visible
from jouleboard.meters.gpu import NOTHING, Hurried, Quick, Slow, total, unhurried
from jouleboard.meters.reasons import SensorError
from jouleboard.meters.wanted import Wanted
from jouleboard.windows import DeviceState

_WINDOW = "jouleboard"
_REMEDY = "run `jouleboard doctor` to see what can be measured here"
MANAGERS: dict[Sensor, str] = {"nvml": "NVIDIAGPUs", "amdsmi": "AMDGPUs"}
"""Class of Zeus's GPU manager for each sensor. Zeus takes NVML wherever it starts, whatever was meant."""


class Measurement(Protocol):
    """What Zeus gives at the end of a window."""

    gpu_energy: Mapping[int, float]


class Monitor(Protocol):
    """The part of `zeus.monitor.ZeusMonitor` that is used."""

    def begin_window(self, key: str, sync_execution: bool = True) -> None:  # noqa: FBT001, FBT002 - Zeus's signature
        """Begin a window."""

    def end_window(self, key: str, sync_execution: bool = True) -> Measurement:  # noqa: FBT001, FBT002
        """End it."""


class ZeusCounter:
    """Joules of GPUs from their own counters, through a Zeus monitor."""

    def __init__(
        self, gpu_indices: Sequence[int], monitor: Monitor, *, failures: tuple[type[Exception], ...] = ()
    ) -> None:
        """Keep the monitor.

        Args:
            gpu_indices: which GPUs, never empty.
            monitor: made by `open_monitor`; tests pass one of their own.
            failures: what it raises when a device or its driver fails.

        Raises:
            MeterError: no GPU was named: Zeus would then take all it finds, or none.
        """
        if not gpu_indices:
            raise MeterError("no GPU was named", field="count", remedy=_REMEDY)
        self._indices = tuple(gpu_indices)
        self._monitor = monitor
        self._failures = failures
        self._count = itertools.count()
        self._window: str | None = None

    def begin(self) -> None:
        """Begin a window. The worker has synchronised its device, this process has none to synchronise.

        Raises:
            SensorError: a counter cannot be read: the GPU is lost, or NVML is gone.
        """
        # A new name each time: Zeus refuses to open a window again that an interrupted trial left open.
        window = f"{_WINDOW}-{next(self._count)}"
        self._window = None
        with self._as_fault():
            self._monitor.begin_window(window, sync_execution=False)
        self._window = window

    def end(self) -> dict[str, float]:
        """Return the counters' joules by domain; whether they can be true is for the caller to judge.

        Raises:
            SensorError: the window never began, a counter cannot be read, or a GPU is missing from the reading.
        """
        if self._window is None:
            raise SensorError("not-begun", "the counter could not be read at its start")
        with self._as_fault():
            reading = self._monitor.end_window(self._window, sync_execution=False)
        self._window = None
        found: dict[str, float] = {}
        for index in self._indices:
            joules = reading.gpu_energy.get(index)
            if joules is None:
                raise SensorError("counter-missing", f"Zeus gave no reading for GPU {index}")
            found[f"gpu{index}"] = float(joules)
        return found

    @contextlib.contextmanager
    def _as_fault(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise reasons.of_error(error) from error


def failures() -> tuple[type[Exception], ...]:
    """Return what Zeus and NVML raise when a device or the driver fails."""
    import pynvml  # noqa: PLC0415 - both are there: Zeus was just opened
    from zeus.exception import ZeusBaseError  # noqa: PLC0415

    return (ZeusBaseError, pynvml.NVMLError)


def open_gpus(gpu_indices: Sequence[int], sensor: Sensor) -> list[Any]:
    """Return Zeus's objects of the GPUs, in the order of `CUDA_VISIBLE_DEVICES`; nothing is measured yet.

    Raises:
        MeterError: no such GPU, no NVML, a GPU that CUDA_VISIBLE_DEVICES hides, or GPUs of the other vendor.
    """
    if not gpu_indices:
        raise MeterError("no GPU was named", field="count", remedy=_REMEDY)
    visible.forget_daemon()
    if sensor == "nvml":
        _require_nvml(max(gpu_indices))
        visible.number_gpus()
    from zeus.device import get_gpus  # noqa: PLC0415 - takes seconds to import

    # ValueError and IndexError: what Zeus raises for a GPU that CUDA_VISIBLE_DEVICES hides.
    with _as_refusal((*failures(), ValueError, IndexError)):
        manager: Any = get_gpus()
        if type(manager).__name__ != MANAGERS[sensor]:
            raise MeterError(f"Zeus finds {type(manager).__name__} here, the profile says {sensor}", field="sensor",
                             remedy=_REMEDY)
        return [manager.gpus[index] for index in gpu_indices]


def _require_nvml(index: int) -> None:
    from jouleboard.meters.detect import gpus  # noqa: PLC0415 - NVML only when a GPU is asked for

    present = gpus()
    if len(present.devices) <= index:
        raise MeterError(f"GPU {index} is not there ({present.reason or f'{len(present.devices)} found'})",
                         remedy=_REMEDY)


def open_monitor(gpu_indices: Sequence[int], gpus: Sequence[Any]) -> ZeusCounter:
    """Open a Zeus monitor on the counters of GPUs.

    Args:
        gpu_indices: which GPUs.
        gpus: the same as `open_gpus` gave them.

    Raises:
        MeterError: a GPU has no counter, or none that Zeus trusts.
    """
    from zeus.monitor import ZeusMonitor  # noqa: PLC0415 - takes seconds to import

    with _as_refusal((*failures(), ValueError, IndexError)):
        for index, gpu in zip(gpu_indices, gpus, strict=True):
            if not gpu.supports_get_total_energy_consumption():
                # Zeus would start a process that polls without pause, and integrate what that sees.
                raise MeterError(f"GPU {index} has no energy counter", field="method",
                                 remedy="declare the method `gpu_integral` in its profile")
        # cpu_indices=[]: host energy is a domain of its own, never added to the GPU's in silence.
        monitor = ZeusMonitor(gpu_indices=list(gpu_indices), cpu_indices=[], approx_instant_energy=False)
    return ZeusCounter(gpu_indices, monitor, failures=failures())


@contextlib.contextmanager
def _as_refusal(kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise MeterError(f"Zeus does not see the GPU (CUDA_VISIBLE_DEVICES?): {error} ({type(error).__name__})",
                         remedy=_REMEDY) from error


class ZeusDevices:
    """GPUs read through Zeus alone: AMD. Clocks, reasons and processes are not offered there and stay None."""

    def __init__(
        self, gpus: Sequence[Any], *, kinds: tuple[type[Exception], ...] | None = None, wanted: Wanted | None = None
    ) -> None:
        """Keep Zeus's objects.

        Args:
            gpus: of `open_gpus`; tests pass fakes.
            kinds: what they raise.
            wanted: what the profile declares of each GPU.
        """
        self._gpus = tuple(gpus)
        self._kinds = failures() if kinds is None else kinds
        self._wanted = wanted or Wanted()

    def _read(self, method: str) -> tuple[float | None, ...]:
        """Read one thing of each GPU, in Zeus's unit; None where it is not supported."""
        found: list[float | None] = []
        for gpu in self._gpus:
            try:
                found.append(float(getattr(gpu, method)()))
            except self._kinds as error:
                fault = reasons.of_error(error)
                if fault.code in reasons.REOPEN:
                    raise fault from error
                found.append(None)
        return tuple(found)

    def quick(self) -> Quick:
        """Read power and counters."""
        return Quick(powers_w=_thousandth(self._read("get_instant_power_usage")),
                     counters_j=_thousandth(self._read("get_total_energy_consumption")))

    def slow(self, hurried: Hurried = unhurried) -> Slow:
        """Read temperature and limit, unless the driver waits."""
        if hurried():
            return NOTHING
        return Slow(temperature_c=self._wanted.temperature(_all(self._read("get_gpu_temperature"))),
                    limit_w=self._wanted.limit(_all(_thousandth(self._read("get_power_management_limit")))))

    def state(self) -> DeviceState:
        """Read what Zeus offers of a device's state."""
        slow = self.slow()
        return DeviceState(counter_j=total(_thousandth(self._read("get_total_energy_consumption"))),
                           temperature_c=slow.temperature_c, power_limit_w=slow.limit_w)


def _thousandth(values: tuple[float | None, ...]) -> tuple[float | None, ...]:
    return tuple(None if value is None else value / 1000 for value in values)


def _all(values: tuple[float | None, ...]) -> list[float]:
    """Return what was read of every GPU; nothing where one does not say: it may be the one that strays."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []
