"""What trials and probes computed: whole loops of equal work, above zero tokens, in one session; and names of windows.

Example: two trials of the cell `chat-b1`, of 3 and of 4 loops, have 767 fed tokens a loop each: 2,301 and 3,068.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from jouleboard import gate_facts
from jouleboard.problems import Make, Problem
from jouleboard.records import Report
from jouleboard.windows import Trial

COUNTS = ("requests", "prompt_tokens", "output_tokens", "fed_tokens", "computed_tokens")
LATE_S = 0.5
"""The worker's clock begins when it hears `Go`, the window's when the meter does: so much may lie between them."""
_AGAIN = "measure again"


def check_trials(report: Report, at: Make) -> Iterator[Problem]:
    """Check the work of trials and probes. A cost is per token, so a cell's trials compute the same loop, and some tokens."""
    yield from _equal_loops(report, at)
    for index, trial in enumerate(report.trials):
        yield from _whole_loops(trial, f"trials[{index}]", at)
        if not 0 < trial.fed_tokens <= trial.computed_tokens:
            yield at(f"trials[{index}].fed_tokens", "status",
                     f"{trial.fed_tokens} of {trial.computed_tokens} computed tokens", _AGAIN)
    for index, probe in enumerate(report.probes):
        if probe.kind == "decode" and probe.output_tokens == 0:
            yield at(f"probes[{index}].output_tokens", "status", "a decode probe of 0 tokens", _AGAIN)
    for name in ("session", "replay_sha256"):
        there = getattr(report, name) is not None
        # A variant that failed in its first trial was in a session, and has no trial.
        if there != bool(report.trials) and not (there and report.status == "failed"):
            yield at(name, "session", f"{'given' if there else 'missing'} with {len(report.trials)} trials", _AGAIN)
    names = [window.name for window in gate_facts.windows(report)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield at("windows", "window", f"{names.count(name)} windows are called {name!r}", _AGAIN)


def _equal_loops(report: Report, at: Make) -> Iterator[Problem]:
    cells: dict[tuple[str, int | None], list[Trial]] = {}
    for trial in report.trials:
        cells.setdefault((trial.workload, trial.batch), []).append(trial)
    for trials in cells.values():
        for name in COUNTS:
            # As fractions of integers, which no rounding makes equal: a/b == c/d where a x d == c x b.
            first = trials[0]
            other = next((one for one in trials if getattr(one, name) * first.loops != getattr(first, name) * one.loops),
                         None)
            if other is not None:
                found = " and ".join(f"{getattr(one, name)} in {one.loops} loops" for one in (first, other))
                yield at(f"trials.{name}", "status", f"trials of {found}", _AGAIN)


def _whole_loops(trial: Trial, where: str, at: Make) -> Iterator[Problem]:
    for name in COUNTS:
        if getattr(trial, name) % trial.loops:
            yield at(f"{where}.{name}", "loops", f"{getattr(trial, name)} in {trial.loops} loops", _AGAIN)
    if trial.loops_changed >= trial.loops:
        yield at(f"{where}.loops_changed", "loops", f"{trial.loops_changed} later ones of {trial.loops} loops", _AGAIN)
    ends = trial.loop_ends_s
    if not ends and trial.loops == 1:
        # One loop ends where the window does; entries of format 1 say no more.
        return
    if len(ends) != trial.loops:
        yield at(f"{where}.loop_ends_s", "loops", f"{len(ends)} ends of {trial.loops} loops", _AGAIN)
    elif any(after <= before for before, after in pairwise((0.0, *ends))):
        yield at(f"{where}.loop_ends_s", "loops", "loops that do not end one after the other", _AGAIN)
    elif ends[-1] > trial.window.duration_s + LATE_S:
        yield at(f"{where}.loop_ends_s", "loops",
                 f"the last loop ends at {ends[-1]} s of {trial.window.duration_s} s", _AGAIN)
