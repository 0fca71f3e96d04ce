"""What no device can do: more power than its limit, more arithmetic than its peak, repeats without any difference.

Example: 1.2e6 tokens a second through 7e9 parameters are at least 4.2e15 operations a second, which no H100 (9.9e14) does.
Bounds come from the hardware profile and use the tokens that were computed; each leaves room for what a profile cannot say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jouleboard import gate_facts
from jouleboard.costs import probe_tokens
from jouleboard.declared import Hardware
from jouleboard.gate_rules import LIMIT_SHARE, cell_name
from jouleboard.problems import Make, Problem
from jouleboard.recipes import TECHNIQUES
from jouleboard.records import Report
from jouleboard.windows import Trial, Window

SHORTEST_S = 2.0
"""Ticks of a counter and edges of a trace are too large a part of shorter windows."""
WORK_SHARE = 0.25
"""Share of the parameters that every token is multiplied with at least; the rest may be embeddings, of which it looks up a row."""
SPARSE = 2.0
"""Peaks are declared dense; weights of 2:4 pass twice as fast."""
READ_SHARE = 0.4
"""Share of the weights' bytes that each step of decoding reads at least."""
DRAFTED = 8.0
"""Tokens that one step may give where a step of the recipe drafts them."""
CACHE_BYTES = 256 * 10**6
"""Weights that are no larger may lie in a cache, which no profile declares."""
IDLE_SHARE = 0.4
"""A device that sleeps deeper than the declared idle power does not also compute."""
LEAST_POWER_SHARE = 0.25
"""At lower clocks arithmetic takes fewer joules than at the power limit, down to about this share."""
LEAST_REPEATS = 3
ALIKE = 1e-9
_AGAIN = "measure again"


def check_bounds(report: Report, at: Make) -> Iterator[Problem]:
    """Hold windows against what the profile says that the device can do."""
    profile = report.profile
    if profile is None:
        return
    for where, window in gate_facts.placed_windows(report):
        yield from _power(profile, where, window, at)
        yield from _cores(report, where, window.cpu_s, window.duration_s, at)
    for index, task in enumerate(report.tasks):
        if task.duration_s is not None:
            yield from _cores(report, f"tasks[{index}]", task.cpu_s, task.duration_s, at)
            yield from _work(report, f"tasks[{index}]", task.computed_tokens, task.duration_s, at)
    for index, trial in enumerate(report.trials):
        where = f"trials[{index}].window"
        yield from _work(report, where, trial.computed_tokens, trial.window.duration_s, at, joules=trial.window.energy.measured_j)
        if trial.first_token_s:
            yield from _reads(report, where, trial.loops * (trial.output_tokens // trial.requests), trial.window.duration_s, at)
    for index, probe in enumerate(report.probes):
        where = f"probes[{index}].window"
        yield from _work(report, where, probe_tokens(probe), probe.window.duration_s, at, joules=probe.window.energy.measured_j)
        yield from _reads(report, where, probe.loops * probe.output_tokens, probe.window.duration_s, at)
    yield from _identical(report, at)


def _power(profile: Hardware, where: str, window: Window, at: Make) -> Iterator[Problem]:
    joules, field = window.energy.measured_j, f"{where}.energy.measured_j"
    if joules is None or window.duration_s < SHORTEST_S or window.void is not None:
        return
    watts = joules / window.duration_s
    if profile.power_limit_w is not None and watts > LIMIT_SHARE * profile.power_limit_w.value * profile.count:
        yield at(field, "above-limit", f"{watts:.6g} W on average, the limit is {profile.power_limit_w.value * profile.count:.6g} W", _AGAIN)
    if profile.idle_w is not None and watts < IDLE_SHARE * profile.idle_w.value * profile.count:
        yield at(field, "roofline-energy", f"{watts:.6g} W on average, the idle device takes {profile.idle_w.value * profile.count:.6g} W", _AGAIN)


def _cores(report: Report, where: str, cpu_s: float | None, duration_s: float, at: Make) -> Iterator[Problem]:
    most_s = 1.02 * report.environment.logical_cores * duration_s + 0.1
    if cpu_s is not None and cpu_s > most_s:
        yield at(f"{where}.cpu_s", "cpu-cores", f"{cpu_s:.6g} CPU-seconds in {duration_s:.6g} s on {report.environment.logical_cores} cores", _AGAIN)


def _work(
    report: Report, where: str, tokens: int, duration_s: float, at: Make, *, joules: float | None = None
) -> Iterator[Problem]:
    profile = report.profile
    if report.realised is None or profile is None or not profile.peak_flops:
        return
    peak = max(one.value for one in profile.peak_flops.values()) * profile.count * SPARSE
    least_s = tokens * 2 * WORK_SHARE * report.realised.parameters / peak
    limit_w = profile.power_limit_w
    if joules is not None and limit_w is not None and joules < LEAST_POWER_SHARE * limit_w.value * profile.count * least_s:
        yield at(f"{where}.energy.measured_j", "roofline-energy", f"{joules:.6g} J for {tokens} tokens, the device needs "
                 f"{LEAST_POWER_SHARE * limit_w.value * profile.count * least_s:.6g} J at least", _AGAIN)
    if duration_s < least_s:
        yield at(f"{where}.duration_s", "roofline-time", f"{tokens} tokens in {duration_s:.6g} s, the device needs {least_s:.6g} s at least", _AGAIN)


def _reads(report: Report, where: str, steps: int, duration_s: float, at: Make) -> Iterator[Problem]:
    profile = report.profile
    bandwidth = None if profile is None else profile.memory_bandwidth_bytes_per_s
    if report.realised is None or profile is None or bandwidth is None or report.realised.weight_bytes < CACHE_BYTES or steps <= 0:
        return
    names = [] if report.build is None else [str(step.get("step")) for step in report.build.steps]
    drafted = DRAFTED if any(name in TECHNIQUES and TECHNIQUES[name].about.stage == "runtime" for name in names) else 1.0
    least_s = steps / drafted * READ_SHARE * report.realised.weight_bytes / (bandwidth.value * profile.count)
    if duration_s < least_s:
        yield at(f"{where}.duration_s", "roofline-memory", f"{steps} steps in {duration_s:.6g} s, reading the weights takes {least_s:.6g} s at least", _AGAIN)


def _identical(report: Report, at: Make) -> Iterator[Problem]:
    cells: dict[str, list[Trial]] = {}
    for trial in report.trials:
        if trial.void is None:
            cells.setdefault(cell_name(trial.workload, trial.batch), []).append(trial)
    for name, trials in cells.items():
        durations = [trial.window.duration_s for trial in trials]
        joules = [trial.window.energy.measured_j for trial in trials]
        found = [("durations", durations)]
        if None not in joules:
            known = [one for one in joules if one is not None]
            found += [("joules", known), ("watts", [one / took for one, took in zip(known, durations, strict=True)])]
        for words, values in found:
            if len(values) >= LEAST_REPEATS and _same(values):
                yield at("trials", "identical-repeats", f"{len(values)} repeats of {name} have the same {words}, {values[0]:.9g}", _AGAIN)
                break


def _same(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= ALIKE * abs(max(values))
