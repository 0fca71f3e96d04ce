"""One family being run: its workers, and what each variant has so far."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from jouleboard import paths
from jouleboard.errors import JouleboardError
from jouleboard.meters.interface import Meter
from jouleboard.models import Dense
from jouleboard.plan import Family
from jouleboard.progress import Display
from jouleboard.recipes import Recipe
from jouleboard.records import Failure, Window
from jouleboard.runfolder import Progressed, RunFolder
from jouleboard.tasks import Prepared
from jouleboard.units import Worker


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
    idle: list[Window] = field(default_factory=list)
    stopping: bool = False
    """Set when the run is interrupted: workers are then ended on purpose."""

    @property
    def alive(self) -> list[Recipe]:
        """Recipes that have not failed, the base first."""
        return [recipe for recipe in self.family.recipes if self.state[recipe.id].failure is None]

    def _public(self, text: str) -> str:
        """Leave the folders of this machine and its user out of what an entry says."""
        folders = {str(self.folder.root.absolute()): "OUT", str(paths.cache_folder()): "CACHE", sys.prefix: "PREFIX",
                   str(paths.checkout() or Path.cwd()): "CHECKOUT", str(Path.cwd()): "CWD", str(Path.home()): "HOME"}
        for folder, name in sorted(folders.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(folder, name)
        return text

    def stop(self) -> None:
        """End all workers, now and on purpose."""
        self.stopping = True
        for worker in list(self.workers.values()):
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
            self.folder.write(state, self.idle)
