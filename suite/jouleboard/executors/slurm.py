"""Families as an array of Slurm jobs, through submitit: handed in once, found again by whoever asks later."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

import msgspec
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from jouleboard import jobs, processes, slurmqueue
from jouleboard.errors import PlanError
from jouleboard.executors import site as sites
from jouleboard.executors.job import FamilyJob
from jouleboard.executors.site import Site
from jouleboard.jobs import Job, Submission
from jouleboard.slurmqueue import Ask, JobState, ask

SETTLED_S, ASK_EVERY_S = 60.0, 5.0
"""So long after it was started `sbatch` may still hand in what the queue does not show; asked again so often."""
_MUTE = "Slurm does not answer (squeue)"
_REFUSED = re.compile(r"invalid|not (available|permitted|authorized|allowed|supported)|unavailable|violates|denied|unrecognized|unknown|exceed|"
                      r"too (long|large|many)|more .* than|limit|disabled|required|must |cannot|can not", re.IGNORECASE)
_UNSURE = re.compile(r"timed? ?out|contact|socket|connect|transmitted|receive|communicat|temporar|respond|protocol|message", re.IGNORECASE)
"""Words of an answer that was lost on its way: the jobs may have been accepted."""


def submit(out: Path, families: Sequence[FamilyJob], *, site: Site, plan: str, exclusive: bool, threads: int) -> Submission:
    """Hand families in as one array.

    The list is written before and after: where this process is killed in between, the jobs' name still finds them.

    Args:
        out: the run folder.
        families: one job each.
        site: options of the site.
        plan: the plan's id, for the jobs' name.
        exclusive: let no other job on the node.
        threads: cores of a job where the site does not say.

    Raises:
        PlanError: Slurm refuses them, or it is not clear whether it took them; its own words are given.
    """
    name = f"jouleboard-{plan}-{secrets.token_hex(4)}"
    intent = Submission(executor="slurm", name=name, submitted_utc=processes.utc(), driver=processes.identity(),
                        jobs=tuple(Job(model=family.model, id=None) for family in families))
    before = jobs.read(out).submissions
    jobs.write(out, jobs.Submissions(submissions=(*before, intent)))
    _lay_out(out, intent, families, site)
    try:
        handed = _array(out, families, sites.parameters(site, name=name, exclusive=exclusive, threads=threads), site)
    except (FailedJobError, FailedSubmissionError) as error:
        # The other kind is about an answer without an id: something was accepted.
        refused = isinstance(error, FailedJobError) and _is_refusal(str(error))
        made = _after_all(out, intent, before, " ".join(str(error).split()), refused=refused)
    else:
        made = msgspec.structs.replace(intent, jobs=tuple(
            Job(model=family.model, id=job.job_id) for family, job in zip(families, handed, strict=True)))
        _forget(out, intent)
    jobs.write(out, jobs.Submissions(submissions=(*before, made)))
    return made


def _is_refusal(words: str) -> bool:
    """Tell whether `sbatch` says for certain that it did not take the jobs."""
    return _REFUSED.search(words) is not None and _UNSURE.search(words) is None


def _after_all(out: Path, intent: Submission, before: Sequence[Submission], words: str, *, refused: bool) -> Submission:
    """Return a submission that was accepted although `sbatch` tells of an error.

    Raises:
        PlanError: Slurm refused it, or shows nothing of it yet.
    """
    idents = slurmqueue.named(intent.name) if refused else _search(intent, ask, patient=True)
    if idents:
        return _adopted(out, intent, idents)
    if refused and idents is not None:
        _forget(out, intent)
        jobs.write(out, jobs.Submissions(submissions=tuple(before)))
    if refused:
        raise PlanError(f"Slurm refuses the jobs: {words}", field="--site",
                        remedy="mend the site file (partition, account, time_min, gres); `sinfo` lists the partitions")
    raise PlanError(f"it is not clear whether Slurm took the jobs: {words or 'sbatch ended without a word'}", file=out, field="--executor",
                    remedy="run the same command again when Slurm answers: it looks for these jobs first, and starts nothing twice")


def _spare(out: Path, name: str, place: int) -> Path:
    """Return the file of what a job is to do, under the submission's name: its id is not known yet."""
    return jobs.folder(out) / f"{name}_{place}.pkl"


def _lay_out(out: Path, intent: Submission, families: Sequence[FamilyJob], site: Site) -> None:
    """Keep what each job is to do where `adopt` finds it: submitit does so only once it has read the jobs' id."""
    jobs.folder(out).mkdir(parents=True, exist_ok=True)
    for place, family in enumerate(families):
        handed = submitit.helpers.DelayedSubmission(family)
        handed.set_timeout(site.time_min, site.restarts)
        handed.dump(_spare(out, intent.name, place))


def _forget(out: Path, intent: Submission) -> None:
    """Remove what was kept for jobs that nobody has to find any more."""
    for place in range(len(intent.jobs)):
        with contextlib.suppress(OSError):
            _spare(out, intent.name, place).unlink()
    # submitit names its own by a random number until it knows the id.
    for path in jobs.folder(out).glob("*.pkl"):
        if re.fullmatch(r"[0-9a-f]{32}\.pkl", path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def _adopted(out: Path, submission: Submission, idents: Sequence[str]) -> Submission:
    """Return a submission with its jobs' ids, each with what it is to do in its place."""
    by_index = {int(ident.partition("_")[2] or 0): ident for ident in idents}
    for place, ident in by_index.items():
        spare, wanted = _spare(out, submission.name, place), jobs.folder(out) / f"{ident}_submitted.pkl"
        if spare.is_file() and not wanted.is_file():
            spare.replace(wanted)
    _forget(out, submission)
    return msgspec.structs.replace(submission, jobs=tuple(
        Job(model=job.model, id=by_index[place]) for place, job in enumerate(submission.jobs) if place in by_index))


def _search(submission: Submission, ask: Ask, *, patient: bool) -> list[str] | None:
    """Look for a submission's jobs, and again as long as they may still come; None where Slurm does not answer.

    Args:
        submission: whose jobs.
        ask: runs a command.
        patient: ask again also where Slurm does not answer.
    """
    age_s = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(submission.submitted_utc)).total_seconds()
    # Another machine's clock may be ahead.
    left_s = SETTLED_S - max(0.0, age_s)
    while True:
        asked_s = monotonic()
        idents = slurmqueue.named(submission.name, ask=ask)
        if idents or left_s <= 0 or (idents is None and not patient):
            return idents
        sleep(ASK_EVERY_S)
        # A controller that is down lets each question wait for long.
        left_s -= max(ASK_EVERY_S, monotonic() - asked_s)


def _array(out: Path, families: Sequence[FamilyJob], parameters: dict[str, object], site: Site) -> list[submitit.Job[int]]:
    executor = submitit.SlurmExecutor(folder=jobs.folder(out), max_num_timeout=site.restarts)
    executor.update_parameters(**parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handed = executor.submit_array(list(families))
    for job in handed:
        # A job of that id from another cluster, or from before its counter was set back, left what is not this one's.
        with contextlib.suppress(OSError):
            (jobs.folder(out) / f"{job.job_id}.json").unlink()
    return handed


def adopt(out: Path, *, ask: Ask = ask) -> None:
    """Find the jobs of a submission whose command was killed before it could note their ids.

    Raises:
        PlanError: Slurm does not answer, or that command is still at it.
    """
    found = []
    for submission in jobs.read(out).submissions:
        if all(job.id is not None for job in submission.jobs):
            found.append(submission)
            continue
        if submission.driver.pid != os.getpid() and processes.alive(submission.driver):
            raise PlanError(f"{submission.driver.words} hands in jobs for this folder at this moment", file=out, field="--out",
                            remedy="run the same command again in a minute")
        idents = _search(submission, ask, patient=False)
        if idents is None:
            raise mute(out)
        adopted = _adopted(out, submission, idents)
        if adopted.jobs:
            found.append(adopted)
    if tuple(found) != jobs.read(out).submissions:
        jobs.write(out, jobs.Submissions(submissions=tuple(found)))


def alive(out: Path, *, ask: Ask = ask) -> dict[str, JobState]:
    """Return the jobs of a folder that wait or run, by model.

    Raises:
        PlanError: Slurm does not answer.
    """
    mine = {model: job.id for model, (submission, job) in jobs.latest(out).items()
            if submission.executor == "slurm" and job.id is not None}
    if not mine:
        return {}
    found = slurmqueue.states(mine.values(), ask=ask)
    if found is None:
        raise mute(out)
    return {model: found[ident] for model, ident in mine.items() if found[ident].alive}


def mute(out: Path) -> PlanError:
    """Return the error of a batch system that does not answer."""
    return PlanError(_MUTE, file=out, field="--executor",
                     remedy="try again when it answers: without its answer, jobs could be started twice")
