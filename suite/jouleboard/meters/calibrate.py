"""What `jouleboard hardware calibrate` prints: the device's own figures beside those that its profile declares.

Example (shortened)::

    counter   moves every 100.0 ms (95 % between 97.5 and 102.5 ms, 299 times); a reading takes 0.021 ms (p95 0.034 ms)
    mean      70.3 W by the counter, 70.1 W by our own integral: counter / integral = 1.0028
    declared  counter_tick_s 0.1 holds: 0.1 measured
    counter_tick_s: {value: 0.1, source: "measured by `jouleboard hardware calibrate` on 2030-01-01, driver 570.1, 30 s"}
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from jouleboard.declared import Figure, Hardware
from jouleboard.errors import MeterError
from jouleboard.meters import calibrate_gpu, powercap, ticks
from jouleboard.meters.calibrate_gpu import Board
from jouleboard.meters.rapl import HostReader
from jouleboard.meters.ticks import Polled, Spread

TOLERANCE = 0.2
"""A declared figure holds when the measured one lies within this share of it."""
LIMIT_SLACK_W = 1.0
"""A limit is a setting, and no measurement."""
STALLED_TICKS = 10
BURST_S = 1.0
"""How long a RAPL counter is read without a pause: longer would be load of its own."""
_SIMULATED = "SIMULATED"
_READ_W = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A figure that a profile could declare."""

    field: str
    value: float
    slack: float | None = None
    """How far the declared one may be away; None: `TOLERANCE` of it."""
    paste: bool = True
    """Whether it is worth declaring as measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What came of a calibration."""

    device: str
    lines: tuple[str, ...]
    measured: tuple[Measured, ...]
    driver: str | None = None
    fault: str | None = None
    """Why the sensor cannot be trusted, or None."""


def calibrate(profile: Hardware, seconds: float = 30.0) -> int:
    """Watch a profile's sensor while nothing else runs, and print its figures beside the declared ones.

    Args:
        profile: of the device that is here.
        seconds: how long to watch.

    Returns:
        0; 1 where the sensor is at fault: a counter that stands still, or falls.

    Raises:
        MeterError: there is no such sensor here, or it does not answer.
    """
    if not seconds > 0:
        raise MeterError(f"{seconds} s is no time to watch", field="--seconds", remedy="give at least some seconds")
    if profile.sensor == "none":
        _show("", _no_sensor(profile))
        return 0
    if profile.sensor == "nvml":
        with calibrate_gpu.open_board() as board:
            found = _gpu(profile, board, seconds)
    elif profile.sensor == "rapl":
        found = _rapl(seconds)
    else:
        raise MeterError(f"there is no calibration for the sensor {profile.sensor!r} yet", field="sensor",
                         remedy="declare its figures with their sources, as other profiles do")
    mark = _SIMULATED if found.device.startswith(_SIMULATED) else ""
    _show(mark, found.lines)
    if found.fault is not None:
        _show(mark, [f"fault     {found.fault}"])
        return 1
    _show(mark, _against(profile, found))
    _show(mark, _yaml(found, seconds))
    return 0


def _show(mark: str, lines: Iterator[str] | tuple[str, ...] | list[str]) -> None:
    for line in lines:
        # Behind a line of YAML too: whoever pastes it pastes the mark.
        print(f"{line}  # {mark}" if mark else line)


def _against(profile: Hardware, found: Findings) -> Iterator[str]:
    """Say of each measured figure whether the declared one holds."""
    for one in found.measured:
        declared: Figure | None = getattr(profile, one.field)
        if declared is None:
            yield f"declared  {one.field} is not declared: {one.value:.4g} measured"
            continue
        slack = TOLERANCE * abs(declared.value) if one.slack is None else one.slack
        if abs(one.value - declared.value) <= slack:
            yield f"declared  {one.field} {declared.value:g} holds: {one.value:.4g} measured"
        else:
            yield (f"declared  {one.field} {declared.value:g} DOES NOT HOLD: {one.value:.4g} measured "
                   f"(its source: {declared.source})")


def _yaml(found: Findings, seconds: float) -> Iterator[str]:
    """Yield lines to paste into a profile."""
    rows = [one for one in found.measured if one.paste]
    if not rows:
        return
    yield "to paste into the profile:"
    driver = "" if found.driver is None else f", driver {found.driver}"
    today = dt.datetime.now(dt.UTC).date().isoformat()
    source = f"measured by `jouleboard hardware calibrate` on {today}{driver}, {seconds:g} s"
    for one in rows:
        # A JSON string is a YAML string, whatever a driver calls itself.
        yield f"{one.field}: {{value: {float(f'{one.value:.4g}')}, source: {json.dumps(source)}}}"


def _ms(found: Spread | None, *, what: str) -> str:
    if found is None:
        return f"{what} too seldom to say how often"
    return (f"{what} every {found.median * 1e3:.4g} ms (95 % between {found.low * 1e3:.4g} and {found.high * 1e3:.4g} ms, "
            f"{found.count} times)")


def _latency(values: Spread | None) -> str:
    return "" if values is None else f"; a reading takes {values.median * 1e3:.3g} ms (p95 {values.p95 * 1e3:.3g} ms)"


# --- GPUs -------------------------------------------------------------------------------------------------------------


def _gpu(profile: Hardware, board: Board, seconds: float) -> Findings:
    start_c, others = board.temperature_c(), board.processes()
    polled = calibrate_gpu.watch(board, seconds=seconds)
    end_c = board.temperature_c()
    limits = "" if board.min_limit_w is None else f" ({board.min_limit_w:g} to {board.max_limit_w:g} W)"
    degrees = "temperature unknown" if start_c is None else f"{start_c} °C to {end_c} °C"
    limit = "limit unknown" if board.limit_w is None else f"limit {board.limit_w:g} W{limits}"
    rate = len(polled.counters_j) / seconds
    tick = ticks.interval(polled.counter_times_s, polled.counters_j)
    power = ticks.interval(polled.power_times_s, polled.powers_w)
    lines = [
        f"device    {board.name}, driver {board.driver}, {degrees}, {limit}",
        f"watched   {seconds:g} s, {len(polled.counters_j)} readings ({rate:.0f} a second)",
        f"counter   {_ms(tick, what='moves')}{_latency(ticks.spread(polled.counter_latencies_s))}",
        f"power     {_ms(power, what='moves')}{_latency(ticks.spread(polled.power_latencies_s))}",
        *_notes(profile, board, others, rate),
    ]
    agreed = ticks.agreement(polled)
    if agreed is not None and agreed.integral_w is not None:
        gain = "" if agreed.gain is None else f": counter / integral = {agreed.gain:.4f}"
        lines.append(f"mean      {agreed.counter_w:.4g} W by the counter, {agreed.integral_w:.4g} W by our own integral{gain}")
    return Findings(device=board.name, driver=board.driver, lines=tuple(lines), fault=_fault(polled, tick),
                    measured=tuple(_gpu_figures(board, tick, agreed, idle=not others)))


def _notes(profile: Hardware, board: Board, others: int | None, rate: float) -> Iterator[str]:
    if profile.count > 1:
        yield f"note      the first of {profile.count} boards was watched"
    if not board.instant:
        yield "note      this board gives no instant power; its mean over a second was read instead"
    if others:
        yield f"note      {others} compute process(es) are on the GPU: the mean is not idle power; end them and try again"
    if rate < 200:  # noqa: PLR2004 - what was promised
        yield f"note      {rate:.0f} readings a second are few: intervals are rounded to {1000 / rate:.1f} ms"


def _fault(polled: Polled, tick: Spread | None) -> str | None:
    fallen_j = ticks.fall_j(polled.counters_j)
    if fallen_j > 0:
        return f"the counter fell by {fallen_j:.6g} J: it was reset, and what it gave meanwhile is lost"
    moved = ticks.moves(polled.counters_j)
    watched_s = polled.counter_times_s[-1] - polled.counter_times_s[0]
    if not moved:
        return f"the counter is frozen: it did not move in {watched_s:.1f} s"
    still_s = polled.counter_times_s[-1] - polled.counter_times_s[moved[-1]]
    if tick is not None and still_s > STALLED_TICKS * tick.high:
        return f"the counter is frozen: it has not moved for the last {still_s:.1f} s"
    return None if tick is not None else f"the counter moved {len(moved)} times in {watched_s:.1f} s: watch longer (--seconds)"


def _gpu_figures(board: Board, tick: Spread | None, agreed: ticks.Agreement | None, *, idle: bool) -> Iterator[Measured]:
    if tick is not None:
        yield Measured(field="counter_tick_s", value=tick.median)
    if agreed is not None:
        yield Measured(field="idle_w", value=agreed.counter_w, paste=idle)
    for field, value in (("power_limit_w", board.limit_w), ("min_power_limit_w", board.min_limit_w),
                         ("max_power_limit_w", board.max_limit_w)):
        if value is not None:
            yield Measured(field=field, value=value, slack=LIMIT_SLACK_W, paste=field != "power_limit_w")


# --- processors -------------------------------------------------------------------------------------------------------


def _rapl(seconds: float) -> Findings:
    zones = powercap.zones()
    reader = HostReader()
    start_s = time.perf_counter()
    reader.begin()
    time.sleep(seconds)
    found = reader.end()
    watched_s = time.perf_counter() - start_s
    reader.close()
    first = next(zone for zone in zones if zone.domain.startswith("package"))
    tick, latency = _burst(first)
    lines = [f"device    {', '.join(zone.domain for zone in zones)}", f"watched   {watched_s:.1f} s"]
    for zone in zones:
        range_j = zone.range_uj / 1e6
        mean = f"{found[zone.domain] / watched_s:.4g} W" if zone.domain in found else "not known"
        lines.append(f"{zone.domain:<9} {mean}; wraps behind {range_j:.6g} J, {range_j / _READ_W / 60:.3g} min at {_READ_W:g} W")
    lines.append(f"counter   {first.domain} {_ms(tick, what='moves')}{_latency(latency)}")
    total_j = powercap.total_j(found)
    measured = [Measured(field="counter_tick_s", value=tick.median)] if tick is not None else []
    if total_j is not None:
        measured.append(Measured(field="idle_w", value=total_j / watched_s))
    return Findings(device="RAPL", lines=tuple(lines), measured=tuple(measured), fault=reader.reason)


def _burst(zone: powercap.Zone) -> tuple[Spread | None, Spread | None]:
    """Read one counter without a pause, and return the times between its moves and the time of a reading.

    Raises:
        MeterError: it cannot be read any more.
    """
    path = zone.folder / "energy_uj"
    times_s: list[float] = []
    values: list[float] = []
    latencies_s: list[float] = []
    end_s = time.perf_counter() + BURST_S
    try:
        while (before_s := time.perf_counter()) < end_s:
            values.append(powercap.read_uj(path))
            after_s = time.perf_counter()
            times_s.append((before_s + after_s) / 2)
            latencies_s.append(after_s - before_s)
    except powercap.UnreadableError as error:
        raise MeterError(str(error), file=path, remedy="look at the counter, and try again") from None
    return ticks.interval(times_s, values), ticks.spread(latencies_s)


# --- no sensor --------------------------------------------------------------------------------------------------------


def _no_sensor(profile: Hardware) -> Iterator[str]:
    yield f"{profile.id}: there is no energy sensor to calibrate."
    if profile.power_model is not None:
        yield ("Joules are estimated from CPU time by the declared power model, within "
               f"{100 * profile.power_model.relative_uncertainty:g} % or worse; no measurement here can make that better.")
        yield "To calibrate it, measure the machine at the wall (`jouleboard import-power`) and compare."
    yield "What is measured is CPU time:"
    for name, clock in (("process CPU time", time.CLOCK_PROCESS_CPUTIME_ID), ("wall time", time.CLOCK_MONOTONIC)):
        yield f"  {name} counts in steps of {time.clock_getres(clock) * 1e9:g} ns; smallest step seen {_step_ns(clock)} ns"


def _step_ns(clock: int) -> int:
    """Return the smallest difference between two readings of a clock that differ."""
    seen = sorted({time.clock_gettime_ns(clock) for _ in range(2000)})
    return min((after - before for before, after in pairwise(seen)), default=0)
