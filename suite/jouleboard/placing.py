"""Which boards an entry stands on: one for each cell that it was measured in, beside whatever was measured alike.

An entry without trials (its variant failed, or the run was interrupted) stands on the boards of its family's base::

    base       trials of agent at batch 1, and of replay    boards A, R
    int8       the same                                     boards A, R
    int4       failed in its build                          boards A, R, without a rank
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jouleboard import store
from jouleboard.costmodel import request_tokens
from jouleboard.declared import Cell
from jouleboard.records import Report
from jouleboard.rows import REPLAY
from jouleboard.windows import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cell of an entry, and the board that it belongs to."""

    key: str
    cell: Cell


@dataclass(slots=True, kw_only=True)
class _Homes:
    """The boards of the bases."""

    own: set[str] = field(default_factory=set)
    alike: dict[str, dict[str, Place]] = field(default_factory=dict)
    """By family and items, then by cell."""
    family: dict[str, list[Place]] = field(default_factory=dict)


def places(reports: Sequence[Report]) -> list[list[Place]]:
    """Give each report the boards that it stands on, at least one."""
    homes = _homes(reports)
    return [_of(report, homes) for report in reports]


def subject(cell: Cell) -> str:
    """Return the name of a cell, as gates say it: `agent-b1`, `replay`."""
    return cell.workload if cell.batch is None else f"{cell.workload}-b{cell.batch}"


def cell_trials(report: Report, cell: Cell) -> list[Trial]:
    """Return the trials of a cell, void ones too."""
    return [trial for trial in report.trials if (trial.workload, trial.batch) == (cell.workload, cell.batch)]


def family(report: Report) -> str:
    """Name what a base and its variants share: weights and device."""
    return store.digest([report.model, report.model_weights_sha256, report.base, _device(report)])


def board_key(report: Report, cell: Cell) -> str:
    """Return what must be equal for two entries to be compared: items, cell, work, device, method and boundary.

    The engine is none of it: a reader asks what a request costs on a machine, and each variant has a base on its own engine.
    """
    return store.digest([_inputs(report), cell, _work(report, cell), _device(report)])[:12]


def stack_key(report: Report, cell: Cell) -> str:
    """Return what must be equal for two engines to be compared: the model, the tokens of each request, device, method and boundary."""
    return store.digest(["stack", report.model, report.model_weights_sha256, cell, _work(report, cell), _device(report)])[:12]


def _work(report: Report, cell: Cell) -> object:
    trials = cell_trials(report, cell)
    if not trials:
        return None
    # Batches that are computed again are those of one engine at one batch size, and a recipe's own is what it is compared for.
    # A workload may be declared anew under its name.
    return [report.replay_sha256, report.engine.planned_batch_size or report.engine.batch_size] if (
        cell.workload == REPLAY) else request_tokens(trials[0])


def _homes(reports: Sequence[Report]) -> _Homes:
    found = _Homes()
    bases = [(report, _own(report)) for report in reports if report.is_base and report.status != "failed"]
    for base, own in sorted(bases, key=lambda pair: (not pair[0].trials, [place.key for place in pair[1]])):
        found.own |= {place.key for place in own}
        found.family.setdefault(family(base), own)
        alike = found.alike.setdefault(_alike(base), {})
        for place in own:
            alike.setdefault(subject(place.cell), place)
    return found


def _own(report: Report) -> list[Place]:
    """Return the boards of the cells that a report has trials of; without any, of the first one that was planned."""
    cells = list(dict.fromkeys((trial.workload, trial.batch) for trial in report.trials))
    found = [Cell(workload=workload, batch=batch) for workload, batch in cells]
    if not found:
        found = [*(report.energy_plan.cells if report.energy_plan else (Cell(workload=REPLAY),))][:1]
    return sorted((Place(key=board_key(report, cell), cell=cell) for cell in found), key=lambda place: place.key)


def _of(report: Report, homes: _Homes) -> list[Place]:
    own = _own(report)
    if report.status == "failed":
        # It may lack tasks, and so be alike to nothing.
        return [place for place in own if place.key in homes.own] or homes.family.get(family(report), own)
    alike = homes.alike.get(_alike(report), {})
    if not report.trials:
        return list(alike.values()) or own
    # A cell that its base was measured in and that it was not: its absence is shown.
    mine = {subject(place.cell) for place in own}
    planned = {subject(cell) for cell in report.energy_plan.cells} if report.energy_plan else set()
    return [*own, *(place for name, place in sorted(alike.items()) if name in planned - mine)]


def _alike(report: Report) -> str:
    return store.digest([family(report), _inputs(report)])


def _inputs(report: Report) -> list[list[str]]:
    return sorted([result.task, result.data_sha256, result.inputs_sha256] for result in report.tasks)


def _device(report: Report) -> list[object]:
    engine = report.engine
    # Where the processor computes, a machine with more cores is another one; beside a GPU they only wait.
    cores = report.environment.logical_cores if engine.device.startswith("cpu") else None
    return [report.hardware_sha256, report.method, report.boundary, report.environment.cpu_model, cores,
            list(report.environment.devices), engine.threads]
