"""Prefill and decode probes of every variant: what the cost model is fitted to, and the latencies."""

from __future__ import annotations

import statistics
from functools import partial

import msgspec

from jouleboard import protocol, silence
from jouleboard.errors import TooLargeError
from jouleboard.plan import WantedProbe, wanted_probes
from jouleboard.recipes import Recipe
from jouleboard.session import Session
from jouleboard.trials import settle
from jouleboard.units import Worker
from jouleboard.windows import Probe, SkippedProbe

GUESS_S = 15.0
"""What a probe is thought to take besides its window, before one has been seen."""


def run(session: Session, recipe: Recipe, worker: Worker) -> None:
    """Run the probes of a variant that are not done yet, and read its peak memory."""
    for number, probe in enumerate(wanted_probes(session.family.plan)):
        held = session.held(recipe.id)
        if number < len(held.probes) + len(held.skipped_probes):
            continue
        session.require_time(session.family.plan.energy.probe_window_s + GUESS_S, f"the next probe of {recipe.id}")
        try:
            session.hold(recipe.id, msgspec.structs.replace(
                held, probes=(*held.probes, _probe(session, worker, recipe, number, probe))))
        except TooLargeError as error:
            skipped = SkippedProbe(kind=probe.kind, batch=probe.batch, prompt_tokens=probe.prompt_tokens,
                                   output_tokens=probe.output_tokens, reason=error.problem)
            session.hold(recipe.id, msgspec.structs.replace(held, skipped_probes=(*held.skipped_probes, skipped)))
            session.display.say(f"  {recipe.id}: {probe.kind} at batch {probe.batch} is left out: {error.problem}")
    held = session.held(recipe.id)
    peak = worker.ask(protocol.Memory(begin_anew=False), protocol.MemoryRead).peak_memory_bytes
    # Every probe begins a new peak of its own.
    peaks = [peak, *(one.peak_memory_bytes or 0 for one in held.probes), held.peak_memory_bytes or 0]
    session.hold(recipe.id, msgspec.structs.replace(held, peak_memory_bytes=max(peaks)))
    session.display.say(f"  {recipe.id}: {', '.join(map(_line, held.probes))}")


def _probe(session: Session, worker: Worker, recipe: Recipe, number: int, probe: WantedProbe) -> Probe:
    energy = session.family.plan.energy
    request = protocol.Probe(kind=probe.kind, batch=probe.batch, prompt_tokens=probe.prompt_tokens,
                             output_tokens=probe.output_tokens, warmup_s=energy.warmup_s, window_s=energy.probe_window_s)
    name = f"probe-{number}"
    measured = worker.measure(request, protocol.Probed, meter=session.meter, name=name,
                              before=partial(settle, session, energy), quiet_s=silence.loop_s(
                                  session, recipe.id, steps=probe.output_tokens,
                                  computed_tokens=probe.batch * (probe.prompt_tokens + probe.output_tokens)))
    session.folder.session.write_trace(recipe.id, name, measured.samples)
    reply = measured.reply
    return Probe(
        kind=probe.kind, batch=probe.batch, prompt_tokens=probe.prompt_tokens, output_tokens=probe.output_tokens,
        loops=reply.loops, window=measured.there(), first_token_s=reply.first_token_s, step_s=reply.step_s,
        peak_memory_bytes=reply.peak_memory_bytes,
    )


def _line(probe: Probe) -> str:
    tokens = probe.output_tokens if probe.kind == "decode" else probe.prompt_tokens
    rate = probe.loops * probe.batch * tokens / probe.window.duration_s
    step = f", {1000 * statistics.median(probe.step_s):.0f} ms a token" if probe.step_s else ""
    return f"{probe.kind} {tokens} x {probe.batch}: {rate:.0f} tokens/s{step}"
