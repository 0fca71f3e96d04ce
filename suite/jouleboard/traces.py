"""The trace of a run: what was sampled inside its windows, one line a sample.

Example (`trace.csv.gz`)::

    window,elapsed_s,cpu_s,power_w,counter_j,temperature_c,sm_mhz,memory_mhz,limit_w,reasons,foreign
    trial-3,0.1002,,412.5,1834020.125,54,1980,2619,700,0,0
    trial-3,0.5021,0.501312,,,,,,,,

An empty field was not sampled at that moment. Rows of a window stand in order of time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from jouleboard.declared import Noun, Seconds
from jouleboard.errors import DataFileError
from jouleboard.windows import Name

COLUMNS = ("window", "elapsed_s", "cpu_s", "power_w", "counter_j", "temperature_c", "sm_mhz", "memory_mhz", "limit_w",
           "reasons", "foreign")
HEADER = ",".join(COLUMNS).encode()
FIRST_HEADER = b"order,elapsed_s,cpu_s,power_w"
"""Of format 1, whose rows begin with the order of their trial."""
_INTEGERS = frozenset({"reasons", "foreign"})


class Sample(Noun, frozen=True, kw_only=True):
    """What was seen at one moment of a window."""

    window: Name
    elapsed_s: Seconds
    """Since the window began."""
    cpu_s: float | None = None
    """CPU time of the worker's process tree since the window began."""
    power_w: float | None = None
    """The device's instant power."""
    counter_j: float | None = None
    temperature_c: float | None = None
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    limit_w: float | None = None
    """The power limit in force."""
    reasons: int | None = None
    """NVML's clock-event reasons, a bit mask."""
    foreign: int | None = None
    """Compute processes on the device that are not of this run."""


def encode(sample: Sample) -> bytes:
    """Return a sample as one line, without the line's end."""
    return ",".join(_text(getattr(sample, name)) for name in COLUMNS).encode()


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        # Microseconds, micro-joules: finer than any sensor, and the same text each time.
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return str(value)


def decode(lines: Sequence[bytes], *, file: str = "trace.csv.gz") -> list[Sample]:
    """Return the samples of a trace, header left out.

    Args:
        lines: as `store.read_lines` gives them, the header first; of this format or of format 1.
        file: for messages.

    Raises:
        DataFileError: another header, a line of another shape, or a number that is none.
    """
    if lines and lines[0] == FIRST_HEADER:
        return [_decode(_upgraded(line, number, file), number, file) for number, line in enumerate(lines[1:], start=2)]
    if not lines or lines[0] != HEADER:
        raise DataFileError(f"does not begin with the header of a trace ({HEADER.decode()[:40]}...)", file=file,
                            field="line 1", remedy="restore the file as it was measured")
    return [_decode(line, number, file) for number, line in enumerate(lines[1:], start=2)]


def _wrong(line: bytes, number: int, file: str) -> DataFileError:
    return DataFileError(f"is no sample: {line[:80]!r}", file=file, field=f"line {number}",
                         remedy="restore the file as it was measured")


def _upgraded(line: bytes, number: int, file: str) -> bytes:
    """Return a line of format 1 as one of today: the order of a trial becomes the name of its window."""
    order, comma, rest = line.partition(b",")
    if not comma or not order.isdigit() or rest.count(b",") != FIRST_HEADER.count(b",") - 1:
        raise _wrong(line, number, file)
    empty = len(COLUMNS) - 1 - FIRST_HEADER.count(b",")
    return b"trial-" + order + b"," + rest + b"," * empty


def _decode(line: bytes, number: int, file: str) -> Sample:
    parts = line.decode("ascii", errors="replace").split(",")
    wrong = _wrong(line, number, file)
    if len(parts) != len(COLUMNS) or not parts[0] or not parts[1]:
        raise wrong
    found: dict[str, float | int | None] = {}
    for name, text in zip(COLUMNS[1:], parts[1:], strict=True):
        try:
            value = None if not text else int(text) if name in _INTEGERS else float(text)
        except ValueError:
            raise wrong from None
        if value is not None and not math.isfinite(value):
            raise wrong
        found[name] = value
    elapsed_s = found.pop("elapsed_s")
    return Sample(window=parts[0], elapsed_s=float(elapsed_s or 0), **found)  # type: ignore[arg-type]


def by_window(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Return the samples of each window, in order of time."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.window, []).append(sample)
    return {name: sorted(rows, key=lambda row: row.elapsed_s) for name, rows in found.items()}
