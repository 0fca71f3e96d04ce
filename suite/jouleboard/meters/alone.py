"""Which compute processes on a device are this run's: the driver and what descends from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

UVM = "/dev/nvidia-uvm"
"""A process with a CUDA context has it open; one that only asks NVML has not."""


class Household:
    """Tells foreign processes from our own."""

    def __init__(self, root_pid: int) -> None:
        """Name the driver by its process id."""
        self._root_pid = root_pid

    def foreign(self, pids: Sequence[int]) -> int | None:
        """Count the processes that are not of this run.

        Inside a container NVML may give the host's process ids, which name nothing here: only their number can be judged.
        They are foreign, whenever they came, but for one for each process of ours that uses the device unnamed.

        Args:
            pids: compute processes on the device, as NVML names them; one on several GPUs counts once.

        Returns:
            Their number; None where the list lacks processes of ours, and so may lack others too.
        """
        # 0 stands for any process whose id is kept from us: each such row is one of its own.
        listed = [*{pid for pid in pids if pid}, *(pid for pid in pids if not pid)]
        kinds = [self._kind(pid) for pid in listed]
        known, nameless = kinds.count("foreign"), kinds.count("unknown") - self._hidden(listed)
        if known == 0 and nameless < 0:
            return None
        return known + max(0, nameless)

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
        return any(_opened(entry) == UVM for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _opened(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""
