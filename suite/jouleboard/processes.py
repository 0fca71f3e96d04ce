"""Who a process is, so that another one can tell later whether it is still there.

Example::

    me = identity()            Process(host="node7", boot="3f0c...", pid=812, began_s=1893456000.1)
    alive(me)                  True; None where it lives on another machine, which cannot be looked into from here
"""

from __future__ import annotations

import datetime as dt
import os
import socket

import psutil

from jouleboard.declared import Noun
from jouleboard.meters import kernel

SAME_S = 1.0
"""Two processes of one id begin further apart than this; the kernel's own figure moves a little when the clock is set."""


class Process(Noun, frozen=True, kw_only=True):
    """One process of one machine. A process id alone is used again."""

    host: str
    boot: str | None
    """Short digest of the kernel's boot id; None where it has none to show."""
    pid: int
    began_s: float
    """Unix time at which it began."""

    @property
    def words(self) -> str:
        """Name it for people."""
        return f"process {self.pid} on {self.host}"


def identity(pid: int | None = None) -> Process:
    """Return who a process of this machine is.

    Args:
        pid: which; None: this very one.

    Raises:
        psutil.NoSuchProcess: there is none of that id.
    """
    pid = os.getpid() if pid is None else pid
    return Process(host=socket.gethostname(), boot=kernel.boot_digest(), pid=pid, began_s=psutil.Process(pid).create_time())


def here(process: Process) -> bool:
    """Tell whether a process belongs to this machine, as it was last started."""
    return (process.host, process.boot) == (socket.gethostname(), kernel.boot_digest())


def alive(process: Process) -> bool | None:
    """Tell whether a process is still there.

    Returns:
        None where that cannot be known: it lives on another machine.
    """
    if process.host != socket.gethostname():
        return None
    if process.boot != kernel.boot_digest():
        # Either the machine was started again, or another machine has the same name.
        return False if process.boot is not None else None
    try:
        found = psutil.Process(process.pid)
        return abs(found.create_time() - process.began_s) <= SAME_S and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def own_job() -> str | None:
    """Return the id of the batch system's job that this process is part of; None outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def utc() -> str:
    """Return the present as it is written in files."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
