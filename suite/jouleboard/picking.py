"""The budget picker's arithmetic: which entry of a board serves a load for the fewest joules, inside limits. Pure.

    chosen = pick(candidates(board), Load(prompt=1500, output=40, batch=1, requests_a_day=2000), Limits(memory_bytes=8e9))
    chosen[0].request, chosen[0].day_wh      # of the best; chosen[1] is the runner-up

`site/static/js/picker.js` does the same in the reader's browser from the same fitted models; a test holds the two together. A request
costs what `costmodel` predicts. Time is the same model fitted to how long the probes took, so a load that a day cannot hold is seen.
A day's energy is that of the requests and, of the rest of the day, that of the idle machine where its power is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import msgspec

from jouleboard import costmodel
from jouleboard.costmodel import Fit
from jouleboard.declared import PowerModel
from jouleboard.records import Report
from jouleboard.rows import Board, Row

DAY_S = 86_400.0
JOULES_A_WH = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for."""

    prompt: int
    output: int
    batch: int
    requests_a_day: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an entry must keep; None: no limit."""

    memory_bytes: float | None = None
    first_token_s: float | None = None
    next_token_s: float | None = None
    quality: float | None = None
    """Least macro quality."""
    day_wh: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What the picker knows of an entry."""

    row: Row
    cost: Fit
    """In the unit of the board."""
    time: Fit | None
    """In seconds; None where it cannot be fitted."""
    idle_w: float | None
    """Power of the idle machine with the entry in memory: measured, or of the declared power model over its cores."""
    joules_per_unit: float | None
    """What a unit of cost is in joules beyond idling: 1 of measured joules; of CPU-seconds what the power model says, an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One entry under a load."""

    candidate: Candidate
    request: float
    """Cost of a request in the unit of the board."""
    first_token_s: float | None
    next_token_s: float | None
    busy_s: float | None
    """Of a day."""
    day_wh: float | None
    """Idle included; None where the idle power is not known, or the day is too short."""
    extrapolated: bool
    """Whether the request is outside of what was probed."""


def candidates(board: Board) -> tuple[Candidate, ...]:
    """Return the ranked entries of a board that have a fitted model."""
    return tuple(found for row in board.ranked if (found := candidate(row)) is not None)


def candidate(row: Row) -> Candidate | None:
    """Return what the picker knows of a row; None where it has no fitted model."""
    if row.cost_model is None:
        return None
    report = row.report
    model = report.power_model if row.energy_is_estimate else None
    cores = report.environment.logical_cores
    per_unit = 1.0 if not row.energy_is_estimate else None if model is None else model.max_w_per_core - model.idle_w_per_core
    return Candidate(row=row, cost=row.cost_model, time=_time(report), joules_per_unit=per_unit,
                     idle_w=_idle_w(report, model, cores))


def _time(report: Report) -> Fit | None:
    """Fit the cost model to how long the probes took: its cost is then wall time."""
    timed = [msgspec.structs.replace(probe, window=msgspec.structs.replace(probe.window, cpu_s=probe.window.duration_s))
             for probe in report.probes]
    return costmodel.fit(timed, "cpu_s")


def _idle_w(report: Report, model: PowerModel | None, cores: int) -> float | None:
    if report.method == "model":
        return None if model is None else model.idle_w_per_core * cores
    known = [one.window.energy.measured_j / one.window.duration_s for one in report.idle
             if one.context and one.window.void is None and one.window.energy.measured_j is not None]
    return fmean(known) if known else None


def pick(found: Sequence[Candidate], load: Load, limits: Limits) -> tuple[Choice, ...]:
    """Return those that keep every limit, by the cost of a request; what has no answer to a limit does not keep it."""
    choices = [choice(one, load) for one in found]
    kept = [one for one in choices if keeps(one, limits) and fits(one)]
    return tuple(sorted(kept, key=lambda one: (one.request, one.candidate.row.entry)))


def choice(one: Candidate, load: Load) -> Choice:
    """Say what an entry costs under a load."""
    predicted = costmodel.predict(one.cost, prompt=load.prompt, output=load.output, batch=load.batch)
    first, following, busy = _times(one.time, load)
    return Choice(candidate=one, request=predicted.value, first_token_s=first, next_token_s=following, busy_s=busy,
                  day_wh=_day_wh(one, load, predicted.value, busy), extrapolated=bool(predicted.extrapolated))


def _times(time: Fit | None, load: Load) -> tuple[float | None, float | None, float | None]:
    if time is None:
        return None, None, None
    batch, prompt = load.batch, load.prompt
    first = time.value("a0") + time.value("a1") * batch * prompt + time.value("a2") * batch * prompt**2
    step = time.value("d0") + time.value("d1") * batch + time.value("d2") * batch * (prompt + load.output / 2)
    each = costmodel.line(time, prompt=prompt, output=load.output).request(batch)
    return first, step, each * load.requests_a_day


def _day_wh(one: Candidate, load: Load, request: float, busy_s: float | None) -> float | None:
    if one.idle_w is None or one.joules_per_unit is None or busy_s is None or busy_s > DAY_S:
        return None
    # Of measured joules the machine's idle power is inside the busy time; a power model counts idling over the whole day.
    idle_s = DAY_S if one.row.energy_is_estimate else DAY_S - busy_s
    joules = math.fsum((one.idle_w * idle_s, request * one.joules_per_unit * load.requests_a_day))
    return joules / JOULES_A_WH


def fits(one: Choice) -> bool:
    """Whether a day holds the load; what is not known is let pass, and said."""
    return one.busy_s is None or one.busy_s <= DAY_S


def keeps(one: Choice, limits: Limits) -> bool:
    """Whether an entry keeps the limits."""
    row = one.candidate.row
    held = [(limits.memory_bytes, row.peak_memory_bytes), (limits.first_token_s, one.first_token_s),
            (limits.next_token_s, one.next_token_s), (limits.day_wh, one.day_wh)]
    if any(limit is not None and (value is None or value > limit) for limit, value in held):
        return False
    return limits.quality is None or (row.quality is not None and row.quality.value >= limits.quality)
