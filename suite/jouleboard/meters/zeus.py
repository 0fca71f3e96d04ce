"""Method `gpu_counter`: Zeus on the energy counter of NVIDIA GPUs.

Zeus is only trusted with explicit GPU indices: without a GPU, with an empty `CUDA_VISIBLE_DEVICES` or after a failed NVML
start its monitor constructs all the same and answers 0 J (verified with zeus 0.16), so every reading is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
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
            MeterError: no such GPU, or no NVML.
        """
        if not gpu_indices:
            raise MeterError("no GPU was named", field="count", remedy=_REMEDY)
        self._indices = gpu_indices
        self._monitor = monitor if monitor is not None else _open(gpu_indices)

    def begin(self) -> None:
        """Begin a window. The worker has synchronised its device, this process has none to synchronise."""
        self._monitor.begin_window(_WINDOW, sync_execution=False)

    def end(self, *, duration_s: float, cpu_s: float | None) -> Energy:  # noqa: ARG002 - the counter knows
        """Return the counters' joules.

        Raises:
            MeterError: a GPU is missing from the reading, or its energy is zero, negative or not a number.
        """
        reading = self._monitor.end_window(_WINDOW, sync_execution=False)
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


def _open(gpu_indices: tuple[int, ...]) -> Monitor:
    from jouleboard.meters.detect import gpus  # noqa: PLC0415 - NVML only when a GPU is asked for

    present = gpus()
    if len(present.devices) <= max(gpu_indices):
        raise MeterError(f"GPU {max(gpu_indices)} is not there ({present.reason or len(present.devices)})",
                         remedy=_REMEDY)
    from zeus.monitor import ZeusMonitor  # noqa: PLC0415 - takes seconds to import

    # cpu_indices=[]: host energy is a domain of its own, never added to the GPU's in silence.
    monitor: Any = ZeusMonitor(gpu_indices=list(gpu_indices), cpu_indices=[], approx_instant_energy=False)
    return monitor  # type: ignore[no-any-return]
