"""What `jouleboard run --executor ...` does besides the jobs themselves: its words, its last lines, its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jouleboard import outcome
from jouleboard.declared import Plan
from jouleboard.errors import PlanError
from jouleboard.executors import site as sites
from jouleboard.executors.site import Site
from jouleboard.jobs import Executor
from jouleboard.plan import Family
from jouleboard.residency import Choice
from jouleboard.units import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """What is to be run as jobs, and how."""

    executor: Executor
    plan: Plan
    families: Sequence[Family]
    out: Path
    site: Path | None
    parallel: int
    wait: bool
    resident: Choice
    limits: Limits


def require_together(*, executor: Executor | None, parallel: int, site: Path | None, wait: bool, stop_after_min: float | None) -> None:
    """Refuse options that only mean something beside others.

    Raises:
        PlanError: naming the option.
    """
    for given, field, needed in ((parallel > 1, "--parallel", "local"), (site is not None, "--site", "slurm"),
                                 (not wait, "--no-wait", "slurm")):
        if given and executor != needed:
            raise PlanError(f"goes with `--executor {needed}`", field=field, remedy=f"add `--executor {needed}`, or leave {field} out")
    if executor is not None and stop_after_min is not None:
        raise PlanError("a job is not cut into pieces by the command that starts it", field="--stop-after",
                        remedy="leave --executor out, or give the jobs a time limit (`time_min` of the site file)")


def site(path: Path | None) -> Site:
    """Return the site's options; the defaults where none were given."""
    return Site() if path is None else sites.read(path)


def run(wanted: Jobs) -> int:
    """Run families as jobs; the results are read back from the folder.

    Returns:
        The exit code: 1 where a job did not go to its end, else as a run in one process has it.
    """
    try:
        from jouleboard.executors import launch  # noqa: PLC0415 - submitit belongs to the extra `run`
    except ModuleNotFoundError as error:
        raise PlanError(f"needs the package {error.name}", field="--executor", remedy="pip install 'jouleboard[run]'") from None
    troubles = launch.launch(launch.Launch(
        executor=wanted.executor, plan=wanted.plan, families=wanted.families, out=wanted.out, site=site(wanted.site),
        parallel=wanted.parallel, wait=wanted.wait, resident=wanted.resident, limits=wanted.limits))
    if troubles is None:
        return outcome.Exit.COMPLETE
    results = [one for family in wanted.families
               for one in outcome.stored(family.model.id, [recipe.id for recipe in family.recipes], wanted.out)]
    for trouble in troubles:
        print(f"unfinished: {trouble.model}: {trouble.why}\n  remedy: {trouble.remedy}")
        if trouble.log is not None:
            print(f"  log: {trouble.log}")
    ended = outcome.lines(results, wanted.out)
    print("\n".join(ended.lines))
    return outcome.Exit.FAILED if troubles else ended.exit_code
