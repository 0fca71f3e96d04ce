"""Energy trials: whose turn it is, the wait before a window, the window itself, and what is kept of it.

One trial, from the driver's side::

    worker warms up -> Ready -> the device is back in its temperature band -> a random wait -> window opens -> Go
    -> whole loops of the work -> reply -> window closes -> trace and trial are written
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import msgspec

from jouleboard import protocol, recipes, replays, silence, store
from jouleboard.declared import EnergyPlan, Hardware
from jouleboard.errors import MeterError, TooLargeError
from jouleboard.paths import data_folder
from jouleboard.plan import CALIBRATION, REPLAY, Slot
from jouleboard.recipes import Recipe
from jouleboard.records import ReplayRow
from jouleboard.session import Session
from jouleboard.traces import Sample
from jouleboard.units import Measured, Worker, at_once
from jouleboard.windows import Trial

SAMPLE_EVERY_S = 0.5
SETTLE_EVERY_S = 0.5
LOST_IN_A_ROW = 4
"""A fault that passes voids a window or two; more in a row are a sensor that is gone."""


class Sampler:
    """Samples a worker's CPU time while a window is open, for the trace."""

    def __init__(self, worker: Worker, window: str) -> None:
        """Name the window; `start` begins."""
        self._worker = worker
        self._window = window
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self.samples: list[Sample] = []

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> list[Sample]:
        """End and return the samples."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.samples

    def _loop(self) -> None:
        # A worker that died is reported by the trial itself.
        with contextlib.suppress(MeterError):
            self._sample()

    def _sample(self) -> None:
        started_s, first_cpu_s = time.perf_counter(), self._worker.clock.cpu_s()
        while True:
            elapsed_s, cpu_s = time.perf_counter() - started_s, self._worker.clock.cpu_s() - first_cpu_s
            self.samples.append(Sample(window=self._window, elapsed_s=elapsed_s, cpu_s=cpu_s))
            if self._stop.wait(SAMPLE_EVERY_S):
                return


def run(session: Session, batches: Sequence[Sequence[ReplayRow]], places: Sequence[int]) -> bool:
    """Run trials of the session that are not done yet; a variant that fails is left out of what follows.

    Args:
        session: the run.
        batches: what a loop of `replay` computes.
        places: of the trials in the session's order.

    Returns:
        False where the base failed: then there is nothing to compare with, and the rest is not measured.

    Raises:
        MeterError: the sensor does not come back; what was measured before is kept.
    """
    order = session.begun.order
    done = {trial.order for held in session.begun.held.values() for trial in held.trials}
    for index in places:
        slot = order[index]
        if session.family.base.id not in session.workers:
            return False
        if index not in done and slot.recipe in session.workers and (
                cell_name(slot) not in session.held(slot.recipe).skipped_cells):
            session.require_time(_estimate_s(session, slot), f"the next trial ({slot.recipe}, {cell_name(slot)})")
            session.guard(slot.recipe, "energy", partial(_trial, session, index, slot, batches))
            _require_sensor(session)
        session.display.advance("trials", index + 1, len(order), "trials")
    return True


def _require_sensor(session: Session) -> None:
    """Stop where the latest windows of all variants could not be read: the last of them are measured again next time."""
    latest = sorted((trial for held in session.begun.held.values() for trial in held.trials), key=lambda one: one.order)
    lost = latest[-LOST_IN_A_ROW:]
    if len(lost) < LOST_IN_A_ROW or any(one.window.void is None for one in lost):
        return
    orders = {one.order for one in lost}
    session.keep(msgspec.structs.replace(session.begun, held={
        name: msgspec.structs.replace(held, trials=tuple(one for one in held.trials if one.order not in orders))
        for name, held in session.begun.held.items()}))
    raise MeterError(f"the sensor gave nothing in {LOST_IN_A_ROW} windows in a row: {lost[-1].window.void}",
                     remedy="`jouleboard doctor` looks at it; mend it and run the same command again: it goes on before these")


def cell_name(slot: Slot) -> str:
    """Return a cell's short name: `replay`, or `chat batch 64`."""
    return slot.cell.workload if slot.cell.batch is None else f"{slot.cell.workload} batch {slot.cell.batch}"


def _estimate_s(session: Session, slot: Slot) -> float:
    """Say how long a trial will take with its warm-up: as long as the longest like it, else its window and waits."""
    energy = session.family.plan.energy
    waits_s = energy.jitter_s + (energy.warmup_s if slot.recipe in session.warmed else energy.first_warmup_s)
    order = session.begun.order
    alike = {recipe: [trial.window.duration_s for trial in held.trials if order[trial.order].cell == slot.cell]
             for recipe, held in session.begun.held.items()}
    seen = alike.get(slot.recipe) or [one for found in alike.values() for one in found]
    return waits_s + max([least_window_s(energy, session.family.hardware), *seen])


def _trial(
    session: Session, index: int, slot: Slot, batches: Sequence[Sequence[ReplayRow]], worker: Worker
) -> None:
    energy, window = session.family.plan.energy, f"trial-{index}"
    warmup_s = energy.warmup_s if slot.recipe in session.warmed else energy.first_warmup_s
    sampler = Sampler(worker, window)
    # Beside a device's own trace the processor's would only cost: its seconds are read at both ends.
    opened = sampler.start if session.family.hardware.method == "model" else at_once
    try:
        measured = worker.measure(
            _request(session, slot, warmup_s), protocol.Worked, meter=session.meter, name=window,
            before=partial(settle, session, energy), opened=opened, quiet_s=_quiet_s(session, slot, batches),
        )
    except TooLargeError as error:
        session.display.say(f"  {slot.recipe}: {cell_name(slot)} is left out: {error.problem}")
        held = session.held(slot.recipe)
        session.hold(slot.recipe, msgspec.structs.replace(held, skipped_cells=(*held.skipped_cells, cell_name(slot))))
        return
    finally:
        samples = sampler.stop()
    session.warmed.add(slot.recipe)
    session.folder.session.write_trace(slot.recipe, window, [*measured.samples, *samples])
    trial = _record(session, index, slot, measured, batches)
    peak = worker.ask(protocol.Memory(begin_anew=False), protocol.MemoryRead).peak_memory_bytes
    held = session.held(slot.recipe)
    session.hold(slot.recipe, msgspec.structs.replace(
        held, trials=(*held.trials, trial), peak_memory_bytes=max(peak, held.peak_memory_bytes or 0)))
    if trial.window.void is not None:
        session.display.say(f"  {slot.recipe}: {window} is void: {trial.window.void}")


def _quiet_s(session: Session, slot: Slot, batches: Sequence[Sequence[ReplayRow]]) -> float:
    """Say how long a whole loop may take: nothing is heard until it is done."""
    order, seen = session.begun.order, []
    for trial in session.held(slot.recipe).trials:
        if order[trial.order].cell == slot.cell:
            seen += [after - before for before, after in pairwise((0.0, *trial.loop_ends_s))]
    replayed = slot.cell.workload == REPLAY
    run = _as_run(session, slot, batches) if replayed else []
    loop = _replayed(session, slot, run) if replayed else _served(session, slot)
    steps = sum(map(replays.steps, run)) if replayed else session.family.workloads[slot.cell.workload].output_tokens
    return silence.loop_s(session, slot.recipe, computed_tokens=loop.computed_tokens, steps=steps, seen_s=seen)


def _request(session: Session, slot: Slot, warmup_s: float) -> protocol.Replay | protocol.Serve:
    window_s = least_window_s(session.family.plan.energy, session.family.hardware)
    if slot.cell.workload == REPLAY:
        return protocol.Replay(batches=str(session.folder.replay_file), warmup_s=warmup_s, window_s=window_s)
    workload = session.family.workloads[slot.cell.workload]
    return protocol.Serve(
        prompt_tokens=workload.prompt_tokens, output_tokens=workload.output_tokens, batch=slot.cell.batch or 1,
        text=str(data_folder("tasks") / CALIBRATION), warmup_s=warmup_s, window_s=window_s,
    )


def least_window_s(energy: EnergyPlan, hardware: Hardware) -> float:
    """Return how long a window must be at least: the plan's seconds, and its ticks of the device's counter."""
    tick = hardware.counter_tick_s
    return max(energy.window_s, 0.0 if tick is None else energy.ticks * tick.value)


def settle(session: Session, energy: EnergyPlan) -> None:
    """Wait until the device's temperature is in the declared band, then a random moment, so that no window locks in.

    The wait has an end: the gate on steadiness tells of a device that stayed outside.
    """
    band, deadline_s = session.family.hardware.start_temperature_c, time.monotonic() + energy.settle_s
    while band is not None and time.monotonic() < deadline_s:
        state = session.meter.state()
        if state is None or state.temperature_c is None or band.low <= state.temperature_c <= band.high:
            break
        time.sleep(SETTLE_EVERY_S)
    # A fixed seed would make the waits of all runs alike, and with them their place among the counter's ticks.
    time.sleep(random.uniform(0, energy.jitter_s))  # noqa: S311 - not for secrets


def _record(
    session: Session, index: int, slot: Slot, measured: Measured[protocol.Worked],
    batches: Sequence[Sequence[ReplayRow]],
) -> Trial:
    reply = measured.reply
    loop = _replayed(session, slot, _as_run(session, slot, batches)) if slot.cell.workload == REPLAY else _served(session, slot)
    return Trial(
        order=index, piece=session.begun.pieces - 1, workload=slot.cell.workload, batch=slot.cell.batch,
        loops=reply.loops, loop_ends_s=reply.loop_ends_s, window=measured.there(),
        output_sha256=reply.output_sha256, loops_changed=reply.loops_changed, first_token_s=reply.first_token_s,
        cached_tokens=reply.cached_tokens, requests=reply.loops * loop.requests,
        prompt_tokens=reply.loops * loop.prompt_tokens, output_tokens=reply.loops * loop.output_tokens,
        fed_tokens=reply.loops * loop.fed_tokens, computed_tokens=reply.loops * loop.computed_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loop:
    """What one loop computes; see `records.Trial`."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    fed_tokens: int
    computed_tokens: int


def _as_run(session: Session, slot: Slot, batches: Sequence[Sequence[ReplayRow]]) -> list[list[ReplayRow]]:
    """Return recorded batches as the variant's engine computes them."""
    built, recipe = session.state[slot.recipe].built, session.recipe(slot.recipe)
    run = replays.as_run(
        batches, batch_size=recipe.batch_size or session.family.plan.batch_size, own_batch_size=recipe.batch_size is not None,
        packs=built is not None and built.engine.name == "shared-prefix", refills=recipes.runtime(recipe).refills)
    return run if built is None or built.engine.beside is None else replays.apart(run)


def _replayed(session: Session, slot: Slot, batches: Sequence[Sequence[ReplayRow]]) -> _Loop:
    """Count one loop over batches as the variant's engine computes them."""
    built = session.state[slot.recipe].built
    engine = "transformers" if built is None else built.engine.name
    rows = [row for batch in batches for row in batch]
    return _Loop(
        requests=sum(row.requests for row in rows),
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        fed_tokens=sum(map(replays.fed_tokens, batches)),
        computed_tokens=sum(replays.computed_tokens(batch, engine) for batch in batches),
    )


def _served(session: Session, slot: Slot) -> _Loop:
    """Count one loop over a batch of requests; the last output token is never fed."""
    workload, batch = session.family.workloads[slot.cell.workload], slot.cell.batch or 1
    fed = batch * (workload.prompt_tokens + workload.output_tokens - 1)
    return _Loop(requests=batch, prompt_tokens=batch * workload.prompt_tokens,
                 output_tokens=batch * workload.output_tokens, fed_tokens=fed, computed_tokens=fed)


def live(session: Session, recipe: Recipe, worker: Worker) -> None:
    """Score a few items of the first task again, live and inside a window: what the replays leave out."""
    energy, first = session.family.plan.energy, session.family.tasks[0]
    held = session.held(recipe.id)
    if not energy.live_items or held.live is not None:
        return
    data, files = session.prepared[first.task.id], session.folder.work_files(recipe, "live")
    request = protocol.Evaluate(
        task=first.task, documents=str(data.path), data_sha256=data.data_sha256, unparsed=len(data.unparsed),
        limit=energy.live_items, seed=session.family.plan.seed, withheld=None, items=str(files.items),
        batches=str(files.batches), quiet=True,
    )
    measured = worker.measure(request, protocol.Evaluated, meter=session.meter, name="live",
                              before=partial(settle, session, energy), quiet_s=silence.live_s(session, recipe.id, energy.live_items))
    result = measured.reply.result
    session.folder.session.write_trace(recipe.id, "live", measured.samples)
    trial = Trial(
        order=len(session.begun.order) + [one.id for one in session.family.recipes].index(recipe.id),
        piece=session.begun.pieces - 1, workload="live", window=measured.there(), requests=result.items_used,
        prompt_tokens=result.prompt_tokens, output_tokens=result.output_tokens, fed_tokens=result.fed_tokens,
        computed_tokens=result.computed_tokens,
        output_sha256=store.lines_sha256(files.items.read_bytes().splitlines()),
    )
    session.hold(recipe.id, msgspec.structs.replace(held, live=trial))
