"""A GPU watched closely through NVML: its counter and its instant power, each some 400 times a second.

Example::

    with open_board() as board:
        polled = watch(board, seconds=30.0)
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jouleboard.errors import MeterError
from jouleboard.meters.ticks import Polled

PERIOD_S = 0.0025
_REMEDY = "run `jouleboard doctor` to see what can be measured here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The GPU that is watched. What it does not say is None."""

    name: str
    driver: str
    counter_j: Callable[[], float]
    power_w: Callable[[], float]
    """Instant power; the mean that `nvmlDeviceGetPowerUsage` gives where there is none."""
    instant: bool
    temperature_c: Callable[[], float | None]
    processes: Callable[[], int | None]
    limit_w: float | None
    min_limit_w: float | None
    max_limit_w: float | None


@contextlib.contextmanager
def open_board() -> Iterator[Board]:
    """Open the first GPU that CUDA would see.

    Raises:
        MeterError: NVML does not start, there is no GPU, or it fails while it is watched.
    """
    try:
        import pynvml  # noqa: PLC0415 - only where a GPU is calibrated
    except ImportError:
        raise MeterError("the package nvidia-ml-py is not installed", remedy="install the extra `run`") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise MeterError(f"NVML does not start: {error}", remedy=_REMEDY) from error
    try:
        yield _board(pynvml, _handle(pynvml))
    except pynvml.NVMLError as error:
        raise MeterError(f"the GPU does not answer: {error}", remedy=_REMEDY) from error
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _handle(nvml: Any) -> Any:
    """Return NVML's handle of the first visible GPU: NVML itself does not look at CUDA_VISIBLE_DEVICES."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if wanted is None else wanted.split(",")[0].strip()
    if first.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    if not first.isdecimal() or int(first) >= nvml.nvmlDeviceGetCount():
        raise MeterError(f"there is no GPU to calibrate (CUDA_VISIBLE_DEVICES is {wanted!r})", remedy=_REMEDY)
    return nvml.nvmlDeviceGetHandleByIndex(int(first))


def _board(nvml: Any, handle: Any) -> Board:
    def optional(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
            return None

    def counter_j() -> float:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

    fields = [nvml.NVML_FI_DEV_POWER_INSTANT]

    def instant_w() -> float:
        field = nvml.nvmlDeviceGetFieldValues(handle, fields)[0]
        if field.nvmlReturn:
            raise nvml.NVMLError(field.nvmlReturn)
        return float(field.value.uiVal) / 1000

    def mean_w() -> float:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000

    try:
        instant_w()
        instant = True
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_InvalidArgument):
        instant = False
    limits = optional(nvml.nvmlDeviceGetPowerManagementLimitConstraints)
    limit_mw = optional(nvml.nvmlDeviceGetEnforcedPowerLimit)
    return Board(
        name=str(nvml.nvmlDeviceGetName(handle)), driver=str(nvml.nvmlSystemGetDriverVersion()), counter_j=counter_j,
        power_w=instant_w if instant else mean_w, instant=instant,
        temperature_c=lambda: optional(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        processes=lambda: _count(optional(nvml.nvmlDeviceGetComputeRunningProcesses)),
        limit_w=None if limit_mw is None else limit_mw / 1000, min_limit_w=None if limits is None else limits[0] / 1000,
        max_limit_w=None if limits is None else limits[1] / 1000,
    )


def _count(rows: Any) -> int | None:
    return None if rows is None else len(rows)


def watch(board: Board, *, seconds: float) -> Polled:
    """Read counter and power in turn until the time is over."""
    rows: tuple[list[float], ...] = ([], [], [], [], [], [])
    counter_times, counters, counter_latencies, power_times, powers, power_latencies = rows
    start_s = due_s = time.perf_counter()
    while (before_s := time.perf_counter()) < start_s + seconds:
        counter_j = board.counter_j()
        between_s = time.perf_counter()
        power_w = board.power_w()
        after_s = time.perf_counter()
        counter_times.append((before_s + between_s) / 2)
        counters.append(counter_j)
        counter_latencies.append(between_s - before_s)
        power_times.append((between_s + after_s) / 2)
        powers.append(power_w)
        power_latencies.append(after_s - between_s)
        # A poll that comes late moves those behind it: never two at once.
        due_s = max(due_s + PERIOD_S, after_s)
        time.sleep(max(due_s - time.perf_counter(), 0.0))
    return Polled(counter_times_s=counter_times, counters_j=counters, counter_latencies_s=counter_latencies,
                  power_times_s=power_times, powers_w=powers, power_latencies_s=power_latencies)
