"""One family being run: its workers, what each variant has so far, and how much time is left."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from jouleboard import paths
from jouleboard.errors import JouleboardError, OutOfTimeError
from jouleboard.meters.interface import Meter
from jouleboard.models import Dense
from jouleboard.plan import Family
from jouleboard.progress import Display
from jouleboard.recipes import Recipe
from jouleboard.records import Failure, Idle
from jouleboard.runfolder import Progressed, RunFolder
from jouleboard.sessionfile import Held, SessionState
from jouleboard.tasks import Prepared
from jouleboard.units import Worker

MARGIN_S = 10.0
"""Left at the end of a piece for closing workers and writing entries."""


@dataclass(slots=True, kw_only=True)
class Session:
    """One family being run: workers by recipe, and what each has so far."""

    family: Family
    folder: RunFolder
    display: Display
    meter: Meter
    dense: Dense
    prepared: dict[str, Prepared]
    state: dict[str, Progressed]
    workers: dict[str, Worker] = field(default_factory=dict)
    canary: Worker | None = None
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

    def guard(self, recipe: str, phase: str, work: Callable[[Worker], None]) -> None:
        """Do something with a variant's worker; an error fails the variant, and only it."""
        worker = self.workers.get(recipe)
        if worker is None:
            return
        try:
            work(worker)
        except OutOfTimeError:
            raise
        except JouleboardError as error:
            self.fail(next(one for one in self.family.recipes if one.id == recipe), phase, error)

    def _public(self, text: str) -> str:
        """Leave the folders of this machine and its user out of what an entry says."""
        folders = {str(self.folder.root.absolute()): "OUT", str(paths.cache_folder()): "CACHE", sys.prefix: "PREFIX",
                   str(paths.checkout() or Path.cwd()): "CHECKOUT", str(Path.cwd()): "CWD", str(Path.home()): "HOME"}
        for folder, name in sorted(folders.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(folder, name)
        return text

    def stop(self) -> None:
        """End all workers and the meter, now and on purpose."""
        self.stopping = True
        self.end_workers()
        self.meter.close()

    def end_workers(self) -> None:
        """End all workers."""
        for worker in [*self.workers.values(), *([self.canary] if self.canary else [])]:
            worker.close()

    def fail(self, recipe: Recipe, phase: str, error: JouleboardError) -> None:
        """Record that a variant failed, and go on with the others; a variant that is being stopped has not failed."""
        if self.stopping:
            return
        worker = self.workers.pop(recipe.id, None)
        tail = ""
        if worker is not None:
            worker.close()
            tail = worker.log_tail()
        state = self.state[recipe.id]
        state.failure = Failure(phase=phase, reason=self._public(error.problem), log_tail=self._public(tail))
        self.display.say(f"  {recipe.id} failed in {phase}: {error}")
        if state.complete:
            self.display.say(f"  {recipe.id}: its earlier, complete entry is kept")
        else:
            self.folder.write(state, self.record)


def utc_now() -> dt.datetime:
    """Return the present, in UTC."""
    return dt.datetime.now(dt.UTC)
