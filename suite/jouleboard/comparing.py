"""Find the two entries that `jouleboard compare` is asked for, check them, and print what they come to.

An entry is named by its folder, its `report.json`, a run folder that holds one entry, or a run folder and a recipe::

    jouleboard compare runs/quick/int8-weight-only                     beside its own base, from the same run
    jouleboard compare runs/a/smollm2-135m/int8 runs/b/smollm2-135m/int8
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jouleboard import catalogue, check, compareview, comparison, paths, store
from jouleboard.check import Entry
from jouleboard.comparison import Subject
from jouleboard.declared import Cell, Workload
from jouleboard.errors import DataFileError, PlanError
from jouleboard.records import Report
from jouleboard.rows import REPLAY

MOST_CHOICES = 20
_PUBLISHED = re.compile(r"[0-9]{8}t[0-9]{6}z-[0-9a-f]{8}")
"""How a published entry's folder is named (see `submit`): its recipe is the folder above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A report and its folder, not checked yet."""

    folder: Path
    report: Report


def show(a: str, b: str | None, *, as_json: bool, workload: str | None, batch: int | None) -> int:
    """Print the comparison of two entries.

    Args:
        a: names an entry.
        b: names the one that it is held against; None: its own base in the same run.
        as_json: print JSON.
        workload: only its cells.
        batch: only cells of this batch size.

    Raises:
        PlanError: what is named is no entry, several, or was not measured in such a cell.
        DataFileError: an entry does not pass the check.
    """
    first = resolve(a, "A")
    second = base_of(first) if b is None else resolve(b, "B")
    if first.report.digest == second.report.digest:
        raise PlanError("A and B are the same entry", file=second.folder, field="B", remedy="name two entries")
    entries = [_checked(first), _checked(second)]
    others = [entry for entry in _kin(first, second) if entry.report.digest not in {one.report.digest for one in entries}]
    names = _names(entries[0], entries[1])
    subjects = [Subject(name=name, report=entry.report, items=entry.items) for name, entry in zip(names, entries, strict=True)]
    found = comparison.compare(*subjects, others=others, only=_cells(subjects, workload, batch))
    declared = catalogue.load_all(paths.data_folder("workloads"), Workload)
    print(compareview.as_json(found) if as_json else "\n".join(compareview.lines(found, declared)))
    return 0


# --- what is named ------------------------------------------------------------------------------------------------------


def resolve(word: str, field: str) -> Found:
    """Return the entry that a word names.

    Raises:
        PlanError: it names none, or several: then with the choices.
        DataFileError: the report cannot be read.
    """
    place = Path(word)
    if place.exists():
        choices = [Found(folder=path.parent, report=store.read_report(path)) for path in store.find_reports(place)]
        if not choices:
            raise PlanError("holds no report.json", file=place, field=field,
                            remedy="name the folder of an entry, or RUN/RECIPE of a run that has finished scoring it")
        if (place / store.REPORT).is_file() or len(choices) == 1:
            return next((one for one in choices if one.folder == place), choices[0])
        raise PlanError(f"holds {len(choices)} entries", file=place, field=field, remedy=f"name {_listed(choices)}")
    run, recipe = place.parent, place.name
    if not run.is_dir():
        raise PlanError("does not exist", file=place, field=field, remedy="name an entry's folder, or RUN/RECIPE with the run's folder")
    choices = [Found(folder=path.parent, report=store.read_report(path)) for path in store.find_reports(run)]
    named = [one for one in choices if one.report.recipe == recipe]
    if len(named) == 1:
        return named[0]
    if named:
        raise PlanError(f"{len(named)} entries below {run} are of the recipe {recipe}", file=place, field=field,
                        remedy=f"name {_listed(named)}")
    raise PlanError(f"no entry below {run} is of the recipe {recipe}", file=place, field=field,
                    remedy=f"name {_listed(choices)}" if choices else "name the folder that `jouleboard run` wrote to")


def _listed(choices: Sequence[Found]) -> str:
    """List entries: recipes of one folder by name, others by their folders."""
    folder = choices[0].folder.parent
    alike = len(choices) > 1 and all(one.folder.parent == folder and one.folder.name == one.report.recipe for one in choices)
    names = [one.folder.name if alike else str(one.folder) for one in choices[:MOST_CHOICES]]
    more = f" and {len(choices) - MOST_CHOICES} more" if len(choices) > MOST_CHOICES else ""
    return f"{folder}/RECIPE with one of {', '.join(names)}{more}" if alike else f"{', '.join(names)}{more}"


def base_of(one: Found) -> Found:
    """Return the base that an entry names, from the same session.

    Raises:
        PlanError: it is a base itself, or its base is not there.
    """
    if one.report.is_base:
        others = [other for other in _beside(one) if other.folder != one.folder]
        choices = f": {_listed(others)}" if others else ""
        raise PlanError("is a base, so there is none to hold it against", file=one.folder, field="B",
                        remedy=f"name a second entry{choices}")
    found = [other for other in _beside(one) if other.report.is_base and _same_run(other.report, one.report)
             and other.report.recipe == one.report.base]
    if not found:
        raise PlanError(f"its base {one.report.base} of the same session is not beside it", file=one.folder, field="B",
                        remedy="name the entry that it is to be held against")
    return found[0]


def _same_run(one: Report, other: Report) -> bool:
    return (one.model, one.model_weights_sha256, one.session) == (other.model, other.model_weights_sha256, other.session)


def _beside(one: Found) -> Iterator[Found]:
    """Yield the entries of a run that an entry lies among, itself too; those that cannot be read are left out."""
    folder = one.folder.resolve()
    published = _PUBLISHED.fullmatch(folder.name) is not None
    root, pattern = (folder.parent.parent, f"*/*/{store.REPORT}") if published else (folder.parent, f"*/{store.REPORT}")
    for path in sorted(root.glob(pattern)):
        if path.parent.name.startswith("."):
            continue
        try:
            yield Found(folder=path.parent, report=store.read_report(path))
        except DataFileError:
            continue


# --- what is compared ---------------------------------------------------------------------------------------------------


def _checked(one: Found) -> Entry:
    findings = check.check_paths([one.folder])
    if findings.problems or not findings.entries:
        first = findings.problems[0]
        more = f" (and {len(findings.problems) - 1} more)" if len(findings.problems) > 1 else ""
        raise DataFileError(f"does not pass the check: {first.found}{more}", file=first.file, field=first.field,
                            remedy="`jouleboard check` lists every problem; compare what was measured, not what was changed")
    return findings.entries[0]


def _kin(first: Found, second: Found) -> list[Entry]:
    """Return the sound entries of the sessions of both: their bases, and the variants that share a family with them."""
    found: dict[str, Entry] = {}
    for one in (first, second):
        for other in _beside(one):
            if other.report.digest not in found and _same_run(other.report, one.report):
                for entry in check.check_paths([other.folder]).entries:
                    found[other.report.digest] = entry
    return list(found.values())


def _names(a: Entry, b: Entry) -> tuple[str, str]:
    """Name both as shortly as tells them apart."""
    if a.report.model != b.report.model:
        return f"{a.report.model}/{a.report.recipe}", f"{b.report.model}/{b.report.recipe}"
    if a.report.recipe != b.report.recipe:
        return a.report.recipe, b.report.recipe
    return f"{a.report.recipe} ({a.folder})", f"{b.report.recipe} ({b.folder})"


def _cells(subjects: Sequence[Subject], workload: str | None, batch: int | None) -> tuple[Cell, ...] | None:
    """Return the cells that are asked for; None: all.

    Raises:
        PlanError: neither entry was measured in one.
    """
    if workload is None and batch is None:
        return None
    every = comparison.cells(*(one.report for one in subjects))
    wanted = tuple(cell for cell in every if workload in {None, cell.workload} and batch in {None, cell.batch})
    if not wanted:
        named = ", ".join(cell.workload if cell.batch is None else f"{cell.workload} at batch {cell.batch}" for cell in every)
        raise PlanError("neither entry was measured in such a cell", field="--batch" if workload is None else "--workload",
                        remedy=f"name one of: {named}" if named else f"measure one first ({REPLAY}, chat, agent): the run has no trials")
    return wanted
