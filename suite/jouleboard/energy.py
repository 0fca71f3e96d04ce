"""The measured part of a run: idle, energy trials with the base first and last, prefill and decode probes, idle again.

An interrupted session of trials is measured anew as a whole: windows are only compared with windows of the same session.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable
from functools import partial

import msgspec

from jouleboard import plan, protocol, store
from jouleboard.errors import JouleboardError, MeterError, UnitError
from jouleboard.meters.interface import OpenWindow
from jouleboard.recipes import Recipe
from jouleboard.records import Probe, ReplayRow, Trial, Window
from jouleboard.session import Session
from jouleboard.units import Worker

SAMPLE_EVERY_S = 0.5


class Sampler:
    """Samples a worker's CPU time while a window is open, for the trace."""

    def __init__(self, worker: Worker, order: int) -> None:
        """Name the trial; `start` begins."""
        self._worker = worker
        self._order = order
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self.rows: list[bytes] = []

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> list[bytes]:
        """End and return the rows `order,elapsed_s,cpu_s,power_w`; power is empty where there is no sensor."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.rows

    def _loop(self) -> None:
        # A worker that died is reported by the trial itself.
        with contextlib.suppress(MeterError):
            self._sample()

    def _sample(self) -> None:
        started_s, first_cpu_s = time.perf_counter(), self._worker.clock.cpu_s()
        while True:
            elapsed_s, cpu_s = time.perf_counter() - started_s, self._worker.clock.cpu_s() - first_cpu_s
            self.rows.append(f"{self._order},{elapsed_s:.3f},{cpu_s:.6f},".encode())
            if self._stop.wait(SAMPLE_EVERY_S):
                return


def measure(session: Session) -> None:
    """Run all trials and probes of a family and complete its entries; a variant that fails is left out of what follows."""
    if session.family.base.id not in [recipe.id for recipe in session.alive]:
        session.display.say("energy: left out, since the base failed and no variant can be compared with it; see its log, "
                            "mend the cause, and run the same command again")
        return
    rows = _replay_batches(session)
    session.idle.clear()
    names = [recipe.id for recipe in session.alive]
    order = plan.trial_order(names, session.family.plan.energy.trials, session.family.plan.seed)
    name = store.digest([dt.datetime.now(dt.UTC).isoformat(), session.family.model.id, order])
    for recipe in session.alive:
        state = session.state[recipe.id]
        state.trials, state.probes, state.trace = [], [], []
        state.session, state.replay_sha256 = name, store.digest(rows)
    tokens = sum(len(row.tokens) for batch in rows for row in batch)
    with session.display.phase("energy", f"{len(order)} trials of {tokens} tokens, base first and last"):
        for recipe in session.alive:
            _step(session, recipe.id, "energy", _forget_peak)
        _idle(session)
        for index, name in enumerate(order):
            _step(session, name, "energy", partial(_trial, session, name=name, order=index, batches=rows))
            session.display.advance("trials", index + 1, len(order), "trials")
    with session.display.phase("probes", "prefill and decode"):
        for recipe in session.alive:
            _step(session, recipe.id, "probes", partial(_probes, session, recipe=recipe))
        _idle(session)
    for recipe in session.alive:
        session.state[recipe.id].complete = True
        session.folder.write(session.state[recipe.id], session.idle)


def _forget_peak(worker: Worker) -> None:
    """Let every variant's peak memory be that of the same work, whether it was scored in this process or not."""
    worker.ask(protocol.Memory(begin_anew=True), protocol.MemoryRead)


def _step(session: Session, name: str, phase: str, work: Callable[[Worker], None]) -> None:
    recipe = next(recipe for recipe in session.family.recipes if recipe.id == name)
    worker = session.workers.get(name)
    if worker is None:
        return
    try:
        work(worker)
    except JouleboardError as error:
        session.fail(recipe, phase, error)


def _idle(session: Session) -> None:
    """Measure the machine doing nothing, with the variants resident."""
    seconds = session.family.plan.energy.idle_s
    if seconds > 0:
        window = OpenWindow(session.meter, None)
        time.sleep(seconds)
        session.idle.append(window.close())


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


def _trial(
    session: Session, worker: Worker, *, name: str, order: int, batches: list[list[ReplayRow]]
) -> None:
    sampler = Sampler(worker, order)
    request = protocol.Replay(batches=str(session.folder.replay_file),
                              warmup_tokens=session.family.plan.energy.warmup_tokens)
    try:
        reply, window = worker.measure(request, protocol.Replayed, meter=session.meter, opened=sampler.start)
    finally:
        trace = sampler.stop()
    state = session.state[name]
    state.trace += trace
    rows = [row for batch in batches for row in batch]
    state.trials.append(Trial(
        order=order, workload="replay", window=_there(window, name), requests=sum(row.requests for row in rows),
        prompt_tokens=sum(row.prompt_tokens for row in rows), output_tokens=sum(row.output_tokens for row in rows),
        fed_tokens=sum(len(row.tokens) for row in rows),
        computed_tokens=sum(len(batch) * max(len(row.tokens) for row in batch) for batch in batches),
        output_sha256=reply.output_sha256,
    ))


def _probes(session: Session, worker: Worker, *, recipe: Recipe) -> None:
    prefill, decode = session.family.plan.prefill, session.family.plan.decode
    wanted = [protocol.Probe(kind="prefill", batch=batch, prompt_tokens=prefill.tokens, output_tokens=0)
              for batch in prefill.batches]
    wanted += [protocol.Probe(kind="decode", batch=batch, prompt_tokens=decode.prompt_tokens,
                              output_tokens=decode.tokens) for batch in decode.batches]
    state = session.state[recipe.id]
    for probe in wanted:
        _, window = worker.measure(probe, protocol.Probed, meter=session.meter)
        state.probes.append(Probe(
            kind="decode" if probe.kind == "decode" else "prefill", batch=probe.batch,
            prompt_tokens=probe.prompt_tokens, output_tokens=probe.output_tokens, window=_there(window, recipe.id),
        ))
    state.peak_memory_bytes = worker.ask(protocol.Memory(begin_anew=False), protocol.MemoryRead).peak_memory_bytes
    rates = ", ".join(f"{probe.kind} batch {probe.batch}: {_tokens_per_s(probe):.0f} tokens/s" for probe in state.probes)
    session.display.say(f"  {recipe.id}: {rates}")


def _tokens_per_s(probe: Probe) -> float:
    tokens = probe.output_tokens if probe.kind == "decode" else probe.prompt_tokens
    return probe.batch * tokens / probe.window.duration_s


def _there(window: Window | None, name: str) -> Window:
    if window is None:
        raise UnitError("a window is missing", field=name)
    return window
