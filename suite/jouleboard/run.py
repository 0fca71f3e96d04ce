"""Drive one family on one device: prepare, build, quality pass, energy trials, probes, reports.

The driver holds no model. Each variant lives in a worker process of its own; what a variant has finished is written at
once, so an interrupted run leaves usable entries and the next run with the same configuration goes on from them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from jouleboard import energy, meters, models, protocol, runfolder, scores, tasks
from jouleboard.declared import PathSource
from jouleboard.errors import HardwareError
from jouleboard.meters.clock import ClockMeter
from jouleboard.models import Dense
from jouleboard.paths import data_folder
from jouleboard.plan import CALIBRATION, Chosen, Family, torch_device
from jouleboard.progress import Display
from jouleboard.recipes import Recipe
from jouleboard.runfolder import Progressed, RunFolder
from jouleboard.session import Session
from jouleboard.tasks import Prepared
from jouleboard.units import Worker


def run_family(family: Family, out: Path, display: Display, *, deadline_s: float | None = None) -> list[Progressed]:
    """Run one family and write one entry a variant.

    Args:
        family: what to run.
        out: the run folder; what it already holds of the same configuration is used again.
        display: shows progress.
        deadline_s: when this piece of the run must be over, by `time.monotonic`; None: never.

    Returns:
        What became of each variant, the base first.

    Raises:
        OutOfTimeError: the deadline came first; what is finished is kept and the next call goes on.
        JouleboardError: the run cannot start (source, hardware, another configuration in the folder).
    """
    folder = RunFolder(out, family)
    with folder.lock():
        found = folder.existing()
        if all(state.complete for state in found.values()) and _pinned(family):
            display.say(f"{family.model.id}: all {len(found)} variants are complete in {folder.root}: re-used, "
                        "nothing is measured again")
            return list(found.values())
        with contextlib.closing(meters.choose(family.hardware)) as meter:
            with display.phase("prepare", "weights and items, from their pinned sources or the cache"):
                prepared = {row.task.id: tasks.prepare(row.task, say=_indent(display)) for row in family.tasks}
                _report_unparsed(prepared, display)
                dense = _dense(family, folder, display)
            folder.require_same_inputs(found, dense.weights_sha256,
                                       {name: data.data_sha256 for name, data in prepared.items()})
            session = Session(family=family, folder=folder, display=display, meter=meter, dense=dense, prepared=prepared,
                              state=found, deadline_s=deadline_s)
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
    energy.forget_stale(session)
    if session.folder.session.read() is None:
        # On a session that goes on it was measured before.
        energy.idle(session, "before", context=False)
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
    if energy.measure(session):
        energy.finish(session)


def _build_all(session: Session, chosen: list[Recipe]) -> None:
    for recipe in chosen:
        log = session.folder.logs / f"{recipe.id}.log"
        # Workers die with the thread that starts them, so they are started here and not in a pool.
        session.workers[recipe.id] = Worker(recipe.id, log, threads=session.family.plan.threads)
    if session.canary is None and session.family.plan.energy.canary_s:
        session.canary = Worker("canary", session.folder.logs / "canary.log", threads=session.family.plan.threads)
    for recipe in chosen:
        session.require_time(0.0, f"building {recipe.id}")
        session.guard(recipe.id, "build", partial(_build, session, recipe))


def _label(row: Chosen, prepared: dict[str, Prepared]) -> str:
    documents = prepared[row.task.id].documents
    return f"{row.task.id} ({min(row.limit or documents, documents)} of {documents})"


def _build(session: Session, recipe: Recipe, worker: Worker) -> None:
    family = session.family
    request = protocol.Build(
        model=family.model, folder=str(session.dense.folder), recipe=msgspec.to_builtins(recipe),
        calibration=str(data_folder("tasks") / CALIBRATION), threads=family.plan.threads,
        batch_size=family.plan.batch_size, device=torch_device(family.hardware),
    )
    measured = worker.measure(request, protocol.Built, meter=session.meter, name="build")
    built, window = measured.reply, measured.there()
    metered = energy.device(session)
    if built.device is not None and metered is not None and built.device != metered:
        raise HardwareError("the variant computes on another device than the one that is measured", field=recipe.id,
                            remedy="let CUDA_VISIBLE_DEVICES name the one device that the profile means")
    session.state[recipe.id].built = built
    # Its trace is not kept, so nobody could recompute an integral of it.
    session.state[recipe.id].build_window = msgspec.structs.replace(
        window, energy=msgspec.structs.replace(window.energy, integral_j=None))
    session.state[recipe.id].weights_sha256 = session.dense.weights_sha256
    session.display.say(f"  {recipe.id}: {built.realised.weight_bytes / 1e6:.0f} MB, "
                        f"{', '.join(built.realised.claims) or 'dense'}")


def _quality_pass(session: Session, chosen: list[Recipe]) -> None:
    """Score all items of every variant; several variants at once where cores allow, since no energy is measured here."""
    plan_ = session.family.plan
    at_once = max(1, (os.cpu_count() or 1) // plan_.threads) if torch_device(session.family.hardware) == "cpu" else 1
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
            for job in jobs:
                job.result()
        except BaseException:
            # Ctrl-C: the pool's threads wait for their workers, so these must end first.
            for job in jobs:
                job.cancel()
            session.stop()
            raise


def _score(session: Session, recipe: Recipe, worker: Worker) -> None:
    session.require_time(0.0, f"scoring {recipe.id}")
    state, clock = session.state[recipe.id], ClockMeter(session.family.hardware)
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

        measured = worker.measure(request, protocol.Evaluated, meter=clock, progress=progress)
        window = measured.there()
        state.results.append(
            msgspec.structs.replace(measured.reply.result, duration_s=window.duration_s, cpu_s=window.cpu_s)
        )
    state.quality_done = True
    session.folder.write(state, None)
    session.display.say(f"  {recipe.id}: {runfolder.summary(state.results)}")
