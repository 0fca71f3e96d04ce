"""The gates of measurement: every limit and every reason code in one table, and how a gate is written. No I/O here.

Example: `RULES["cross-check"].limit` is 0.05, a failing one voids its trial, and its code `integral-differs` is one of
`RULES["cross-check"].codes`, with the sentence that a page shows for it.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from jouleboard.declared import Noun
from jouleboard.windows import Gate

Status = Literal["pass", "fail", "unverified", "not-applicable"]
Consequence = Literal["void", "unranked", "no-verdict", "provisional", "none"]
"""What a failing gate does: its window does not count; the entry has no rank; no verdict is given against the base; the
entry is marked provisional; nothing, the figure is published."""

ROUNDING = 1e-9
MOST = 1e12
"""A value beyond it is written as text: no number of a report is larger (`declared.Finite`)."""

LEAST_TICKS = 300
"""Ticks of the energy counter in a window: then one tick is a third of a percent."""
FULL_REPEATS, LEAST_REPEATS = 5, 3
UNVERIFIED_SHARE = 0.10
"""Up to here a counter and its cross-check differ by less than two boards' gain errors, so that neither is refuted."""
LIMIT_SLACK_W = 1.0
IDLE_SHARE, LIMIT_SHARE = 0.9, 1.05
CLOCK_SLACK_S = 0.01
"""Two clocks cannot be read in one moment: less than this is no step of a clock, however short the window."""
GAP_S = 3.0
"""Longest stretch of a window without a sample before what is polled once a second counts as not seen."""
FORBIDDEN_REASONS = {0x8: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
                     0x80: "power brake"}
"""NVML's clock-event reasons (nvml.h, `nvmlClocksEventReason*`) under which a clock is not the device's own choice."""
POWER_CAP = 0x4
"""The software power cap: ordinary at full load, so its share is recorded and does not fail."""
ENDS_SLACK_S = 0.05
"""A meter in a process of its own hears of both ends of a window this much later at most, however short the window."""
MOST_BLOCKS, LEAST_BLOCKS, LEAST_SAMPLES = 10, 4, 10
"""A slope is fitted over 4 to 10 blocks of whole loops, of at least 10 samples each."""
SLOPE_TICKS = 500
"""Ticks of an energy counter that a slope of 2 % needs. Both ends of a window are known to about a tick, and no number of
blocks makes that smaller: at constant power a third of all slopes over 160 ticks are above 2 %, one in ten over 300, and
none of 1,000 over 500 (simulated with polls every 50 to 150 ms; a rise of 5 % was found in each of 1,000 over 600)."""
DENSE = frozenset({"float64", "float32", "bfloat16", "float16"})
"""What weights are stored in where nothing is quantised, as `Realised.dtypes` names it."""
CODES_SHARE = 1.15
"""Codes may need this much more than their bits: zero points of small groups are stored as integers too."""


class Rule(Noun, frozen=True, kw_only=True):
    """One gate: its rule in a sentence, its limit, and its reason codes in a sentence each."""

    text: str
    consequence: Consequence
    """Of a gate that fails."""
    limit: float | None
    """In the unit of the gate's value, where the rule has one number; else the gate itself says its limit."""
    codes: dict[str, str]
    """Every code of a gate that does not pass."""


_NO_SENSOR = {"no-sensor": "The method has no energy sensor, so there is nothing that could fail."}
_NOT_SAMPLED = {"not-sampled": "The device did not say it often enough for the rule to be held against it."}
_NOT_DECLARED = {"not-declared": "The hardware profile does not declare the figure that the rule needs."}
_NO_TRIAL = {"no-trial": "No valid trial is left."}

RULES: dict[str, Rule] = {
    "reading": Rule(
        text="The sensor gives positive joules for the window.", consequence="void", limit=None,
        codes={"no-reading": "The sensor gave no joules and no reason.", "reading-failed": "The sensor failed; the "
               "reason says how, in the window's own words.", **_NO_SENSOR}),
    "throttle": Rule(
        text="No sample has a clock-event reason 0x8, 0x20, 0x40 or 0x80, and the thermal violation time does not grow.",
        consequence="void", limit=0.0,
        codes={"throttled": "Heat or the power supply held the clocks down.", **_NOT_SAMPLED, **_NO_SENSOR}),
    "alone": Rule(
        text="No other compute process is on the device at the start, in any sample, or at the end, and it is not split "
        "(MIG).", consequence="void", limit=0.0,
        codes={"not-alone": "Another process computed on the device.", "mig": "The device is split: its energy is that of "
               "all parts.", **_NOT_SAMPLED, **_NO_SENSOR}),
    "limit": Rule(
        text="The power limit in force is the declared one within 1 W, at the start, in every sample and at the end.",
        consequence="void", limit=None,
        codes={"limit-changed": "The device ran under another power limit.", **_NOT_SAMPLED, **_NOT_DECLARED,
               **_NO_SENSOR}),
    "monotone": Rule(
        text="The energy counter never falls and has risen at the end, on one device, without a restart of the machine.",
        consequence="void", limit=None,
        codes={"counter-fell": "The counter was reset, or is broken.", "counter-frozen": "The counter did not move.",
               "another-device": "Both ends are of different devices.", "restarted": "The machine was started again "
               "meanwhile.", "no-counter": "The method reads no counter.", **_NOT_SAMPLED, **_NO_SENSOR}),
    "bounds": Rule(
        text="Mean power is at least 0.9 x idle power and at most 1.05 x the power limit.", consequence="void",
        limit=None, codes={"below-idle": "Less power than when idle cannot be true of work.",
                           "above-limit": "More power than the limit lets through cannot be true.", **_NOT_DECLARED,
                           "no-reading": "There are no joules to hold against the bounds.", **_NO_SENSOR}),
    "cross-check": Rule(
        text="The counter and our own integral of the sampled power differ by at most 5 %; up to 10 %, or two ticks of the "
        "counter at the power limit, is unverified.",
        consequence="void", limit=0.05,
        codes={"integral-differs": "The two readings contradict each other.",
               "integral-unsure": "The two readings differ by more than 5 %.",
               "no-integral": "No power was sampled.", "no-counter": "The method reads no counter.",
               "no-reading": "There are no joules to hold the integral against.", **_NO_SENSOR}),
    "clock": Rule(
        text="The steady clock and the wall clock give the same duration within 0.5 % (or 10 ms).", consequence="void",
        limit=0.005, codes={"clock-stepped": "A clock was set during the window.",
                            "no-wall-clock": "The wall clock was not read."}),
    "ends": Rule(
        text="The device was read for as long as the window lasted: by the meter's clock its last sample lies within 0.5 % "
        "(or 50 ms) of the window's duration.", consequence="void", limit=0.005,
        codes={"window-differs": "The energy covers more time than the work, or less.", "copied": "The joules are another "
               "meter's: the trace stands for the device.", "no-reading": "There are no joules that a time belongs to.",
               **_NOT_SAMPLED, **_NO_SENSOR}),
    "cache": Rule(
        text="No cache holds a token when a loop begins: nothing that was computed outside the window serves it.",
        consequence="void", limit=0.0, codes={"cached": "A cache served part of the work.",
                                              "not-said": "The engine does not say what its caches held."}),
    "steady": Rule(
        text="Over blocks of whole loops the slope of power x window / mean is at most 2 %, and the window began inside "
        "the declared temperature band.", consequence="provisional", limit=0.02,
        codes={"drifting": "Power had not settled.", "temperature": "The device was outside its temperature band.",
               "few-loops": "Too few loops, samples or ticks of the counter for a slope.", **_NOT_SAMPLED, **_NO_SENSOR}),
    "window-length": Rule(
        text="Every valid window of the cell is at least 60 s, and at least 300 ticks of an energy counter.",
        consequence="provisional", limit=60.0,
        codes={"too-short": "Edges and ticks of the counter weigh too much.", **_NO_TRIAL}),
    "repeats": Rule(
        text="At least 5 valid trials (3 or 4: provisional), whose cost has a coefficient of variation of at most 10 %.",
        consequence="unranked", limit=0.10,
        codes={"too-few": "Fewer than 3 valid trials have no interval worth the name.",
               "provisional-repeats": "3 or 4 valid trials.", "spread": "The trials contradict each other.",
               "no-cost": "A trial has no cost.", **_NO_SENSOR}),
    "load": Rule(
        text="(mean power - idle power) / (power limit - idle power) is at least 25 %.", consequence="no-verdict",
        limit=0.25,
        codes={"no-verdict": "The device mostly idles: what is measured is waiting, so no verdict on the compression.",
               **_NOT_DECLARED, **_NO_TRIAL, **_NO_SENSOR}),
    "outputs": Rule(
        text="Every loop of every trial gives the same output tokens; else the share that differs is published.",
        consequence="none", limit=0.0,
        codes={"outputs-changed": "Some loops gave other tokens.", "one-loop": "There is nothing to compare with.",
               **_NO_TRIAL}),
    "idle": Rule(
        text="Idle power before and after the trials agrees within 5 %, with nobody else on the device.",
        consequence="provisional", limit=0.05,
        codes={"idle-moved": "The device's idle power changed.", "not-alone": "Another process was on the device.",
               "not-measured": "No pair of idle windows was read.", **_NO_SENSOR}),
    "drift": Rule(
        text="The base's first and last trial of each cell differ by at most 3 %.", consequence="no-verdict", limit=0.03,
        codes={"drifted": "The device itself changed between first and last.", "on-the-base": "The base's entry says it.",
               "unbracketed": "The base's first or last trial is void, so nothing brackets that end of the session.",
               "not-measured": "There is no pair to compare."}),
    "canary": Rule(
        text="A small fixed model costs the same before and after, within 3 %; its drift is published, and bars nothing.",
        consequence="none", limit=0.03,
        codes={"drifted": "The device itself changed between first and last.",
               "not-measured": "There is no pair to compare.", "another-canary": "The two canaries did other work."}),
    "device": Rule(
        text="All windows of the entry are of one device, without a restart of the machine in between.",
        consequence="unranked", limit=None,
        codes={"two-devices": "Windows of different devices are no one measurement.", "two-boots": "The machine was started "
               "again between two windows.", **_NOT_SAMPLED, **_NO_SENSOR}),
    "realised": Rule(
        text="The variant really is stored as its steps claim: few bits are few bytes, and pruned weights are gone.",
        consequence="unranked", limit=None,
        codes={"claim-not-met": "Fewer tensors, or other layers, than the steps claim.",
               "fake-quantisation": "Weights of few bits are stored in many.",
               "zero-masked": "Pruned weights are kept as zeros, so they cost what others cost.",
               "no-claim": "Nothing is claimed.", "not-built": "There is no variant."}),
}
"""Every gate, in the order in which they are evaluated and shown. Limits are those of `measurement.md`."""

DENSE_ZEROS = 0.15
"""Largest share of zeros among dense weights. A published 4-bit grid around zero already leaves about a tenth of them
zero, so a smaller limit would accuse those; pruning that claims a gain removes more."""


def gate(
    name: str, subject: str, status: Status, code: str, reason: str, *, value: float | str | None = None,
    limit: float | str | None = None,
) -> Gate:
    """Write a gate; without a limit of its own it has the rule's.

    Values are rounded to six digits: no sensor knows more, and a checker on another machine gets the same text.
    """
    return Gate(name=name, subject=subject, status=status, value=_tidy(value),
                limit=_tidy(RULES[name].limit if limit is None else limit), code=code, reason=reason)


def passed(name: str, subject: str, reason: str, *, value: float | str | None = None,
           limit: float | str | None = None) -> Gate:
    """Write a gate that passes."""
    return gate(name, subject, "pass", "pass", reason, value=value, limit=limit)


def absent(name: str, subject: str, code: str) -> Gate:
    """Write a gate that does not apply, for a reason that needs no figures."""
    return gate(name, subject, "not-applicable", code, RULES[name].codes[code])


def cell_name(workload: str, batch: int | None) -> str:
    """Return the subject of a cell's gates: `replay`, `chat-b64`."""
    plain = re.sub(r"[^a-z0-9-]", "-", workload)[:36]
    return plain if batch is None else f"{plain}-b{batch}"


def above(value: float, limit: float) -> bool:
    """Whether a value is above a limit by more than rounding: 73.5 W after 70 W are 5 %, not more."""
    return value > limit and not math.isclose(value, limit, rel_tol=ROUNDING)


def below(value: float, limit: float) -> bool:
    """Whether a value is below a limit by more than rounding."""
    return above(limit, value)


def allowed(name: str) -> float:
    """Return the limit of a rule that has one number."""
    return RULES[name].limit or 0.0


def code_of(void: str) -> str:
    """Return the reason code of a void window, `code: words`."""
    return void.partition(":")[0].strip()


def _tidy(value: float | str | None) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    short = f"{value:.6g}"
    return float(short) if math.isfinite(value) and abs(value) <= MOST else short
