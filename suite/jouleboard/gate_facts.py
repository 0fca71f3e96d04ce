"""What the gates need from a report besides the window at hand: method, limits, idle power; and what a trial costs.

Example: two idle windows with a context of 30 s and 2,100 J each give `idle_w` = 70, whatever the profile declares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jouleboard.declared import Band, Hardware, Method
from jouleboard.records import Report
from jouleboard.traces import Sample
from jouleboard.windows import Canary, Trial, Window

MOST_SAMPLED, MOST_S = 1e12, 1e9
COUNTERS = frozenset({"gpu_counter", "simulated"})
"""Methods whose joules are the difference of a device's energy counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is declared and measured of the device, all of its boards together unless the name says otherwise."""

    method: Method
    sensor: bool
    """Whether joules are measured at all."""
    asked: bool
    """Whether the device is one that answers about clocks, processes, limits and counter: silence is then no pass."""
    tick_s: float | None
    board_limit_w: float | None
    limit_w: float | None
    idle_w: float | None
    """Mean over the idle windows with a context in which nobody else was seen; else as declared."""
    least_idle_w: float | None
    """The least of them: no work takes less, whatever spoilt the others."""
    band: Band | None


def facts(report: Report, profile: Hardware, rows: Mapping[str, Sequence[Sample]]) -> Facts:
    """Collect them: idle power is the report's own with a device context, else the declared one.

    Args:
        report: one entry.
        profile: of its hardware.
        rows: the samples of each window.
    """
    limit_w = None if profile.power_limit_w is None else profile.power_limit_w.value
    declared_w = None if profile.idle_w is None else profile.idle_w.value * profile.count
    sensor = report.method not in {"model", "none"}
    own = [watts for one in report.idle if one.context and (watts := power_w(one.window)) is not None
           and not any(count > 0 for count in others(one.window, rows.get(one.window.name, ())))]
    return Facts(
        method=report.method, sensor=sensor, asked=sensor and profile.sensor == "nvml",
        tick_s=profile.counter_tick_s.value if sensor and profile.counter_tick_s is not None else None,
        board_limit_w=limit_w, limit_w=None if limit_w is None else limit_w * profile.count,
        idle_w=mean(own) if own else declared_w, least_idle_w=min(own) if own else declared_w,
        band=profile.start_temperature_c,
    )


def others(window: Window, rows: Sequence[Sample]) -> list[int]:
    """Return how many processes of others were seen on the device, at the ends of a window and in its samples."""
    ends = [state.foreign_processes for state in (window.start, window.end) if state is not None]
    return [count for count in (*ends, *(row.foreign for row in rows)) if count is not None]


def power_w(window: Window) -> float | None:
    """Return the mean power of a window; None where no joules were measured."""
    joules = window.energy.measured_j
    return None if joules is None or window.void is not None else joules / window.duration_s


def spent(window: Window, known: Facts) -> float | None:
    """Return what a window cost in the unit that the method compares: joules, or CPU-seconds without a sensor."""
    if known.sensor:
        return None if window.void is not None else window.energy.measured_j
    return window.cpu_s if known.method == "model" else None


def cost(trial: Trial, known: Facts) -> float | None:
    """Return what a token that went through the model cost in a trial."""
    return quotient(spent(trial.window, known), trial.fed_tokens)


def canary_cost(canary: Canary, known: Facts) -> float | None:
    """Return what a token of the canary cost."""
    return quotient(spent(canary.window, known), canary.tokens)


def unit(known: Facts) -> str:
    """Name the unit of `spent`."""
    return "J" if known.sensor else "CPU-seconds"


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return math.fsum(values) / len(values)


def quotient(over: float | None, under: float | None) -> float | None:
    """Divide; None where one of them is not known, or no number comes of it."""
    if over is None or not under:
        return None
    found = over / under
    return found if math.isfinite(found) else None


def windows(report: Report) -> list[Window]:
    """Return every window of a report, in a fixed order."""
    return [window for _, window in placed_windows(report)]


def placed_windows(report: Report) -> Iterator[tuple[str, Window]]:
    """Yield where each window stands in its report (`trials[2].window`), and the window."""
    yield from ((f"trials[{index}].window", one.window) for index, one in enumerate(report.trials))
    yield from [] if report.live is None else [("live.window", report.live.window)]
    yield from ((f"probes[{index}].window", one.window) for index, one in enumerate(report.probes))
    yield from ((f"idle[{index}].window", one.window) for index, one in enumerate(report.idle))
    yield from ((f"canary[{index}].window", one.window) for index, one in enumerate(report.canary))


def as_stored(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Return the samples of each window in order of time, as they are read back from a trace.

    Gates see the microseconds and micro-joules that `traces.encode` writes: evaluated before and after that they must give
    the same. What no device can have said counts as not sampled.
    """
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        if 0 <= sample.elapsed_s <= MOST_S:
            found.setdefault(sample.window, []).append(_as_stored(sample))
    return {name: sorted(rows, key=lambda row: row.elapsed_s) for name, rows in found.items()}


def _as_stored(sample: Sample) -> Sample:
    return Sample(
        window=sample.window, elapsed_s=round(sample.elapsed_s, 6), cpu_s=_rounded(sample.cpu_s),
        power_w=_rounded(sample.power_w), counter_j=_rounded(sample.counter_j),
        temperature_c=_rounded(sample.temperature_c), sm_mhz=_rounded(sample.sm_mhz),
        memory_mhz=_rounded(sample.memory_mhz), limit_w=_rounded(sample.limit_w), reasons=sample.reasons,
        foreign=sample.foreign,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not abs(value) <= MOST_SAMPLED else round(value, 6)
