"""Gates of one window: is its reading whole, was the device itself and alone, and can the joules be true? Pure.

Example: a 60 s window of a counter that gave 24,000 J, beside an integral of 22,900 J, has `cross-check` 0.0458 and passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from jouleboard.gate_facts import COUNTERS, Facts, power_w, quotient
from jouleboard.gate_rules import (
    CLOCK_SLACK_S,
    ENDS_SLACK_S,
    FORBIDDEN_REASONS,
    GAP_S,
    IDLE_SHARE,
    LIMIT_SHARE,
    LIMIT_SLACK_W,
    POWER_CAP,
    RULES,
    UNVERIFIED_SHARE,
    above,
    absent,
    allowed,
    below,
    code_of,
    gate,
    passed,
)
from jouleboard.gate_steady import steady
from jouleboard.traces import Sample
from jouleboard.windows import Gate, Trial, Window

COUNTER_SLACK_J = 2e-6
"""Rounding of a trace."""


def of_trial(trial: Trial, rows: Sequence[Sample], known: Facts) -> tuple[Gate, ...]:
    """Evaluate the gates of one trial.

    Args:
        trial: as it was measured.
        rows: the samples of its window, in order of time.
        known: of the report.
    """
    return (*of_window(trial.window, rows, known), _cache(trial), steady(trial, rows, known))


def of_window(window: Window, rows: Sequence[Sample], known: Facts) -> tuple[Gate, ...]:
    """Evaluate the gates that every measured window has, hard ones all of them."""
    gates: tuple[Callable[[Window, Sequence[Sample], Facts], Gate], ...] = (
        _reading, _throttle, _alone, _limit, _monotone, _bounds, _cross_check, _clock, _ends)
    return tuple(one(window, rows, known) for one in gates)


def _reading(window: Window, _rows: Sequence[Sample], known: Facts) -> Gate:
    joules = window.energy.measured_j
    if window.void is not None:
        code = code_of(window.void)
        known_code = code if code in RULES["reading"].codes else "reading-failed"
        return gate("reading", window.name, "fail", known_code, window.void or RULES["reading"].codes[known_code])
    if not known.sensor:
        return absent("reading", window.name, "no-sensor")
    if joules is None or joules <= 0:
        return gate("reading", window.name, "fail", "no-reading", f"the sensor gave {_joules(joules)} and no reason",
                    value=joules)
    return passed("reading", window.name, f"the sensor gave {_joules(joules)}", value=joules)


def _joules(value: float | None) -> str:
    return "no joules" if value is None else f"{value:.6g} J"


def _throttle(window: Window, rows: Sequence[Sample], known: Facts) -> Gate:
    seen = [(row.elapsed_s, row.reasons) for row in rows if row.reasons is not None]
    bad = [mask for _, mask in seen if any(mask & bit for bit in FORBIDDEN_REASONS)]
    start, end = window.start, window.end
    hot_s = None
    if start and end and start.thermal_violation_s is not None and end.thermal_violation_s is not None:
        hot_s = end.thermal_violation_s - start.thermal_violation_s
    share = quotient(len(bad), len(seen))
    capped = quotient(sum(1 for _, mask in seen if mask & POWER_CAP), len(seen))
    words = [f"{len(bad)} of {len(seen)} samples held down", f"power cap in {100 * (capped or 0):.3g} % of them"]
    words += [words_of for bit, words_of in FORBIDDEN_REASONS.items() if any(mask & bit for mask in bad)]
    words += [] if hot_s is None else [f"thermal violation time grew by {hot_s:.6g} s"]
    make = partial(gate, "throttle", window.name, reason="; ".join(words), value=share)
    if bad or (hot_s is not None and hot_s > 0):
        return make("fail", "throttled")
    if _covers([at for at, _ in seen], window):
        return make("pass", "pass")
    return _silent("throttle", window, known)


def _alone(window: Window, rows: Sequence[Sample], known: Facts) -> Gate:
    ends = [state.foreign_processes for state in (window.start, window.end) if state is not None]
    seen = [(row.elapsed_s, row.foreign) for row in rows if row.foreign is not None]
    counts = [count for count in (*ends, *(count for _, count in seen)) if count is not None]
    if any(state is not None and state.mig for state in (window.start, window.end)):
        return gate("alone", window.name, "fail", "mig", RULES["alone"].codes["mig"])
    most = max(counts, default=0)
    words = f"at most {most} other processes, at the ends and in {len(seen)} samples"
    if most > 0:
        return gate("alone", window.name, "fail", "not-alone", words, value=most)
    # What was not seen in between is not known, whatever the ends say.
    if len(ends) == 2 and None not in ends and _covers([at for at, _ in seen], window):  # noqa: PLR2004 - two ends
        return passed("alone", window.name, words, value=most)
    return _silent("alone", window, known)


def _limit(window: Window, rows: Sequence[Sample], known: Facts) -> Gate:
    if not known.sensor:
        return absent("limit", window.name, "no-sensor")
    declared_w = known.board_limit_w
    if declared_w is None:
        return absent("limit", window.name, "not-declared")
    ends = [None if state is None else state.power_limit_w for state in (window.start, window.end)]
    seen = [watts for watts in (*ends, *(row.limit_w for row in rows)) if watts is not None]
    furthest = max(seen, key=lambda watts: abs(watts - declared_w), default=None)
    if furthest is not None and above(abs(furthest - declared_w), LIMIT_SLACK_W):
        return gate("limit", window.name, "fail", "limit-changed",
                    f"the limit in force was {furthest:.6g} W, declared are {declared_w:.6g} W", value=furthest,
                    limit=declared_w)
    if furthest is None or None in ends:
        return _silent("limit", window, known)
    return passed("limit", window.name, f"the limit in force was {furthest:.6g} W throughout", value=furthest,
                  limit=declared_w)


def _monotone(window: Window, rows: Sequence[Sample], known: Facts) -> Gate:
    start, end = window.start, window.end
    if start is not None and end is not None:
        for code, first, last in (("another-device", start.device, end.device), ("restarted", start.boot, end.boot)):
            if first is not None and last is not None and first != last:
                return gate("monotone", window.name, "fail", code, f"{first} at the start, {last} at the end")
    counts = [row.counter_j for row in rows if row.counter_j is not None]
    ends = [None if state is None else state.counter_j for state in (start, end)]
    series = [one for one in (ends[0], *counts, ends[1]) if one is not None]
    falls = [after - before for before, after in pairwise(series)]
    worst = min(falls, default=0.0)
    if worst < -COUNTER_SLACK_J:
        return gate("monotone", window.name, "fail", "counter-fell", f"the counter fell by {-worst:.6g} J", value=worst)
    if not known.sensor:
        return absent("monotone", window.name, "no-sensor")
    if known.method not in COUNTERS:
        return absent("monotone", window.name, "no-counter")
    if len(series) < 2 or None in ends:  # noqa: PLR2004 - a rise needs two readings
        return _silent("monotone", window, known)
    risen_j = series[-1] - series[0]
    if risen_j <= COUNTER_SLACK_J:
        return gate("monotone", window.name, "fail", "counter-frozen",
                    f"{len(series)} readings, and the counter did not rise", value=risen_j)
    return passed("monotone", window.name, f"the counter rose by {risen_j:.6g} J over {len(series)} readings",
                  value=risen_j)


def _bounds(window: Window, _rows: Sequence[Sample], known: Facts) -> Gate:
    if not known.sensor:
        return absent("bounds", window.name, "no-sensor")
    watts = power_w(window)
    if watts is None:
        return absent("bounds", window.name, "no-reading")
    low_w = None if known.least_idle_w is None else IDLE_SHARE * known.least_idle_w
    high_w = None if known.limit_w is None else LIMIT_SHARE * known.limit_w
    if low_w is None and high_w is None:
        return absent("bounds", window.name, "not-declared")
    limit = f"{'-' if low_w is None else f'{low_w:.6g}'} to {'-' if high_w is None else f'{high_w:.6g}'} W"
    make = partial(gate, "bounds", window.name, reason=f"{watts:.6g} W on average, possible are {limit}", value=watts,
                   limit=limit)
    if low_w is not None and below(watts, low_w):
        return make("fail", "below-idle")
    boards = window.energy.domains_j if len(window.energy.domains_j) > 1 else {}
    for name, joules in sorted(boards.items()):
        # Of several boards one that reads too much must not hide behind one that reads too little.
        board_w, most_w = joules / window.duration_s, LIMIT_SHARE * (known.board_limit_w or math.inf)
        if above(board_w, most_w):
            return gate("bounds", window.name, "fail", "above-limit", f"{name} alone took {board_w:.6g} W on average, a board "
                        f"can take {most_w:.6g} W", value=board_w, limit=limit)
    return make("fail", "above-limit") if high_w is not None and above(watts, high_w) else make("pass", "pass")


def _cross_check(window: Window, _rows: Sequence[Sample], known: Facts) -> Gate:
    if not known.sensor:
        return absent("cross-check", window.name, "no-sensor")
    if known.method not in COUNTERS:
        return absent("cross-check", window.name, "no-counter")
    counter_j, integral_j = window.energy.measured_j, window.energy.integral_j
    if counter_j is None or counter_j <= 0 or window.void is not None:
        return absent("cross-check", window.name, "no-reading")
    if integral_j is None:
        return absent("cross-check", window.name, "no-integral")
    share = abs(counter_j - integral_j) / counter_j
    words = f"counter {counter_j:.6g} J, integral {integral_j:.6g} J: {100 * share:.4g} % apart"
    make = partial(gate, "cross-check", window.name, reason=words, value=share)
    if not above(share, allowed("cross-check")):
        return make("pass", "pass")
    # Counter and power are told in ticks: in a window of a few of them the two readings may differ by a tick each.
    ticks_j = 2 * known.tick_s * known.limit_w if known.tick_s is not None and known.limit_w is not None else 0.0
    unsure = not above(share, UNVERIFIED_SHARE) or not above(abs(counter_j - integral_j), ticks_j)
    return make("unverified", "integral-unsure") if unsure else make("fail", "integral-differs")


def _clock(window: Window, _rows: Sequence[Sample], _known: Facts) -> Gate:
    if window.wall_s is None:
        return absent("clock", window.name, "no-wall-clock")
    apart_s = abs(window.wall_s - window.duration_s)
    share = apart_s / window.duration_s
    words = f"{window.duration_s:.6g} s by the steady clock, {window.wall_s:.6g} s by the wall clock"
    if above(share, allowed("clock")) and apart_s > CLOCK_SLACK_S:
        return gate("clock", window.name, "fail", "clock-stepped", words, value=share)
    return passed("clock", window.name, words, value=share)


def _ends(window: Window, rows: Sequence[Sample], known: Facts) -> Gate:
    """The joules are those of the meter's own stretch of time, the work is that of the driver's."""
    if not known.sensor:
        return absent("ends", window.name, "no-sensor")
    if known.method == "wall":
        return absent("ends", window.name, "copied")
    if window.void is not None:
        return absent("ends", window.name, "no-reading")
    read_s = max((row.elapsed_s for row in rows if _of_device(row)), default=None)
    if read_s is None:
        return _silent("ends", window, known)
    apart_s = abs(read_s - window.duration_s)
    share = apart_s / window.duration_s
    words = f"the device was read for {read_s:.6g} s by the meter's clock, the window took {window.duration_s:.6g} s"
    if above(share, allowed("ends")) and above(apart_s, ENDS_SLACK_S):
        return gate("ends", window.name, "fail", "window-differs", words, value=share)
    return passed("ends", window.name, words, value=share)


def _of_device(row: Sample) -> bool:
    """Whether a sample is the meter's: those of the worker's CPU time stand among them."""
    return any(value is not None for value in (row.power_w, row.counter_j, row.temperature_c, row.sm_mhz, row.memory_mhz,
                                               row.limit_w, row.reasons, row.foreign))


def _cache(trial: Trial) -> Gate:
    held = trial.cached_tokens
    if held is None:
        return absent("cache", trial.window.name, "not-said")
    words = f"at most {held} tokens were cached when a loop began"
    if held > 0:
        return gate("cache", trial.window.name, "fail", "cached", words, value=held)
    return passed("cache", trial.window.name, words, value=held)


def _covers(times_s: Sequence[float], window: Window) -> bool:
    """Whether samples leave no stretch of a window unseen for longer than `GAP_S`."""
    inside = [0.0, *times_s, window.duration_s]
    return bool(times_s) and max(after - before for before, after in pairwise(inside)) <= GAP_S


def _silent(name: str, window: Window, known: Facts) -> Gate:
    """A device that should have answered and did not is no pass; one that cannot answer has nothing to say."""
    if not known.sensor:
        return absent(name, window.name, "no-sensor")
    return gate(name, window.name, "unverified" if known.asked else "not-applicable", "not-sampled",
                RULES[name].codes["not-sampled"])
