"""Hold a run's folder alone, on one machine or on a cluster's shared file system.

What is relied on: `flock` on `OUT/.work/<model>/lock`. The kernel gives it back when its process ends, however it ends; on one
machine that is all. Between machines it depends on the file system: NFS and file systems mounted with cluster-wide locks pass
it on, others lock within one node or not at all. So the holder also leaves its name beside the lock, in `holder.json`, and
touches that file twice a minute: who gets the lock while a holder of another machine was touching it within three minutes
does not go on. Both times are the file server's, so clocks need not agree. A holder that slept longer (a suspended job, a
stopped virtual machine) finds another one's name there when it wakes, and stops.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from jouleboard import processes, store
from jouleboard.declared import Count, Noun
from jouleboard.errors import PlanError
from jouleboard.processes import Process

LOCK, HOLDER = "lock", "holder.json"
BEAT_S = 30.0
SILENT_S = 180.0
"""A holder on another machine that was not heard of for so long has gone: six beats."""
SETTLE_S = 1.0
"""Waited, where there is no flock, for another holder that came in the same moment."""
EARLIER_LIFE_S, LOOK_EVERY_S = 120.0, 1.0
"""How long a requeued job waits for its own earlier life, which the batch system ends in its own time (SIGTERM, and SIGKILL half a
minute later) or cannot reach at all; looked at so often."""


class Holder(Noun, frozen=True, kw_only=True):
    """Who holds a folder."""

    process: Process
    job: str | None = None
    """The batch system's id of the job that it is part of."""
    restarts: Count = 0
    """How often the batch system has requeued that job."""
    since_utc: str

    @property
    def words(self) -> str:
        """Name it for people."""
        job = f", job {self.job}" if self.job else ""
        return f"{self.process.words}{job}, since {self.since_utc}"


@contextmanager
def hold(folder: Path, root: Path) -> Iterator[None]:
    """Hold a folder alone for a while.

    Args:
        folder: where the lock lies; made where it is not there.
        root: the run folder, for messages.

    Raises:
        PlanError: another process holds it (its name is given), or took it over meanwhile, or the folder cannot be written.
    """
    me = Holder(process=processes.identity(), job=processes.own_job(), restarts=_restarts(), since_utc=processes.utc())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise _unwritable(root, error) from None
    with file:
        certain = _flock(file, folder, root, me)
        _require_silence(folder, root, me, certain=certain)
        try:
            store.write_atomic(folder / HOLDER, msgspec.json.encode(me))
        except OSError as error:
            raise _unwritable(root, error) from None
        if not certain:
            _require_still_mine(folder, root, me)
        stop, lost = threading.Event(), threading.Event()
        beat = threading.Thread(target=_beat, args=(folder, me, stop, lost), daemon=True)
        beat.start()
        try:
            yield
        except KeyboardInterrupt:
            if not lost.is_set():
                raise
            raise _taken_over(holder(folder), root) from None
        finally:
            stop.set()
            beat.join()
            # A later holder's name stays.
            if holder(folder) == me:
                with contextlib.suppress(OSError):
                    (folder / HOLDER).unlink()


def _restarts() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def holder(folder: Path) -> Holder | None:
    """Return who holds a folder, or held it and left in no orderly way; None where nobody does."""
    try:
        return msgspec.json.decode((folder / HOLDER).read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError):
        return None


def silent_s(folder: Path) -> float | None:
    """Return how long ago the holder was heard of, by this machine's clock; None where nobody left a name."""
    try:
        return max(0.0, time.time() - (folder / HOLDER).stat().st_mtime)
    except OSError:
        return None


def _flock(file: TextIO, folder: Path, root: Path, me: Holder) -> bool:
    """Take the lock, from an earlier life of the same job after a while; False where the file system has none."""
    deadline_s = time.monotonic() + EARLIER_LIFE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}:
                return False
            there = holder(folder)
            if there is None or not _is_earlier_life(there, me) or time.monotonic() >= deadline_s:
                raise _held(there, root) from None
            time.sleep(LOOK_EVERY_S)
        else:
            return True


def _is_earlier_life(there: Holder, me: Holder) -> bool:
    """Tell whether a holder is the job that this process is part of, before it was requeued."""
    return there.job is not None and there.job == me.job and me.restarts > there.restarts


def _unwritable(root: Path, error: OSError) -> PlanError:
    return PlanError(f"cannot be written ({error.strerror})", file=root, field="--out",
                     remedy="name a folder that you may write to, with room in it")


def _held(there: Holder | None, root: Path, silent: str = "") -> PlanError:
    who = "" if there is None else f": {there.words}{silent}"
    where = "" if there is None or processes.here(there.process) else f" on {there.process.host}"
    end = "" if there is None else f", end it (kill {there.process.pid}{where})"
    return PlanError(f"another `jouleboard run` works in this folder{who}", file=root, field="--out",
                     remedy=f"wait for it{end}, or name another folder")


def _taken_over(there: Holder | None, root: Path) -> PlanError:
    who = "" if there is None else f": {there.words}"
    return PlanError(f"this run was not heard of for longer than {SILENT_S:.0f} s, and another run took it over{who}", file=root, field="--out",
                     remedy="let that one end, and run the same command again: it goes on from what is finished")


def _require_silence(folder: Path, root: Path, me: Holder, *, certain: bool) -> None:
    """Refuse where a holder that the lock does not tell of may be at work."""
    there = holder(folder)
    if there is None:
        return
    if _is_earlier_life(there, me):
        # The batch system has ended it.
        return
    alive = processes.alive(there.process)
    if alive is False or (alive and certain):
        return
    silent = _server_silence_s(folder)
    if silent is not None and silent < SILENT_S:
        raise _held(there, root, f", heard of {silent:.0f} s ago; it counts as gone after {SILENT_S:.0f} s of silence")


def _server_silence_s(folder: Path) -> float | None:
    """Return how long ago the holder touched its name, both times by the clock of the file server."""
    try:
        os.utime(folder / LOCK)
        return max(0.0, (folder / LOCK).stat().st_mtime - (folder / HOLDER).stat().st_mtime)
    except OSError:
        return None


def _require_still_mine(folder: Path, root: Path, me: Holder) -> None:
    time.sleep(SETTLE_S)
    there = holder(folder)
    if there != me:
        raise _held(there, root)


def _beat(folder: Path, me: Holder, stop: threading.Event, lost: threading.Event) -> None:
    """Touch the name as long as it is this run's own; end this run where it is not any more."""
    while not stop.wait(BEAT_S):
        if _is_lost(folder, me):
            lost.set()
            # Python swallows what a handler raises inside a finaliser, and this run may not go on: a later signal ends it at once.
            while True:
                os.kill(os.getpid(), signal.SIGTERM)
                if stop.wait(BEAT_S):
                    return
        with contextlib.suppress(OSError):
            os.utime(folder / HOLDER)


def _is_lost(folder: Path, me: Holder) -> bool:
    try:
        return msgspec.json.decode((folder / HOLDER).read_bytes(), type=Holder) != me
    except FileNotFoundError:
        # Whoever followed has ended already, or somebody cleared the folder.
        return True
    except (OSError, msgspec.DecodeError):
        # A file server that stumbles is asked again at the next beat.
        return False
