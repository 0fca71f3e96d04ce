"""One family being run: its workers, and what each variant has so far."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        self.state[recipe.id].failure = Failure(phase=phase, reason=error.problem, log_tail=tail)
        self.display.say(f"  {recipe.id} failed in {phase}: {error}")
        self.folder.write(self.state[recipe.id], self.idle)
