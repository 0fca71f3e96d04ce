"""What making a variant cost: windows summed, and a step inside a window told apart from the rest. No I/O here.

Example: a step of two windows of 300 s and 120 s has a bill of 420 s, with the CPU-seconds and the joules of both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from jouleboard.declared import Hardware, Noun, Seconds
from jouleboard.meters import model
from jouleboard.meters.integral import integrate_j
from jouleboard.traces import Sample
from jouleboard.windows import Energy, Window


def without_trace(window: Window) -> Window:
    """Return a window without the integral of its trace, which is not kept: nobody could recompute it."""
    return msgspec.structs.replace(window, energy=msgspec.structs.replace(window.energy, integral_j=None))


class Bill(Noun, frozen=True, kw_only=True):
    """Seconds, CPU-seconds and energy."""

    duration_s: Seconds
    cpu_s: Seconds | None
    energy: Energy


def of_windows(windows: Sequence[Window]) -> Bill:
    """Return what windows took together.

    Args:
        windows: at least one, all of one meter.
    """
    return added([Bill(duration_s=window.duration_s, cpu_s=window.cpu_s, energy=window.energy) for window in windows])


def added(parts: Sequence[Bill]) -> Bill:
    """Return the sum of bills: what is unknown of one of them is unknown of all.

    Args:
        parts: at least one, all of one meter.
    """
    if len(parts) == 1:
        return parts[0]
    energies = [part.energy for part in parts]
    measured = _sum([energy.measured_j for energy in energies])
    domains: dict[str, float] = {}
    for energy in energies if measured is not None else ():
        for name, joules in energy.domains_j.items():
            domains[name] = domains.get(name, 0.0) + joules
    return Bill(
        duration_s=math.fsum(part.duration_s for part in parts), cpu_s=_sum([part.cpu_s for part in parts]),
        energy=msgspec.structs.replace(energies[0], measured_j=measured, domains_j=domains, integral_j=None,
                                       estimate_j=_sum([energy.estimate_j for energy in energies])))


def of_ranks(step_bills: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the bill of a step that several processes applied together, each to its part of the model.

    They wait for each other, so the step took as long as the slowest; their CPU-seconds and peaks of memory are added. Its tokens
    went through one model.

    Args:
        step_bills: at least one, of the same step, each by the clock of its own process.
    """
    first = step_bills[0]
    return {**first, "duration_s": max(one["duration_s"] for one in step_bills),
            "cpu_s": math.fsum(one["cpu_s"] for one in step_bills),
            "peak_memory_bytes": sum(one["peak_memory_bytes"] for one in step_bills)}


def whole(window: Window, steps: Sequence[Mapping[str, Any]]) -> Bill:
    """Return the bill of a variant: the window in which it was built, and those of the steps that were applied before it.

    Args:
        window: in which the weights were loaded and the other steps applied.
        steps: as recorded; those that had windows of their own say how many (`bill.pieces`).
    """
    before = [step["bill"] for step in steps if "pieces" in step.get("bill", {})]
    parts = [msgspec.convert({name: bill[name] for name in Bill.__struct_fields__}, Bill) for bill in before]
    return added([of_windows([window]), *parts])


def with_energy(step: Mapping[str, Any], window: Window, samples: Sequence[Sample], hardware: Hardware) -> dict[str, Any]:
    """Add to a step's bill what its stretch of the build's window drew.

    Where joules are estimated, the same power model gives them; where a device was sampled, they are the integral of its power
    over the stretch (the counter was read at the window's ends only); else they are not known.

    Args:
        step: as recorded; `bill.begun_s` tells that it lies inside the window.
        window: of the build.
        samples: its trace, times since it opened.
        hardware: the profile.
    """
    bill = dict(step.get("bill", {}))
    if "begun_s" not in bill:
        return dict(step)
    begun_s, duration_s, cpu_s = bill["begun_s"], bill["duration_s"], bill["cpu_s"]
    energy = msgspec.structs.replace(window.energy, measured_j=None, domains_j={}, estimate_j=None, integral_j=None)
    if hardware.power_model is not None and energy.method == "model":
        joules = model.estimate_j(hardware.power_model, cores=os.cpu_count() or 1, duration_s=duration_s, cpu_s=cpu_s)
        energy = msgspec.structs.replace(energy, estimate_j=joules)
    powers = [(one.elapsed_s, one.power_w) for one in samples if one.power_w is not None]
    if powers and duration_s > 0:
        joules = integrate_j([at_s for at_s, _ in powers], [power_w for _, power_w in powers], begun_s, begun_s + duration_s)
        energy = msgspec.structs.replace(energy, integral_j=joules)
    return {**step, "bill": {**bill, "energy": msgspec.to_builtins(energy)}}


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None
