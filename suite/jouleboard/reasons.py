"""Why a row has no rank, whether it may be compared with its base, and its marks. Pure.

A gate that fails for a cell denies the rank of every entry that leans on it: a base that drifted takes its session with it::

    the gate load fails (9 % of what the device can take): it measures idling and not the compression
"""

from __future__ import annotations

from collections.abc import Sequence

from jouleboard import gates, scores
from jouleboard.declared import Cell
from jouleboard.estimates import Estimate
from jouleboard.placing import cell_trials
from jouleboard.records import Report
from jouleboard.windows import Gate, Trial

MOST_VOIDS = 3
"""Distinct reasons of void trials that are named."""
_SIMULATED = "SIMULATED: its energy comes from a simulated device, so it is never ranked or compared"
_IDLING = ": the device mostly idles, so this measures idling and not the compression; the cost is shown"


def valid(report: Report, cell: Cell) -> list[Trial]:
    """Return the trials of a cell that count."""
    return [trial for trial in cell_trials(report, cell) if trial.void is None]


def incomparable(report: Report, cell: Cell, base: Report | None) -> str | None:
    """Say why costs of this cell may not be held against the base's; None where they may."""
    if report.method == "simulated":
        return _SIMULATED
    if not valid(report, cell):
        return _void(cell_trials(report, cell), "this entry")
    denied = _denied(report, cell)
    if denied is not None:
        return f"it fails the gate {denied}"
    if base is None or base is report:
        return None
    if not valid(base, cell):
        return _void(cell_trials(base, cell), "its base")
    denied = _denied(base, cell)
    return None if denied is None else f"its base fails the gate {denied}"


def _void(trials: Sequence[Trial], whose: str) -> str:
    """Say which gate voided the trials of a cell."""
    if not trials:
        return f"no trial of {whose} was measured in this cell"
    why = list(dict.fromkeys(trial.void for trial in trials if trial.void))
    more = f"; and {len(why) - MOST_VOIDS} other reasons" if len(why) > MOST_VOIDS else ""
    return f"every trial of {whose} is void ({'; '.join(why[:MOST_VOIDS])}{more})"


def _denied(report: Report, cell: Cell) -> str | None:
    """Name the first failing gate that denies a rank or a verdict in this cell."""
    for gate in gates.failures(report):
        if reaches(gate, cell):
            return f"{gate.name} ({gate.reason}){_IDLING if gate.name == 'load' else ''}"
    return None


def reaches(gate: Gate, cell: Cell) -> bool:
    """Whether a gate that is not of one window speaks of a cell."""
    return gate.subject in {gates.cell_name(cell.workload, cell.batch), "session", "variant"}


def drift(base: Report, cell: Cell) -> float | None:
    """Return how far the first and last trial of a base are apart in a cell, as a share; None where it is not known."""
    name = gates.cell_name(cell.workload, cell.batch)
    found = next((one.value for one in base.gates if (one.name, one.subject) == ("drift", name)), None)
    return found if isinstance(found, float) else None


def unjudged(report: Report, *, base: Report | None, bases: Sequence[Report], barred: str | None) -> str | None:
    """Say why an entry can neither be ranked nor held against its base, in words; None where it can.

    Args:
        report: the entry.
        base: its base in its own session, if there.
        bases: its base in every session.
        barred: from `incomparable`.
    """
    unfit = by_itself(report)
    if unfit is not None:
        return unfit
    if not bases:
        return "its base is not on this board, so there is nothing to compare it with"
    return "its base was not measured in the same session" if base is None else barred


def by_itself(report: Report) -> str | None:
    """Say why an entry has neither rank nor verdict, whatever it stands beside; None where nothing of its own is in the way."""
    if report.failure is not None:
        task = "" if report.failure.task is None else f" of {report.failure.task}"
        return f"failed in {report.failure.phase}{task} ({report.failure.code}): {report.failure.reason}"
    if report.method == "simulated":
        return _SIMULATED
    if report.status != "complete":
        return "the run was interrupted before its energy trials were complete"
    return withheld(report)


def unplaced(quality: Estimate | None, cost: Estimate | None) -> str | None:
    """Say why an entry that nothing else is in the way of has no place on a board; None where it has one.

    Args:
        quality: its macro quality.
        cost: what the board is ordered by.
    """
    if quality is None:
        return "no task on which the base is clearly above chance"
    if quality.low is None or quality.low <= 0:
        return "its own answers are not clearly above chance"
    return "no cost was measured" if cost is None else None


def withheld(report: Report) -> str | None:
    """Say why the quality of an entry is withheld; None where it is shown."""
    codes = sorted({result.withheld for result in report.tasks if result.withheld is not None})
    if scores.BASE_GRID in codes:
        return (f"quality withheld (base-grid): the base's published weights were already {report.prior_quantisation}, "
                "so a quantiser that coarse lands on the same grid and looks lossless; the cost is shown")
    return f"quality withheld ({', '.join(codes)})" if codes else None


def badges(report: Report, cell: Cell) -> tuple[str, ...]:
    """Return the marks of an entry on the board of a cell, as reason codes."""
    windows = {trial.window.name for trial in cell_trials(report, cell)}
    unsure = any(gate.name == "cross-check" and gate.status == "unverified" and gate.subject in windows
                 for gate in report.gates)
    idling = any(gate.name == "load" and gate.status == "fail" and reaches(gate, cell) for gate in report.gates)
    found = [
        ("simulated", report.method == "simulated"),
        ("failed", report.status == "failed"),
        ("provisional", bool(gates.provisional(report))),
        ("idling", idling),
        ("unverified", unsure),
        ("demonstration-base", report.prior_quantisation is not None),
        ("estimated-joules", report.method == "model"),
        (scores.BASE_GRID, any(result.withheld == scores.BASE_GRID for result in report.tasks)),
    ]
    return tuple(name for name, holds in found if holds)
