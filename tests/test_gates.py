"""Every gate passes on a sound record and fails on the record that it is there for; limits are exact; nothing raises."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouleboard import gate_facts, gate_session, gate_steady, gates, recipes, store, traces
from jouleboard.declared import Band, Cell, Figure
from jouleboard.records import Report
from jouleboard.traces import Sample
from jouleboard.windows import Gate, Idle, Probe, Trial
from tests import factory

replace = msgspec.structs.replace
Samples = tuple[Sample, ...]
Change = Callable[[Report, Samples], tuple[Report, Samples]]
TRIAL, CELL = "trial-2", "chat-b4"


@cache
def sound() -> tuple[Report, Samples]:
    report = factory.gpu_report()
    return report, factory.gpu_samples(report)


def find(found: Sequence[Gate], name: str, subject: str) -> Gate:
    (gate,) = [one for one in found if (one.name, one.subject) == (name, subject)]
    return gate


def judge(name: str, subject: str, *changes: Change) -> Gate:
    """Return one gate of the sound record after some changes."""
    report, rows = sound()
    for change in changes:
        report, rows = change(report, rows)
    return find(gates.evaluate(report, rows), name, subject)


# --- changes ----------------------------------------------------------------------------------------------------------


def report_with(**fields: Any) -> Change:
    return lambda report, rows: (replace(report, **fields), rows)


def profile_with(**fields: Any) -> Change:
    return lambda report, rows: (replace(report, profile=factory.gpu_profile(**fields)), rows)


def trials_with(change: Callable[[Trial], Trial], *orders: int) -> Change:
    """Change the trials of these orders; without any, all of them."""
    return lambda report, rows: (replace(report, trials=tuple(
        change(one) if not orders or one.order in orders else one for one in report.trials)), rows)


def trial_with(order: int = 2, **fields: Any) -> Change:
    return trials_with(lambda one: replace(one, **fields), order)


def window_with(order: int = 2, **fields: Any) -> Change:
    return trials_with(lambda one: replace(one, window=replace(one.window, **fields)), order)


def lasting(duration_s: float, *orders: int) -> Change:
    """Give trials of these orders (all, without any) another length, their traces stretched to it."""
    def change(report: Report, rows: Samples) -> tuple[Report, Samples]:
        mine = {one.window.name for one in report.trials if not orders or one.order in orders}
        report, _ = trials_with(lambda one: replace(one, window=replace(
            one.window, duration_s=duration_s, wall_s=duration_s)), *orders)(report, rows)
        share = duration_s / factory.GPU_WINDOW_S
        return report, tuple(replace(row, elapsed_s=row.elapsed_s * share) if row.window in mine else row for row in rows)

    return change


def energy_with(**fields: Any) -> Change:
    return trials_with(lambda one: replace(one, window=replace(one.window, energy=replace(one.window.energy, **fields))), 2)


def state_with(end: str, **fields: Any) -> Change:
    return trials_with(lambda one: replace(one, window=replace(one.window, **{
        end: replace(getattr(one.window, end), **fields)})), 2)


def row_with(index: int, **fields: Any) -> Change:
    """Change one sample of the trial's window."""
    def change(report: Report, rows: Samples) -> tuple[Report, Samples]:
        mine = [place for place, row in enumerate(rows) if row.window == TRIAL]
        return report, tuple(replace(row, **fields) if place == mine[index] else row for place, row in enumerate(rows))

    return change


def rows_with(change: Callable[[Sample], Sample | None], window: str = TRIAL) -> Change:
    return lambda report, rows: (report, tuple(
        new for row in rows if (new := change(row) if row.window == window else row) is not None))


def blind(*names: str) -> Change:
    """Take what samples say of some fields out of the trial's window."""
    return rows_with(lambda row: replace(row, **dict.fromkeys(names)))


def both(*changes: Change) -> Change:
    def change(report: Report, rows: Samples) -> tuple[Report, Samples]:
        for one in changes:
            report, rows = one(report, rows)
        return report, rows

    return change


def powered(watts: Callable[[int], float], name: str = "trial") -> Change:
    """Give every trial another power, without touching its trace."""
    def change(one: Trial) -> Trial:
        joules = watts(one.order) * one.window.duration_s
        energy = replace(one.window.energy, measured_j=joules, domains_j={"gpu0": joules}, integral_j=joules)
        return replace(one, window=replace(one.window, energy=energy))

    assert name == "trial"
    return trials_with(change)


def ramp(share: float) -> Change:
    """Let the power of the trial's window rise by a share of its mean, in counter and samples."""
    def change(row: Sample) -> Sample:
        at_s, whole_s, mean_w = row.elapsed_s, factory.GPU_WINDOW_S, factory.GPU_W
        # Integral of mean x (1 + share x (t / T - 1/2)).
        joules = mean_w * (at_s + share * (at_s**2 / (2 * whole_s) - at_s / 2))
        return replace(row, counter_j=1e6 + joules, power_w=mean_w * (1 + share * (at_s / whole_s - 0.5)))

    return rows_with(change)


def cpu_row(elapsed_s: float) -> Change:
    """Put a sample of the worker's CPU time into the trial's window."""
    def change(report: Report, rows: Samples) -> tuple[Report, Samples]:
        return report, (*rows, Sample(window=TRIAL, elapsed_s=elapsed_s, cpu_s=elapsed_s))

    return change


def on_device(**fields: Any) -> Callable[[Trial], Trial]:
    """Let both ends of a trial's window be of another device or start of the machine."""
    return lambda one: replace(one, window=replace(one.window, start=factory.device_state(1e6, **fields), end=replace(
        one.window.end, **fields)))


def idle_on(**fields: Any) -> Change:
    """Let the idle window after the trials be of another device or start of the machine."""
    def change(report: Report, rows: Samples) -> tuple[Report, Samples]:
        after = report.idle[1]
        window = replace(after.window, start=replace(after.window.start, **fields), end=replace(after.window.end, **fields))
        return replace(report, idle=(report.idle[0], replace(after, window=window))), rows

    return change


def idle_after(power_w: float, *, context: bool = True) -> Change:
    return report_with(idle=(factory.gpu_idle("before", context=context), factory.gpu_idle(
        "after", power_w=power_w, context=context)))


def canary_after(power_w: float, **fields: Any) -> Change:
    return report_with(canary=(factory.gpu_canary("before"), factory.gpu_canary("after", power_w=power_w, **fields)))


def variant(step: str, realised: dict[str, Any], **found: Any) -> Change:
    return report_with(is_base=False, recipe="other", build=factory.build(step, measured_w=1.0, **found),
                       realised=factory.realised(**realised))


INT8 = {"weight_bytes": 163_000_000, "dtypes": {"bfloat16": 57_000_000, "int8": 106_000_000}, "quantised_tensors": 210}

# --- one that passes, one that fails, for every gate ------------------------------------------------------------------

FAILING: list[tuple[str, str, str, Change]] = [
    ("reading", TRIAL, "no-reading", energy_with(measured_j=None, domains_j={})),
    ("reading", TRIAL, "no-reading", energy_with(measured_j=0.0)),
    ("reading", TRIAL, "no-reading", energy_with(measured_j=-5.0)),
    ("reading", TRIAL, "reading-failed", window_with(void="device-lost: it fell off the bus")),
    ("throttle", TRIAL, "throttled", row_with(40, reasons=0x8)),
    ("throttle", TRIAL, "throttled", row_with(0, reasons=0x20)),
    ("throttle", TRIAL, "throttled", row_with(-1, reasons=0x40 | 0x1)),
    ("throttle", TRIAL, "throttled", row_with(40, reasons=0x80 | 0x4)),
    ("throttle", TRIAL, "throttled", state_with("end", thermal_violation_s=0.500001)),
    ("throttle", TRIAL, "throttled", both(blind("reasons"), state_with("end", thermal_violation_s=9.0))),
    ("alone", TRIAL, "not-alone", row_with(40, foreign=1)),
    ("alone", TRIAL, "not-alone", state_with("start", foreign_processes=2)),
    ("alone", TRIAL, "not-alone", state_with("end", foreign_processes=1)),
    ("alone", TRIAL, "mig", state_with("end", mig=True)),
    ("alone", TRIAL, "mig", state_with("start", mig=True)),
    ("limit", TRIAL, "limit-changed", state_with("start", power_limit_w=698.9)),
    ("limit", TRIAL, "limit-changed", state_with("end", power_limit_w=400.0)),
    ("limit", TRIAL, "limit-changed", row_with(40, limit_w=701.1)),
    ("limit", TRIAL, "limit-changed", profile_with(power_limit_w=Figure(value=650, source="invented"))),
    ("monotone", TRIAL, "counter-fell", row_with(40, counter_j=0.0)),
    ("monotone", TRIAL, "counter-fell", state_with("end", counter_j=1_000_100.0)),
    ("monotone", TRIAL, "counter-fell", state_with("start", counter_j=1_000_100.0)),
    ("monotone", TRIAL, "counter-frozen", both(rows_with(lambda row: replace(row, counter_j=1e6)),
                                               state_with("end", counter_j=1e6))),
    ("monotone", TRIAL, "another-device", state_with("end", device="0" * 16)),
    ("monotone", TRIAL, "restarted", state_with("end", boot="0" * 16)),
    ("bounds", TRIAL, "below-idle", energy_with(measured_j=62.9 * 64)),
    ("bounds", TRIAL, "above-limit", energy_with(measured_j=735.1 * 64)),
    ("cross-check", TRIAL, "integral-differs", energy_with(measured_j=20000.0, integral_j=17980.0)),
    ("cross-check", TRIAL, "integral-differs", energy_with(measured_j=20000.0, integral_j=22020.0)),
    ("clock", TRIAL, "clock-stepped", window_with(wall_s=64 * 1.0051)),
    ("clock", TRIAL, "clock-stepped", window_with(wall_s=-3600.0)),
    ("ends", TRIAL, "window-differs", row_with(-1, elapsed_s=64.321)),
    ("ends", TRIAL, "window-differs", rows_with(lambda row: row if row.elapsed_s < 63.6 else None)),
    ("ends", TRIAL, "window-differs", both(rows_with(lambda row: row if row.elapsed_s < 63.6 else None), cpu_row(64.0))),
    ("ends", TRIAL, "window-differs", both(lasting(4.0, 2), energy_with(measured_j=1600.0, integral_j=1600.0), rows_with(
        lambda row: replace(row, elapsed_s=row.elapsed_s * 4.051 / 4.0)))),
    ("cache", TRIAL, "cached", trial_with(cached_tokens=1)),
    ("steady", TRIAL, "drifting", ramp(0.021)),
    ("steady", TRIAL, "drifting", ramp(-0.5)),
    ("steady", TRIAL, "drifting", both(ramp(0.05), blind("counter_j"))),
    ("steady", TRIAL, "temperature", state_with("start", temperature_c=50.1)),
    ("steady", TRIAL, "temperature", state_with("start", temperature_c=24.9)),
    ("window-length", CELL, "too-short", lasting(59.999, 2)),
    ("window-length", CELL, "too-short", profile_with(counter_tick_s=Figure(value=0.22, source="invented"))),
    ("repeats", CELL, "spread", powered(lambda order: 400 * (1 + 0.25 * (order == 3)))),
    ("repeats", CELL, "too-few", trials_with(lambda one: replace(one, void="killed: by hand"), 0, 1, 2)),
    ("repeats", CELL, "no-cost", trial_with(fed_tokens=0)),
    ("load", CELL, "no-verdict", powered(lambda _order: 227.0)),
    ("outputs", CELL, "outputs-changed", trial_with(loops_changed=1)),
    ("outputs", CELL, "outputs-changed", trial_with(output_sha256="0" * 64)),
    ("idle", "session", "idle-moved", idle_after(73.6)),
    ("idle", "session", "idle-moved", idle_after(66.4)),
    ("idle", "session", "not-alone", rows_with(lambda row: replace(row, foreign=1), "idle-before-with")),
    ("drift", CELL, "drifted", powered(lambda order: 400 * (1 + 0.031 * (order == 4)))),
    ("drift", CELL, "drifted", powered(lambda order: 400 * (1 - 0.031 * (order == 4)))),
    ("canary", "canary", "drifted", canary_after(309.1)),
    ("canary", "canary", "another-canary", canary_after(300.0, model="canary-2")),
    ("canary", "canary", "another-canary", canary_after(300.0, output_sha256="0" * 64)),
    ("device", "session", "two-devices", trials_with(on_device(device="0" * 16), 3)),
    ("device", "session", "two-boots", trials_with(on_device(boot="0" * 16), 3, 4)),
    ("device", "session", "two-devices", idle_on(device="0" * 16)),
    ("device", "session", "two-boots", idle_on(boot="0" * 16)),
    ("realised", "variant", "fake-quantisation", variant("torchao-int8-weight-only", {})),
    ("realised", "variant", "fake-quantisation", variant("torchao-int8-weight-only", {"quantised_tensors": 210})),
    ("realised", "variant", "fake-quantisation",
     variant("torchao-int8-weight-only", INT8 | {"weight_bytes": 375_000_000})),
    ("realised", "variant", "fake-quantisation", variant("torchao-int4-weight-only", INT8)),
    ("realised", "variant", "zero-masked", variant("drop-layers", {"nonzero_share": 0.5})),
    ("realised", "variant", "fake-quantisation", variant("linear-min-max", {}, weight_bits=3)),
    ("realised", "variant", "claim-not-met",
     variant("torchao-int8-weight-only", INT8 | {"quantised_tensors": 209}, claimed_quantised_tensors=210)),
    ("realised", "variant", "claim-not-met", variant("drop-layers", {"layers": 30}, claimed_layers=24)),
]


@pytest.mark.parametrize(("name", "subject", "code", "change"), FAILING)
def test_a_gate_fails_on_what_it_is_there_for(name: str, subject: str, code: str, change: Change) -> None:
    gate = judge(name, subject, change)
    assert (gate.status, gate.code) == ("fail", code)
    assert gate.reason
    assert code in gates.RULES[name].codes


@pytest.mark.parametrize("name", gates.RULES)
def test_every_gate_has_a_record_that_it_passes_and_one_that_it_fails(name: str) -> None:
    report, rows = sound()
    found = gates.evaluate(report, rows)
    if name == "realised":
        found = gates.evaluate(*variant("torchao-int8-weight-only", INT8, claimed_quantised_tensors=210)(report, rows))
    assert {one.status for one in found if one.name == name} == {"pass"}
    assert name in {row[0] for row in FAILING}


def test_the_sound_record_passes_everything_that_applies_to_it() -> None:
    report, rows = sound()
    found = gates.evaluate(report, rows)
    assert {(one.name, one.status) for one in found if one.status != "pass"} == {("realised", "not-applicable")}
    assert gates.failures(gates.apply(report, rows)) == ()
    assert gates.provisional(gates.apply(report, rows)) == ()


PASSING: list[tuple[str, str, Change]] = [
    ("throttle", TRIAL, row_with(40, reasons=0x4)),
    ("throttle", TRIAL, rows_with(lambda row: replace(row, reasons=0x1 | 0x2 | 0x4 | 0x10 | 0x100))),
    ("throttle", TRIAL, state_with("end", power_violation_s=60.0)),
    ("limit", TRIAL, state_with("end", power_limit_w=701.0)),
    ("limit", TRIAL, row_with(40, limit_w=699.0)),
    ("bounds", TRIAL, energy_with(measured_j=63.0 * 64)),
    ("bounds", TRIAL, energy_with(measured_j=735.0 * 64)),
    ("cross-check", TRIAL, energy_with(measured_j=20000.0, integral_j=19000.0)),
    ("clock", TRIAL, window_with(wall_s=64.32)),
    ("clock", TRIAL, window_with(wall_s=63.68)),
    ("clock", TRIAL, window_with(duration_s=0.05, wall_s=0.0595)),
    ("steady", TRIAL, ramp(0.0199)),
    ("steady", TRIAL, both(ramp(0.015), blind("counter_j"))),
    ("steady", TRIAL, state_with("start", temperature_c=50.0)),
    ("steady", TRIAL, state_with("start", temperature_c=25.0)),
    ("window-length", CELL, lasting(60.0, 2)),
    ("window-length", CELL, both(lasting(60.0, 2),
                                 profile_with(counter_tick_s=Figure(value=0.2, source="invented")))),
    ("load", CELL, powered(lambda _order: 227.5)),
    ("idle", "session", idle_after(73.5)),
    ("idle", "session", idle_after(70.0, context=False)),
    ("drift", CELL, powered(lambda order: 400 + 12 * (order == 4))),
    ("canary", "canary", canary_after(308.9)),
    ("ends", TRIAL, row_with(-1, elapsed_s=64.319)),
    ("ends", TRIAL, rows_with(lambda row: row if row.elapsed_s < 63.6 or row.elapsed_s == 64.0 else None)),
    ("ends", TRIAL, both(cpu_row(70.0), row_with(-1, elapsed_s=63.69))),
    ("ends", TRIAL, both(lasting(4.0, 2), rows_with(lambda row: replace(row, elapsed_s=row.elapsed_s * 4.049 / 4.0)))),
    ("device", "session", trials_with(lambda one: replace(one, window=replace(one.window, start=None, end=None)), 1, 2)),
    ("realised", "variant", variant("drop-layers", {"layers": 24}, claimed_layers=24)),
    ("realised", "variant", variant("drop-layers", {"nonzero_share": 0.86})),
]


@pytest.mark.parametrize(("name", "subject", "change"), PASSING)
def test_what_is_just_inside_a_limit_passes(name: str, subject: str, change: Change) -> None:
    gate = judge(name, subject, change)
    assert (gate.status, gate.code) == ("pass", "pass"), gate


@pytest.mark.parametrize(("integral_j", "status"), [
    (20000.0, "pass"), (19000.0, "pass"), (21000.0, "pass"), (18999.0, "unverified"), (18000.0, "unverified"),
    (22000.0, "unverified"), (17999.0, "fail"), (22001.0, "fail"), (0.0, "fail"), (-20000.0, "fail"),
])
def test_counter_and_integral_agree_to_5_and_are_refuted_beyond_10_percent(integral_j: float, status: str) -> None:
    assert judge("cross-check", TRIAL, energy_with(measured_j=20000.0, integral_j=integral_j)).status == status


@pytest.mark.parametrize(("integral_j", "status"), [(137.0, "pass"), (114.4, "unverified"), (276.9, "unverified"), (277.1, "fail")])
def test_two_ticks_of_the_counter_refute_nothing(integral_j: float, status: str) -> None:
    """A third of a second at 400 W; the profile declares ticks of 0.1 s and a limit of 700 W: 140 J."""
    assert judge("cross-check", TRIAL, lasting(0.342, 2), energy_with(measured_j=137.0, integral_j=integral_j)).status == status


def test_without_a_declared_tick_or_limit_ten_percent_refute() -> None:
    short = both(lasting(0.342, 2), energy_with(measured_j=137.0, integral_j=114.4))
    for unknown in ({"counter_tick_s": None}, {"power_limit_w": None}):
        assert judge("cross-check", TRIAL, short, profile_with(**unknown)).status == "fail"


def test_a_cross_check_between_5_and_10_percent_voids_nothing_but_is_said() -> None:
    report, rows = energy_with(measured_j=25000.0, integral_j=23250.0)(*sound())
    judged = gates.apply(report, rows)
    assert [trial.void for trial in judged.trials] == [None] * 5
    (reason,) = gates.provisional(judged)
    assert reason.startswith("integral-unsure (trial-2): ")


# --- not applicable, and not sampled ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "subject", "code", "change"), [
    ("limit", TRIAL, "not-declared", profile_with(power_limit_w=None)),
    ("bounds", TRIAL, "not-declared", both(report_with(idle=()), profile_with(power_limit_w=None, idle_w=None))),
    ("load", CELL, "not-declared", profile_with(power_limit_w=None)),
    ("load", CELL, "not-declared", profile_with(power_limit_w=Figure(value=70, source="no more than idle"))),
    ("cross-check", TRIAL, "no-integral", energy_with(integral_j=None)),
    ("cross-check", TRIAL, "no-reading", window_with(void="lost: x")),
    ("bounds", TRIAL, "no-reading", window_with(void="lost: x")),
    ("clock", TRIAL, "no-wall-clock", window_with(wall_s=None)),
    ("cache", TRIAL, "not-said", trial_with(cached_tokens=None)),
    ("steady", TRIAL, "few-loops", trial_with(loop_ends_s=())),
    ("steady", TRIAL, "few-loops", trial_with(loop_ends_s=(20.0, 40.0, 60.0))),
    ("canary", "canary", "not-measured", report_with(canary=())),
    ("ends", TRIAL, "no-reading", window_with(void="lost: x")),
    ("ends", TRIAL, "copied", report_with(method="wall")),
    ("steady", TRIAL, "few-loops", lasting(49.9, 2)),
    ("steady", TRIAL, "few-loops", both(lasting(49.9, 2), report_with(method="wall"), profile_with(counter_tick_s=None))),
    ("drift", "session", "on-the-base", report_with(is_base=False)),
    ("realised", "variant", "no-claim", report_with(build=None)),
    ("realised", "variant", "not-built", report_with(realised=None)),
    ("monotone", TRIAL, "no-counter", report_with(method="gpu_integral")),
    ("cross-check", TRIAL, "no-counter", report_with(method="gpu_integral")),
])
def test_a_gate_that_cannot_be_held_against_the_record_says_why(
    name: str, subject: str, code: str, change: Change
) -> None:
    gate = judge(name, subject, change)
    assert (gate.status, gate.code) == ("not-applicable", code)


@pytest.mark.parametrize(("name", "change"), [
    ("throttle", blind("reasons")), ("alone", blind("foreign")), ("alone", window_with(end=None)),
    ("limit", both(blind("limit_w"), window_with(start=None, end=None))), ("limit", window_with(end=None)),
    ("monotone", both(blind("counter_j"), window_with(start=None))),
    ("steady", blind("counter_j", "power_w")), ("throttle", rows_with(lambda _row: None)),
    ("alone", rows_with(lambda _row: None)), ("ends", rows_with(lambda _row: None)),
    ("ends", both(rows_with(lambda _row: None), cpu_row(64.0))),
    ("throttle", rows_with(lambda row: row if row.elapsed_s < 30 or row.elapsed_s > 33.5 else None)),
    ("throttle", rows_with(lambda row: row if row.elapsed_s > 3.1 else None)),
    ("throttle", rows_with(lambda row: row if row.elapsed_s < 60.9 else None)),
])
def test_an_nvidia_device_that_was_not_asked_often_enough_does_not_pass(name: str, change: Change) -> None:
    """Else the rows of a throttled stretch could be left out of a trace."""
    gate = judge(name, TRIAL, change)
    assert (gate.status, gate.code) == ("unverified", "not-sampled")


def test_a_device_that_cannot_say_such_things_is_not_held_against_it() -> None:
    change = both(profile_with(sensor="rapl", method="rapl", boundary="package", counter_tick_s=None),
                  report_with(method="rapl"), rows_with(lambda _row: None), window_with(start=None, end=None),
                  energy_with(integral_j=None))
    report, rows = change(*sound())
    found = gates.evaluate(report, rows)
    silent = {one.name: one.status for one in found if one.subject == TRIAL}
    assert {silent[name] for name in ("throttle", "alone", "limit", "monotone", "cross-check", "ends", "steady")} == {
        "not-applicable"}
    assert find(found, "bounds", TRIAL).status == "pass"


def test_without_a_sensor_cpu_seconds_are_what_is_compared() -> None:
    plan = replace(factory.ENERGY_PLAN, trials=5)
    report = factory.report(factory.items(4), energy_plan=plan, spec=replace_spec(orders=(0, 1, 2, 3, 4)))
    found = gates.evaluate(report, factory.trace_samples(report))
    by_name = {(one.name, one.subject): one for one in found}
    assert by_name["repeats", "replay"].status == "pass"
    assert "CPU-seconds" in by_name["repeats", "replay"].reason
    assert by_name["drift", "replay"].status == "pass"
    assert by_name["window-length", "replay"].code == "too-short"
    assert {by_name[key].code for key in [
        ("reading", "trial-0"), ("throttle", "trial-0"), ("alone", "trial-0"), ("limit", "trial-0"),
        ("monotone", "trial-0"), ("bounds", "trial-0"), ("cross-check", "trial-0"), ("ends", "trial-0"), ("load", "replay"),
        ("idle", "session"), ("device", "session")]} == {"no-sensor"}


def replace_spec(**fields: Any) -> factory.Spec:
    import dataclasses

    return dataclasses.replace(factory.SPECS[0], **fields)


def cpu_report(costs: Sequence[float]) -> Report:
    trials = tuple(factory.trial(order, cpu_s_per_ktoken=cost) for order, cost in enumerate(costs))
    return factory.report(factory.items(4), trials=trials, energy_plan=replace(factory.ENERGY_PLAN, trials=len(costs)))


@pytest.mark.parametrize(("costs", "name", "code"), [
    ((4.0, 4.0, 4.0, 4.0, 4.13), "drift", "drifted"), ((4.0, 5.5, 4.0, 5.5, 4.0), "repeats", "spread"),
    ((4.0, 4.0, 4.0, 4.0, 4.11), "drift", "pass"), ((4.0, 4.1, 4.0, 4.1, 4.0), "repeats", "pass"),
    ((4.0, 4.1, 4.0, 4.0), "repeats", "provisional-repeats"), ((4.0, 4.1, 4.0), "repeats", "provisional-repeats"),
    ((4.0, 4.1), "repeats", "too-few"),
])
def test_repeats_and_drift_of_cpu_time(costs: Sequence[float], name: str, code: str) -> None:
    assert find(gates.evaluate(cpu_report(costs), ()), name, "replay").code == code


def test_cpu_time_of_a_slowing_worker_is_not_steady() -> None:
    trial = factory.trial(0, loops=20, loop_ends_s=tuple(float(index) for index in range(1, 21)),
                          window=factory.window(20.0, 19.0, name="trial-0"))
    report = factory.report(factory.items(4), trials=(trial,))
    for slow, status in ((0.0, "pass"), (0.01, "fail")):
        rows = [Sample(window="trial-0", elapsed_s=at / 5, cpu_s=at / 5 * 0.95 - slow * (at / 5) ** 2 / 2)
                for at in range(101)]
        assert find(gates.evaluate(report, rows), "steady", "trial-0").status == status


def test_idle_power_of_the_report_goes_before_the_declared_one() -> None:
    """Declared are 70 W; at 100 W of its own, 80 W of work cannot be true."""
    loud = report_with(idle=(factory.gpu_idle("before", power_w=100.0), factory.gpu_idle("after", power_w=100.0)))
    slow = powered(lambda _order: 80.0)
    assert judge("bounds", TRIAL, slow).status == "pass"
    assert judge("bounds", TRIAL, slow, loud).code == "below-idle"


def spoilt(where: str) -> Change:
    """Let somebody's job run at 400 W in the idle window before the trials, seen at one place only."""
    def change(report: Report, rows: Samples) -> tuple[Report, Samples]:
        loud = factory.gpu_idle("before", power_w=400.0)
        fields: dict[str, Any] = {
            "start": {"start": factory.device_state(1e6, foreign_processes=1)},
            "end": {"end": factory.device_state(1e6 + 12000, foreign_processes=1)},
            "void": {"void": "sensor-error: it failed"}}.get(where, {})
        report = replace(report, idle=(replace(loud, window=replace(loud.window, **fields)), report.idle[1]))
        if where == "sample":
            rows = tuple(replace(row, foreign=1) if (row.window, row.elapsed_s) == ("idle-before-with", 15.0) else row
                         for row in rows)
        return report, rows

    return change


@pytest.mark.parametrize("where", ["start", "end", "sample", "void"])
def test_an_idle_window_that_was_spoilt_is_no_measure_of_idle_power(where: str) -> None:
    """400 W of somebody's job beside 70 W are 235 W on average: no sound trial at 150 W would be above that."""
    slow = powered(lambda _order: 150.0)
    report, rows = spoilt(where)(*slow(*sound()))
    judged = gates.apply(report, rows)
    assert [trial.void for trial in judged.trials] == [None] * 5
    assert "idle 70 W" in find(judged.gates, "load", CELL).reason


def test_idle_power_is_the_declared_one_where_every_idle_window_was_spoilt() -> None:
    alone = spoilt("sample")(*sound())[0].idle[0]
    change = both(spoilt("sample"), report_with(idle=(alone,)), profile_with(idle_w=Figure(value=90, source="invented")))
    assert "idle 90 W" in judge("load", CELL, change).reason
    assert judge("bounds", TRIAL, change).limit == "81 to 735 W"


def test_bounds_go_by_the_least_idle_power_and_load_by_the_mean() -> None:
    """A job that nobody saw, as of another container, makes one of two idle windows loud."""
    change = both(powered(lambda _order: 150.0), idle_after(400.0))
    assert judge("bounds", TRIAL, change).limit == "63 to 735 W"
    assert judge("bounds", TRIAL, change).status == "pass"
    assert "idle 235 W" in judge("load", CELL, change).reason


# --- what a session must hold together --------------------------------------------------------------------------------


@pytest.mark.parametrize(("orders", "words"), [((4,), "last trial (trial-4) is void: nothing brackets that end"),
                                               ((0,), "first trial (trial-0) is void: nothing brackets that end"),
                                               ((0, 4), "nothing brackets either end")])
def test_drift_is_not_known_where_the_bases_first_or_last_trial_is_void(orders: tuple[int, ...], words: str) -> None:
    """A device that is 20 % dearer at the end drifted, although the last trial does not count and the one before agrees."""
    change = both(powered(lambda order: 400 * (1 + 0.2 * (order == 4))),
                  trials_with(lambda one: replace(one, void="killed: by hand"), *orders))
    gate = judge("drift", CELL, change)
    assert (gate.status, gate.code) == ("unverified", "unbracketed")
    assert words in gate.reason
    judged = gates.apply(*change(*sound()))
    assert any(reason.startswith("unbracketed (chat-b4): ") for reason in gates.provisional(judged))


def test_drift_goes_by_order_and_not_by_place_and_asks_nothing_of_trials_between() -> None:
    def shuffled(report: Report, rows: Samples) -> tuple[Report, Samples]:
        return replace(report, trials=(*report.trials[2:], *report.trials[:2])), rows

    dear_end = powered(lambda order: 400 * (1 + 0.04 * (order == 4)))
    between = trials_with(lambda one: replace(one, void="killed: by hand"), 2)
    assert judge("drift", CELL, dear_end, between, shuffled).code == "drifted"
    assert judge("drift", CELL, between, shuffled).code == "pass"


def test_a_canary_that_drifted_is_shown_and_bars_nothing() -> None:
    """A tiny model is bound by the host: its cost is noise enough to deny verdicts on a device that did not change."""
    judged = gates.apply(*canary_after(400.0)(*sound()))
    assert find(judged.gates, "canary", "canary").value == pytest.approx(1 / 3, rel=1e-5)
    assert gates.failures(judged) == ()
    assert gates.provisional(judged) == ()


def test_a_board_that_says_nothing_of_itself_is_not_known_to_be_the_same() -> None:
    def mute(report: Report, rows: Samples) -> tuple[Report, Samples]:
        def of(one: Any) -> Any:
            return replace(one, window=replace(one.window, start=factory.device_state(1e6, device=None), end=None))

        return replace(report, trials=tuple(map(of, report.trials)), idle=tuple(map(of, report.idle)),
                       canary=tuple(map(of, report.canary))), rows

    assert judge("device", "session", mute).status == "unverified"
    # Processor packages have no number of their own, and are where the machine was started.
    rapl = both(mute, profile_with(sensor="rapl", method="rapl", boundary="package", counter_tick_s=None),
                report_with(method="rapl"))
    assert judge("device", "session", rapl).status == "pass"


@pytest.mark.parametrize("holder", ["probes", "live", "canary"])
def test_every_window_of_an_entry_is_of_one_device(holder: str) -> None:
    window = factory.gpu_window("other", start=factory.device_state(1e6, device="0" * 16), end=None)
    made: Any = {
        "probes": (Probe(kind="prefill", batch=1, prompt_tokens=128, output_tokens=0, window=window),),
        "live": factory.gpu_trial(9, workload="live", batch=None, loops=1, loop_ends_s=(), window=window),
        "canary": (*sound()[0].canary, replace(factory.gpu_canary("after"), window=window)),
    }[holder]
    gate = judge("device", "session", report_with(**{holder: made}))
    assert (gate.status, gate.code) == ("fail", "two-devices")
    assert "in other" in gate.reason


@pytest.mark.parametrize("void", [
    "rapl-wrap: package-0 lost count", "wall-gap: the log has no sample for 12 s", "counter-reset: a counter went back",
    "no-reading: and why", "by hand"])
def test_a_gate_of_a_failed_reading_has_the_windows_own_words(void: str) -> None:
    change = both(window_with(void=void), energy_with(measured_j=None, domains_j={}))
    assert judge("reading", TRIAL, change).reason == void
    assert gates.apply(*change(*sound())).trials[2].void == void


# --- steady under ticks -----------------------------------------------------------------------------------------------


def polled(rng: random.Random, duration_s: float, *, share: float = 0.0, swing: float = 0.0, tick_s: float = 0.1) -> Samples:
    """Poll a counter that ticks, every 50 to 150 ms.

    Args:
        rng: of one seed.
        duration_s: length of the window.
        share: of the mean of 200 W, by which power rises over the window.
        swing: power is more by this share in the first half of each loop of 2 s, and less in the second half.
        tick_s: how often the counter moves.
    """
    def spent_j(at_s: float) -> float:
        in_loop = at_s % 2.0
        return 200 * (at_s + share * (at_s**2 / (2 * duration_s) - at_s / 2) + swing * min(in_loop, 2.0 - in_loop))

    offset_s, at_s, found = rng.uniform(0, tick_s), 0.0, []
    while at_s < duration_s:
        found.append(at_s)
        at_s += rng.uniform(0.05, 0.15)
    return tuple(Sample(
        window=TRIAL, elapsed_s=at_s, power_w=200 * (1 + rng.gauss(0, 0.01)) * (1 + (swing if at_s % 2.0 < 1.0 else -swing)),
        counter_j=1e6 + spent_j(offset_s + tick_s * math.floor((at_s - offset_s) / tick_s))) for at_s in (*found, duration_s))


def steadies(duration_s: float, seeds: int, **fields: float) -> Counter[str]:
    """Count the codes of `steady` over seeds."""
    report, _ = sound()
    assert report.profile is not None
    loops = round(duration_s / 2)
    trial = factory.gpu_trial(2, duration_s=duration_s, loops=loops, loop_ends_s=tuple(2.0 * (one + 1) for one in range(loops)))
    known = gate_facts.facts(report, report.profile, {})
    return Counter(gate_steady.steady(trial, polled(random.Random(seed), duration_s, **fields), known).code
                   for seed in range(seeds))


@pytest.mark.parametrize("swing", [0.0, 0.5])
@pytest.mark.parametrize(("duration_s", "judged"), [(16.0, "few-loops"), (30.0, "few-loops"), (50.0, "pass"), (60.0, "pass")])
def test_ticks_of_a_counter_are_no_drift_of_power(duration_s: float, judged: str, swing: float) -> None:
    """Constant from loop to loop: fewer than 1 of 100 fails, and a window long enough is judged."""
    found = steadies(duration_s, 100, swing=swing)
    assert found["drifting"] == 0
    assert found[judged] == 100


@pytest.mark.parametrize("swing", [0.0, 0.5])
def test_a_drift_of_5_percent_is_found_in_every_window_of_a_minute(swing: float) -> None:
    assert steadies(60.0, 100, share=0.05, swing=swing) == {"drifting": 100}
    assert steadies(60.0, 100, share=-0.05, swing=swing) == {"drifting": 100}


def test_two_boards_have_twice_the_limit() -> None:
    double = profile_with(count=2)
    strong = powered(lambda _order: 1400.0)
    assert judge("bounds", TRIAL, strong).code == "above-limit"
    assert judge("bounds", TRIAL, strong, double).status == "pass"


def test_a_window_of_exactly_300_ticks_is_long_enough() -> None:
    """60.3 / 0.201 is 299.99999999999994 in floating point."""
    assert 60.3 / 0.201 < 300
    longer = lasting(60.3)
    gate = judge("window-length", CELL, longer, profile_with(counter_tick_s=Figure(value=0.201, source="invented")))
    assert gate.status == "pass"
    gate = judge("window-length", CELL, longer, profile_with(counter_tick_s=Figure(value=0.2011, source="invented")))
    assert gate.code == "too-short"


# --- void -------------------------------------------------------------------------------------------------------------

HARD = [row for row in FAILING if gates.RULES[row[0]].consequence == "void"]


@pytest.mark.parametrize(("name", "subject", "code", "change"), HARD)
def test_a_failed_hard_gate_voids_its_trial_and_no_other(name: str, subject: str, code: str, change: Change) -> None:
    judged = gates.apply(*change(*sound()))
    void = [trial.void for trial in judged.trials]
    failed = find(judged.gates, name, subject)
    if "limit" in name and None not in void:
        # Another declared limit speaks of all trials.
        void = [None, None, void[2], None, None]
    assert [one is not None for one in void] == [False, False, True, False, False]
    assert void[2] in {f"{code}: {failed.reason}", judged.trials[2].window.void}


@pytest.mark.parametrize(("name", "subject", "code", "change"), [
    row for row in FAILING if gates.RULES[row[0]].consequence != "void"])
def test_a_soft_gate_voids_nothing(name: str, subject: str, code: str, change: Change) -> None:
    report, rows = change(*sound())
    assert [one.void for one in gates.apply(report, rows).trials] == [one.void for one in report.trials]


def test_a_void_trial_is_left_out_of_the_cell() -> None:
    """A throttled trial of three times the cost does not spread the others."""
    change = both(powered(lambda order: 400 * (1 + 0.5 * (order == 2))), row_with(3, reasons=0x8))
    gate = judge("repeats", CELL, change)
    assert (gate.status, gate.code) == ("unverified", "provisional-repeats")
    assert gate.reason.startswith("4 valid trials")


def test_the_first_failing_hard_gate_gives_the_reason() -> None:
    change = both(row_with(3, reasons=0x8), row_with(4, foreign=1), trial_with(cached_tokens=9))
    assert (gates.apply(*change(*sound())).trials[2].void or "").startswith("throttled: ")
    with_reading = both(change, window_with(void="counter-reset: from 9 J to 1 J"))
    assert gates.apply(*with_reading(*sound())).trials[2].void == "counter-reset: from 9 J to 1 J"


def test_a_trial_that_was_void_for_another_reason_stays_so() -> None:
    judged = gates.apply(*both(trial_with(void="interrupted: by hand"), row_with(3, reasons=0x8))(*sound()))
    assert judged.trials[2].void == "interrupted: by hand"


def test_a_void_of_an_earlier_evaluation_is_no_reason() -> None:
    judged = gates.apply(*row_with(3, reasons=0x8)(*sound()))
    assert judged.trials[2].void is not None
    assert gates.apply(judged, sound()[1]) == gates.apply(*sound())


def test_probes_and_the_live_eval_have_hard_gates_too() -> None:
    probe = Probe(kind="prefill", batch=1, prompt_tokens=128, output_tokens=0, window=factory.gpu_window("probe-0"))
    live = factory.gpu_trial(9, workload="live", batch=None, loops=1, loop_ends_s=(), window=factory.gpu_window("live"))
    report = factory.gpu_report(probes=(probe,), live=live)
    rows = (*factory.gpu_samples(report), *factory.samples("live", foreign=1))
    rows = tuple(replace(row, reasons=0x40) if row.window == "probe-0" else row for row in rows)
    judged = gates.apply(report, rows)
    assert (judged.probes[0].void or "").startswith("throttled: ")
    assert judged.live is not None
    assert (judged.live.void or "").startswith("not-alone: ")
    assert {one.subject for one in judged.gates} >= {"probe-0", "live"}
    # Nobody is ranked by them.
    assert gates.failures(judged) == ()
    assert gates.provisional(judged) == ()


# --- what rank is told ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "codes"), [
    (powered(lambda _order: 227.0), {"no-verdict"}), (idle_after(90.0), set()), (ramp(0.3), set()),
    (canary_after(400.0), set()), (canary_after(300.0, model="canary-2"), set()), (idle_on(boot="0" * 16), {"two-boots"}),
    (powered(lambda order: 400 * (1 + 0.04 * (order == 4))), {"drifted"}), (variant("drop-layers", {"nonzero_share": 0.5}), {"zero-masked"}),
    (row_with(3, reasons=0x8), set()), (lasting(20.0, 2), set()),
    (trial_with(loops_changed=3), set()),
])
def test_failures_are_what_denies_rank_or_verdict(change: Change, codes: set[str]) -> None:
    judged = gates.apply(*change(*sound()))
    assert {one.code for one in gates.failures(judged)} >= codes
    assert {gates.RULES[one.name].consequence for one in gates.failures(judged)} <= {"unranked", "no-verdict"}
    assert bool(gates.failures(judged)) == bool(codes) or "spread" in {one.code for one in gates.failures(judged)}


@pytest.mark.parametrize(("change", "starts"), [
    (report_with(provisional="it was a test"), ["it was a test"]),
    (ramp(0.05), ["drifting (trial-2): "]), (idle_after(90.0), ["idle-moved (session): "]),
    (row_with(3, reasons=0x8), ["provisional-repeats (chat-b4): "]),
    (both(blind("reasons"), blind("foreign")), ["not-sampled (trial-2): ", "not-sampled (trial-2): "]),
    (lasting(50.0),
     ["too-short (chat-b4): "]),
])
def test_an_entry_is_provisional_for_reasons_in_words(change: Change, starts: list[str]) -> None:
    found = gates.provisional(gates.apply(*change(*sound())))
    assert len(found) == len(starts)
    assert all(reason.startswith(start) for reason, start in zip(found, starts, strict=True)), found


def test_every_cell_of_the_plan_has_its_gates_although_it_has_no_trial() -> None:
    plan = replace(factory.gpu_report().energy_plan, cells=(factory.GPU_CELL, Cell(workload="agent", batch=1)))
    found = gates.evaluate(*report_with(energy_plan=plan)(*sound()))
    assert find(found, "repeats", "agent-b1").code == "too-few"
    assert find(found, "window-length", "agent-b1").code == "no-trial"


def test_an_entry_of_format_1_has_no_gates_and_keeps_its_voids() -> None:
    report = replace(factory.gpu_report(), profile=None)
    report = replace(report, trials=(replace(report.trials[0], void="the device was lost"), *report.trials[1:]))
    judged = gates.apply(report, ())
    assert judged.gates == ()
    assert judged.trials == report.trials


def test_a_failed_variant_without_trials_has_no_gate_of_a_session() -> None:
    failed = factory.failed()
    assert {one.name for one in gates.evaluate(failed, ())} == {"realised"}


def test_every_technique_says_its_bits_in_its_name_or_lets_them_be_declared() -> None:
    """Gates know a recipe by what the report says of it: older reports give the name only."""
    parameters: dict[str, dict[str, Any]] = {
        "torchao-int4-weight-only": {"group_size": 32}, "torchao-int4-tile-packed": {"group_size": 32},
        "torchao-int4-unpacked": {"group_size": 32}, "bitsandbytes-nf4": {"cpu_kernel": "fused"}, "bitsandbytes-int8": {},
        "torch-dynamic-int8": {"granularity": "per-tensor"}}
    for name, technique in recipes.TECHNIQUES.items():
        if "bits" in technique.__struct_fields__:
            assert gate_session.step_bits({"step": name}) is None, name
            continue
        if technique.__struct_fields__ and name not in parameters:
            continue
        assert gate_session.step_bits({"step": name}) == technique(**parameters.get(name, {})).weight_bits, name


def test_what_a_step_says_of_its_bits_goes_before_its_name() -> None:
    assert gate_session.step_bits({"step": "nonlinear", "weight_bits": 3}) == 3
    assert gate_session.step_bits({"step": "torchao-int8-weight-only", "weight_bits": 8}) == 8
    assert gate_session.step_bits({"step": "nonlinear", "weight_bits": True}) is None


def test_every_code_is_explained_and_every_limit_is_that_of_the_table() -> None:
    for name, rule in gates.RULES.items():
        assert rule.text.endswith("."), name
        assert all(text.endswith(".") for text in rule.codes.values()), name
        assert msgspec.convert(name, gates_name()) == name
        assert all(msgspec.convert(code, gates_name()) == code for code in rule.codes)
    limits = {name: rule.limit for name, rule in gates.RULES.items() if rule.limit}
    assert limits == {"cross-check": 0.05, "clock": 0.005, "steady": 0.02, "window-length": 60.0, "repeats": 0.10,
                      "load": 0.25, "idle": 0.05, "drift": 0.03, "canary": 0.03, "ends": 0.005}


def gates_name() -> Any:
    from jouleboard.windows import Name

    return Name


# --- pure -------------------------------------------------------------------------------------------------------------


def test_gates_are_the_same_before_and_after_the_trace_was_written() -> None:
    rng = random.Random(7)
    report, rows = sound()
    rows = tuple(replace(row, elapsed_s=row.elapsed_s + rng.random() * 1e-4, power_w=400 + rng.random(),
                         counter_j=(row.counter_j or 0) + rng.random() * 1e-3, temperature_c=rng.random() * 60)
                 for row in rows)
    read = traces.decode([traces.HEADER, *map(traces.encode, rows)])
    assert read != list(rows)
    assert gates.evaluate(report, rows) == gates.evaluate(report, read)


def test_gates_do_not_depend_on_the_order_of_windows_in_the_trace() -> None:
    report, rows = sound()
    names = sorted({row.window for row in rows}, reverse=True)
    shuffled = [row for name in names for row in rows if row.window == name]
    assert gates.evaluate(report, shuffled) == gates.evaluate(report, rows)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 20), st.floats(0, 0.2), st.floats(0, 0.2))
def test_scaling_all_watts_changes_no_verdict(factor: float, wobble: float, slope: float) -> None:
    def report(scale: float) -> tuple[Report, Samples]:
        watts = [400 * scale * (1 + wobble * (order % 2)) for order in range(5)]
        made = replace(
            sound()[0], profile=factory.gpu_profile(power_limit_w=Figure(value=700 * scale, source="invented")),
            trials=tuple(limited(factory.gpu_trial(order, power_w=power), scale) for order, power in enumerate(watts)),
            idle=tuple(factory.gpu_idle(when, power_w=70 * scale) for when in ("before", "after")),
            canary=tuple(factory.gpu_canary(when, power_w=300 * scale) for when in ("before", "after")))
        rows = [replace(row, limit_w=700 * scale, counter_j=None, power_w=(row.power_w or 0) * (1 + slope * row.elapsed_s / 64))
                for row in factory.gpu_samples(made)]
        return made, tuple(rows)

    def limited(trial: Trial, scale: float) -> Trial:
        start, end = (replace(state, power_limit_w=700 * scale) for state in (trial.window.start, trial.window.end))
        return replace(trial, window=replace(trial.window, start=start, end=end))

    def verdicts(scale: float) -> list[tuple[str, str, str]]:
        return [(one.name, one.subject, one.code) for one in gates.evaluate(*report(scale))]

    edges = [abs(slope / (1 + slope / 2) - 0.02), abs(wobble - 0.1), abs(0.5477 * wobble / (1 + 0.4 * wobble) - 0.1)]
    if min(edges) > 1e-3:
        assert verdicts(1.0) == verdicts(factor)


# --- hostile ----------------------------------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, 1e12, 1e-12])
finite = st.floats(-1e12, 1e12) | st.sampled_from([0.0, 5e-324, 1e12, -1e12, 1e-300])
watts = st.floats(0, 1e6)
seconds = st.floats(0, 1e9) | st.sampled_from([0.0, 5e-324, 1e9])
counts = st.integers(0, 2**53 - 1)
states = st.none() | st.builds(
    factory.device_state, counter_j=st.none() | finite, temperature_c=st.none() | finite, power_limit_w=st.none() | watts,
    thermal_violation_s=st.none() | seconds, foreign_processes=st.none() | counts, mig=st.none() | st.booleans(),
    device=st.none() | st.sampled_from(["0" * 16, "f" * 16]))


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def hostile(draw: st.DrawFn) -> tuple[Report, list[Sample]]:
    """Draw a report that the schema allows, and a trace that can be decoded."""
    def window(name: str) -> Any:
        base = factory.gpu_window(name)
        energy = replace(base.energy, measured_j=draw(maybe(finite)), integral_j=draw(maybe(finite)))
        return replace(base, duration_s=draw(st.floats(1e-6, 1e9)), wall_s=draw(maybe(finite)), energy=energy,
                       cpu_s=draw(maybe(seconds)), start=draw(states), end=draw(states),
                       void=draw(st.sampled_from([None, None, None, "", ":", "no-sensor: x", "throttled"])))

    names = draw(st.lists(st.sampled_from(["trial-0", "trial-1", "a", "trial-2"]), min_size=1, max_size=4))
    trials = tuple(factory.gpu_trial(
        draw(counts), window=window(name), workload=draw(st.sampled_from(["chat", "a.b_c", "x" * 80, "replay"])),
        batch=draw(maybe(st.integers(1, 2**62))), loops=draw(st.integers(1, 2**62)), fed_tokens=draw(counts),
        loop_ends_s=tuple(draw(st.lists(seconds, max_size=12))), loops_changed=draw(counts),
        cached_tokens=draw(maybe(counts)), void=draw(st.sampled_from([None, "throttled: then", "x"]))) for name in names)
    figure = st.builds(Figure, value=finite, source=st.just("invented"))
    bits = st.sampled_from([None, "torchao-int8-weight-only", "int99", "nf4", 7, "drop-layers"])
    profile = factory.gpu_profile(
        power_limit_w=draw(maybe(figure)), idle_w=draw(maybe(figure)), counter_tick_s=draw(maybe(figure)),
        count=draw(st.integers(1, 2**62)), sensor=draw(st.sampled_from(["nvml", "rapl", "none"])),
        start_temperature_c=draw(maybe(st.builds(Band, low=finite, high=finite, source=st.just("invented")))))
    report = replace(
        sound()[0], trials=trials, profile=profile, is_base=draw(st.booleans()),
        method=draw(st.sampled_from(["gpu_counter", "gpu_integral", "model", "simulated", "none", "rapl"])),
        idle=tuple(Idle(when=draw(st.sampled_from(["before", "after"])), context=draw(st.booleans()), window=window(
            f"idle-{place}")) for place in range(draw(st.integers(0, 3)))),
        canary=tuple(replace(factory.gpu_canary(draw(st.sampled_from(["before", "after"]))), window=window("canary-0"))
                     for _ in range(draw(st.integers(0, 2)))),
        build=replace(factory.build(measured_w=1.0), steps=({
            "step": draw(bits), "claimed_quantised_tensors": draw(maybe(counts) | st.just("9")),
            "claimed_layers": draw(maybe(counts))},)),
        realised=factory.realised(
            nonzero_share=draw(st.floats(0, 1)), weight_bytes=draw(st.integers(1, 2**62)),
            parameters=draw(st.integers(1, 2**62)), quantised_tensors=draw(counts),
            dtypes=draw(st.dictionaries(st.sampled_from(["int8", "bfloat16", "??"]), counts, max_size=2))))
    rows = draw(st.lists(st.builds(
        Sample, window=st.sampled_from(["trial-0", "trial-1", "a", "idle-0", "nobody"]), elapsed_s=numbers,
        cpu_s=maybe(numbers), power_w=maybe(numbers), counter_j=maybe(numbers), temperature_c=maybe(numbers),
        limit_w=maybe(numbers), reasons=maybe(st.integers(-(10**30), 10**30)), foreign=maybe(st.integers(-5, 10**30))),
        max_size=60))
    return report, rows


@settings(max_examples=120, deadline=None)
@given(hostile())
def test_no_record_that_the_schema_allows_makes_gates_raise_or_unreadable(drawn: tuple[Report, list[Sample]]) -> None:
    report, rows = drawn
    judged = gates.apply(report, rows)
    gates.failures(judged)
    gates.provisional(judged)
    # What was evaluated can be written and read, and gives itself again.
    text = msgspec.json.encode(msgspec.to_builtins(judged.gates))
    assert msgspec.json.decode(text, type=tuple[Gate, ...]) == judged.gates
    store.canonical(judged.gates)
    assert gates.apply(judged, rows) == judged
    for one in judged.gates:
        assert one.code == "pass" or one.code in gates.RULES[one.name].codes, one
        assert (one.status == "pass") == (one.code == "pass")
        assert not isinstance(one.value, float) or math.isfinite(one.value)


# --- provisional plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), sorted(gates.SOFT))
def test_spread_and_drift_deny_a_rank_under_the_full_rules_and_mark_a_provisional_plan(name: str, code: str) -> None:
    failing = Gate(name=name, subject="replay", status="fail", value=0.3, limit=0.1, code=code, reason="30 % apart")
    full = factory.report(factory.items(4), gates=(failing,), provisional=None)
    quick = msgspec.structs.replace(full, provisional="short windows")
    assert gates.failures(full) == (failing,)
    assert not gates.provisional(full)
    assert gates.failures(quick) == ()
    assert gates.provisional(quick) == ("short windows", f"{code} (replay): 30 % apart")


def test_too_few_trials_and_idling_deny_a_rank_to_every_plan() -> None:
    found = tuple(Gate(name=name, subject="replay", status="fail", value=None, limit=None, code=code, reason="words")
                  for name, code in (("repeats", "too-few"), ("load", "no-verdict"), ("realised", "zero-masked")))
    assert gates.failures(factory.report(factory.items(4), gates=found, provisional="short windows")) == found
