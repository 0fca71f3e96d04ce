"""CPU time of another process and its children, to the nanosecond where the kernel gives it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Protocol

import psutil

from jouleboard.errors import MeterError

CPUCLOCK_SCHED = 2
"""Linux: the scheduler's own count of a process's run time (include/linux/posix-timers.h)."""


# A plain string keeps type checkers from judging the other branch unreachable.
_PLATFORM: str = sys.platform
ON_LINUX = _PLATFORM == "linux"


class Clock(Protocol):
    """Reads CPU time of one process tree, or of several together."""

    def cpu_s(self) -> float:
        """Return seconds of CPU time used so far; raises `MeterError` where a process has ended."""


class ProcessClock:
    """Reads user + system time of a process tree. A reading takes about a millisecond: it looks for children."""

    def __init__(self, pid: int) -> None:
        """Name the root of the tree."""
        self._process = psutil.Process(pid)

    def cpu_s(self) -> float:
        """Return seconds of CPU time used so far by the process and its descendants, those among them that have ended too.

        Raises:
            MeterError: the process has ended.
        """
        try:
            total = _process_cpu_s(self._process) + _ended_cpu_s(self._process)
            children = self._process.children(recursive=True)
        except psutil.NoSuchProcess:
            raise MeterError("the measured process has ended") from None
        for child in children:
            try:
                total += _process_cpu_s(child) + _ended_cpu_s(child)
            except psutil.NoSuchProcess:
                # It ended between being listed and being read, and is counted the next time.
                continue
        return total


class SummedClock:
    """CPU time of several process trees together."""

    def __init__(self, clocks: Sequence[Clock]) -> None:
        """Keep them."""
        self._clocks = tuple(clocks)

    def cpu_s(self) -> float:
        """Return seconds of CPU time used so far by all of them.

        Raises:
            MeterError: one has ended.
        """
        return sum(clock.cpu_s() for clock in self._clocks)


def _ended_cpu_s(process: psutil.Process) -> float:
    """Return what children took that have ended and were waited for, such as compilers; Linux counts it in ticks of 10 ms."""
    times = process.cpu_times()
    # Their own children's among it. Elsewhere than on Linux and macOS it is not told.
    return float(getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0))


def _process_cpu_s(process: psutil.Process) -> float:
    if ON_LINUX:
        try:
            # The clock id of another process's CPU clock, as clock_getcpuclockid(3) builds it.
            return time.clock_gettime((~process.pid << 3) | CPUCLOCK_SCHED)
        except OSError:
            raise psutil.NoSuchProcess(process.pid) from None
    times = process.cpu_times()
    return float(times.user + times.system)
