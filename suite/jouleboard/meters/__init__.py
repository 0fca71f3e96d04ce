"""Meters: how the energy of a window is known. `choose` picks the one that a hardware profile declares."""

from __future__ import annotations

from jouleboard.declared import Hardware
from jouleboard.errors import MeterError
from jouleboard.meters.interface import Meter
from jouleboard.meters.model import PowerModelMeter

IMPLEMENTED = ("gpu_counter", "model")


def choose(hardware: Hardware) -> Meter:
    """Make the meter of a profile.

    Raises:
        MeterError: its method has no meter yet, or the meter finds no sensor.
    """
    if hardware.method == "model":
        return PowerModelMeter(hardware)
    if hardware.method == "gpu_counter":
        # Importing zeus takes seconds.
        from jouleboard.meters.zeus import ZeusGpuMeter  # noqa: PLC0415

        return ZeusGpuMeter(tuple(range(hardware.count)))
    raise MeterError(
        f"the profile {hardware.id} declares the energy method {hardware.method!r}, which has no meter yet",
        field="method", remedy=f"methods with a meter: {', '.join(IMPLEMENTED)}",
    )
