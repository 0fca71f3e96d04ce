"""The log of a wall meter: power at moments of the wall clock, and the energy of a window in it.

Example (`wall.csv`; `;` between fields, further columns, Unix seconds and `power_w` are understood too)::

    time,watts
    2030-01-01T00:10:00.0Z,412.5
    2030-01-01T00:10:01.0Z,409.0
"""

from __future__ import annotations

import csv
import datetime as dt
import math
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jouleboard import store
from jouleboard.errors import DataFileError
from jouleboard.meters.integral import integrate_j

POWER_COLUMNS = ("watts", "power_w")
MAX_GAP_S = 5.0
MIN_SAMPLES = 10
MAX_POWER_W = 1e6
_EARLIEST_S, _LATEST_S = 1e8, 1e11
"""Unix seconds of 1973 and of 5138: what lies outside is a date without separators, or milliseconds."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)
_MAX_FIELD = 64
_SHAPE = "write it as `time,watts`, time as 2030-01-01T00:10:00Z or in Unix seconds, with a point for decimals"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLog:
    """Samples in order of time; at least one."""

    times_s: tuple[float, ...]
    """Unix time."""
    powers_w: tuple[float, ...]

    def shifted(self, offset_s: float) -> PowerLog:
        """Return the log with its times moved."""
        return PowerLog(times_s=tuple(time_s + offset_s for time_s in self.times_s), powers_w=self.powers_w)

    def covers(self, start_s: float, end_s: float) -> bool:
        """Whether the log was kept from before a stretch of time until after it."""
        return self.times_s[0] <= start_s and end_s <= self.times_s[-1]

    def void(self, start_s: float, end_s: float) -> str | None:
        """Return why the energy of a stretch is not known, as a reason code, a colon and words, or None."""
        if not self.covers(start_s, end_s):
            return f"wall-not-covered: the log runs from {utc(self.times_s[0])} to {utc(self.times_s[-1])}"
        inside = bisect_right(self.times_s, end_s) - bisect_left(self.times_s, start_s)
        times_s, _ = self._around(start_s, end_s)
        gap_s = max((after - before for before, after in pairwise(times_s)), default=0.0)
        if gap_s > MAX_GAP_S:
            return f"wall-gap: {gap_s:.1f} s without a sample, more than {MAX_GAP_S:.0f} s"
        if inside < MIN_SAMPLES:
            return f"wall-few-samples: {inside} samples inside the window, fewer than {MIN_SAMPLES}"
        if self.energy_j(start_s, end_s) <= 0:
            return "wall-zero: the log shows no power in the whole window"
        return None

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Integrate a stretch of time."""
        return integrate_j(*self._around(start_s, end_s), start_s, end_s)

    def _around(self, start_s: float, end_s: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the samples of a stretch with the one that holds at its start and the first behind its end."""
        first = max(bisect_right(self.times_s, start_s) - 1, 0)
        last = max(bisect_left(self.times_s, end_s) + 1, first + 1)
        return self.times_s[first:last], self.powers_w[first:last]


def utc(time_s: float) -> str:
    """Return a Unix time as text."""
    return dt.datetime.fromtimestamp(time_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(path: Path) -> PowerLog:
    """Read a log strictly: one bad line and nothing of it is used.

    Raises:
        DataFileError: naming the line and the field.
    """
    lines = _text(path).splitlines()
    header = lines[0] if lines else ""
    rows = csv.reader(lines, delimiter=";" if ";" in header else ",", strict=True)
    times_s: list[float] = []
    powers_w: list[float] = []
    try:
        time_at, power_at, width = _columns(next(rows, []), path)
        for row in rows:
            if not row:
                continue
            where = f"line {rows.line_num}"
            if len(row) != width:
                raise DataFileError(f"{len(row)} fields, the header has {width}", file=path, field=where, remedy=_SHAPE)
            time_s = _time(row[time_at].strip(), path, f"{where}: time")
            if times_s and time_s < times_s[-1]:
                raise DataFileError(f"{row[time_at].strip()} lies before the line above", file=path,
                                    field=f"{where}: time", remedy="sort the log, or cut it where the clock was set")
            times_s.append(time_s)
            powers_w.append(_power(row[power_at].strip(), path, f"{where}: power"))
    except csv.Error as error:
        raise DataFileError(f"is no CSV ({error})", file=path, field=f"line {rows.line_num}", remedy=_SHAPE) from None
    if not times_s:
        raise DataFileError("holds no sample", file=path, remedy=_SHAPE)
    return PowerLog(times_s=tuple(times_s), powers_w=tuple(powers_w))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > store.MAX_RAW_BYTES:
            raise DataFileError(f"more than {store.MAX_RAW_BYTES} bytes", file=path, remedy="cut the log to the run")
        # Spreadsheets put a mark before the first column.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataFileError(f"cannot be read ({error.strerror})", file=path, remedy="name a CSV file") from None
    except UnicodeDecodeError:
        raise DataFileError("is not UTF-8 text", file=path, remedy=_SHAPE) from None


def _columns(header: list[str], path: Path) -> tuple[int, int, int]:
    """Return where time and power stand, and the number of columns."""
    names = [name.strip().lower() for name in header]
    powers = [name for name in names if name in POWER_COLUMNS]
    if names.count("time") != 1:
        raise DataFileError(f"has {names.count('time')} columns `time`", file=path, field="line 1", remedy=_SHAPE)
    if len(powers) != 1:
        raise DataFileError(f"has {len(powers)} columns named `watts` or `power_w`", file=path, field="line 1",
                            remedy=_SHAPE)
    return names.index("time"), names.index(powers[0]), len(names)


def _time(text: str, path: Path, where: str) -> float:
    if _NUMBER.match(text[:_MAX_FIELD]):
        time_s = float(text) if len(text) <= _MAX_FIELD else math.inf
        if not _EARLIEST_S <= time_s < _LATEST_S:
            raise DataFileError(f"{text[:_MAX_FIELD]} are no Unix seconds of our time", file=path, field=where,
                                remedy="give seconds, not milliseconds, since 1970")
        return time_s
    try:
        moment = dt.datetime.fromisoformat(text[:_MAX_FIELD])
    except ValueError:
        raise DataFileError(f"{text[:_MAX_FIELD]!r} is no time", file=path, field=where, remedy=_SHAPE) from None
    if moment.tzinfo is None:
        raise DataFileError(f"{text[:_MAX_FIELD]!r} has no time zone", file=path, field=where,
                            remedy="write 2030-01-01T00:10:00Z or 2030-01-01T02:10:00+02:00")
    return moment.timestamp()


def _power(text: str, path: Path, where: str) -> float:
    if len(text) > _MAX_FIELD or not _NUMBER.match(text):
        raise DataFileError(f"{text[:_MAX_FIELD]!r} is no number of watts", file=path, field=where,
                            remedy="write 412.5: a point for decimals, no unit")
    power_w = float(text)
    if not 0 <= power_w <= MAX_POWER_W:
        raise DataFileError(f"{text} W cannot be true", file=path, field=where, remedy="watts from 0 to a million")
    return power_w
