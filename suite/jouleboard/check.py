"""Check data files and reports: schema, digests, and every aggregate recomputed from the raw records.

All problems are listed at once; each names file, field, value, rule and remedy. Nothing here imports torch, opens the
network or runs anything that a report names.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jouleboard import check_place, gate_facts, maintainers, manifests, merkle, store, traces, trust
from jouleboard.answers import Answers, of_entry
from jouleboard.check_bounds import check_bounds
from jouleboard.check_copies import Index
from jouleboard.check_data import KINDS, check_data, from_error
from jouleboard.check_declared import check_declared
from jouleboard.check_energy import check_energy
from jouleboard.check_gates import check_gates, check_profile
from jouleboard.check_grid import check_engine, check_grid
from jouleboard.check_items import check_items
from jouleboard.check_records import check_failure, check_item_records, check_records, check_rows
from jouleboard.check_text import check_text
from jouleboard.check_time import check_time
from jouleboard.check_trials import check_trials
from jouleboard.check_withdrawals import Withdrawals
from jouleboard.errors import DataFileError
from jouleboard.problems import RULES, Make, Problem, applies
from jouleboard.problems import at as at_file
from jouleboard.records import PUBLISHED_RULES, Item, Report

__all__ = ["KINDS", "RULES", "Entry", "Findings", "Problem", "check_all", "check_paths", "check_report", "load_entries", "publishable", "render"]

PUBLISHED = check_place.PUBLISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry that was read."""

    name: str
    """Path of its folder below the folder that was checked."""
    folder: Path
    report: Report
    answers: Mapping[str, Answers]
    """Its items as arrays, by task."""
    unheld: tuple[str, ...] = ()
    """Tasks whose items could not be held against a manifest."""
    recomputed: bool = True
    """Whether every primary score follows from what is published."""

    @property
    def items(self) -> tuple[Item, ...]:
        """All items, read from the folder again: those of thousands of entries would fill the memory."""
        return tuple(store.read_items(self.folder))


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a check found."""

    checked: int = 0
    problems: list[Problem] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    """Those without a problem that were neither withdrawn nor corrected."""
    set_aside: list[Entry] = field(default_factory=list)
    """Those that were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How entries are checked."""

    fresh: bool = False
    """Whether they are proposed now, so that they must be as what is declared today."""
    only: frozenset[Path] | None = None
    """Files and folders to check, as `branch.Changes.touched`; of other entries only what tells a copy is read. None: all."""
    keep_items: bool = True
    """Whether the items of sound entries are kept, as arrays."""
    now: dt.datetime | None = None


def render(problem: Problem) -> str:
    """Return a problem as lines for the terminal."""
    return (f"{problem.file}: {problem.field}: {problem.found}\n  rule {problem.code}: {RULES[problem.code]}\n"
            f"  remedy: {problem.remedy}")


def check_all(reports: Path, options: Options = Options()) -> Findings:
    """Check every declared data file of this installation and every report below a folder."""
    findings = Findings()
    for problem in check_data():
        findings.checked += 1
        findings.problems += [] if problem is None else [problem]
    if reports.is_dir():
        try:
            maintainers.read(reports)
        except DataFileError as error:
            findings.problems.append(from_error(error, reports / maintainers.FILE))
        _check_into(findings, [(reports, reports)], options)
    return findings


def check_paths(where: Sequence[Path], options: Options = Options()) -> Findings:
    """Check the reports at or below each path."""
    findings = Findings()
    _check_into(findings, [(root, root if root.is_dir() else root.parent) for root in where], options)
    return findings


def load_entries(root: Path) -> Findings:
    """Read every entry below a folder; those with problems are left out of `entries`."""
    return check_paths([root])


def _check_into(findings: Findings, roots: Sequence[tuple[Path, Path]], options: Options) -> None:
    index, withdrawals = Index(), Withdrawals()
    for root, base in roots:
        barred = _check_tree(findings, root, withdrawals, options)
        for path in store.find_reports(root):
            if path.parent in barred:
                continue
            chosen = options.only is None or path.parent in options.only
            findings.checked += chosen
            _Checking(findings=findings, index=index, options=options, base=base).add(path, chosen=chosen)
    _check_together(findings, index, withdrawals, options.only)


def _check_tree(findings: Findings, root: Path, withdrawals: Withdrawals, options: Options) -> frozenset[Path]:
    """Check names and kinds of what is published; return folders in which a file may not even be opened."""
    published = check_place.published_root(root)
    if published is None or not root.is_dir():
        return frozenset()
    depth = len(root.resolve().relative_to(published).parts)
    problems = list(check_place.check_tree(root, depth, strict=options.fresh))
    closed = {"symlink", "file-kind", "count"}
    barred = frozenset(Path(problem.file).parent for problem in problems if problem.code in closed)
    if options.only is not None:
        problems = [one for one in problems if Path(one.file) in options.only]
    findings.problems += problems
    for path in sorted(root.rglob(f"*{check_place.WITHDRAWN}")):
        if path.parent not in barred and not path.is_symlink():
            findings.problems += withdrawals.add(path)
    return barred


def _check_together(findings: Findings, index: Index, withdrawals: Withdrawals, only: frozenset[Path] | None) -> None:
    """Find what only all entries together show, and set aside those that no longer count."""
    findings.problems += withdrawals.check_names(index.entries)
    misnamed = [problem for problem in index.check_names() if only is None or Path(problem.file) in only]
    findings.problems += misnamed
    wrong = {problem.file for problem in misnamed}
    findings.entries = [entry for entry in findings.entries if str(entry.folder / store.REPORT) not in wrong]
    gone = withdrawals.digests | {entry.report.replaces for entry in findings.entries}
    findings.set_aside = [entry for entry in findings.entries if entry.report.digest in gone]
    findings.entries = [entry for entry in findings.entries if entry.report.digest not in gone]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checking:
    findings: Findings
    index: Index
    options: Options
    base: Path

    def add(self, path: Path, *, chosen: bool) -> None:
        """Read one entry, check it where it is one of those to check, and remember it."""
        folder = path.parent
        try:
            opened = store.open_report(path)
            report = opened.report
            lines = store.read_lines(folder / store.ITEMS) if chosen else []
            items = store.decode_items(lines, folder / store.ITEMS)
        except DataFileError as error:
            self.findings.problems += [from_error(error, path)] if chosen else []
            return
        try:
            trace = store.read_lines(folder / store.TRACE) if chosen else []
        except DataFileError as error:
            self.findings.problems.append(from_error(error, folder / store.TRACE))
            trace = None
        problems = [*_check_entry(path, opened, lines, items, trace, self.options)] if chosen else []
        if trace is not None:
            problems += self.index.add(path, report, trace, published=check_place.published_root(path) is not None)
        if not chosen:
            return
        version = PUBLISHED_RULES if self.options.fresh else report.rules_version
        problems = [problem for problem in problems if applies(problem.code, version)]
        self.findings.problems += problems
        if not problems and trace is not None:
            name = folder.relative_to(self.base).as_posix() if folder != self.base else folder.resolve().name
            self.findings.entries.append(Entry(
                name=name, folder=folder, report=report, answers=of_entry(report, items) if self.options.keep_items else {},
                unheld=tuple(result.task for result in report.tasks if manifests.of(result) is None),
                recomputed=trust.recomputed(report, items)))


def _check_entry(
    path: Path, opened: store.Opened, lines: Sequence[bytes], items: Sequence[Item], trace: Sequence[bytes] | None, options: Options
) -> Iterator[Problem]:
    report, at, at_items = opened.report, at_file(path), at_file(path.parent / store.ITEMS)
    yield from check_report(path, report, now=options.now, digest=opened.digest, fresh=options.fresh)
    yield from check_items(path.parent / store.ITEMS, report, items, lines)
    yield from check_item_records(report, items, at_items)
    yield from check_place.check_place(path, report, opened.stored_digest, at)
    if options.fresh:
        yield from check_declared(report, at)
    if trace is None:
        return
    yield from _check_files(report, {store.ITEMS: lines, store.TRACE: trace}, at)
    if report.merkle_root is not None or options.fresh or applies("merkle", report.rules_version):
        root = merkle.of_entry(report, lines, trace)
        if root != report.merkle_root:
            yield at("merkle_root", "merkle", f"stored {report.merkle_root}, recomputed {root}", "publish it with `jouleboard submit`")
    yield from _check_trace(path, report, trace, at)
    yield from check_place.check_simulated(path, report)


def check_report(
    path: Path, report: Report, *, now: dt.datetime | None = None, digest: str | None = None, fresh: bool = False
) -> Iterator[Problem]:
    """Check what a report says of itself.

    Args:
        path: of its file.
        report: as it was read.
        now: the time of the check; None: the machine's.
        digest: of its fields, where it is known already.
        fresh: whether it is held against the rules of today, whatever it names.
    """
    at = at_file(path)
    digest = store.report_digest(report) if digest is None else digest
    if digest != report.digest:
        yield at("digest", "digest", f"stored {report.digest[:16]}…, recomputed {digest[:16]}…",
                 "the report was changed after it was written: measure again")
    if report.rules_version > PUBLISHED_RULES:
        yield at("rules_version", "rules", f"{report.rules_version}, the newest rules are {PUBLISHED_RULES}", "install a newer Jouleboard")
    if (report.status == "failed") != (report.failure is not None):
        yield at("status", "status", f"{report.status!r} with failure {report.failure is not None}", "measure again")
    yield from check_failure(report, at)
    if report.status == "complete" and not (report.trials and report.tasks):
        yield at("status", "status", "complete without trials or tasks", "measure again")
    yield from check_profile(report, at)
    yield from check_trials(report, at)
    yield from check_energy(report, at)
    yield from check_grid(report, at)
    yield from check_engine(report, at)
    yield from _by_rules(report, at, now, PUBLISHED_RULES if fresh else report.rules_version)
    names = [result.task for result in report.tasks]
    if len(set(names)) != len(names):
        yield at("tasks", "item-once", "a task occurs twice", "measure again")


def _by_rules(report: Report, at: Make, now: dt.datetime | None, version: int) -> Iterator[Problem]:
    """Check what later rules ask for; a report of earlier ones is not held against it."""
    now = dt.datetime.now(dt.UTC) if now is None else now
    found = (*check_text(report, at), *check_time(report, at, now), *check_records(report, at), *check_bounds(report, at))
    yield from (problem for problem in found if applies(problem.code, version))


def publishable(report: Report) -> str | None:
    """Return why a report may not be published, in words; None where it may.

    Estimates of a power model may: their boards are of CPU time. Problems that need the raw files are for `check_paths`.
    """
    profile = report.profile
    if report.method == "simulated" or (profile is not None and "simulated" in {profile.method, profile.category}):
        return "its joules are simulated: they show that the software works and are no measurement"
    problem = next(check_report(Path(store.REPORT), report), None)
    return None if problem is None else f"it does not pass the check: {problem.field}: {problem.found}"


def _check_files(report: Report, found: dict[str, Sequence[bytes]], at: Make) -> Iterator[Problem]:
    """Hold the raw files against the digests in the report."""
    if set(report.files) != {store.ITEMS, store.TRACE}:
        yield at("files", "files", f"names {', '.join(sorted(report.files)) or 'none'}",
                 f"a report names {store.ITEMS} and {store.TRACE}")
        return
    for name, stored in report.files.items():
        digest = store.lines_sha256(found[name])
        if digest != stored.sha256 or len(found[name]) != stored.lines:
            yield at(f"files.{name}", "files", f"stored {stored.sha256[:16]}… ({stored.lines} lines), "
                     f"found {digest[:16]}… ({len(found[name])} lines)", "restore the file as it was measured")


def _check_trace(path: Path, report: Report, lines: Sequence[bytes], at: Make) -> Iterator[Problem]:
    """Recompute from the trace what follows from it: integrals, gates and voids."""
    file = path.parent / store.TRACE
    try:
        samples = traces.decode(lines, file=str(file))
    except DataFileError as error:
        yield at_file(file)(error.field or "(the whole file)", "trace", error.problem, error.remedy or "measure again")
        return
    yield from check_gates(report, samples, at)
    yield from check_rows(report, gate_facts.as_stored(samples), at)
