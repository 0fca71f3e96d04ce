"""A meter that knows time only, for work whose energy is not accounted: several variants may be scored at once."""

from __future__ import annotations

from jouleboard.declared import Boundary, Hardware, Method
from jouleboard.meters.interface import Reading
from jouleboard.windows import DeviceState, Energy


class ClockMeter:
    """Times windows; gives no energy. Any number of its windows may be open at once."""

    def __init__(self, hardware: Hardware) -> None:
        """Keep what the profile calls its method."""
        self.method: Method = hardware.method
        self.boundary: Boundary = hardware.boundary

    def begin(self, name: str) -> None:
        """Nothing to start."""

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:  # noqa: ARG002 - the window keeps both
        """Give no energy."""
        return Reading(energy=Energy(method=self.method, boundary=self.boundary, measured_j=None, domains_j={},
                                     estimate_j=None, estimate_relative_uncertainty=None))

    def state(self) -> DeviceState | None:
        """Know nothing of the device."""
        return None

    def close(self) -> None:
        """Nothing to end."""
