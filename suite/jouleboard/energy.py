"""The measured part of a run: idle, canary, energy trials, a live eval, prefill and decode probes, canary and idle again.

A session of trials is begun once and written after every window (`sessionfile`), so an interrupted one goes on where it
stopped; only the window that was open is measured again. Windows are only compared with windows of the same session.

A session has turns. Where memory holds all variants there is one turn with all of them; else one for each variant, in which
it is in memory beside the base: built, measured and probed from its first trial to its last, and ended.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Literal

import msgspec

from jouleboard import building, gathering, plan, probing, protocol, quality, sessionfile, store, trials
from jouleboard.building import device
from jouleboard.errors import MeterError, UnitError
from jouleboard.meters import kernel
from jouleboard.meters.interface import OpenWindow
from jouleboard.recipes import Recipe
from jouleboard.records import ReplayRow
from jouleboard.runfolder import Progressed
from jouleboard.session import Session, utc_now
from jouleboard.sessionfile import SessionState
from jouleboard.units import Worker
from jouleboard.windows import Canary, Idle

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
    base = session.family.base
    if session.residency == "pair" and base in session.alive and base.id not in session.workers:
        with session.display.phase("build", f"{base.id}, to be measured beside each variant in turn"):
            building.build_all(session, [base])
        quality.again(session, [base])
    if base not in session.alive:
        session.display.say("energy: left out, since the base failed and no variant can be compared with it; see its log, "
                            "mend the cause, and run the same command again")
        return False
    building.start_canary(session)
    rows = _replay_batches(session)
    try:
        return _measure(session, rows)
    except gathering.OtherWeightsError as error:
        session.display.say(f"  what was measured before is measured again, since {error}")
        _anew(session)
        return _measure(session, rows)


def _measure(session: Session, rows: list[list[ReplayRow]]) -> bool:
    _begin(session, store.digest(rows))
    order = session.begun.order
    tokens = sum(len(row.tokens) for batch in rows for row in batch)
    cells = ", ".join(dict.fromkeys(trials.cell_name(slot) for slot in order))
    session.display.say(f"{len(order)} trials ({cells}; replay is {tokens} tokens), base first and last"
                        + ("" if session.residency == "all" else ", each variant in a turn of its own beside the base"))
    for turn in gathering.of(session):
        if gathering.gather(session, turn) and not _turn(session, turn, rows):
            session.display.say("energy: ended, since the base failed and no variant can be compared with it")
            return False
    _canary(session, "after")
    idle(session, "after", context=True)
    return True


def _turn(session: Session, turn: gathering.Turn, rows: list[list[ReplayRow]]) -> bool:
    """Measure all that is open of a turn.

    Returns:
        False where the base failed.
    """
    names = ", ".join(recipe.id for recipe in turn.recipes)
    with session.display.phase("energy", names):
        for recipe in turn.recipes:
            if recipe.id not in session.warmed:
                session.guard(recipe.id, "energy", _forget_peak)
        idle(session, "before", context=True)
        _canary(session, "before")
        if not trials.run(session, rows, turn.places):
            return False
        for recipe in turn.recipes:
            session.require_time(trials.SAMPLE_EVERY_S, "the live eval")
            session.guard(recipe.id, "energy", partial(trials.live, session, recipe))
    with session.display.phase("probes", "prefill and decode"):
        for recipe in turn.recipes:
            session.guard(recipe.id, "probes", partial(probing.run, session, recipe))
    if not turn.last:
        for recipe in turn.recipes[1:]:
            session.release(recipe.id)
    return session.family.base in session.alive


def _anew(session: Session) -> None:
    """Put the session away and keep what does not depend on the variants: the machine without them."""
    session.idle = [one for one in session.begun.idle if (one.when, one.context) == ("before", False)]
    session.record = None
    session.folder.session.remove()
    for name in [name for name in session.workers if name != session.family.base.id]:
        session.release(name)


def finish(session: Session) -> None:
    """Measure the machine without the variants, and complete their entries.

    Ended anywhere in between, the session is still on disk and the entries that lack are not of the base's session: the next
    run completes them without measuring anything again.
    """
    session.end_workers()
    idle(session, "after", context=False)
    base = session.family.base
    # The base last: until then what was complete before still stands beside its own base.
    for recipe in [*(one for one in session.family.recipes if one != base), base]:
        if recipe in session.alive and not sessionfile.misses(session.begun, recipe.id):
            session.state[recipe.id].complete = True
            session.folder.write(session.state[recipe.id], session.begun)
        else:
            _leave_out(session, recipe)
    session.folder.session.remove()


def _leave_out(session: Session, recipe: Recipe) -> None:
    """Say why a variant is not completed, and that what it has of before has no base any more."""
    state = session.state[recipe.id]
    if recipe in session.alive:
        why = "failed in" if recipe.id in session.begun.failed else "came too late for"
        session.display.say(f"  {recipe.id} {why} this session of trials: run again to measure all variants anew")
    if state.earlier is not None and state.earlier.session != session.begun.name:
        state.complete = False
        session.display.say(f"  {recipe.id}: its earlier entry is of another session than the base's is now: they cannot be compared")


def _begin(session: Session, replay_sha256: str) -> None:
    """Go on with the session that is on disk, or begin a new one."""
    # In pairs a variant that is not built yet shows in its own turn whether it is the same.
    built = {recipe.id: gathering.identity(session, recipe) for recipe in session.alive if session.state[recipe.id].built is not None}
    there, now = session.folder.session.read(), utc_now()
    if there is not None:
        reason = sessionfile.why_not(there, configurations=built, replay_sha256=replay_sha256) or _in_vain(session, there)
        if reason is None:
            session.keep(msgspec.structs.replace(there, pieces=there.pieces + 1))
            _leave_failed(session)
            done = sum(len(held.trials) for held in there.held.values())
            session.display.say(f"  goes on with the session of {there.began_utc}: {done} of {len(there.order)} trials are there")
            return
        session.display.say(f"  what was measured before is measured again, since {reason}")
        # The machine without the variants is the same; now that they are there it cannot be measured.
        session.idle = session.idle or [one for one in there.idle if (one.when, one.context) == ("before", False)]
    energy = session.family.plan.energy
    ordered = plan.session_order if session.residency == "all" else plan.pair_order
    order = ordered(energy.cells, [recipe.id for recipe in session.alive], energy.trials, session.family.plan.seed)
    session.keep(SessionState(
        name=store.digest([now.isoformat(), session.family.model.id, msgspec.to_builtins(order)]),
        began_utc=now.isoformat(), boot=kernel.boot_digest(), device=device(session), residency=session.residency,
        configurations={recipe.id: gathering.identity(session, recipe) for recipe in session.alive},
        replay_sha256=replay_sha256, order=order, idle=tuple(session.idle), held={},
    ))


def _in_vain(session: Session, there: SessionState) -> str | None:
    """Say that a session was finished with and only not put away; None where it still has something to complete."""
    if all(_has_all_of(session.state[recipe.id], there) for recipe in session.alive) and not all(
            session.state[recipe.id].complete for recipe in session.alive):
        return "its entries are complete, and of the others none was part of it to its end"
    return None


def _has_all_of(state: Progressed, there: SessionState) -> bool:
    """Whether a session can do no more for a variant: its entry is complete, or it never will be."""
    own = state.complete and state.earlier is not None and state.earlier.session == there.name
    return own or sessionfile.misses(there, state.recipe.id)


def _leave_failed(session: Session) -> None:
    """Keep variants out of a session that goes on without them: those that failed in it, and those that have failed since."""
    alive, record = {recipe.id for recipe in session.alive}, session.begun
    failed = tuple(dict.fromkeys([*record.failed, *(name for name in record.configurations if name not in alive)]))
    session.keep(msgspec.structs.replace(record, failed=failed))
    for name in failed:
        session.release(name)


def forget_stale(session: Session) -> None:
    """Put a session away that this machine cannot go on with, before anything of a new one is measured."""
    there = session.folder.session.read()
    reason = None if there is None else sessionfile.stale(there, device=device(session), now=utc_now())
    if reason is not None:
        session.display.say(f"  what was measured before is measured again, since {reason}")
        session.folder.session.remove()


def _forget_peak(worker: Worker) -> None:
    """Let every variant's peak memory be that of the same work, whether it was scored in this process or not."""
    worker.ask(protocol.Memory(begin_anew=True), protocol.MemoryRead)


def idle(session: Session, when: When, *, context: bool) -> None:
    """Measure the machine doing nothing, once for each moment of a session.

    Args:
        session: the run; before its trials have begun the window is kept in it, afterwards in the session on disk.
        when: before or after the trials.
        context: whether variants are resident on the device: all of them, or the base and one.
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
