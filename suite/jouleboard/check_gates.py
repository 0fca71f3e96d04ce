"""Gates, voids and integrals, recomputed from the report and its trace and held against what is stored.

Example: an entry from whose gates a failing `throttle` of `trial-3` was taken out is named, and so is one in which only
`trials[3].void` was taken out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from jouleboard import gate_facts, gates, store
from jouleboard.errors import MeterError
from jouleboard.meters.integral import integrate_j
from jouleboard.problems import Make, Problem
from jouleboard.records import Report
from jouleboard.traces import Sample
from jouleboard.windows import Gate, Window

EDGE_S = 0.02
"""A meter's window and its trace may begin and end so far apart: at the highest power sampled, that much energy."""
ROUNDING = 1e-6
BUILD = "build"
"""What the rows of the build's window are called; the report keeps its bill and no window."""
_AGAIN = "measure again"


def check_profile(report: Report, at: Make) -> Iterator[Problem]:
    """Hold the profile that gates take their limits from against the digest and the fields that boards go by."""
    profile = report.profile
    if profile is None:
        # An entry of format 1 kept the digest alone, and its gates need a profile.
        if report.gates:
            yield at("gates", "gates", f"{len(report.gates)} gates without a hardware profile", _AGAIN)
        return
    if store.digest(profile) != report.hardware_sha256:
        yield at("profile", "profile", f"has the digest {store.digest(profile)[:16]}…, the report names "
                 f"{report.hardware_sha256[:16]}…", _AGAIN)
    for name, found in (("id", report.hardware), ("method", report.method), ("boundary", report.boundary),
                        ("power_model", report.power_model)):
        if getattr(profile, name) != found:
            yield at(f"profile.{name}", "profile", f"{_short(getattr(profile, name))}, the report says {_short(found)}",
                     _AGAIN)
    if report.energy_plan is None:
        yield at("energy_plan", "profile", "missing beside a profile", _AGAIN)


def _short(value: object) -> str:
    return value if isinstance(value, str) else "none" if value is None else "another one"


def check_gates(report: Report, samples: Sequence[Sample], at: Make) -> Iterator[Problem]:
    """Recompute everything that follows from a report and its trace.

    Args:
        report: as it was read.
        samples: its whole trace.
        at: makes problems of the report's file.
    """
    known = {window.name: window for window in gate_facts.windows(report)}
    stray = sorted({sample.window for sample in samples} - set(known) - {BUILD})
    if stray:
        yield at("windows", "trace", f"the trace has rows of {', '.join(stray[:5])}, which the report does not know", _AGAIN)
    rows = gate_facts.as_stored(samples)
    for name, window in known.items():
        yield from _integral(window, rows.get(name, ()), f"{name}.energy.integral_j", at)
    expected = gates.apply(report, samples)
    yield from _voids(report, expected, at)
    yield from _compare(report.gates, expected.gates, at)


def _integral(window: Window, rows: Sequence[Sample], where: str, at: Make) -> Iterator[Problem]:
    """Integrate the sampled power again; a window that could not be read is void, and its integral is of no use."""
    stored_j = window.energy.integral_j
    powers = [(row.elapsed_s, row.power_w) for row in rows if row.power_w is not None]
    if window.void is not None or window.energy.measured_j is None:
        return
    if stored_j is None:
        if powers:
            yield at(where, "integral", f"missing, although the trace has {len(powers)} samples of power", _AGAIN)
        return
    try:
        # A meter in a process of its own ends at its last sample, another one with the window.
        found_j = [integrate_j([time_s for time_s, _ in powers], [power_w for _, power_w in powers], 0.0, end_s)
                   for end_s in (powers[-1][0] if powers else 0.0, window.duration_s)]
    except MeterError as error:
        yield at(where, "integral", f"stored {stored_j}, the trace has none: {error.problem}", _AGAIN)
        return
    slack_j = max(power_w for _, power_w in powers) * EDGE_S + ROUNDING * abs(stored_j)
    if min(abs(one - stored_j) for one in found_j) > slack_j:
        yield at(where, "integral", f"stored {stored_j}, the trace gives {found_j[0]}", _AGAIN)


def _voids(report: Report, expected: Report, at: Make) -> Iterator[Problem]:
    def named(one: Report) -> Iterator[tuple[str, str | None]]:
        yield from ((f"trials[{index}].void", trial.void) for index, trial in enumerate(one.trials))
        yield from [] if one.live is None else [("live.void", one.live.void)]
        yield from ((f"probes[{index}].void", probe.void) for index, probe in enumerate(one.probes))

    for (where, stored), (_, found) in zip(named(report), named(expected), strict=True):
        if stored != found:
            yield at(where, "void", f"stored {stored!r}, the gates give {found!r}", _AGAIN)


def _compare(stored: Sequence[Gate], expected: Sequence[Gate], at: Make) -> Iterator[Problem]:
    there, wanted = _by_name(stored), _by_name(expected)
    for name, gate in wanted.items():
        mine = there.get(name)
        if mine is None:
            yield at(f"gates.{name}", "gates", f"missing; recomputed {gate.status} ({gate.code}): {gate.reason}", _AGAIN)
        elif mine != gate:
            yield at(f"gates.{name}", "gates", f"stored {mine.status} ({mine.code}): {mine.reason}; recomputed "
                     f"{gate.status} ({gate.code}): {gate.reason}", _AGAIN)
    for name in sorted(set(there) - set(wanted)):
        yield at(f"gates.{name}", "gates", "there is no such gate", _AGAIN)
    if there == wanted and list(stored) != list(expected):
        yield at("gates", "gates", "in another order, or one of them twice", _AGAIN)


def _by_name(found: Sequence[Gate]) -> Mapping[str, Gate]:
    return {f"{gate.name}.{gate.subject}": gate for gate in found}
