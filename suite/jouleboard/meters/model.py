"""Method `model`: no sensor. CPU-seconds are measured, joules are estimated from the profile's declared power model.

The estimate never enters `measured_j`: energy = idle_w x cores x wall time + (max_w - idle_w) x CPU-seconds, per core, with
the profile's relative uncertainty beside it.
"""

from __future__ import annotations

import os

from jouleboard.declared import Boundary, Hardware, Method, PowerModel
from jouleboard.errors import MeterError
from jouleboard.meters.interface import Reading
from jouleboard.windows import DeviceState, Energy


def estimate_j(model: PowerModel, *, cores: int, duration_s: float, cpu_s: float) -> float:
    """Return the power model's joules for a window: idle power of all cores, active power for the CPU time used."""
    idle_j = model.idle_w_per_core * cores * duration_s
    return idle_j + (model.max_w_per_core - model.idle_w_per_core) * cpu_s


class PowerModelMeter:
    """Estimates joules from CPU time; measures none."""

    method: Method = "model"

    def __init__(self, hardware: Hardware) -> None:
        """Keep the profile's power model.

        Raises:
            MeterError: the profile has none.
        """
        if hardware.power_model is None:
            raise MeterError(f"the profile {hardware.id} has method `model` but no power model", field="power_model",
                             remedy="declare idle_w_per_core, max_w_per_core, relative_uncertainty and their source")
        self.boundary: Boundary = hardware.boundary
        self._model = hardware.power_model
        self._cores = os.cpu_count() or 1

    def begin(self, name: str) -> None:
        """Nothing to start: everything follows from the times."""

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:
        """Estimate the window; without CPU time (an idle window) only idle power counts."""
        joules = estimate_j(self._model, cores=self._cores, duration_s=duration_s, cpu_s=cpu_s or 0.0)
        return Reading(energy=Energy(
            method=self.method, boundary=self.boundary, measured_j=None, domains_j={}, estimate_j=joules,
            estimate_relative_uncertainty=self._model.relative_uncertainty,
        ))

    def state(self) -> DeviceState | None:
        """No device speaks here."""
        return None

    def close(self) -> None:
        """Nothing to end."""
