"""Share a long list of independent jobs out to the processors of this machine, by forking: nothing is copied to the children. POSIX only.

`shared(range(10_000), lambda mine: {job: rendered(job) for job in mine}, processes=2)` gives two dictionaries.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

LEAST = 400
"""Jobs below which a fork is not worth its while."""
Job = TypeVar("Job")
Result = TypeVar("Result")


def processes(jobs: int) -> int:
    """Return how many processes so many jobs are worth on this machine; 1 where there is no fork."""
    if jobs < LEAST or not hasattr(os, "fork"):
        return 1
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def shared(jobs: Sequence[Job], work: Callable[[Sequence[Job]], Result], *, processes: int) -> list[Result]:
    """Do the jobs in so many processes, each every so-manieth of them.

    Args:
        jobs: in any order.
        work: does a share and returns what can be pickled; it must be right to do a share again.
        processes: at least 1; 1: in this process.

    Returns:
        What each share gave. A share whose process ended without a result is done again here, so that its error is raised here.
    """
    shares = [jobs[number::processes] for number in range(processes)]
    if processes > 1:
        # What is there by now is not looked through again and again for garbage, and its memory stays shared with the children.
        gc.collect()
        gc.freeze()
    context = multiprocessing.get_context("fork") if processes > 1 else None
    started = []
    for share in shares[1:]:
        if context is not None:
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(theirs, work, share), daemon=True)
            child.start()
            theirs.close()
            started.append((ours, child, share))
    found = [work(shares[0])]
    for ours, child, share in started:
        try:
            result = ours.recv()
        except EOFError:
            result = work(share)
        child.join()
        found.append(result)
    gc.unfreeze()
    return found


def _child(pipe: Connection, work: Callable[[Sequence[Job]], Result], share: Sequence[Job]) -> None:
    pipe.send(work(share))
    pipe.close()
