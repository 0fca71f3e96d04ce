"""The measured part of a run: idle, canary, energy trials, a live eval, prefill and decode probes, canary and idle again.

A session of trials is begun once and written after every window (`sessionfile`), so an interrupted one goes on where it
stopped; only the window that was open is measured again. Windows are only compared with windows of the same session.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Literal

import msgspec

from jouleboard import plan, probing, protocol, sessionfile, store, trials
from jouleboard.errors import MeterError, UnitError
from jouleboard.meters import kernel
from jouleboard.meters.interface import OpenWindow
from jouleboard.recipes import Recipe
from jouleboard.records import Canary, Idle, ReplayRow
from jouleboard.session import Session, utc_now
from jouleboard.sessionfile import SessionState
from jouleboard.units import Worker

When = Literal["before", "after"]
REST_S = 2.0
"""Waited before an idle window."""
SESSION = "session"
"""Names the traces that belong to no variant."""


def measure(session: Session) -> bool:
    """Run all trials and probes of a family; a variant that fails is left out of what follows.

    Returns:
        Whether there is a session to complete: False where the base failed.
    """
    if session.family.base.id not in [recipe.id for recipe in session.alive]:
        session.display.say("energy: left out, since the base failed and no variant can be compared with it; see its log, "
                            "mend the cause, and run the same command again")
        return False
    rows = _replay_batches(session)
    _begin(session, store.digest(rows))
    order = session.begun.order
    tokens = sum(len(row.tokens) for batch in rows for row in batch)
    cells = ", ".join(dict.fromkeys(trials.cell_name(slot) for slot in order))
    with session.display.phase("energy", f"{len(order)} trials ({cells}; replay is {tokens} tokens), base first and last"):
        for recipe in session.alive:
            session.guard(recipe.id, "energy", _forget_peak)
        idle(session, "before", context=True)
        _canary(session, "before")
        if not trials.run(session, rows):
            session.display.say("energy: ended, since the base failed and no variant can be compared with it")
            return False
        for recipe in session.alive:
            session.require_time(trials.SAMPLE_EVERY_S, "the live eval")
            session.guard(recipe.id, "energy", partial(trials.live, session, recipe))
    with session.display.phase("probes", "prefill and decode"):
        for recipe in session.alive:
            session.guard(recipe.id, "probes", partial(probing.run, session, recipe))
        _canary(session, "after")
        idle(session, "after", context=True)
    return True


def finish(session: Session) -> None:
    """Measure the machine without the variants, and complete their entries."""
    session.end_workers()
    idle(session, "after", context=False)
    for recipe in session.alive:
        if recipe.id not in session.begun.configurations:
            session.display.say(f"  {recipe.id} came too late for this session of trials: run again to measure all variants anew")
            continue
        session.state[recipe.id].complete = True
        session.folder.write(session.state[recipe.id], session.begun)
    session.folder.session.remove()


def _begin(session: Session, replay_sha256: str) -> None:
    """Go on with the session that is on disk, or begin a new one."""
    configurations = {recipe.id: _identity(session, recipe) for recipe in session.alive}
    there, now = session.folder.session.read(), utc_now()
    if there is not None:
        reason = sessionfile.why_not(there, configurations=configurations, replay_sha256=replay_sha256)
        if reason is None:
            session.keep(msgspec.structs.replace(there, pieces=there.pieces + 1))
            done = sum(len(held.trials) for held in there.held.values())
            session.display.say(f"  goes on with the session of {there.began_utc}: {done} of {len(there.order)} trials are there")
            return
        session.display.say(f"  what was measured before is measured again, since {reason}")
    energy = session.family.plan.energy
    order = plan.session_order(energy.cells, list(configurations), energy.trials, session.family.plan.seed)
    session.keep(SessionState(
        name=store.digest([now.isoformat(), session.family.model.id, msgspec.to_builtins(order)]),
        began_utc=now.isoformat(), boot=kernel.boot_digest(), device=device(session), configurations=configurations,
        replay_sha256=replay_sha256, order=order, idle=tuple(session.idle), held={},
    ))


def device(session: Session) -> str | None:
    """Return the digest that the metered device gives of itself; None where there is none."""
    state = session.meter.state()
    return None if state is None else state.device


def forget_stale(session: Session) -> None:
    """Put a session away that this machine cannot go on with, before anything of a new one is measured."""
    there = session.folder.session.read()
    reason = None if there is None else sessionfile.stale(there, device=device(session), now=utc_now())
    if reason is not None:
        session.display.say(f"  what was measured before is measured again, since {reason}")
        session.folder.session.remove()


def _identity(session: Session, recipe: Recipe) -> str:
    """Return the digest of what a variant is: built anew for each piece, it must come out as the same weights."""
    built = session.state[recipe.id].built
    weights = None if built is None else built.realised.weights_sha256
    return store.digest([plan.configuration_sha256(session.family, recipe), weights])


def _forget_peak(worker: Worker) -> None:
    """Let every variant's peak memory be that of the same work, whether it was scored in this process or not."""
    worker.ask(protocol.Memory(begin_anew=True), protocol.MemoryRead)


def idle(session: Session, when: When, *, context: bool) -> None:
    """Measure the machine doing nothing, once for each moment of a session.

    Args:
        session: the run; before its trials have begun the window is kept in it, afterwards in the session on disk.
        when: before or after the trials.
        context: whether the variants are resident on the device.
    """
    seconds = session.family.plan.energy.idle_s
    held = session.idle if session.record is None else session.record.idle
    if seconds <= 0 or any((one.when, one.context) == (when, context) for one in held):
        return
    session.require_time(seconds, "the idle window")
    name = f"idle-{when}-{'with' if context else 'without'}"
    # What was computed just now is still in the last tick of the counter, and in the sensors' averages.
    time.sleep(min(REST_S, seconds))
    opened = OpenWindow(session.meter, None, name)
    time.sleep(seconds)
    window, samples = opened.close()
    session.folder.session.write_trace(SESSION, name, samples)
    found = Idle(when=when, context=context, window=window)
    if session.record is None:
        session.idle.append(found)
    else:
        session.keep(msgspec.structs.replace(session.record, idle=(*session.record.idle, found)))


def _canary(session: Session, when: When) -> None:
    """Let the small fixed model run: what changes in it is the device's doing, not a variant's."""
    energy, record = session.family.plan.energy, session.begun
    if not energy.canary_s or session.canary is None or any(one.when == when for one in record.canary):
        return
    session.require_time(energy.canary_s + energy.warmup_s, "the canary")
    name = f"canary-{when}"
    request = protocol.Canary(device=plan.torch_device(session.family.hardware), threads=session.family.plan.threads,
                              warmup_s=energy.warmup_s, window_s=energy.canary_s)
    try:
        measured = session.canary.measure(request, protocol.CanaryDone, meter=session.meter, name=name,
                                          before=partial(trials.settle, session, energy))
    except (MeterError, UnitError) as error:
        session.display.say(f"  the canary failed, its drift stays unknown: {error}")
        return
    session.folder.session.write_trace(SESSION, name, measured.samples)
    reply = measured.reply
    found = Canary(when=when, model=reply.model, tokens=reply.tokens, output_sha256=reply.output_sha256,
                   window=measured.there())
    session.keep(msgspec.structs.replace(session.begun, canary=(*session.begun.canary, found)))


def _replay_batches(session: Session) -> list[list[ReplayRow]]:
    """Choose, once for all variants, which of the base's recorded batches are computed again."""
    family = session.family
    recorded: list[list[ReplayRow]] = []
    for row in family.tasks:
        data = session.folder.work_files(family.base, row.task.id).batches.read_bytes()
        recorded += msgspec.json.decode(data, type=list[list[ReplayRow]])
    chosen = plan.choose_batches(recorded, family.plan.energy.replay_tokens, family.plan.seed)
    store.write_atomic(session.folder.replay_file, msgspec.json.encode(chosen))
    return chosen
