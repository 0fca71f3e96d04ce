"""Meters: how the energy of a window is known. `choose` makes the one that a hardware profile declares.

A power model needs no sensor and runs in the driver; everything that reads a device runs in a process of its own
(`process.ProcessMeter` here, `server` there), so that Zeus and NVML are never imported by the driver.
"""

from __future__ import annotations

from collections.abc import Callable

from jouleboard.declared import Hardware, Method
from jouleboard.errors import MeterError
from jouleboard.meters.interface import Meter
from jouleboard.meters.model import PowerModelMeter
from jouleboard.meters.process import ProcessMeter

METERS: dict[Method, Callable[[Hardware], Meter]] = {
    "gpu_counter": ProcessMeter,
    "gpu_integral": ProcessMeter,
    "model": PowerModelMeter,
    "rapl": ProcessMeter,
    "simulated": ProcessMeter,
    "soc": ProcessMeter,
}
_REMEDIES: dict[Method, str] = {
    "wall": "measure with another profile and add the log of the wall meter afterwards: `jouleboard import-power`",
}


def choose(hardware: Hardware) -> Meter:
    """Make the meter of a profile. Call it from the main thread: its process dies with the thread that starts it.

    Raises:
        MeterError: its method has no meter, or the meter finds no sensor.
    """
    make = METERS.get(hardware.method)
    if make is None:
        raise MeterError(
            f"the profile {hardware.id} declares the energy method {hardware.method!r}, which no meter of this machine reads",
            field="method",
            remedy=_REMEDIES.get(hardware.method, f"declare a method with a meter: {', '.join(METERS)}"),
        )
    return make(hardware)
