"""Windows and what is known of their energy: sensors apart from estimates, every estimate recomputed.

Example: 10 s and 19 CPU-seconds on two cores of 0.75 W idle and 7.5 W busy are 2 x 0.75 x 10 + 6.75 x 19 = 143.25 J.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec

from jouleboard import gate_facts
from jouleboard.meters.model import estimate_j
from jouleboard.problems import Make, Problem, close
from jouleboard.records import Build, Report, StepBill
from jouleboard.windows import Energy

LEAST_J = 1e-9
"""Less than any meter can tell from nothing."""
_AGAIN = "measure again"


def check_energy(report: Report, at: Make) -> Iterator[Problem]:
    """Check the energy of every window, and of the build."""
    if (report.power_model is not None) != (report.method == "model"):
        yield at("power_model", "energy", f"{'given' if report.power_model else 'missing'} under method {report.method}",
                 "a power model belongs to method `model`, and to no other")
    for where, window in gate_facts.placed_windows(report):
        energy = window.energy
        if report.method != "model" and window.void is not None and energy.measured_j is None and not energy.domains_j:
            # Its sensor failed, and the window says how.
            continue
        yield from _check(report, energy, f"{where}.energy", at,
                          expected_j=_expected_j(report, window.duration_s, window.cpu_s))
    build = report.build
    if build is not None and build.energy is not None:
        yield from _check(report, build.energy, "build.energy", at,
                          expected_j=_expected_j(report, build.duration_s, build.cpu_s))
        yield from _check_bills(report, build, at)


def _check_bills(report: Report, build: Build, at: Make) -> Iterator[Problem]:
    """Check the bill of every step, and that they are not more than the whole build's."""
    found: list[dict[str, Any]] = []
    for index, step in enumerate(build.steps):
        bill, where = step.get("bill"), f"build.steps[{index}].bill"
        if bill is None:
            # Entries of earlier versions have none.
            continue
        try:
            read = msgspec.convert(bill, StepBill)
        except msgspec.ValidationError as error:
            yield at(where, "energy", str(error), _AGAIN)
            continue
        found.append(bill)
        if read.energy is not None and read.energy.estimate_j is not None:
            expected_j = _expected_j(report, read.duration_s, read.cpu_s)
            if expected_j is None or not close(read.energy.estimate_j, expected_j):
                yield at(f"{where}.energy.estimate_j", "energy",
                         f"stored {read.energy.estimate_j}, the power model gives {expected_j}", _AGAIN)
    total_s = math.fsum(bill["duration_s"] for bill in found)
    if total_s > build.duration_s * (1 + 1e-6) + 1e-3:
        yield at("build.duration_s", "energy", f"{build.duration_s} s, its steps took {total_s} s", _AGAIN)


def _expected_j(report: Report, duration_s: float, cpu_s: float | None) -> float | None:
    if report.power_model is None:
        return None
    return estimate_j(report.power_model, cores=report.environment.logical_cores, duration_s=duration_s,
                      cpu_s=cpu_s or 0.0)


def _check(report: Report, energy: Energy, where: str, at: Make, *, expected_j: float | None) -> Iterator[Problem]:
    if (energy.method, energy.boundary) != (report.method, report.boundary):
        yield at(where, "energy", f"{energy.method}/{energy.boundary} in a report of "
                 f"{report.method}/{report.boundary}", _AGAIN)
        return
    if energy.method == "none":
        if energy != Energy(method="none", boundary=energy.boundary, measured_j=None, domains_j={}, estimate_j=None,
                            estimate_relative_uncertainty=None):
            yield at(where, "energy", "joules where nothing measures or estimates them", _AGAIN)
        return
    yield from _check_estimate(report, energy, where, at, expected_j) if energy.method == "model" else _check_measured(
        energy, where, at)


def _check_estimate(
    report: Report, energy: Energy, where: str, at: Make, expected_j: float | None
) -> Iterator[Problem]:
    if energy.measured_j is not None or energy.domains_j:
        yield at(f"{where}.measured_j", "energy", "measured joules without a sensor", _AGAIN)
    if energy.integral_j is not None:
        yield at(f"{where}.integral_j", "energy", "an integral of power without a sensor", _AGAIN)
    if energy.estimate_j is None or energy.estimate_j < LEAST_J:
        yield at(f"{where}.estimate_j", "energy", f"{energy.estimate_j}", _AGAIN)
    elif expected_j is not None and not close(energy.estimate_j, expected_j):
        yield at(f"{where}.estimate_j", "energy", f"stored {energy.estimate_j}, the power model gives {expected_j}",
                 _AGAIN)
    uncertainty = None if report.power_model is None else report.power_model.relative_uncertainty
    if uncertainty is not None and energy.estimate_relative_uncertainty != uncertainty:
        yield at(f"{where}.estimate_relative_uncertainty", "energy",
                 f"stored {energy.estimate_relative_uncertainty}, the power model says {uncertainty}", _AGAIN)


def _check_measured(energy: Energy, where: str, at: Make) -> Iterator[Problem]:
    if energy.estimate_j is not None or energy.estimate_relative_uncertainty is not None:
        yield at(f"{where}.estimate_j", "energy", "an estimate where a sensor measures", _AGAIN)
    total = math.fsum(energy.domains_j.values())
    if energy.measured_j is None or energy.measured_j < LEAST_J or not close(energy.measured_j, total):
        yield at(f"{where}.measured_j", "energy", f"{energy.measured_j}, the domains sum to {total}", _AGAIN)
    for name, joules in energy.domains_j.items():
        if joules < 0:
            yield at(f"{where}.domains_j.{name}", "energy", f"{joules}", _AGAIN)
