"""Records of one entry against each other: counts, orders, bytes, and each window's figures against its rows of the trace.

Example: a window of 70 s whose last sample is of its 20th second was not looked at for 50 s; one of 12 CPU-seconds whose samples
end at 24 is no window of those samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from jouleboard import failures, gate_facts, paths
from jouleboard.check_text import MOST_RESPONSE_CHARS
from jouleboard.declared import HubSource, PackageSource
from jouleboard.problems import Make, Problem
from jouleboard.records import Item, Report
from jouleboard.traces import Sample
from jouleboard.windows import Window

SHORTEST_S = 2.0
UNSEEN_S, UNSEEN_SHARE = 3.0, 0.1
"""So much of a window may lie before its first row and behind its last."""
COUNTER_SHARE, CPU_SHARE, CPU_SLACK_S = 0.01, 0.05, 0.5
FLAT_SAMPLES = 50
ZERO = 1e-6
"""Rounding of a sum of logarithms."""
_AGAIN = "measure again"


def check_records(report: Report, at: Make) -> Iterator[Problem]:
    """Check what of a report must fit what else of it."""
    if report.is_base != (report.recipe == report.base):
        yield at("is_base", "base", f"{report.is_base}, the recipe is {report.recipe} and the base {report.base}", _AGAIN)
    for order, times in Counter(trial.order for trial in report.trials).items():
        if times > 1:
            yield at("trials", "order", f"{times} trials have the order {order}", _AGAIN)
    yield from _source(report, at)
    realised = report.realised
    if realised is not None and sum(realised.dtypes.values()) != realised.weight_bytes:
        yield at("realised.weight_bytes", "realised", f"{realised.weight_bytes}, the dtypes have {sum(realised.dtypes.values())}", _AGAIN)
    yield from _memory(report, at)
    for index, task in enumerate(report.tasks):
        where = f"tasks[{index}]"
        if task.items_used > task.items_available or (task.sample_seed is None) != (task.items_used == task.items_available):
            yield at(f"{where}.sample_seed", "sample", f"{task.sample_seed}, {task.items_used} of {task.items_available} items were used", _AGAIN)
        if task.fed_tokens > task.computed_tokens or (task.least_tokens or 0) > task.computed_tokens:
            yield at(f"{where}.computed_tokens", "tokens", f"{task.computed_tokens}, {task.fed_tokens} were fed and {task.least_tokens} are the least", _AGAIN)


def _source(report: Report, at: Make) -> Iterator[Problem]:
    try:
        msgspec.convert(report.model_source, HubSource | PackageSource)
    except msgspec.ValidationError as error:
        yield at("model_source", "source", str(error)[:200], "declare the model in suite/models with the hub or package that it comes from")


def _memory(report: Report, at: Make) -> Iterator[Problem]:
    held = [report.peak_memory_bytes, *(probe.peak_memory_bytes for probe in report.probes)]
    device = report.profile.memory_bytes.value * report.profile.count if report.profile is not None and report.profile.memory_bytes is not None else 0
    most = 1.05 * max(report.environment.memory_bytes, device)
    for found in held:
        if found is not None and (found > most or (report.realised is not None and 100 * found < report.realised.weight_bytes)):
            yield at("peak_memory_bytes", "memory", f"{found} bytes, with {most / 1.05:.6g} in the machine", _AGAIN)
            return


def check_failure(report: Report, at: Make) -> Iterator[Problem]:
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


def check_rows(report: Report, rows: Mapping[str, Sequence[Sample]], at: Make) -> Iterator[Problem]:
    """Hold each valid window against its rows of the trace.

    Args:
        report: as it was read.
        rows: the samples of each window, in order of time.
        at: makes problems of the report's file.
    """
    trials = {trial.window.name for trial in report.trials}
    for where, window in gate_facts.placed_windows(report):
        if window.void is not None or window.duration_s < SHORTEST_S:
            continue
        mine = rows.get(window.name, ())
        if window.name in trials and report.method != "none":
            yield from _covered(where, window, mine, at)
            yield from _flat(where, mine, at)
        yield from _counter(report, where, window, at)
        yield from _cpu(where, window, mine, at)


def _covered(where: str, window: Window, rows: Sequence[Sample], at: Make) -> Iterator[Problem]:
    slack_s = max(UNSEEN_S, UNSEEN_SHARE * window.duration_s)
    first, last = (rows[0].elapsed_s, rows[-1].elapsed_s) if rows else (window.duration_s, 0.0)
    if first > slack_s or window.duration_s - last > slack_s or last > window.duration_s + slack_s:
        seen = f"rows from {first:.6g} s to {last:.6g} s" if rows else "no rows"
        yield at(where, "trace-short", f"{seen} of a window of {window.duration_s:.6g} s", _AGAIN)


def _flat(where: str, rows: Sequence[Sample], at: Make) -> Iterator[Problem]:
    powers = [row.power_w for row in rows if row.power_w is not None]
    if len(powers) >= FLAT_SAMPLES and len(set(powers)) == 1:
        yield at(where, "trace-flat", f"{len(powers)} samples of {powers[0]:.6g} W", _AGAIN)


def _counter(report: Report, where: str, window: Window, at: Make) -> Iterator[Problem]:
    """Of several boards each has a counter of its own, and a state is of the first."""
    energy, start, end = window.energy, window.start, window.end
    if report.method != "gpu_counter" or energy.measured_j is None or len(energy.domains_j) != 1 or start is None or end is None:
        return
    if start.counter_j is None or end.counter_j is None:
        return
    profile, risen_j = report.profile, end.counter_j - start.counter_j
    ticks_j = 0.0
    if profile is not None and profile.counter_tick_s is not None and profile.power_limit_w is not None:
        ticks_j = 2 * profile.counter_tick_s.value * profile.power_limit_w.value
    if abs(risen_j - energy.measured_j) > COUNTER_SHARE * energy.measured_j + ticks_j + 1.0:
        yield at(f"{where}.energy.measured_j", "counter", f"{energy.measured_j:.9g} J, the counter rose by {risen_j:.9g} J", _AGAIN)


def _cpu(where: str, window: Window, rows: Sequence[Sample], at: Make) -> Iterator[Problem]:
    last = next((row for row in reversed(rows) if row.cpu_s is not None), None)
    if last is None or last.cpu_s is None or window.cpu_s is None or last.elapsed_s < SHORTEST_S:
        return
    expected_s = last.cpu_s * window.duration_s / last.elapsed_s
    unseen_s = abs(window.duration_s - last.elapsed_s)
    slack_s = CPU_SHARE * expected_s + CPU_SLACK_S + unseen_s * max(1.0, last.cpu_s / last.elapsed_s)
    if abs(window.cpu_s - expected_s) > slack_s:
        yield at(f"{where}.cpu_s", "cpu-trace", f"{window.cpu_s:.6g} CPU-seconds, the trace gives {expected_s:.6g}", _AGAIN)


def check_item_records(report: Report, items: Sequence[Item], at: Make) -> Iterator[Problem]:
    """Check each item against the task it is of, beyond its scores."""
    available = {task.task: task.items_available for task in report.tasks}
    for item in items:
        where = f"{item.task} item {item.item}"
        if item.item >= available.get(item.task, item.item + 1):
            yield at(f"{where}: item", "item-range", f"{item.item}, the task has {available[item.task]} documents", _AGAIN)
        if item.loglikelihoods and max(item.loglikelihoods) > ZERO:
            yield at(f"{where}: loglikelihoods", "likelihood", f"{max(item.loglikelihoods)}: nothing is likelier than certain", _AGAIN)
        if item.response is not None and len(item.response) > MOST_RESPONSE_CHARS:
            yield at(f"{where}: response", "text-long", f"{len(item.response)} characters", _AGAIN)
