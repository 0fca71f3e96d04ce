"""Meter processes that outlived their driver: found again by a small file each, and ended.

Example (`CACHE/meters/3f9c….json`)::

    {"pid": 4242, "started": 1234567, "driver_pid": 4200, "driver_started": 1230000, "machine": "09ab…", "token": "3f9c…"}

A process is only taken for the one in the file if it started at the same tick of the kernel's clock: a process id that was
given again names a stranger. What a meter started itself is known by the token that it inherited in its environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from jouleboard import paths
from jouleboard.declared import Noun
from jouleboard.meters.kernel import boot_digest, short_digest
from jouleboard.meters.wire import TOKEN_VARIABLE


class Mark(Noun, frozen=True, kw_only=True):
    """A meter process and its driver."""

    pid: int
    started: int
    """When, in the kernel's clock ticks since the boot."""
    driver_pid: int
    driver_started: int
    machine: str
    """Digest of boot and process namespace: marks of another container in a shared cache are not ours to judge."""
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Meter processes without a driver."""

    token: str
    pids: tuple[int, ...]
    file: Path


def folder() -> Path:
    """Return where the files are."""
    return paths.cache_folder() / "meters"


def started(pid: int) -> int | None:
    """Return when a living process started, in clock ticks since the boot; None where there is none, or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in brackets and may hold anything; field 3, the state, follows it (proc_pid_stat(5)).
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def machine() -> str:
    """Return what tells this boot and process namespace from others."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return short_digest(f"{boot_digest()} {namespace}")


def mark(token: str, driver_pid: int) -> Path | None:
    """Write the file of this process, which is a meter; None where it cannot be written: the run goes on without.

    Args:
        token: from the environment.
        driver_pid: who it works for.
    """
    own, drivers = started(os.getpid()), started(driver_pid)
    if own is None or drivers is None:
        return None
    written = Mark(pid=os.getpid(), started=own, driver_pid=driver_pid, driver_started=drivers, machine=machine(),
                   token=token)
    file = folder() / f"{token}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(written))
        partial.replace(file)
    except OSError:
        return None
    return file


def unmark(token: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(OSError):
        (folder() / f"{token}.json").unlink()


def leftovers() -> list[Leftover]:
    """Find meter processes whose driver is dead; a file without any process is removed."""
    found = []
    here = machine()
    for file in sorted(folder().glob("*.json")):
        try:
            seen = msgspec.json.decode(file.read_bytes(), type=Mark)
        except (OSError, msgspec.DecodeError):
            continue
        if seen.machine != here or started(seen.driver_pid) == seen.driver_started:
            continue
        if pids := _alive(seen):
            found.append(Leftover(token=seen.token, pids=pids, file=file))
        else:
            unmark(seen.token)
    return found


def _alive(seen: Mark) -> tuple[int, ...]:
    """Return the meter and what it started, as far as they live."""
    meter = (seen.pid,) if started(seen.pid) == seen.started else ()
    return (*meter, *(pid for pid in psutil.pids() if pid not in meter and _carries(pid, seen.token)))


def _carries(pid: int, token: str) -> bool:
    try:
        return f"{TOKEN_VARIABLE}={token}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def reap() -> list[Leftover]:
    """End the meter processes whose driver is dead, and return what there was."""
    found = leftovers()
    for leftover in found:
        for pid in leftover.pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        unmark(leftover.token)
    return found
