"""NVIDIA GPUs read through NVML beside Zeus: power and counter ten times a second, the rest once a second.

Power is field 186 (instant power) and comes in one query together with the counter; `nvmlDeviceGetPowerUsage`, a mean over
a second on Ampere and newer, is only asked where that field is not supported. Zeus's handles are used: they follow
`CUDA_VISIBLE_DEVICES`, NVML's indices do not.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jouleboard.errors import MeterError
from jouleboard.meters import reasons
from jouleboard.meters.alone import Household
from jouleboard.meters.gpu import Hurried, Quick, Slow, total, unhurried
from jouleboard.meters.kernel import boot_digest, short_digest
from jouleboard.meters.wanted import Wanted
from jouleboard.windows import DeviceState

_UNION = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Member of a field's value for each `nvmlValueType_t` (nvml.h)."""
_SUCCESS = 0


class NvmlDevices:
    """GPUs, by their NVML handles."""

    def __init__(self, gpus: Sequence[Any], *, root_pid: int, wanted: Wanted | None = None) -> None:
        """Bind everything that is called often.

        Args:
            gpus: Zeus's objects of them.
            root_pid: the driver; processes that do not descend from it are foreign.
            wanted: what the profile declares of each GPU.

        Raises:
            MeterError: a GPU does not answer.
        """
        import pynvml  # noqa: PLC0415 - only where GPUs are measured

        self._nvml = pynvml
        self._wanted = wanted or Wanted()
        self._handles = tuple(gpu.handle for gpu in gpus)
        self._fields = tuple(self._power_field(handle) for handle in self._handles)
        self._field_values: Callable[[Any, Any], Any] = pynvml.nvmlDeviceGetFieldValues
        try:
            self.names: tuple[str, ...] = tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in self._handles)
        except pynvml.NVMLError as error:
            raise MeterError(f"a GPU does not answer: {error}", remedy="run `jouleboard doctor`") from error
        # A device whose identity changes between two windows is another device. Some virtual ones have none to tell.
        uuids = self._each(pynvml.nvmlDeviceGetUUID)
        self._device = short_digest(",".join(map(str, uuids))) if uuids else None
        self._household = Household(root_pid)

    def _power_field(self, handle: Any) -> tuple[tuple[int, int], int]:
        """Return the fields of one poll: instant power, of the module on Grace Hopper as in Zeus, and the counter."""
        nvml = self._nvml
        try:
            module = bool(nvml.nvmlDeviceGetC2cModeInfoV(handle).isC2cEnabled)
        except nvml.NVMLError:
            module = False
        scope = nvml.NVML_POWER_SCOPE_MODULE if module else nvml.NVML_POWER_SCOPE_GPU
        return (nvml.NVML_FI_DEV_POWER_INSTANT, scope), nvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION

    def refuse_mig(self) -> None:
        """Refuse a GPU in MIG mode: its counter holds the joules of all its slices, and Zeus says nothing.

        Raises:
            MeterError: one of them is.
        """
        for index, handle in enumerate(self._handles):
            if self._mig(handle):
                raise MeterError(f"GPU {index} is in MIG mode: the energy of a slice cannot be told from the whole GPU's",
                                 remedy="switch it off (nvidia-smi -i INDEX -mig 0), or measure another GPU")

    def _mig(self, handle: Any) -> bool | None:
        modes = self._optional(self._nvml.nvmlDeviceGetMigMode, handle)
        return None if modes is None else self._nvml.NVML_DEVICE_MIG_ENABLE in set(modes)

    def _optional(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of NVML; None where it is not supported, or fails for itself alone.

        Raises:
            SensorError: the GPU is lost, or NVML is gone.
        """
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            fault = reasons.of_error(error)
            if fault.code in reasons.REOPEN:
                raise fault from error
            return None

    def quick(self) -> Quick:
        """Read power and counter of each GPU, in one query each.

        Raises:
            SensorError: the GPU is lost, NVML is gone, or the query fails.
        """
        powers, counters = [], []
        for handle, fields in zip(self._handles, self._fields, strict=True):
            try:
                power_mw, counter_mj = map(_value, self._field_values(handle, fields))
            except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
                power_mw = counter_mj = None
            except self._nvml.NVMLError as error:
                raise reasons.of_error(error) from error
            powers.append(self._power_usage_w(handle) if power_mw is None else power_mw / 1000)
            counters.append(self._counter_j(handle) if counter_mj is None else counter_mj / 1000)
        return Quick(powers_w=tuple(powers), counters_j=tuple(counters))

    def _power_usage_w(self, handle: Any) -> float | None:
        return _thousandth(self._optional(self._nvml.nvmlDeviceGetPowerUsage, handle))

    def _counter_j(self, handle: Any) -> float | None:
        return _thousandth(self._optional(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle))

    def _each(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Ask each GPU; empty unless all of them answer."""
        found = [self._optional(function, handle, *arguments) for handle in self._handles]
        return [] if None in found else found

    def slow(self, hurried: Hurried = unhurried) -> Slow:
        """Read what changes slowly, over all GPUs; what follows once the driver waits stays None."""
        nvml = self._nvml
        parts: dict[str, Callable[[], Any]] = {
            "temperature_c": self._temperature_c,
            "sm_mhz": lambda: _extreme(min, self._each(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM)),
            "memory_mhz": lambda: _extreme(min, self._each(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM)),
            "limit_w": self._limit_w, "reasons": self._reasons, "foreign": self._foreign,
        }
        return Slow(**{name: None if hurried() else read() for name, read in parts.items()})

    def _reasons(self) -> int | None:
        masks = self._each(self._nvml.nvmlDeviceGetCurrentClocksEventReasons)
        return functools.reduce(operator.or_, map(int, masks)) if masks else None

    def _temperature_c(self) -> float | None:
        found = self._each(self._nvml.nvmlDeviceGetTemperatureV, self._nvml.NVML_TEMPERATURE_GPU) or self._each(
            self._nvml.nvmlDeviceGetTemperature, self._nvml.NVML_TEMPERATURE_GPU)
        return self._wanted.temperature([float(one) for one in found])

    def _limit_w(self) -> float | None:
        return self._wanted.limit([one / 1000 for one in self._each(self._nvml.nvmlDeviceGetEnforcedPowerLimit)])

    def _pids(self) -> list[int] | None:
        answers = self._each(self._nvml.nvmlDeviceGetComputeRunningProcesses_v3)
        return [int(process.pid) for processes in answers for process in processes] if answers else None

    def _foreign(self) -> int | None:
        pids = self._pids()
        return None if pids is None else self._household.foreign(pids)

    def state(self) -> DeviceState:
        """Read what is kept for both ends of a window."""
        nvml = self._nvml
        errors = self._each(nvml.nvmlDeviceGetTotalEccErrors, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                            nvml.NVML_VOLATILE_ECC)
        modes = [self._mig(handle) for handle in self._handles]
        return DeviceState(
            device=self._device, boot=boot_digest(), counter_j=total(self.quick().counters_j),
            temperature_c=self._temperature_c(), power_limit_w=self._limit_w(),
            power_violation_s=self._violation_s(nvml.NVML_PERF_POLICY_POWER),
            thermal_violation_s=self._violation_s(nvml.NVML_PERF_POLICY_THERMAL),
            foreign_processes=self._foreign(), uncorrected_errors=sum(map(int, errors)) if errors else None,
            mig=True if True in modes else None if None in modes else False,
        )

    def _violation_s(self, policy: int) -> float | None:
        """Return seconds that all GPUs together spent below their wanted clocks for a reason."""
        answers = self._each(self._nvml.nvmlDeviceGetViolationStatus, policy)
        # nvml.h: the violation time is in nanoseconds, the reference time beside it in microseconds.
        return sum(answer.violationTime for answer in answers) / 1e9 if answers else None


def _value(field: Any) -> float | None:
    """Return a field's value by the type that it says it has."""
    if field.nvmlReturn != _SUCCESS or field.valueType >= len(_UNION):
        return None
    return float(getattr(field.value, _UNION[field.valueType]))


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000


def _extreme(pick: Callable[[Iterable[float]], float], values: Sequence[float]) -> float | None:
    return float(pick(values)) if values else None
