"""Why a window's energy is not known: every reason code that a meter gives, with its words.

`Reading.void` is `code: words (detail)`, for instance::

    counter-reset: a counter went back inside the window (gpu0: 1034.2 J after 5120.9 J)
"""

from __future__ import annotations

from jouleboard.errors import MeterError

VOID: dict[str, str] = {
    "not-begun": "the window has no beginning",
    "meter-died": "the meter's process ended",
    "meter-hung": "the meter's process did not answer in time",
    "meter-refused": "the meter could not be opened again",
    "device-lost": "the device fell off the bus, or needs a reset",
    "driver-gone": "the device's driver does not answer",
    "sensor-error": "the sensor answered with an error",
    "counter-missing": "the sensor gave no reading of the counter",
    "counter-reset": "a counter went back inside the window",
    "counter-frozen": "a counter stood still while power was drawn",
    "counter-still": "a counter did not move inside the window",
    "not-finite": "the reading is no number",
    "no-power": "no power was sampled that could be integrated",
}
REOPEN = frozenset({"device-lost", "driver-gone"})
"""After these a meter is only trusted again once it has been opened anew."""


def void(code: str, detail: object) -> str:
    """Return `code: words (detail)`."""
    return f"{code}: {VOID[code]} ({detail})"


class SensorError(MeterError):
    """A sensor failed inside a window; the window is void, with one of the codes of `VOID`."""

    def __init__(self, code: str, detail: object) -> None:
        """Keep the code."""
        super().__init__(void(code, detail), remedy="measure the window again; `jouleboard doctor` looks at the sensor")
        self.code = code


_ZEUS: dict[str, str] = {
    "ZeusGPULostError": "device-lost",
    "ZeusGPUResetRequiredError": "device-lost",
    "ZeusGPUNotFoundError": "device-lost",
    "ZeusGPUDriverNotLoadedError": "driver-gone",
    "ZeusGPUInitError": "driver-gone",
    "ZeusGPULibraryNotFoundError": "driver-gone",
    "ZeusGPULibRMVersionMismatchError": "driver-gone",
}
_NVML: dict[int, str] = {1: "driver-gone", 9: "driver-gone", 12: "driver-gone", 18: "driver-gone",
                         6: "device-lost", 15: "device-lost", 16: "device-lost"}
"""NVML return codes (nvml.h): uninitialized, driver not loaded, library not found, version mismatch; not found, GPU is
lost, reset required."""


def of_error(error: Exception) -> SensorError:
    """Return the fault that an exception of Zeus or NVML stands for."""
    code = _NVML.get(getattr(error, "value", -1)) or _ZEUS.get(type(error).__name__, "sensor-error")
    return SensorError(code, f"{error}, {type(error).__name__}")
