"""What the pages of tasks and machines show, from the boards and the data files. Pure but for the declared tasks, which it is given.

`tasks(views, declared)[0].entries` are the rows that were scored on it; `machines(views)[0].drifts` what its canary said.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from jouleboard import entryviews
from jouleboard.declared import Hardware
from jouleboard.declared_tasks import Task
from jouleboard.rows import Row, TaskCell
from jouleboard.views import BoardView

_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """One task that something was scored on."""

    id: str
    slug: str
    declared: Task | None
    entries: tuple[tuple[Row, TaskCell], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineView:
    """One machine, by one method and boundary."""

    slug: str
    title: str
    profile: Hardware | None
    views: tuple[BoardView, ...]
    entries: int
    drifts: tuple[tuple[Row, float], ...]
    """By session: its first entry, and how much more a canary's token cost after it than before."""
    halves: Mapping[str, float | None]
    """By board: the median half interval of its costs, as a share of the mean."""


def slug(text: str) -> str:
    """Return a name for an address: an id stays as it is, anything else becomes its digest."""
    return text if _SLUG.fullmatch(text) else hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def tasks(views: Sequence[BoardView], declared: Callable[[str], Task | None]) -> tuple[TaskView, ...]:
    """Return the tasks on these boards, by id; each entry once."""
    found: dict[str, dict[str, tuple[Row, TaskCell]]] = {}
    for view in views:
        for row in view.rows:
            for cell in row.tasks:
                found.setdefault(cell.task, {}).setdefault(row.entry, (row, cell))
    return tuple(TaskView(id=task, slug=slug(task), declared=declared(task), entries=tuple(rows.values()))
                 for task, rows in sorted(found.items()))


def machines(views: Sequence[BoardView]) -> tuple[MachineView, ...]:
    """Return the machines of these boards, in the order in which they come."""
    found: dict[tuple[str, str, str], list[BoardView]] = {}
    for view in views:
        if view.rows:
            found.setdefault((view.board.hardware, view.board.method, view.board.boundary), []).append(view)
    return tuple(_machine("-".join(key), mine) for key, mine in found.items())


def _machine(name: str, views: Sequence[BoardView]) -> MachineView:
    rows = {row.entry: row for view in views for row in view.rows}
    sessions: dict[str, tuple[Row, float]] = {}
    for row in rows.values():
        drift = entryviews.canary_drift(row.report)
        if drift is not None:
            sessions.setdefault(row.report.session or row.entry, (row, drift))
    first = views[0].rows[0].report
    return MachineView(slug=slug(name.replace("+", "-").replace("_", "-")), title=first.hardware_title, profile=first.profile, views=tuple(views), entries=len(rows),
                       drifts=tuple(sessions.values()), halves={view.board.key: _half(view.rows) for view in views})


def _half(rows: Sequence[Row]) -> float | None:
    halves = [(cost.high - cost.low) / 2 / cost.value for row in rows
              if (cost := row.headline_cost) is not None and cost.low is not None and cost.high is not None and cost.value > 0]
    return median(halves) if halves else None
