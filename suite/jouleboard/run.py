"""Drive one family on one device: prepare, build, quality pass, energy trials, probes, reports.

The driver holds no model. Each variant lives in a worker process of its own; what a variant has finished is written at
once, so an interrupted run leaves usable entries and the next run with the same configuration goes on from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from jouleboard import (
    building,
    corpora,
    energy,
    failures,
    folders,
    meters,
    models,
    protocol,
    quality,
    residency,
    room,
    silence,
    storage,
    tasks,
)
from jouleboard.declared import PathSource
from jouleboard.errors import StorageError, UnitError
from jouleboard.models import Dense
from jouleboard.paths import cache_folder
from jouleboard.plan import Family
from jouleboard.progress import Display
from jouleboard.recipes import Recipe
from jouleboard.runfolder import Progressed, RunFolder
from jouleboard.session import Session, own_folders, require_room
from jouleboard.tasks import Prepared
from jouleboard.units import NO_LIMITS, Limits, Worker, Workforce


def run_family(
    family: Family, out: Path, display: Display, *, deadline_s: float | None = None, resident: residency.Choice = "auto",
    limits: Limits = NO_LIMITS,
) -> list[Progressed]:
    """Run one family and write one entry a variant.

    Args:
        family: what to run.
        out: the run folder; what it already holds of the same configuration is used again.
        display: shows progress.
        deadline_s: when this piece of the run must be over, by `time.monotonic`; None: never.
        resident: whether all variants are in memory at once, or the base and one at a time; `auto`: as memory allows.
        limits: what each worker process may take.

    Returns:
        What became of each variant, the base first.

    Raises:
        OutOfTimeError: the deadline came first; what is finished is kept and the next call goes on.
        StorageError: a folder cannot be written, or has no room; what is finished is kept and the next call goes on.
        JouleboardError: the run cannot start (source, hardware, another configuration in the folder).
    """
    folder = RunFolder(out, family)
    with storage.within(out, cache_folder()), folder.lock():
        found = folder.existing()
        if all(state.complete for state in found.values()) and _pinned(family):
            display.say(f"{family.model.id}: all {len(found)} variants are complete in {folder.root}: re-used, "
                        "nothing is measured again")
            # A run that was killed after its last entry left it.
            folder.session.remove()
            return list(found.values())
        room.require(family, out)
        try:
            _run(folder, family, display, found, deadline_s, resident, limits)
        finally:
            for recipe in family.recipes:
                # What could not be written whole; where this fails too, the next run does it.
                with contextlib.suppress(StorageError):
                    folders.recover(folder.entry(recipe))
        return list(found.values())


def _run(
    folder: RunFolder, family: Family, display: Display, found: dict[str, Progressed], deadline_s: float | None,
    resident: residency.Choice, limits: Limits,
) -> None:
    """Do all the work of a family; `found` grows with it."""
    with contextlib.closing(Workforce(threads=family.plan.threads, limits=limits)) as workforce, contextlib.closing(
        meters.choose(family.hardware)
    ) as meter:
        with display.phase("prepare", "weights and items, from their pinned sources or the cache"):
            prepared = {row.task.id: tasks.prepare(row.task, say=_indent(display)) for row in family.tasks}
            _report_unparsed(prepared, display)
            texts = {name: corpora.prepare(corpora.load(name), say=_indent(display)) for name in _trained_on(family)}
            dense = _dense_or_failed(folder, family, display, found, workforce)
        if dense is None:
            return
        folder.require_same_inputs(found, dense.weights_sha256,
                                   {name: data.data_sha256 for name, data in prepared.items()})
        session = Session(family=family, folder=folder, display=display, meter=meter, workforce=workforce, dense=dense,
                          prepared=prepared, corpora=texts, state=found, deadline_s=deadline_s)
        try:
            _phases(session, resident)
        finally:
            session.stop()


def _trained_on(family: Family) -> list[str]:
    """Return the corpora that steps of a family's recipes are trained on."""
    return sorted({step.trains_on for recipe in family.recipes for step in recipe.steps if step.trains_on is not None})


def _pinned(family: Family) -> bool:
    """Whether every input is named by its digest, so that nothing needs to be read to know that it is the same."""
    return not any(isinstance(source, PathSource) and source.sha256 is None
                   for source in (family.model.source, *(row.task.source for row in family.tasks)))


def _indent(display: Display) -> Callable[[str], None]:
    return lambda message: display.say(f"  {message}")


def _report_unparsed(prepared: dict[str, Prepared], display: Display) -> None:
    for name, data in prepared.items():
        if data.unparsed:
            display.say(f"  {name}: {len(data.unparsed)} of {len(data.unparsed) + data.documents} items do not parse "
                        f"and are left out: {'; '.join(data.unparsed[:5])}")


def _dense_or_failed(
    folder: RunFolder, family: Family, display: Display, found: dict[str, Progressed], workforce: Workforce
) -> Dense | None:
    """Return the dense weights; None where they were had and are of no use, by which every variant has failed.

    Raises:
        JouleboardError: they could not be had, or gave results before: whoever runs this mends that, and no variant has failed.
    """
    started: list[Worker] = []
    try:
        return _dense(family, folder, display, workforce, started)
    except UnitError as error:
        # Weights that gave results before were damaged meanwhile: whoever runs this brings them back.
        if not started or any(state.results for state in found.values()):
            raise
        # What the worker met in the weights, or what they did to it.
        require_room(folder, error)
        failure = failures.failure(error, phase=failures.PREPARE, task=None, log=started[0].log, log_tail=started[0].log_tail(),
                                   root=folder.root, own=own_folders(family, None))
        display.say(f"  no variant can be built: {failure.code}: {error}")
    for state in found.values():
        state.failure = failure
        folder.write(state, folder.session.read())
    return None


def _dense(family: Family, folder: RunFolder, display: Display, workforce: Workforce, started: list[Worker]) -> Dense:
    """Let a short-lived worker do what needs torch; the driver itself never imports it."""

    def helper() -> models.Helper:
        worker = workforce.start(failures.CONVERT, folder.logs / f"{failures.CONVERT}.log")
        started.append(worker)

        def convert(source: Path, target: Path) -> str:
            request = protocol.Convert(model=family.model, source=str(source), target=str(target))
            quiet_s = silence.weights_s(source, times=silence.DENSER)
            return worker.ask(request, protocol.Converted, quiet_s=quiet_s).weights_sha256

        def fingerprint(where: Path) -> str:
            request = protocol.Fingerprint(model=family.model, folder=str(where))
            return worker.ask(request, protocol.Converted, quiet_s=silence.weights_s(where)).weights_sha256

        return models.Helper(convert=convert, fingerprint=fingerprint)

    try:
        return models.prepare(family.model, helper, say=_indent(display))
    finally:
        for worker in started:
            worker.close()


def _phases(session: Session, resident: residency.Choice) -> None:
    family = session.family
    # A complete base is scored again where its recorded batches are gone.
    unfinished = [recipe for recipe in family.recipes
                  if not (session.state[recipe.id].complete and session.state[recipe.id].quality_done)]
    energy.forget_stale(session)
    if session.folder.session.read() is None:
        # On a session that goes on it was measured before.
        energy.idle(session, "before", context=False)
    free = resident == "auto" and session.folder.session.read() is None
    session.residency = residency.choose(session, resident)
    if not _scored(session, unfinished, free=free):
        session.residency = "pair"
        _scored(session, unfinished, free=False)
    if not any(recipe in session.alive and not session.state[recipe.id].complete for recipe in unfinished):
        return
    finished = [recipe for recipe in family.recipes if recipe not in unfinished]
    if finished and session.residency == "all":
        # Windows are only compared within one session, so what was measured before is measured again beside the rest.
        with session.display.phase("build", f"{len(finished)} variants that were complete, to measure them in the same session"):
            if not _built(session, finished, free=free):
                session.residency = "pair"
        quality.again(session, finished)
    if energy.measure(session):
        energy.finish(session)


def _scored(session: Session, unfinished: list[Recipe], *, free: bool) -> bool:
    """Build the unfinished variants and score them; in pairs one after another, each ended when it is scored.

    Args:
        session: the run.
        unfinished: the variants.
        free: whether it may still turn out that memory does not hold all of them.

    Returns:
        False where it turned out so: nothing was scored.
    """
    display = session.display
    tasks_ = ", ".join(quality.label(row, session.prepared) for row in session.family.tasks)
    if session.residency == "all":
        with display.phase("build", f"{len(unfinished)} variants of {session.family.model.id}, one process each"):
            building.start_canary(session)
            if not _built(session, unfinished, free=free):
                return False
        with display.phase("quality", tasks_):
            quality.run(session, unfinished)
        return True
    with display.phase("quality", f"{tasks_}; one variant in memory at a time"):
        for recipe in unfinished:
            if not session.state[recipe.id].quality_done:
                building.build_all(session, [recipe])
            quality.run(session, [recipe])
            session.release(recipe.id)
    return True


def _built(session: Session, chosen: list[Recipe], *, free: bool) -> bool:
    if free:
        return building.build_while_they_fit(session, chosen)
    building.build_all(session, chosen)
    return True
