"""Which compute processes on a device are this run's: the driver and what descends from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

_UVM = "/dev/nvidia-uvm"
"""A process with a CUDA context has it open; one that only asks NVML has not."""


class Household:
    """Tells foreign processes from our own."""

    def __init__(self, root_pid: int, pids: Sequence[int] = ()) -> None:
        """Name the driver.

        Args:
            root_pid: its process id.
            pids: compute processes on the device when the meter starts.
        """
        self._root_pid = root_pid
        self._unknown_at_start = sum(1 for pid in pids if not psutil.pid_exists(pid))

    def foreign(self, pids: Sequence[int]) -> int:
        """Count the processes that are not of this run.

        Args:
            pids: compute processes on the device, as NVML names them.
        """
        if not pids:
            return 0
        kinds = [self._kind(pid) for pid in pids]
        unknown = kinds.count("unknown")
        if unknown > self._unknown_at_start:
            # Inside a container NVML may give the host's process ids, which name nothing here: only their number can
            # be judged. More than at the start are foreign, less one for each process of ours that has a context.
            unknown -= self._hidden(pids)
        return kinds.count("foreign") + max(0, unknown - self._unknown_at_start)

    def _kind(self, pid: int) -> str:
        if pid == self._root_pid:
            return "own"
        try:
            ancestors = psutil.Process(pid).parents()
        except psutil.NoSuchProcess:
            return "unknown"
        except psutil.AccessDenied:
            return "foreign"
        return "own" if any(parent.pid == self._root_pid for parent in ancestors) else "foreign"

    def _hidden(self, pids: Sequence[int]) -> int:
        """Count our own processes that use the device and that NVML does not name by the ids known here."""
        try:
            root = psutil.Process(self._root_pid)
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        return sum(1 for process in family if process.pid not in pids and _has_context(process.pid))


def _has_context(pid: int) -> bool:
    try:
        return any(_opened(entry) == _UVM for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _opened(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""
