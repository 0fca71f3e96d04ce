"""One family being run: its workers, what each variant has so far, and how much time is left."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from jouleboard import failures, sources, storage
from jouleboard.declared import PathSource
from jouleboard.errors import JouleboardError, OutOfTimeError, StorageError
from jouleboard.meters.interface import Meter
from jouleboard.models import Dense
from jouleboard.plan import Family
from jouleboard.progress import Display
from jouleboard.recipes import Recipe
from jouleboard.runfolder import Progressed, RunFolder
from jouleboard.sessionfile import Held, Residency, SessionState
from jouleboard.tasks import Prepared
from jouleboard.units import Worker, Workforce
from jouleboard.windows import Idle

LEAST_FREE_BYTES = 1_000_000
"""With less on the disk, a process that died is no news of its variant."""
MARGIN_S = 10.0
"""Left at the end of a piece for closing workers and writing entries."""


@dataclass(slots=True, kw_only=True)
class Session:
    """One family being run: workers by recipe, and what each has so far."""

    family: Family
    folder: RunFolder
    display: Display
    meter: Meter
    workforce: Workforce
    dense: Dense
    prepared: dict[str, Prepared]
    state: dict[str, Progressed]
    corpora: dict[str, Path] = field(default_factory=dict)
    """Files of the texts that steps are trained on, by id."""
    workers: dict[str, Worker] = field(default_factory=dict)
    canary: Worker | None = None
    residency: Residency = "all"
    """Whether all variants are in memory at once, or the base and one variant at a time."""
    resident_bytes: dict[str, int] = field(default_factory=dict)
    """Peak memory of each worker when its variant was built."""
    record: SessionState | None = None
    """The session of trials, once it has begun; also on disk."""
    idle: list[Idle] = field(default_factory=list)
    """Idle windows that were measured before the session of trials began."""
    warmed: set[str] = field(default_factory=set)
    """Recipes that had their first warm-up in this piece."""
    deadline_s: float | None = None
    """When this piece must be over, by `time.monotonic`; None: never."""
    stopping: bool = False
    """Set when the run is interrupted: workers are then ended on purpose."""

    @property
    def alive(self) -> list[Recipe]:
        """Recipes that have not failed, the base first."""
        return [recipe for recipe in self.family.recipes if self.state[recipe.id].failure is None]

    @property
    def begun(self) -> SessionState:
        """The session of trials.

        Raises:
            RuntimeError: it has not begun, which is a bug.
        """
        if self.record is None:
            raise RuntimeError("the session of trials has not begun")
        return self.record

    def keep(self, record: SessionState) -> None:
        """Hold the session's new state, here and on disk."""
        self.record = record
        self.folder.session.write(record)

    def held(self, recipe: str) -> Held:
        """Return what a variant has of the session."""
        return self.begun.held.get(recipe, Held())

    def hold(self, recipe: str, held: Held) -> None:
        """Keep what a variant has now, here and on disk."""
        self.keep(msgspec.structs.replace(self.begun, held={**self.begun.held, recipe: held}))

    def require_time(self, seconds: float, what: str) -> None:
        """Make sure that a step fits into what is left of this piece.

        Raises:
            OutOfTimeError: it does not.
        """
        if self.deadline_s is None:
            return
        left_s = self.deadline_s - time.monotonic() - MARGIN_S
        if seconds > left_s:
            raise OutOfTimeError(f"{max(left_s, 0):.0f} s are left of this piece and {what} needs about {seconds:.0f} s",
                                 remedy="run the same command again: it goes on from here")

    def guard(self, recipe: str, phase: str, work: Callable[[Worker], None], *, task: str | None = None) -> None:
        """Do something with a variant's worker; an error fails the variant, and only it.

        Args:
            recipe: of the variant; without a worker nothing is done.
            phase: what is being done, for the entry.
            work: given the worker.
            task: that is being scored, for the entry.

        Raises:
            OutOfTimeError: this piece of the run is over.
            StorageError: something cannot be written, which is no fault of the variant.
        """
        worker = self.workers.get(recipe)
        if worker is None:
            return
        try:
            work(worker)
        except (OutOfTimeError, StorageError):
            raise
        except JouleboardError as error:
            self.fail(self.recipe(recipe), phase, error, task=task)

    def checkpoint(self, recipe: Recipe) -> str | None:
        """Fetch the ready-made checkpoint that a recipe's first step names; None where it names none.

        Raises:
            SourceError: it cannot be had.
        """
        source = recipe.steps[0].needs_source if recipe.steps else None
        if source is None:
            return None
        return str(sources.checkpoint(source, used_by=f"recipe {recipe.id}", say=lambda message: self.display.say(f"  {message}")))

    def recipe(self, ident: str) -> Recipe:
        """Return the family's recipe of that id."""
        return next(one for one in self.family.recipes if one.id == ident)

    def stop(self) -> None:
        """End all workers and the meter, now and on purpose."""
        self.stopping = True
        self.end_workers()
        self.meter.close()

    def end_workers(self) -> None:
        """End all workers."""
        for worker in [*self.workers.values(), *([self.canary] if self.canary else [])]:
            worker.close()

    def release(self, recipe: str) -> None:
        """End a variant's worker, so that its memory is free; what it has done is kept."""
        worker = self.workers.pop(recipe, None)
        if worker is not None:
            worker.close()
        self.resident_bytes.pop(recipe, None)
        # A worker that is started for it later is cold.
        self.warmed.discard(recipe)

    def fail(self, recipe: Recipe, phase: str, error: JouleboardError, *, task: str | None = None) -> None:
        """Record that a variant failed, and go on with the others; a variant that is being stopped has not failed.

        Raises:
            StorageError: the run folder has no room: then that is what ended the process, which could not even write its log.
        """
        if self.stopping:
            return
        require_room(self.folder, error)
        worker = self.workers.pop(recipe.id, None)
        self.resident_bytes.pop(recipe.id, None)
        tail, log = "", None
        if worker is not None:
            worker.close()
            tail, log = worker.log_tail(), worker.log
        state = self.state[recipe.id]
        state.failure = failures.failure(error, phase=phase, task=task, log=log, log_tail=tail, root=self.folder.root,
                                         own=own_folders(self.family, self.dense))
        where = phase if task is None else f"{phase} ({task})"
        self.display.say(f"  {recipe.id} failed in {where}: {state.failure.code}: {error}")
        if recipe.id == self.family.base.id:
            self.display.say("  it is the base: the others are still scored, but without it no energy is measured")
        if self.record is not None and recipe != self.family.base and recipe.id not in self.record.failed:
            # The base is no such case: nothing is measured without it, so nothing is ahead of it when it is back.
            self.keep(msgspec.structs.replace(self.record, failed=(*self.record.failed, recipe.id)))
        if state.earlier is not None:
            self.display.say(f"  {recipe.id}: its earlier, complete entry is kept")
        self.folder.write(state, self.record or self._interrupted(recipe))

    def _interrupted(self, recipe: Recipe) -> SessionState | None:
        """Return the session on disk where a variant has trials in it that this process has not come to: its entry keeps them."""
        there = self.folder.session.read()
        return there if there is not None and recipe.id in there.held else None


def require_room(folder: RunFolder, error: JouleboardError) -> None:
    """Make sure that a process did not end for want of room on the disk, on which it could not even write its log.

    Raises:
        StorageError: the run folder has none.
    """
    if error.kind == "crash":
        storage.require(folder.root, need_bytes=LEAST_FREE_BYTES, what="the run folder")


def own_folders(family: Family, dense: Dense | None) -> dict[str, str]:
    """Return the folders that only the user knows; none may be named in an entry.

    Args:
        family: what is run.
        dense: its dense weights; None: they could not be had.
    """
    items = [row.task.source.path for row in family.tasks if isinstance(row.task.source, PathSource)]
    source = family.model.source
    return failures.private([source.path] if isinstance(source, PathSource) else [], items, dense=None if dense is None else dense.folder)


def utc_now() -> dt.datetime:
    """Return the present, in UTC."""
    return dt.datetime.now(dt.UTC)
