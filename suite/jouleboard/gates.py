"""Gates: whether the joules of a report can be trusted, rule by rule. Pure functions over the record and its trace.

A trial whose hard gate fails is void: kept, marked, and not used for costs. What fails for a cell or the session denies rank
or verdict, or marks the entry provisional. `RULES` says which, with every limit and reason code.

    report = gates.apply(report, samples)     # report.gates is set, report.trials[2].void == "throttled: 3 of 700 samples..."
    gates.failures(report)                    # gates that deny rank or verdict
    gates.provisional(report)                 # why the entry is provisional, in words
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from jouleboard.gate_facts import Facts, as_stored, facts
from jouleboard.gate_rules import RULES, Consequence, Rule, cell_name, code_of
from jouleboard.gate_session import of_session
from jouleboard.gate_trials import of_trial, of_window
from jouleboard.records import Report
from jouleboard.traces import Sample
from jouleboard.windows import Gate, Window

__all__ = ["RULES", "Consequence", "Rule", "apply", "cell_name", "derived", "evaluate", "failures", "provisional"]

SOFT = frozenset({("repeats", "spread"), ("drift", "drifted")})
"""Gates, by name and code, that deny no rank to the entries of a plan that is provisional anyway: a quick look at a shared machine
seldom repeats within 10 % or drifts by less than 3 %, and shows both."""
_DERIVED = frozenset(code for rule in RULES.values() if rule.consequence == "void" for code in rule.codes)


def evaluate(report: Report, samples: Sequence[Sample]) -> tuple[Gate, ...]:
    """Return every gate of a report, in a fixed order.

    Args:
        report: one entry; its stored gates and its trials' `void` of an earlier evaluation have no influence.
        samples: its trace, as sampled or as read back from `trace.csv.gz`.

    Returns:
        Nothing for an entry of format 1: what the rules need was not recorded then.
    """
    return apply(report, samples).gates


def apply(report: Report, samples: Sequence[Sample]) -> Report:
    """Return the report with its gates, and with `void` of trials and probes as they follow from these.

    A window is void for a failed reading, else for its first failing hard gate. What was void for a reason that no gate has
    stays so.
    """
    if report.profile is None:
        return msgspec.structs.replace(report, gates=())
    rows = as_stored(samples)
    known = facts(report, report.profile, rows)
    found: list[Gate] = []

    def judge(window: Window, gates: tuple[Gate, ...], void: str | None) -> str | None:
        found.extend(gates)
        return _void(window, gates, void)

    trials = tuple(msgspec.structs.replace(one, void=judge(
        one.window, of_trial(one, rows.get(one.window.name, ()), known), one.void)) for one in report.trials)
    live = report.live
    if live is not None:
        # One loop of scoring has neither caches between loops nor blocks.
        live = msgspec.structs.replace(live, void=judge(live.window, _plain(live.window, rows, known), live.void))
    probes = tuple(msgspec.structs.replace(one, void=judge(
        one.window, _plain(one.window, rows, known), one.void)) for one in report.probes)
    judged = msgspec.structs.replace(report, trials=trials, live=live, probes=probes)
    return msgspec.structs.replace(judged, gates=(*found, *of_session(judged, rows, known)))


def _plain(window: Window, rows: Mapping[str, Sequence[Sample]], known: Facts) -> tuple[Gate, ...]:
    return of_window(window, rows.get(window.name, ()), known)


def _void(window: Window, gates: Sequence[Gate], before: str | None) -> str | None:
    if before is not None and not derived(before, window):
        return before
    if window.void is not None:
        return window.void
    failed = next((one for one in gates if one.status == "fail" and RULES[one.name].consequence == "void"), None)
    return None if failed is None else f"{failed.code}: {failed.reason}"


def derived(void: str, window: Window) -> bool:
    """Whether a reason is one that gates give, and not one that was there before them."""
    return void == window.void or code_of(void) in _DERIVED


def failures(report: Report) -> tuple[Gate, ...]:
    """Return the stored gates that deny a rank or a verdict: `RULES[gate.name].consequence` says which of the two.

    The subject tells how far it reaches: one cell (`cell_name`), the `session` or the `variant`. Drift stands
    on the base's entry and speaks of all entries of its session. Where the plan says itself that its figures are provisional,
    `SOFT` gates only mark an entry (see `provisional`): the spread that they complain of is in its intervals.
    """
    return tuple(one for one in report.gates if one.status == "fail" and one.name in RULES
                 and RULES[one.name].consequence in {"unranked", "no-verdict"} and not _softened(report, one))


def _softened(report: Report, gate: Gate) -> bool:
    return report.provisional is not None and (gate.name, gate.code) in SOFT


def provisional(report: Report) -> tuple[str, ...]:
    """Return why the entry is provisional, each reason as `code (subjects): words`; empty where it is not.

    The plan's own reason comes first. Windows of probes and of the live eval carry no cost that is ranked, so they are left
    out.
    """
    found = [] if report.provisional is None else [report.provisional]
    aside = {one.window.name for one in report.probes} | ({report.live.window.name} if report.live else set())
    void = {one.window.name for one in report.trials if one.void is not None}
    doubts: dict[tuple[str, str], list[Gate]] = {}
    for one in report.gates:
        rule = RULES.get(one.name)
        doubtful = one.status == "unverified" or (
            one.status == "fail" and rule is not None and (rule.consequence == "provisional" or _softened(report, one)))
        if doubtful and one.subject not in aside | void:
            doubts.setdefault((one.name, one.code), []).append(one)
    for (_, code), gates in doubts.items():
        found.append(f"{code} ({', '.join(one.subject for one in gates)}): {gates[0].reason}")
    return tuple(found)
