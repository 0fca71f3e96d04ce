"""What the kernel is asked so that no process outlives its run: who dies with whom, who adopts orphans, who ran out of memory.

Processes of one run are known by a token in their environment, which everything that they start inherits::

    JOULEBOARD_RUN=3f9c…        # in /proc/PID/environ
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path

TOKEN_VARIABLE = "JOULEBOARD_RUN"  # noqa: S105 - the name of a variable, no password
# A plain string keeps type checkers from judging the other branch unreachable.
_PLATFORM: str = sys.platform
ON_LINUX = _PLATFORM == "linux"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 1, 36, 37
"""Linux, include/uapi/linux/prctl.h."""
OOM_SCORE_ADJ = 500
"""Half of what the kernel's badness counts at most (proc_pid_oom_score_adj(5)): a worker is ended before its driver."""


def die_with_parent(*, wanted: bool = True) -> None:
    """Let the kernel kill this process when the thread that started it ends; or no longer."""
    if ON_LINUX:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL) if wanted else 0, 0, 0, 0)


class Orphanage:
    """Makes this process the parent of its descendants' orphans, as long as anybody wants it: the kernel knows only yes or no."""

    def __init__(self) -> None:
        """Nobody wants it yet."""
        self._lock = threading.Lock()
        self._wanted = 0
        self._before = False

    def open(self) -> None:
        """Adopt from now on."""
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                self._before = adopts_orphans()
                _adopt(wanted=True)

    def close(self) -> None:
        """Adopt no longer, unless somebody else wants it still."""
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0:
                _adopt(wanted=self._before)


@functools.cache
def orphanage() -> Orphanage:
    """Return the one of this process."""
    return Orphanage()


def adopts_orphans() -> bool:
    """Return whether this process becomes the parent of its descendants' orphans."""
    if not ON_LINUX:
        return False
    found = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0)
    return bool(found.value)


def _adopt(*, wanted: bool) -> None:
    if ON_LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def first_to_go() -> None:
    """Let the kernel end this process rather than others when the machine is out of memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def carriers(token: str) -> list[int]:
    """Return the processes that have a token in their environment, this one left out; empty where there is no `/proc`."""
    wanted, found = f"{TOKEN_VARIABLE}={token}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        # A zombie has no environment, and those of other users are theirs.
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def end_carriers(token: str, *, limit_s: float = 2.0) -> None:
    """Kill every process that has a token, until none is left."""
    until_s = time.monotonic() + limit_s
    seen: set[int] = set()
    while (found := carriers(token)) and time.monotonic() < until_s:
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        seen |= set(found)
        time.sleep(0.005)
    for pid in seen:
        # One that this process has adopted stays a zombie until somebody asks for it; one of init's is init's.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


class OomKills:
    """Tells whether the kernel, short of memory, is the one that killed a process."""

    def __init__(self, files: tuple[Path, ...] | None = None) -> None:
        """Count from now.

        Args:
            files: where a line `oom_kill N` is looked for, the first that has one; None: this machine's.
        """
        self._files = _counters() if files is None else files
        self._lock = threading.Lock()
        self._explained = self._count()

    def explains(self) -> bool:
        """Return whether there was a kill that explains one more death; each explains one."""
        with self._lock:
            if self._count() <= self._explained:
                return False
            self._explained += 1
            return True

    def _count(self) -> int:
        for file in self._files:
            with contextlib.suppress(OSError, ValueError):
                for line in file.read_text().splitlines():
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        return int(value)
        return 0


def _counters() -> tuple[Path, ...]:
    """Name this process's control group, of both versions, and then the whole machine."""
    root, files = Path("/sys/fs/cgroup"), []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                files.append(root / path.lstrip("/") / "memory.events")
            elif "memory" in controllers.split(","):
                files.append(root / "memory" / path.lstrip("/") / "memory.oom_control")
    return (*files, Path("/proc/vmstat"))
