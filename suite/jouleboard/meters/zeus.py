"""Method `gpu_counter`: Zeus on the energy counter of NVIDIA GPUs.

Zeus is only trusted with explicit GPU indices: without a GPU, with an empty `CUDA_VISIBLE_DEVICES` or after a failed NVML
start its monitor constructs all the same and answers 0 J (verified with zeus 0.16), so every reading is checked.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jouleboard.declared import Boundary, Method
from jouleboard.errors import MeterError
from jouleboard.records import Energy

_WINDOW = "jouleboard"
_REMEDY = "run `jouleboard doctor` to see what can be measured here"


class Measurement(Protocol):
    """What Zeus gives at the end of a window."""

    gpu_energy: Mapping[int, float]


class Monitor(Protocol):
    """The part of `zeus.monitor.ZeusMonitor` that is used."""

    def begin_window(self, key: str, sync_execution: bool = True) -> None:  # noqa: FBT001, FBT002 - Zeus's signature
        """Begin a window."""

    def end_window(self, key: str, sync_execution: bool = True) -> Measurement:  # noqa: FBT001, FBT002
        """End it."""


class ZeusGpuMeter:
    """Joules of one or more GPUs from their own counters."""

    method: Method = "gpu_counter"
    boundary: Boundary = "gpu"

    def __init__(self, gpu_indices: tuple[int, ...], *, monitor: Monitor | None = None) -> None:
        """Open the GPUs.

        Args:
            gpu_indices: which GPUs, never empty.
            monitor: what Zeus would make; tests pass one of their own.

        Raises:
            MeterError: no such GPU, no NVML, a GPU that CUDA_VISIBLE_DEVICES hides, or one in MIG mode.
        """
        if not gpu_indices:
            raise MeterError("no GPU was named", field="count", remedy=_REMEDY)
        self._indices = gpu_indices
        self._monitor = monitor if monitor is not None else _open(gpu_indices)
        self._failures = () if monitor is not None else _failures()
        self._count = itertools.count()
        self._window = _WINDOW

    def begin(self) -> None:
        """Begin a window. The worker has synchronised its device, this process has none to synchronise.

        Raises:
            MeterError: a counter cannot be read: the GPU is lost, or NVML is gone.
        """
        # A new name each time: Zeus refuses to open a window again that an interrupted trial left open.
        self._window = f"{_WINDOW}-{next(self._count)}"
        with _as_meter_error("a window cannot begin", self._failures):
            self._monitor.begin_window(self._window, sync_execution=False)

    def end(self, *, duration_s: float, cpu_s: float | None) -> Energy:  # noqa: ARG002 - the counter knows
        """Return the counters' joules.

        Raises:
            MeterError: a counter cannot be read, a GPU is missing from the reading, or its energy is zero, negative
                or not a number.
        """
        with _as_meter_error("the window has no end", self._failures):
            reading = self._monitor.end_window(self._window, sync_execution=False)
        domains: dict[str, float] = {}
        for index in self._indices:
            joules = reading.gpu_energy.get(index)
            if joules is None:
                raise MeterError(f"Zeus gave no reading for GPU {index}", remedy=_REMEDY)
            if not 0 < joules < float("inf"):
                raise MeterError(f"GPU {index}: {joules} J in {duration_s:.3f} s cannot be true", remedy=_REMEDY)
            domains[f"gpu{index}"] = float(joules)
        return Energy(method=self.method, boundary=self.boundary, measured_j=sum(domains.values()),
                      domains_j=domains, estimate_j=None, estimate_relative_uncertainty=None)


@contextlib.contextmanager
def _as_meter_error(what: str, failures: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except failures as error:
        raise MeterError(f"{what}: {error} ({type(error).__name__})", remedy=_REMEDY) from error


def _failures() -> tuple[type[Exception], ...]:
    """Return what Zeus and NVML raise when a device or the driver fails."""
    import pynvml  # noqa: PLC0415 - both are there: Zeus was just opened
    from zeus.exception import ZeusBaseError  # noqa: PLC0415

    return (ZeusBaseError, pynvml.NVMLError)


def _open(gpu_indices: tuple[int, ...]) -> Monitor:
    from jouleboard.meters.detect import gpus  # noqa: PLC0415 - NVML only when a GPU is asked for

    present = gpus()
    if len(present.devices) <= max(gpu_indices):
        raise MeterError(f"GPU {max(gpu_indices)} is not there ({present.reason or len(present.devices)})",
                         remedy=_REMEDY)
    from zeus.monitor import ZeusMonitor  # noqa: PLC0415 - takes seconds to import

    # ValueError and IndexError: what Zeus raises for a GPU that CUDA_VISIBLE_DEVICES hides.
    with _as_meter_error("Zeus does not see the GPU (CUDA_VISIBLE_DEVICES?)", (*_failures(), ValueError, IndexError)):
        # cpu_indices=[]: host energy is a domain of its own, never added to the GPU's in silence.
        monitor: Any = ZeusMonitor(gpu_indices=list(gpu_indices), cpu_indices=[], approx_instant_energy=False)
        _refuse_mig(monitor, gpu_indices)
    return monitor  # type: ignore[no-any-return]


def _refuse_mig(monitor: Any, gpu_indices: tuple[int, ...]) -> None:
    """Refuse a GPU in MIG mode: its counter holds the joules of all its slices, and Zeus says nothing."""
    import pynvml  # noqa: PLC0415

    for index in gpu_indices:
        try:
            # Zeus's handle: its indices follow CUDA_VISIBLE_DEVICES, NVML's do not.
            current, pending = pynvml.nvmlDeviceGetMigMode(monitor.gpus.gpus[index].handle)
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
            continue
        if pynvml.NVML_DEVICE_MIG_ENABLE in {current, pending}:
            raise MeterError(f"GPU {index} is in MIG mode: the energy of a slice cannot be told from the whole GPU's",
                             remedy="switch it off (nvidia-smi -i INDEX -mig 0), or measure another GPU")
