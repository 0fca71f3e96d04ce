"""When things were done: in the past, in UTC, one window after the other, and the entry after all of them.

Example: `trial-3` from 10:00:00 for 70 s and `trial-4` from 10:01:00 share ten seconds, which one worker at a time cannot.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from jouleboard import gate_facts
from jouleboard.problems import Make, Problem
from jouleboard.records import Report

FIRST = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
"""Nothing was measured with Jouleboard before."""
AHEAD_S = 3600.0
"""A clock may be so far ahead of the checker's."""
STEP_S = 60.0
"""A wall clock may be set by so much in the middle of a session."""
SHARED_S = 1.0
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z")
_AGAIN = "measure again, with the machine's clock right"


def moment(text: str) -> dt.datetime | None:
    """Return the time that a text names in UTC; None where it names none."""
    if _TIME.fullmatch(text) is None:
        return None
    try:
        return dt.datetime.fromisoformat(text[:19]).replace(tzinfo=dt.UTC) + dt.timedelta(seconds=float("0" + text[19:-1] or "0"))
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    where: str
    name: str
    start: dt.datetime
    end: dt.datetime


def check_time(report: Report, at: Make, now: dt.datetime) -> Iterator[Problem]:
    """Check the times of a report.

    Args:
        report: as it was read.
        at: makes problems of its file.
        now: the time of the check.
    """
    created = moment(report.created_utc)
    if created is None:
        yield at("created_utc", "time", f"{report.created_utc[:40]!r}", _AGAIN)
    else:
        yield from _possible("created_utc", created, at, now)
    spans: list[_Span] = []
    for where, window in gate_facts.placed_windows(report):
        start = moment(window.started_utc)
        if start is None:
            yield at(f"{where}.started_utc", "time", f"{window.started_utc[:40]!r}", _AGAIN)
            continue
        yield from _possible(f"{where}.started_utc", start, at, now)
        # Beyond ten years there is no end that a calendar holds.
        end = start + dt.timedelta(seconds=min(window.duration_s, 3.2e8))
        spans.append(_Span(where=where, name=window.name, start=start, end=end))
    yield from _sequence(report, spans, created, at)


def _possible(where: str, found: dt.datetime, at: Make, now: dt.datetime) -> Iterator[Problem]:
    if (found - now).total_seconds() > AHEAD_S:
        yield at(where, "future", f"{found:%Y-%m-%dT%H:%M:%SZ}, now is {now:%Y-%m-%dT%H:%M:%SZ}", _AGAIN)
    elif found < FIRST:
        yield at(where, "future", f"{found:%Y-%m-%dT%H:%M:%SZ}, before there was a Jouleboard", _AGAIN)


def _sequence(report: Report, spans: list[_Span], created: dt.datetime | None, at: Make) -> Iterator[Problem]:
    last = max(spans, key=lambda span: span.end, default=None)
    if created is not None and last is not None and (last.end - created).total_seconds() > STEP_S:
        yield at("created_utc", "time-order", f"{created:%Y-%m-%dT%H:%M:%SZ}, and {last.name} ended at {last.end:%Y-%m-%dT%H:%M:%SZ}", _AGAIN)
    for before, after in pairwise(sorted(spans, key=lambda span: span.start)):
        shared_s = (before.end - after.start).total_seconds()
        if shared_s > SHARED_S:
            yield at(f"{after.where}.started_utc", "overlap", f"{after.name} began {shared_s:.6g} s before {before.name} ended", _AGAIN)
    starts = {span.name: span.start for span in spans}
    for before_trial, after_trial in pairwise(sorted(report.trials, key=lambda trial: trial.order)):
        first, second = starts.get(before_trial.window.name), starts.get(after_trial.window.name)
        if first is not None and second is not None and (first - second).total_seconds() > STEP_S:
            yield at("trials", "time-order", f"{after_trial.window.name} comes after {before_trial.window.name} and began before it", _AGAIN)
