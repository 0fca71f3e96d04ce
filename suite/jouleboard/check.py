"""Check data files and reports: schema, digests, and every aggregate recomputed from the raw records.

All problems are listed at once; each names file, field, value, rule and remedy. Nothing here imports torch, opens the
network or runs anything that a report names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jouleboard import catalogue, definitions, failures, paths, store, traces
from jouleboard.answers import Answers, of_entry
from jouleboard.check_energy import check_energy
from jouleboard.check_gates import check_gates, check_profile
from jouleboard.check_grid import check_engine, check_grid
from jouleboard.check_items import check_items
from jouleboard.check_trials import check_trials
from jouleboard.declared import Hardware, Model, Noun, Plan, Workload
from jouleboard.declared_corpora import Corpus
from jouleboard.declared_tasks import Task, TaskGroup
from jouleboard.errors import DataFileError
from jouleboard.factors import Factors
from jouleboard.problems import RULES, Make, Problem
from jouleboard.problems import at as at_file
from jouleboard.recipes import Recipe
from jouleboard.records import Item, Report

KINDS: dict[str, type[Noun]] = {
    "models": Model, "recipes": Recipe, "tasks": Task, "hardware": Hardware, "plans": Plan,
    "workloads": Workload, "corpora": Corpus, "factors": Factors,
}
PUBLISHED = "reports"
"""The folder that entries are published from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry that was read."""

    name: str
    """Path of its folder below the folder that was checked."""
    folder: Path
    report: Report
    answers: Mapping[str, Answers]

    @property
    def items(self) -> tuple[Item, ...]:
        """All items, read from the folder again: thousands of entries would fill the memory with them."""
        return tuple(store.read_items(self.folder))


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a check found."""

    checked: int = 0
    problems: list[Problem] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


def render(problem: Problem) -> str:
    """Return a problem as lines for the terminal."""
    return (f"{problem.file}: {problem.field}: {problem.found}\n  rule {problem.code}: {RULES[problem.code]}\n"
            f"  remedy: {problem.remedy}")


def check_all(reports: Path) -> Findings:
    """Check every declared data file of this installation and every report below a folder."""
    findings = Findings()
    for kind, noun in KINDS.items():
        for path in sorted(paths.data_folder(kind).glob("*.yaml")):
            findings.checked += 1
            try:
                found = catalogue.read_yaml(path, noun)
                if isinstance(found, Task):
                    definitions.require(found)
                if isinstance(found, Recipe):
                    _require_corpora(found, path)
            except DataFileError as error:
                findings.problems.append(_from_error(error, path))
    _check_groups(findings)
    if reports.is_dir():
        _check_into(findings, reports, reports)
    return findings


def _check_groups(findings: Findings) -> None:
    """Check the groups of tasks: each names tasks that are declared."""
    folder = paths.data_folder("tasks")
    for path in sorted((folder / catalogue.GROUPS).glob("*.yaml")):
        findings.checked += 1
        try:
            for name in catalogue.read_yaml(path, TaskGroup).tasks:
                if not (folder / f"{name}.yaml").is_file():
                    raise DataFileError(f"there is no task {name!r}", file=path, field="tasks", remedy="jouleboard tasks list names them")
        except DataFileError as error:
            findings.problems.append(_from_error(error, path))


def _require_corpora(recipe: Recipe, path: Path) -> None:
    """Make sure that what a recipe's steps are trained on is declared."""
    for index, step in enumerate(recipe.steps):
        if step.trains_on is not None and not (paths.data_folder("corpora") / f"{step.trains_on}.yaml").is_file():
            raise DataFileError(f"there is no corpus {step.trains_on!r}", file=path, field=f"steps[{index}].corpus",
                                remedy="declare it in suite/corpora, or name one that is there")


def check_paths(where: Sequence[Path]) -> Findings:
    """Check the reports at or below each path."""
    findings = Findings()
    for root in where:
        _check_into(findings, root, root if root.is_dir() else root.parent)
    return findings


def load_entries(root: Path) -> Findings:
    """Read every entry below a folder; those with problems are left out of `entries`."""
    return check_paths([root])


def _check_into(findings: Findings, root: Path, base: Path) -> None:
    for path in store.find_reports(root):
        findings.checked += 1
        folder = path.parent
        try:
            report = store.read_report(path)
            items = store.read_items(folder)
        except DataFileError as error:
            findings.problems.append(_from_error(error, path))
            continue
        problems = [*check_report(path, report), *check_items(folder / store.ITEMS, report, items),
                    *check_files(folder, report), *check_trace(folder, report), *_check_place(path, report)]
        findings.problems += problems
        if not problems:
            name = folder.relative_to(base).as_posix() if folder != base else folder.resolve().name
            findings.entries.append(Entry(name=name, folder=folder, report=report, answers=of_entry(report, items)))


def _from_error(error: DataFileError, path: Path) -> Problem:
    return Problem(file=error.file or str(path), field=error.field or "(the whole file)", code="unreadable",
                   found=error.problem, remedy=error.remedy or "mend the file")


def check_report(path: Path, report: Report) -> Iterator[Problem]:
    """Check what a report says of itself."""
    at = at_file(path)
    digest = store.report_digest(report)
    if digest != report.digest:
        yield at("digest", "digest", f"stored {report.digest[:16]}…, recomputed {digest[:16]}…",
                 "the report was changed after it was written: measure again")
    if (report.status == "failed") != (report.failure is not None):
        yield at("status", "status", f"{report.status!r} with failure {report.failure is not None}", "measure again")
    yield from _check_failure(report, at)
    if report.status == "complete" and not (report.trials and report.tasks):
        yield at("status", "status", "complete without trials or tasks", "measure again")
    yield from check_profile(report, at)
    yield from check_trials(report, at)
    yield from check_energy(report, at)
    yield from check_grid(report, at)
    yield from check_engine(report, at)
    names = [result.task for result in report.tasks]
    if len(set(names)) != len(names):
        yield at("tasks", "item-once", "a task occurs twice", "measure again")


def _check_failure(report: Report, at: Make) -> Iterator[Problem]:
    """Hold a failure against its entry: a phase that there is, and a task that is declared and has no result."""
    failure = report.failure
    if failure is None:
        return
    if failure.phase not in failures.PHASES:
        yield at("failure.phase", "status", f"{failure.phase[:40]!r}, known are {', '.join(failures.PHASES)}", "measure again")
    if failure.task is None:
        return
    if failure.phase != "quality":
        yield at("failure.task", "status", f"{failure.task} in the phase {failure.phase[:40]}, which scores no task", "measure again")
    if failure.task in {result.task for result in report.tasks}:
        yield at("failure.task", "status", f"{failure.task} failed and has a result", "measure again")
    if not (paths.data_folder("tasks") / f"{failure.task}.yaml").is_file():
        yield at("failure.task", "status", f"{failure.task} is no declared task", "declare the task, or measure again")


def publishable(report: Report) -> str | None:
    """Return why a report may not be published, in words; None where it may.

    Estimates of a power model may: their boards are of CPU time. Problems that need the raw files are for `check_paths`.
    """
    profile = report.profile
    if report.method == "simulated" or (profile is not None and "simulated" in {profile.method, profile.category}):
        return "its joules are simulated: they show that the software works and are no measurement"
    problem = next(check_report(Path(store.REPORT), report), None)
    return None if problem is None else f"it does not pass the check: {problem.field}: {problem.found}"


def check_files(folder: Path, report: Report) -> Iterator[Problem]:
    """Hold the raw files against the digests in the report."""
    at = at_file(folder / store.REPORT)
    if set(report.files) != {store.ITEMS, store.TRACE}:
        yield at("files", "files", f"names {', '.join(sorted(report.files)) or 'none'}",
                 f"a report names {store.ITEMS} and {store.TRACE}")
        return
    for name, stored in report.files.items():
        try:
            lines = store.read_lines(folder / name)
        except DataFileError as error:
            yield _from_error(error, folder / name)
            continue
        found = store.lines_sha256(lines)
        if found != stored.sha256 or len(lines) != stored.lines:
            yield at(f"files.{name}", "files", f"stored {stored.sha256[:16]}… ({stored.lines} lines), "
                     f"found {found[:16]}… ({len(lines)} lines)", "restore the file as it was measured")


def check_trace(folder: Path, report: Report) -> Iterator[Problem]:
    """Recompute from the trace what follows from it: integrals, gates and voids."""
    path = folder / store.TRACE
    try:
        lines = store.read_lines(path)
    except DataFileError:
        # `check_files` says what is wrong with it.
        return
    try:
        samples = traces.decode(lines, file=str(path))
    except DataFileError as error:
        yield at_file(path)(error.field or "(the whole file)", "trace", error.problem, error.remedy or "measure again")
        return
    yield from check_gates(report, samples, at_file(folder / store.REPORT))


def _check_place(path: Path, report: Report) -> Iterator[Problem]:
    """Simulated joules have no place where entries are published from."""
    simulated = report.method == "simulated" or (report.profile is not None and report.profile.category == "simulated")
    if simulated and PUBLISHED in path.resolve().parts:
        yield at_file(path)("method", "simulated", f"{report.method} in a folder `{PUBLISHED}`",
                            "take it out of the folder: it shows that the software works and is no measurement")
