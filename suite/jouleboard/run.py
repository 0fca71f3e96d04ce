"""Drive one family on one device: prepare, build, quality pass, energy trials, probes, reports.

The driver holds no model. Each variant lives in a worker process of its own; what a variant has finished is written at
once, so an interrupted run leaves usable entries and the next run with the same configuration goes on from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from jouleboard import energy, meters, models, protocol, runfolder, scores, tasks
from jouleboard.declared import Hardware, PathSource
from jouleboard.errors import HardwareError, JouleboardError, UnitError
from jouleboard.models import Dense
from jouleboard.paths import data_folder
from jouleboard.plan import CALIBRATION, Chosen, Family
from jouleboard.progress import Display
from jouleboard.recipes import Recipe
from jouleboard.runfolder import Progressed, RunFolder
from jouleboard.session import Session
from jouleboard.tasks import Prepared
from jouleboard.units import Worker


def run_family(family: Family, out: Path, display: Display) -> list[Progressed]:
    """Run one family and write one entry a variant.

    Args:
        family: what to run.
        out: the run folder; what it already holds of the same configuration is used again.
        display: shows progress.

    Returns:
        What became of each variant, the base first.

    Raises:
        JouleboardError: the run cannot start (source, hardware, another configuration in the folder).
    """
    folder = RunFolder(out, family)
    with folder.lock():
        found = folder.existing()
        if all(state.complete for state in found.values()) and _pinned(family):
            display.say(f"{family.model.id}: all {len(found)} variants are complete in {folder.root}: re-used, "
                        "nothing is measured again")
            return list(found.values())
        meter = meters.choose(family.hardware)
        with display.phase("prepare", "weights and items, from their pinned sources or the cache"):
            prepared = {row.task.id: tasks.prepare(row.task, say=_indent(display)) for row in family.tasks}
            _report_unparsed(prepared, display)
            dense = _dense(family, folder, display)
        folder.require_same_inputs(found, dense.weights_sha256,
                                   {name: data.data_sha256 for name, data in prepared.items()})
        session = Session(family=family, folder=folder, display=display, meter=meter, dense=dense, prepared=prepared,
                          state=found)
        try:
            _phases(session)
        finally:
            session.stop()
        return list(session.state.values())


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


def _dense(family: Family, folder: RunFolder, display: Display) -> Dense:
    """Let a short-lived worker do what needs torch; the driver itself never imports it."""
    started: list[Worker] = []

    def helper() -> models.Helper:
        worker = Worker("convert", folder.logs / "convert.log", threads=family.plan.threads)
        started.append(worker)

        def convert(source: Path, target: Path) -> str:
            request = protocol.Convert(model=family.model, source=str(source), target=str(target))
            return worker.ask(request, protocol.Converted).weights_sha256

        def fingerprint(where: Path) -> str:
            request = protocol.Fingerprint(model=family.model, folder=str(where))
            return worker.ask(request, protocol.Converted).weights_sha256

        return models.Helper(convert=convert, fingerprint=fingerprint)

    try:
        return models.prepare(family.model, helper, say=_indent(display))
    finally:
        for worker in started:
            worker.close()


def _phases(session: Session) -> None:
    display, family = session.display, session.family
    unfinished = [recipe for recipe in family.recipes if not session.state[recipe.id].complete]
    with display.phase("build", f"{len(unfinished)} variants of {family.model.id}, one process each"):
        _build_all(session, unfinished)
    with display.phase("quality", ", ".join(_label(row, session.prepared) for row in family.tasks)):
        _quality_pass(session, unfinished)
    if not any(recipe in session.alive for recipe in unfinished):
        return
    finished = [recipe for recipe in family.recipes if recipe not in unfinished]
    if finished:
        # Windows are only compared within one session, so what was measured before is measured again beside the rest.
        with display.phase("build", f"{len(finished)} variants that were complete, to measure them in the same session"):
            _build_all(session, finished)
    energy.measure(session)


def _build_all(session: Session, chosen: list[Recipe]) -> None:
    for recipe in chosen:
        log = session.folder.logs / f"{recipe.id}.log"
        # Workers die with the thread that starts them, so they are started here and not in a pool.
        session.workers[recipe.id] = Worker(recipe.id, log, threads=session.family.plan.threads)
    for recipe in chosen:
        _guarded(session, recipe, "build", partial(_build, session, recipe))


def _label(row: Chosen, prepared: dict[str, Prepared]) -> str:
    documents = prepared[row.task.id].documents
    return f"{row.task.id} ({min(row.limit or documents, documents)} of {documents})"


def _guarded(session: Session, recipe: Recipe, phase: str, work: Callable[[], None]) -> None:
    try:
        work()
    except JouleboardError as error:
        session.fail(recipe, phase, error)


def _build(session: Session, recipe: Recipe) -> None:
    family = session.family
    request = protocol.Build(
        model=family.model, folder=str(session.dense.folder), recipe=msgspec.to_builtins(recipe),
        calibration=str(data_folder("tasks") / CALIBRATION), threads=family.plan.threads,
        batch_size=family.plan.batch_size, device=device(family.hardware),
    )
    built, window = session.workers[recipe.id].measure(request, protocol.Built, meter=session.meter)
    session.state[recipe.id].built = built
    session.state[recipe.id].build_window = window
    session.state[recipe.id].weights_sha256 = session.dense.weights_sha256
    session.display.say(f"  {recipe.id}: {built.realised.weight_bytes / 1e6:.0f} MB, "
                        f"{', '.join(built.realised.claims) or 'dense'}")


def device(hardware: Hardware) -> str:
    """Return torch's name for the profile's device.

    Raises:
        HardwareError: the profile has several devices, and a model runs on one here.
    """
    if hardware.count > 1:
        raise HardwareError(f"declares {hardware.count} devices, a variant runs on one", file=f"hardware/{hardware.id}.yaml",
                            field="count", remedy="declare a profile of one device")
    return "cuda:0" if hardware.method.startswith("gpu") else "cpu"


def _quality_pass(session: Session, chosen: list[Recipe]) -> None:
    """Score all items of every variant; several variants at once where cores allow, since no energy is measured here."""
    plan_ = session.family.plan
    at_once = max(1, (os.cpu_count() or 1) // plan_.threads) if device(session.family.hardware) == "cpu" else 1
    # The slowest first, so that the cores end together: on CPUs few bits a weight mean much unpacking.
    alive = [recipe for recipe in chosen if recipe in session.alive]
    open_ = sorted((recipe for recipe in alive if not session.state[recipe.id].quality_done),
                   key=lambda recipe: recipe.weight_bits or 16)
    for recipe in alive:
        if recipe not in open_:
            session.display.say(f"  {recipe.id}: scored before, re-used")
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        jobs = [pool.submit(_guarded, session, recipe, "quality", partial(_score, session, recipe))
                for recipe in open_]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            # Ctrl-C: the pool's threads wait for their workers, so these must end first.
            for job in jobs:
                job.cancel()
            session.stop()
            raise


def _score(session: Session, recipe: Recipe) -> None:
    state, worker = session.state[recipe.id], session.workers[recipe.id]
    withheld = scores.withheld_reason(session.family.model, recipe.weight_bits)
    for row in session.family.tasks:
        data = session.prepared[row.task.id]
        files = session.folder.work_files(recipe, row.task.id)
        request = protocol.Evaluate(
            task=row.task, documents=str(data.path), data_sha256=data.data_sha256, unparsed=len(data.unparsed),
            limit=row.limit, seed=session.family.plan.seed, withheld=withheld, items=str(files.items),
            batches=str(files.batches),
        )

        def progress(done: int, of: int, name: str = row.task.id) -> None:
            session.display.advance(f"{recipe.id} {name}", done, of, "requests")

        reply, window = worker.measure(request, protocol.Evaluated, meter=session.meter, progress=progress)
        if window is None:
            raise UnitError("a task was scored without a window", field=recipe.id)
        state.results.append(
            msgspec.structs.replace(reply.result, duration_s=window.duration_s, cpu_s=window.cpu_s)
        )
    state.quality_done = True
    session.folder.write(state, session.idle)
    session.display.say(f"  {recipe.id}: {runfolder.summary(state.results)}")
