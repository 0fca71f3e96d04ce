"""Check data files and reports: schema, digests, and every aggregate recomputed from the raw records.

All problems are listed at once; each names file, field, value, rule and remedy. Nothing here imports torch, opens the
network or runs anything that a report names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jouleboard import catalogue, paths, scores, store
from jouleboard.declared import Hardware, Model, Noun, Plan, Task
from jouleboard.errors import DataFileError
from jouleboard.recipes import Recipe
from jouleboard.records import Item, Report, Score, TaskResult, Trial

TOLERANCE = 1e-9
KINDS: dict[str, type[Noun]] = {
    "models": Model, "recipes": Recipe, "tasks": Task, "hardware": Hardware, "plans": Plan,
}
RULES = {
    "unreadable": "the file is whole, UTF-8 JSON of this format's version, with no unknown field",
    "digest": "a digest covers every other field, and is the one stored",
    "item-digest": "an item's digest covers every other field of its line",
    "item-score": "an item's scores follow from its log-likelihoods by lm-eval's rules",
    "item-shape": "a choice item has as many log-likelihoods as choices and an answer among them",
    "item-once": "each item of a task occurs once",
    "aggregate": "a task's aggregates are recomputed from its items",
    "withheld": "a withheld quality is null, and only a withheld one is",
    "files": "the raw files beside a report are the ones it names",
    "energy": "measured joules are positive and come from a sensor; estimates come from method `model` only",
    "status": "a complete report has trials of one length, above zero tokens, a failed one says why",
}


class Problem(Noun, frozen=True, kw_only=True):
    """One thing that is wrong."""

    file: str
    field: str
    code: str
    """Reason code, a key of `RULES`."""
    found: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry that was read."""

    name: str
    """Path of its folder below the folder that was checked."""
    folder: Path
    report: Report
    items: tuple[Item, ...]


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
                catalogue.read_yaml(path, noun)
            except DataFileError as error:
                findings.problems.append(_from_error(error, path))
    if reports.is_dir():
        _check_into(findings, reports, reports)
    return findings


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
                    *check_files(folder, report)]
        findings.problems += problems
        if not problems:
            name = folder.relative_to(base).as_posix() if folder != base else folder.resolve().name
            findings.entries.append(Entry(name=name, folder=folder, report=report, items=tuple(items)))


def _from_error(error: DataFileError, path: Path) -> Problem:
    return Problem(file=error.file or str(path), field=error.field or "(the whole file)", code="unreadable",
                   found=error.problem, remedy=error.remedy or "mend the file")


def check_report(path: Path, report: Report) -> Iterator[Problem]:
    """Check what a report says of itself."""
    at = _at(path)
    if store.report_digest(report) != report.digest:
        yield at("digest", "digest", f"stored {report.digest[:16]}…, recomputed {store.report_digest(report)[:16]}…",
                 "the report was changed after it was written: measure again")
    if (report.status == "failed") != (report.failure is not None):
        yield at("status", "status", f"{report.status!r} with failure {report.failure is not None}", "measure again")
    if report.status == "complete" and not (report.trials and report.tasks):
        yield at("status", "status", "complete without trials or tasks", "measure again")
    yield from _check_work(report, at)
    for index, trial in enumerate(report.trials):
        yield from _check_energy(report, trial, f"trials[{index}].window.energy", at)
    names = [result.task for result in report.tasks]
    if len(set(names)) != len(names):
        yield at("tasks", "item-once", "a task occurs twice", "measure again")


Make = Callable[[str, str, str, str], Problem]


def _check_work(report: Report, at: Make) -> Iterator[Problem]:
    """A cost is per token: every trial computes the same tokens, and some."""
    lengths = sorted({trial.prompt_tokens + trial.output_tokens for trial in report.trials})
    if len(lengths) > 1 or 0 in lengths:
        yield at("trials", "status", f"trials of {', '.join(map(str, lengths))} tokens", "measure again")
    for index, probe in enumerate(report.probes):
        if probe.kind == "decode" and probe.output_tokens == 0:
            yield at(f"probes[{index}].output_tokens", "status", "a decode probe of 0 tokens", "measure again")


def _at(path: Path) -> Make:
    def make(where: str, code: str, found: str, remedy: str) -> Problem:
        return Problem(file=str(path), field=where, code=code, found=found, remedy=remedy)

    return make


def _check_energy(report: Report, trial: Trial, where: str, at: Make) -> Iterator[Problem]:
    energy = trial.window.energy
    remedy = "measure again"
    if (energy.method, energy.boundary) != (report.method, report.boundary):
        yield at(where, "energy", f"{energy.method}/{energy.boundary} in a report of "
                 f"{report.method}/{report.boundary}", remedy)
    if energy.method == "model":
        if energy.measured_j is not None or energy.domains_j:
            yield at(f"{where}.measured_j", "energy", "measured joules without a sensor", remedy)
        if energy.estimate_j is None or energy.estimate_j <= 0:
            yield at(f"{where}.estimate_j", "energy", f"{energy.estimate_j}", remedy)
        return
    if energy.estimate_j is not None:
        yield at(f"{where}.estimate_j", "energy", "an estimate where a sensor measures", remedy)
    total = math.fsum(energy.domains_j.values())
    if energy.measured_j is None or energy.measured_j <= 0 or not _close(energy.measured_j, total):
        yield at(f"{where}.measured_j", "energy", f"{energy.measured_j}, the domains sum to {total}", remedy)


def check_items(path: Path, report: Report, items: Sequence[Item]) -> Iterator[Problem]:
    """Re-score every item and recompute every aggregate."""
    at = _at(path)
    sound = True
    for item in items:
        for problem in _check_item(item, report, at):
            sound = False
            yield problem
    seen: set[tuple[str, int]] = set()
    for item in items:
        if (item.task, item.item) in seen:
            yield at(_name(item), "item-once", "occurs twice", "measure again")
        seen.add((item.task, item.item))
    known = {result.task for result in report.tasks}
    for stray in sorted({item.task for item in items} - known):
        yield at(stray, "aggregate", "items of a task that the report does not name", "measure again")
    if sound:
        in_report = _at(path.parent / store.REPORT)
        for index, result in enumerate(report.tasks):
            mine = [item for item in items if item.task == result.task]
            yield from _check_task(report, result, mine, f"tasks[{index}]", in_report)


def _name(item: Item) -> str:
    return f"{item.task} item {item.item}"


def _check_item(item: Item, report: Report, at: Make) -> Iterator[Problem]:
    remedy = "restore the line as it was measured, or measure again"
    choice = item.gold is not None
    if choice and (len(item.loglikelihoods) != len(item.choice_chars) or not 0 <= (item.gold or 0) < len(
            item.loglikelihoods) or min(item.choice_chars, default=0) < 1):
        yield at(f"{_name(item)}: loglikelihoods", "item-shape",
                 f"{len(item.loglikelihoods)} log-likelihoods, {len(item.choice_chars)} choices, answer {item.gold}",
                 remedy)
        return
    if not choice and (len(item.loglikelihoods) != 1 or not item.text_bytes):
        yield at(f"{_name(item)}: text_bytes", "item-shape", "a perplexity item needs one log-likelihood and bytes",
                 remedy)
        return
    expected = scores.rescore(item)
    wanted = next((tuple(result.scores) for result in report.tasks if result.task == item.task), ())
    for metric in sorted({*wanted, *item.scores}):
        stored = item.scores.get(metric)
        if metric not in expected or stored is None or not _close(stored, expected[metric]):
            yield at(f"{_name(item)}: scores.{metric}", "item-score",
                     f"stored {stored}, recomputed {expected.get(metric)}", remedy)
    if item.digest != store.item_digest(item):
        yield at(f"{_name(item)}: digest", "item-digest",
                 f"stored {item.digest}, recomputed {store.item_digest(item)}", remedy)


def _check_task(
    report: Report, result: TaskResult, items: Sequence[Item], where: str, at: Make
) -> Iterator[Problem]:
    remedy = "the aggregates were changed, or items are missing: measure again"
    counts = {
        "items_used": len(items),
        "prompt_tokens": sum(item.prompt_tokens for item in items),
        "output_tokens": sum(item.output_tokens for item in items),
    }
    for name, value in counts.items():
        if getattr(result, name) != value:
            yield at(f"{where}.{name}", "aggregate", f"stored {getattr(result, name)}, the items give {value}", remedy)
    if not items:
        return
    kind = "choice" if items[0].gold is not None else "perplexity"
    if result.kind != kind:
        yield at(f"{where}.kind", "aggregate", f"stored {result.kind}, the items are of {kind}", remedy)
    if report.prior_quantisation is None and result.withheld == scores.BASE_GRID:
        yield at(f"{where}.withheld", "withheld", "base-grid on a base that was never quantised", remedy)
    for metric, stored in result.scores.items():
        yield from _check_score(result, stored, scores.aggregate(items, metric), f"{where}.scores.{metric}", at)
    if result.primary_metric not in result.scores:
        yield at(f"{where}.scores.{result.primary_metric}", "aggregate", "the primary metric is missing", remedy)
        return
    # From the items and not from the stored score, which may be no score at all.
    primary = scores.aggregate(items, result.primary_metric)
    shown = result.scores[result.primary_metric] is not None
    clears = scores.clears_chance(primary, result.chance, result.primary_metric) if shown else None
    if result.above_chance != clears:
        yield at(f"{where}.above_chance", "aggregate", f"stored {result.above_chance}, recomputed {clears}", remedy)


def _check_score(
    result: TaskResult, stored: Score | None, expected: Score, where: str, at: Make
) -> Iterator[Problem]:
    if (stored is None) != (result.withheld is not None):
        yield at(where, "withheld", f"{'null' if stored is None else stored.value} with withheld {result.withheld!r}",
                 "a withheld quality is null and says why")
    if stored is None:
        return
    for name in ("value", "stderr", "n"):
        mine, theirs = getattr(expected, name), getattr(stored, name)
        if not _close(theirs, mine):
            yield at(f"{where}.{name}", "aggregate", f"stored {theirs}, the items give {mine}",
                     "the aggregate was changed: measure again")


def _close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=1e-12)


def check_files(folder: Path, report: Report) -> Iterator[Problem]:
    """Hold the raw files against the digests in the report."""
    at = _at(folder / store.REPORT)
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
        found = hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()
        if found != stored.sha256 or len(lines) != stored.lines:
            yield at(f"files.{name}", "files", f"stored {stored.sha256[:16]}… ({stored.lines} lines), "
                     f"found {found[:16]}… ({len(lines)} lines)", "restore the file as it was measured")
