"""Families as jobs of this machine, through submitit's local executor: each ends with the command that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil
import submitit

from jouleboard import jobs, processes
from jouleboard.executors.job import FamilyJob
from jouleboard.slurmqueue import JobState

FOREVER_MIN = 60 * 24 * 365
"""submitit wants a time limit; a job of this machine has none."""
END_WITHIN_S = 30.0
ENDED = {"finished": "COMPLETED", "interrupted": "CANCELLED", "refused": "FAILED", "error": "FAILED", "out-of-time": "TIMEOUT"}


class LocalJobs:
    """Runs jobs here, so many at a time; each may have devices of its own."""

    def __init__(self, out: Path, waiting: Sequence[FamilyJob], devices: Sequence[str | None]) -> None:
        """Start nothing yet.

        Args:
            out: the run folder.
            waiting: what is to be run, in this order.
            devices: `CUDA_VISIBLE_DEVICES` of each job that may run at a time; None: as it is here.
        """
        self._out = out
        self._waiting = list(waiting)
        self._free = list(devices)
        self._running: dict[str, tuple[FamilyJob, submitit.Job[int], str | None]] = {}
        self.submitted: list[jobs.Job] = []
        self._executor = submitit.LocalExecutor(folder=jobs.folder(out))
        self._executor.update_parameters(timeout_min=FOREVER_MIN, signal_delay_s=1)

    def step(self) -> bool:
        """Start what may start; whether anything was started."""
        for ident in [ident for ident, (_, job, _) in self._running.items() if self._done(ident, job)]:
            self._free.append(self._running.pop(ident)[2])
            jobs.tidy(self._out, ident)
        started = False
        while self._waiting and self._free:
            family, devices = self._waiting.pop(0), self._free.pop(0)
            started = True
            job = self._start(family, devices)
            self._running[job.job_id] = family, job, devices
            self.submitted.append(jobs.Job(model=family.model, id=job.job_id))
        return started

    def _start(self, family: FamilyJob, devices: str | None) -> submitit.Job[int]:
        # submitit hides all GPUs from a job that did not ask for any in its own way.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if devices is None else devices
        family.environment = {"CUDA_VISIBLE_DEVICES": visible}
        family.driver = msgspec.json.encode(processes.identity()).decode()
        # A Ctrl-C of the terminal reaches all processes: submitit's would kill the job within a second. Blocked signals are
        # inherited; the job itself takes it when it is ready, and ends in good order.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            job = self._executor.submit(family)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Process ids come again: an older job of this one may have left its note.
        with contextlib.suppress(OSError):
            (jobs.folder(self._out) / f"{job.job_id}.json").unlink()
        return job

    @property
    def over(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._waiting and not self._running

    def states(self) -> Mapping[str, JobState]:
        """Return how the jobs are, by id."""
        return {job.id: self._state(job.id) for job in self.submitted if job.id is not None}

    def _done(self, ident: str, job: submitit.Job[int]) -> bool:
        """Whether a job has ended: submitit looks at its controller alone, which may die before it."""
        return job.done() and not self._left(ident)

    def _left(self, ident: str) -> list[psutil.Process]:
        """Return what lives of a job whose controller has gone; none of it where the job said that it has ended."""
        note = jobs.note(self._out, ident)
        if note is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                return [psutil.Process(note.process.pid)] if processes.alive(note.process) else []
            return []
        # It dies within seconds of its birth, or has not written its note yet.
        return [process for process in psutil.process_iter() if _is_of(process, ident)]

    def _state(self, ident: str) -> JobState:
        if ident in self._running and not self._done(ident, self._running[ident][1]):
            return JobState(id=ident, state="RUNNING")
        note = jobs.note(self._out, ident)
        if note is None or note.end is None:
            return JobState(id=ident, state="FAILED", reason="its process died, killed or out of memory")
        return JobState(id=ident, state=ENDED[note.end.how])

    def close(self) -> None:
        """End all jobs in good order, and by force what does not end."""
        self._waiting.clear()
        deadline_s = time.monotonic() + END_WITHIN_S
        for _, job, _ in self._running.values():
            _tell(int(job.job_id))
        for ident, (_, job, _) in self._running.items():
            while not self._done(ident, job) and time.monotonic() < deadline_s:
                time.sleep(0.1)
            if not self._done(ident, job):
                _kill(int(ident))
                for process in self._left(ident):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            jobs.tidy(self._out, ident)
        self._running.clear()


def _is_of(process: psutil.Process, ident: str) -> bool:
    try:
        return process.environ().get("SUBMITIT_LOCAL_JOB_ID") == ident and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def _tell(controller: int) -> None:
    """Let a job end: the child of submitit's controller, or the controller where it has none yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(controller).children()
        for child in children:
            child.send_signal(signal.SIGINT)
        if not children:
            psutil.Process(controller).kill()


def _kill(controller: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(controller)
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


