"""GPUs whose power trace is known exactly, behind the same library that pynvml and Zeus load.

    simulated = SimulatedGpu(tmp_path, Gpu(trace=square(high_w=300, low_w=100, period_s=0.5)))
    subprocess.run([sys.executable, "script.py"], env={**os.environ, **simulated.environment()})
    simulated.gpus[0].energy_j(1.0, 61.0)   # what that GPU truly used between two device times

Times are seconds since device time 0, kept in whole nanoseconds; powers are watts, kept in whole milliwatts: the
reference is computed with fractions, apart from the C code, and is exact.

A GPU with `idle_w` follows its trace only while the machine is loaded, else it draws that power. When it is loaded says
the file `simulated.load_file`, that only grows (`simulated.load("on", 2.5)`). An event that arrives late, after somebody has
read the counter, counts from that reading on: `Load` is the reference of that rule, and gives the intervals to integrate over.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Literal

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"
VARIABLE = "JOULEBOARD_SIMULATED_GPU"
FOR_EVER = math.inf
GPU_IS_LOST = 15
DRIVER_NOT_LOADED = 9

Clock = Literal["monotonic", "realtime", "manual"]


def to_ns(seconds: float) -> int:
    """Return whole nanoseconds; -1 for ever."""
    return -1 if math.isinf(seconds) else round(seconds * 1e9)


def to_mw(watts: float) -> int:
    """Return whole milliwatts."""
    return round(watts * 1e3)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of constant power, or of power that changes evenly to `end_power_w`."""

    duration_s: float
    power_w: float
    end_power_w: float | None = None

    def ends_mw(self) -> tuple[int, int]:
        """Return the power at both ends."""
        start_mw = to_mw(self.power_w)
        return start_mw, start_mw if self.end_power_w is None else to_mw(self.end_power_w)

    def part_pj(self, from_ns: int, until_ns: int) -> Fraction:
        """Return the picojoules (mW x ns) between two times inside the segment: mean power x width."""
        duration_ns = round(self.duration_s * 1e9)
        start_mw, end_mw = self.ends_mw()
        mean_mw = start_mw + Fraction((end_mw - start_mw) * (from_ns + until_ns), 2 * duration_ns)
        return mean_mw * (until_ns - from_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that holds from one device time to another; the module's functions make them."""

    kind: str
    from_s: float = 0.0
    to_s: float = FOR_EVER
    a: int = 0
    b: int = 0
    name: str = "-"

    def line(self) -> str:
        """Return its line of the control file."""
        return f"span {self.kind} {to_ns(self.from_s)} {to_ns(self.to_s)} {self.a} {self.b} {self.name}"


def reset(at_s: float) -> Span:
    """Start the energy counter again from zero."""
    return Span(kind="reset", from_s=at_s)


def fails(code: int, *, from_s: float = 0.0, to_s: float = FOR_EVER, function: str = "*") -> Span:
    """Let an NVML function, or all of them, answer with an error code."""
    return Span(kind="fail", from_s=from_s, to_s=to_s, a=code, name=function)


def lost(at_s: float) -> Span:
    """Let the GPU fall off the bus."""
    return fails(GPU_IS_LOST, from_s=at_s)


def no_driver(from_s: float = 0.0, to_s: float = FOR_EVER) -> Span:
    """Let NVML refuse to start (for `SimulatedGpu.faults`, not for one GPU)."""
    return fails(DRIVER_NOT_LOADED, from_s=from_s, to_s=to_s, function="nvmlInitWithFlags")


def throttle(bits: int, *, from_s: float, to_s: float = FOR_EVER) -> Span:
    """Report clock-event reasons."""
    return Span(kind="throttle", from_s=from_s, to_s=to_s, a=bits)


def process(pid: int, *, from_s: float = 0.0, to_s: float = FOR_EVER, memory_bytes: int = 10**9) -> Span:
    """Show a compute process on the GPU."""
    return Span(kind="process", from_s=from_s, to_s=to_s, a=pid, b=memory_bytes)


def enforced_limit(power_w: float, *, from_s: float, to_s: float = FOR_EVER) -> Span:
    """Enforce another power limit than the one that was set."""
    return Span(kind="enforced_limit", from_s=from_s, to_s=to_s, a=to_mw(power_w))


def violation(policy: int, *, from_s: float, to_s: float = FOR_EVER) -> Span:
    """Count time against one of NVML's performance policies (0 power, 1 thermal)."""
    return Span(kind="violation", from_s=from_s, to_s=to_s, a=policy)


def sm_clock(mhz: int, *, from_s: float, to_s: float = FOR_EVER) -> Span:
    """Run at another clock for a while."""
    return Span(kind="sm_clock", from_s=from_s, to_s=to_s, a=mhz)


def temperature(start_c: float, end_c: float, *, from_s: float, to_s: float) -> Span:
    """Warm up evenly and stay there."""
    return Span(kind="temperature", from_s=from_s, to_s=to_s, a=round(start_c * 1000), b=round(end_c * 1000))


def square(*, high_w: float, low_w: float, period_s: float, duty: float = 0.5) -> tuple[Segment, ...]:
    """Return one period of a square wave."""
    return Segment(period_s * duty, high_w), Segment(period_s * (1 - duty), low_w)


def recorded(samples: Iterable[tuple[float, float]]) -> tuple[Segment, ...]:
    """Return the trace that goes straight from each sample (time_s, power_w) to the next."""
    rows = list(samples)
    return tuple(Segment(later_s - from_s, power_w, next_w)
                 for (from_s, power_w), (later_s, next_w) in itertools.pairwise(rows))


Interval = tuple[int, int | None]
"""From one device time (ns) to another, or for ever."""


class Load:
    """Reference for one process that reads the load file: from when each event counts, as nvml.c says it.

        load = Load([("on", 1_000)])
        load.asked(5_000)                 # a call is answered
        load.event("off", 4_000)          # too late to be counted from 4,000
        load.intervals()                  # ((1000, 5000),)
    """

    def __init__(self, events: Iterable[tuple[str, int]] = ()) -> None:
        """Take events that were there before the first call."""
        self._events: list[tuple[int, bool]] = []
        self._answered_ns = -math.inf
        for kind, at_ns in events:
            self.event(kind, at_ns)

    def event(self, kind: str, at_ns: int) -> None:
        """Take one event: not before the event before it, nor before the latest call that was answered."""
        earliest = max(self._answered_ns, self._events[-1][0] if self._events else -math.inf)
        self._events.append((at_ns if at_ns >= earliest else int(earliest), kind == "on"))

    def asked(self, at_ns: int) -> None:
        """Note that a call was answered at a device time."""
        self._answered_ns = max(self._answered_ns, at_ns)

    def intervals(self) -> tuple[Interval, ...]:
        """Return when the machine is loaded."""
        found: list[Interval] = []
        since_ns: int | None = None
        for at_ns, on in self._events:
            if on and since_ns is None:
                since_ns = at_ns
            elif not on and since_ns is not None:
                found.append((since_ns, at_ns))
                since_ns = None
        return tuple(found) if since_ns is None else (*found, (since_ns, None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One simulated GPU. `numbers` are further fields of the control file, such as `mig`, `sm_mhz` or `limit_mw`."""

    trace: tuple[Segment, ...] = (Segment(1.0, 100.0),)
    repeat: bool = True
    tick_s: float = 0.1
    tick_phase_s: float = 0.0
    base_j: float = 1e6
    freeze_s: float | None = None
    idle_w: float | None = None
    """Power while the machine is not loaded; None: the trace always holds."""
    sample_period_s: float = 0.0
    """The board's sensor looks at the power over the first `sample_on_s` of each such period; 0: all the time."""
    sample_on_s: float = 0.0
    name: str = "SIMULATED GPU"
    spans: tuple[Span, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def max_power_w(self) -> float:
        """The highest power of the trace, or the idle power where that is higher."""
        return max(self.idle_w or 0.0, max(mw for segment in self.trace for mw in segment.ends_mw()) / 1e3)

    def trace_pj(self, from_ns: int, until_ns: int) -> Fraction:
        """Integrate the trace exactly; before device time 0 it uses nothing, after its end its last power."""
        from_ns, until_ns = max(from_ns, 0), max(until_ns, 0)
        widths = [round(segment.duration_s * 1e9) for segment in self.trace]
        cycle_ns = sum(widths)
        if self.repeat and until_ns - from_ns > cycle_ns:
            whole = (until_ns - from_ns) // cycle_ns
            return whole * self.trace_pj(0, cycle_ns) + self.trace_pj(from_ns + whole * cycle_ns, until_ns)
        start_ns = from_ns // cycle_ns * cycle_ns if self.repeat else 0
        total = Fraction(0)
        while start_ns < until_ns:
            for segment, width in zip(self.trace, widths, strict=True):
                low, high = max(from_ns, start_ns), min(until_ns, start_ns + width)
                if low < high:
                    total += segment.part_pj(low - start_ns, high - start_ns)
                start_ns += width
            if not self.repeat:
                return total + max(until_ns - max(start_ns, from_ns), 0) * self.trace[-1].ends_mw()[1]
        return total

    def energy_pj(self, from_ns: int, until_ns: int, load: Sequence[Interval] = ()) -> Fraction:
        """Return what the GPU truly uses between two device times, exactly: its trace, or idle power outside the load."""
        if self.idle_w is None:
            return self.trace_pj(from_ns, until_ns)
        from_ns, until_ns = max(from_ns, 0), max(until_ns, 0)
        loaded = [(max(low, from_ns), until_ns if high is None else min(high, until_ns)) for low, high in load]
        loaded = [(low, high) for low, high in loaded if low < high]
        idle_ns = until_ns - from_ns - sum(high - low for low, high in loaded)
        return sum((self.trace_pj(low, high) for low, high in loaded), Fraction(to_mw(self.idle_w) * idle_ns))

    def seen_pj(self, until_ns: int, load: Sequence[Interval] = ()) -> Fraction:
        """Return what the board's own sensor sees since device time 0; sparse sampling shows it only part of the time.

        The mean power of each period's sampled part holds from the end of that part until the end of the next one.
        """
        period_ns, on_ns = to_ns(self.sample_period_s), to_ns(self.sample_on_s)
        if period_ns == 0 or until_ns < on_ns:
            return self.energy_pj(0, until_ns, load)
        total = self.energy_pj(0, on_ns, load)
        for start_ns in range(0, until_ns - on_ns + 1, period_ns):
            mean_mw = self.energy_pj(start_ns, start_ns + on_ns, load) / on_ns
            total += mean_mw * (min(start_ns + period_ns + on_ns, until_ns) - (start_ns + on_ns))
        return total

    def energy_j(self, from_s: float, until_s: float, load: Sequence[Interval] = ()) -> float:
        """Return what the GPU truly uses between two device times."""
        return float(self.energy_pj(to_ns(from_s), to_ns(until_s), load) / 10**12)

    def counter_mj(self, at_ns: int, load: Sequence[Interval] = ()) -> int:
        """Return what a counter without faults shows at a device time: the exact integral at its last tick."""
        tick_ns, phase_ns = to_ns(self.tick_s), to_ns(self.tick_phase_s)
        ticked_ns = (at_ns - phase_ns) // tick_ns * tick_ns + phase_ns if tick_ns else at_ns
        return round(self.base_j * 1000) + math.floor(self.seen_pj(max(ticked_ns, 0), load) / 10**9)

    def lines(self, index: int) -> list[str]:
        """Return its lines of the control file."""
        numbers = {
            "repeat": int(self.repeat), "tick_ns": to_ns(self.tick_s), "tick_phase_ns": to_ns(self.tick_phase_s),
            "base_mj": round(self.base_j * 1000), "freeze_ns": -1 if self.freeze_s is None else to_ns(self.freeze_s),
            "idle_mw": -1 if self.idle_w is None else to_mw(self.idle_w),
            "sample_period_ns": to_ns(self.sample_period_s), "sample_on_ns": to_ns(self.sample_on_s),
            **self.numbers,
        }
        return [
            "gpu", f"text name {self.name}", f"text uuid GPU-SIMULATED-{index:04d}",
            *(f"{key} {value}" for key, value in numbers.items()),
            *(f"segment {round(s.duration_s * 1e9)} {s.ends_mw()[0]} {s.ends_mw()[1]}" for s in self.trace),
            *(span.line() for span in self.spans),
        ]


class SimulatedGpu:
    """A machine with simulated GPUs: its control file, and the environment that makes a process see it."""

    def __init__(
        self, folder: Path, *gpus: Gpu, clock: Clock = "monotonic", scale: int = 1, now_s: float = 0.0,
        faults: tuple[Span, ...] = (), start_ns: int | None = None,
    ) -> None:
        """Write the control file; device time 0 is now, or where a clock reading `start_ns` puts it.

        Args:
            folder: where the control file goes.
            gpus: the GPUs in NVML's order.
            clock: which clock drives device time; `manual`: it stands at `now_s` until `set` moves it.
            scale: how many device seconds pass in a second.
            now_s: device time of a manual clock.
            faults: failures of NVML as a whole.
            start_ns: reading of the clock at device time 0.
        """
        self.file = folder / "simulated-gpu.txt"
        self.load_file = folder / "simulated-gpu.txt.load"
        self.gpus = gpus
        self.scale = scale
        self._read_ns = time.time_ns if clock == "realtime" else time.monotonic_ns
        self.start_ns = self._read_ns() if start_ns is None else start_ns
        self._clock = clock
        self._now_s = now_s
        self._faults = faults
        # Another file than one that a former machine left here, so that the library starts to read it again.
        empty = self.load_file.with_suffix(".partial")
        empty.write_bytes(b"")
        empty.replace(self.load_file)
        self.write()

    def text(self, *, now_s: float | None = None) -> str:
        """Return the control file; with `now_s`, as it is at that time of a manual clock."""
        now_ns = to_ns(self._now_s if now_s is None else now_s)
        lines = [f"clock {self._clock}", f"clock_ns {self.start_ns}", f"scale {self.scale}", f"now_ns {now_ns}",
                 *(span.line() for span in self._faults)]
        for index, gpu in enumerate(self.gpus):
            lines += gpu.lines(index)
        return "\n".join(lines) + "\n"

    def write(self) -> None:
        """Put the file in place at once, so that no process reads half of it."""
        partial = self.file.with_suffix(".partial")
        partial.write_text(self.text(), encoding="ascii")
        # The library tells files apart by inode and time; the file system's own times only advance every few ms.
        now_ns = time.time_ns()
        os.utime(partial, ns=(now_ns, now_ns))
        partial.replace(self.file)

    def set(self, *, now_s: float | None = None, faults: tuple[Span, ...] | None = None, **changes: object) -> None:
        """Change the machine while others watch: the manual clock, failures of NVML, or fields of every GPU."""
        self._now_s = self._now_s if now_s is None else now_s
        self._faults = self._faults if faults is None else faults
        self.gpus = tuple(replace(gpu, **changes) for gpu in self.gpus)  # type: ignore[arg-type]
        self.write()

    def load(self, kind: Literal["on", "off"], at_s: float) -> None:
        """Append an event at a device time to the load file."""
        at_ns = to_ns(at_s) if self._clock == "manual" else self.start_ns + to_ns(at_s) // self.scale
        with self.load_file.open("ab", buffering=0) as file:
            file.write(b"%s %d\n" % (kind.encode(), at_ns))

    def device_ns(self, clock_ns: int) -> int:
        """Return the device time of a reading of the clock."""
        return (clock_ns - self.start_ns) * self.scale

    def now_s(self) -> float:
        """Return the present device time."""
        return self._now_s if self._clock == "manual" else self.device_ns(self._read_ns()) / 1e9

    def environment(self) -> dict[str, str]:
        """Return what a process needs in its environment to see these GPUs and no others."""
        return {VARIABLE: str(self.file), "LD_LIBRARY_PATH": search_path(library(), os.environ)}


def search_path(built: Path, inherited: Mapping[str, str]) -> str:
    """Return a library search path that finds the built library before any other."""
    return os.pathsep.join([str(built.parent), *([inherited["LD_LIBRARY_PATH"]] if inherited.get("LD_LIBRARY_PATH") else [])])


def compilers_at_hand() -> list[list[str]]:
    """Return the C compilers of this machine, and last the one of the wheel `ziglang`; may be none."""
    found = [[path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    if importlib.util.find_spec("ziglang"):
        found.append([sys.executable, "-m", "ziglang", "cc"])
    return found


def compilers() -> list[list[str]]:
    """Return the C compilers of this machine, or one that is fetched."""
    return compilers_at_hand() or [_fetched_compiler()]


def _fetched_compiler() -> list[str]:
    """Fetch the compiler in the wheel `ziglang` (some 90 MB) on a machine that has none: these tests never skip."""
    target = Path(_folder().name) / "ziglang"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), "ziglang"],
                   check=True, capture_output=True, text=True)
    return [str(target / "ziglang" / "zig"), "cc"]


def build(compiler: list[str], target: Path) -> None:
    """Compile the library."""
    flags = ["-std=c11", "-O2", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*compiler, *flags, "-o", str(target), str(SOURCE)], check=True, capture_output=True, text=True)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    # Kept until this process ends, then removed.
    return tempfile.TemporaryDirectory(prefix="jouleboard-simulated-gpu-")


@functools.cache
def library() -> Path:
    """Build the library once a process with the first compiler that can, and return its path."""
    target = Path(_folder().name) / LIBRARY
    problems = ["no C compiler found"]
    for compiler in compilers():
        try:
            build(compiler, target)
        except subprocess.CalledProcessError as error:
            problems.append(f"{' '.join(compiler)}: {error.stderr}")
            continue
        return target
    raise RuntimeError("the simulated GPU cannot be built; install a C compiler, or `pip install ziglang`\n"
                       + "\n".join(problems))
