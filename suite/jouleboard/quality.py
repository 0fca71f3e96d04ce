"""The quality pass: every item of every variant is scored once, by lm-eval's rules, and its batches are recorded for replay.

Each (variant, task) is a unit: it has a record of its own once it is finished (`unitfile`), and a journal of its batches until
then (`journal`). So a stop costs one batch, and where one task fails the others are still scored and kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

import msgspec

from jouleboard import plan, protocol, runfolder, scores, store, unitfile
from jouleboard.errors import FailureCode, JouleboardError, OutOfTimeError, UnitError
from jouleboard.meters.clock import ClockMeter
from jouleboard.plan import Chosen, torch_device
from jouleboard.recipes import Recipe
from jouleboard.records import TaskResult
from jouleboard.session import Session
from jouleboard.tasks import Prepared
from jouleboard.unitfile import Origin, WorkFiles
from jouleboard.units import Measured, Worker

ENDED: frozenset[FailureCode] = frozenset({"crash", "time-out"})
"""Kinds of failure after which there is no worker that could score the other tasks."""


def run(session: Session, chosen: list[Recipe]) -> None:
    """Score all items of every variant; several variants at once where cores allow, since no energy is measured here."""
    plan_ = session.family.plan
    cores = plan_.threads * plan.ranks(session.family.hardware)
    at_once = max(1, (os.cpu_count() or 1) // cores) if torch_device(session.family.hardware) == "cpu" else 1
    # The slowest first, so that the cores end together: on CPUs few bits a weight mean much unpacking.
    alive = [recipe for recipe in chosen if recipe in session.alive]
    open_ = sorted((recipe for recipe in alive if not session.state[recipe.id].quality_done),
                   key=lambda recipe: recipe.weight_bits or 16)
    for recipe in alive:
        if recipe not in open_:
            session.display.say(f"  {recipe.id}: scored before, re-used")
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        jobs = [pool.submit(session.guard, recipe.id, "quality", partial(_score, session, recipe)) for recipe in open_]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            # Ctrl-C, or this piece is over: the pool's threads wait for their workers, so these must end first.
            for job in jobs:
                job.cancel()
            session.stop()
            raise


def again(session: Session, chosen: Sequence[Recipe]) -> None:
    """Score variants that have come out as other weights than those that were scored; of the others nothing is done.

    Args:
        session: the run.
        chosen: variants that are in memory.
    """
    open_ = [recipe for recipe in chosen if recipe.id in session.workers and not session.state[recipe.id].quality_done]
    if open_:
        with session.display.phase("quality", f"{', '.join(recipe.id for recipe in open_)}, as it came out now"):
            run(session, open_)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """One task of one variant."""

    recipe: Recipe
    row: Chosen
    files: WorkFiles
    origin: Origin

    @property
    def name(self) -> str:
        return f"{self.recipe.id} {self.row.task.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    """The first unit of a variant that failed."""

    task: str
    error: UnitError


def _score(session: Session, recipe: Recipe, worker: Worker) -> None:
    state = session.state[recipe.id]
    units = _units(session, recipe)
    done = _finished(session, units)
    # Those of an earlier entry no longer: the items beside them are about to change.
    state.results = list(done.values())
    failed: _Failed | None = None
    for unit in units:
        task = unit.row.task.id
        if task in done:
            continue
        session.require_time(0.0, f"scoring {unit.name}")
        try:
            done[task] = _evaluate(session, unit, worker)
        except UnitError as error:
            failed = failed or _Failed(task=task, error=error)
            if error.kind in ENDED:
                break
            session.display.say(f"  {unit.name} failed: {error.problem}")
    state.results = [done[unit.row.task.id] for unit in units if unit.row.task.id in done]
    if failed is not None:
        session.fail(recipe, "quality", failed.error, task=failed.task)
        return
    state.quality_done = True
    state.scored_sha256 = units[0].origin.variant_sha256
    session.folder.write(state, None)
    session.display.say(f"  {recipe.id}: {runfolder.summary(state.results)}")


def _units(session: Session, recipe: Recipe) -> list[_Unit]:
    built = session.state[recipe.id].built
    if built is None:
        raise UnitError("the variant was not built", field=recipe.id, remedy="this is a bug in Jouleboard: please report it")
    configuration_sha256 = plan.configuration_sha256(session.family, recipe)
    return [
        _Unit(recipe=recipe, row=row, files=session.folder.work_files(recipe, row.task.id), origin=Origin(
            task=row.task.id, configuration_sha256=configuration_sha256, weights_sha256=session.dense.weights_sha256,
            variant_sha256=built.realised.weights_sha256, data_sha256=session.prepared[row.task.id].data_sha256))
        for row in session.family.tasks
    ]


def _finished(session: Session, units: Sequence[_Unit]) -> dict[str, TaskResult]:
    """Return the results of the units that an earlier try finished; a record that cannot be used is put aside."""
    done = {}
    for unit in units:
        found = unitfile.read(unit.files, unit.origin)
        if found.result is not None:
            unitfile.finish(unit.files)
            done[unit.row.task.id] = found.result
        elif found.wrong is not None:
            aside = unitfile.put_aside(unit.files)
            session.display.say(f"  {unit.name}: {found.wrong}; it is put aside as {aside.name} and the task is scored again")
    if done:
        session.display.say(f"  {units[0].recipe.id}: {len(done)} of {len(units)} tasks were scored before, re-used")
    return done


def _evaluate(session: Session, unit: _Unit, worker: Worker) -> TaskResult:
    """Let the worker score a task, and write the unit's record."""
    family, task = session.family, unit.row.task
    data = session.prepared[task.id]
    request = protocol.Evaluate(
        task=task, documents=str(data.path), data_sha256=data.data_sha256, unparsed=len(data.unparsed),
        limit=unit.row.limit, seed=family.plan.seed, items=str(unit.files.items), batches=str(unit.files.batches),
        withheld=scores.withheld_reason(family.model, unit.recipe.weight_bits),
        journal=str(unit.files.journal), origin_sha256=store.digest(unit.origin),
    )

    measured = _measured(session, unit, worker, request)
    window, resumed = measured.there(), measured.reply.resumed_batches
    if resumed:
        session.display.say(f"  {unit.name}: {resumed} batches were computed before, re-used")
    # What a stopped try spent is not known, so the time of the whole is not either.
    result = msgspec.structs.replace(measured.reply.result, duration_s=None if resumed else window.duration_s,
                                     cpu_s=None if resumed else window.cpu_s)
    unitfile.write(unit.files, unit.origin, result)
    return result


def _measured(session: Session, unit: _Unit, worker: Worker, request: protocol.Evaluate) -> Measured[protocol.Evaluated]:
    """Let the worker score; where this piece of the run is over first it is ended, and its journal keeps the batches.

    Raises:
        OutOfTimeError: this piece is over.
    """
    over: list[OutOfTimeError] = []

    def progress(done: int, of: int) -> None:
        session.display.advance(unit.name, done, of, "requests")
        if done >= of:
            # Only its record is to be written.
            return
        try:
            session.require_time(0.0, f"the rest of {unit.name}")
        except OutOfTimeError as error:
            over.append(error)
            raise

    try:
        return worker.measure(request, protocol.Evaluated, meter=ClockMeter(session.family.hardware), progress=progress)
    except JouleboardError:
        if not over:
            raise
        worker.close()
        # Of several ranks another may have told of an end that is only this one's consequence.
        raise over[0] from None


def label(row: Chosen, prepared: dict[str, Prepared]) -> str:
    """Name a task with how many of its items are used."""
    documents = prepared[row.task.id].documents
    return f"{row.task.id} ({min(row.limit or documents, documents)} of {documents})"
