"""Build variants, each in a worker process of its own, and keep what each came out as."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from jouleboard import bills, densesteps, protocol, recipes, residency, silence
from jouleboard.errors import HardwareError, JouleboardError, RecipeError, UnitError
from jouleboard.paths import data_folder
from jouleboard.plan import CALIBRATION, REPLAY, Family, ranks, torch_device, wanted_probes
from jouleboard.recipes import Recipe
from jouleboard.session import Session
from jouleboard.units import Worker

WRITTEN_TOKENS = 64
"""Length of a prompt and an answer in text, where only their being there counts: compiled graphs hold for every length."""


def build_all(session: Session, chosen: Sequence[Recipe]) -> None:
    """Start a worker for each variant and build them one after another; one that fails becomes a failed entry."""
    start(session, chosen)
    for recipe in chosen:
        build(session, recipe)


def build_while_they_fit(session: Session, chosen: Sequence[Recipe]) -> bool:
    """Build variants as long as those that are still to come fit into what memory is left.

    Returns:
        Whether all were built, or failed on their own; False: memory does not hold all, and all workers were ended again.
    """
    start(session, chosen)
    for number, recipe in enumerate(chosen):
        if not _built_within_memory(session, recipe) or not residency.fits(session, chosen[number + 1:]):
            session.display.say("  what is left of the memory does not hold the rest: the base and one variant at a time are held, "
                                "which takes longer")
            for name in list(session.workers):
                session.release(name)
            return False
    return True


def _built_within_memory(session: Session, recipe: Recipe) -> bool:
    """Build a variant; False where memory ran out, which is no failure while it may still be built beside fewer others."""
    refused: list[JouleboardError] = []

    def attempt(worker: Worker) -> None:
        try:
            _build(session, recipe, worker)
        except JouleboardError as error:
            if error.kind != "out-of-memory":
                raise
            refused.append(error)
            session.display.say(f"  {recipe.id}: {error.problem}")

    session.require_time(0.0, f"building {recipe.id}")
    session.guard(recipe.id, "build", attempt)
    return not refused


def start(session: Session, chosen: Sequence[Recipe]) -> None:
    """Start a worker for each variant, side by side: what they import takes longest."""
    for recipe in chosen:
        # Workers die with the thread that starts them, so they are started here and not in a pool.
        session.workers[recipe.id] = session.workforce.start(recipe.id, session.folder.logs / f"{recipe.id}.log",
                                                             ranks=ranks(session.family.hardware))


def build(session: Session, recipe: Recipe) -> None:
    """Build a variant in the worker that was started for it."""
    session.require_time(0.0, f"building {recipe.id}")
    session.guard(recipe.id, "build", partial(_build, session, recipe))


def start_canary(session: Session) -> None:
    """Start the worker of the device's canary, where the plan has one."""
    if session.canary is None and session.family.plan.energy.canary_s:
        # One on each device: a device that has changed does not hide behind the others.
        session.canary = session.workforce.start("canary", session.folder.logs / "canary.log",
                                                 ranks=ranks(session.family.hardware))


def works(family: Family, recipe: Recipe) -> tuple[protocol.Work, ...]:
    """Return what a variant will be asked to decode and prefill, each once: serving cells, probes, and answers in text."""
    batch_size = recipe.batch_size or family.plan.batch_size
    cells = [(cell.batch or 1, family.workloads[cell.workload]) for cell in family.plan.energy.cells if cell.workload != REPLAY]
    written = [WRITTEN_TOKENS] if any(row.task.kind in {"generation", "dialogue"} for row in family.tasks) else []
    found = [
        *(protocol.Work(batch=batch, prompt_tokens=workload.prompt_tokens, output_tokens=workload.output_tokens, of_text=True)
          for batch, workload in cells),
        *(protocol.Work(batch=probe.batch, prompt_tokens=probe.prompt_tokens, output_tokens=probe.output_tokens)
          for probe in wanted_probes(family.plan)),
        # The last row of a batch is decoded alone.
        *(protocol.Work(batch=batch, prompt_tokens=tokens, output_tokens=tokens)
          for tokens in written for batch in sorted({1, batch_size})),
    ]
    return tuple(dict.fromkeys(found))


def device(session: Session) -> str | None:
    """Return the digest that the metered device gives of itself; None where there is none."""
    state = session.meter.state()
    return None if state is None else state.device


def _build(session: Session, recipe: Recipe, worker: Worker) -> None:
    family, state = session.family, session.state[recipe.id]
    why = recipes.missing(recipe, torch_device(family.hardware))
    if why is not None:
        raise RecipeError(why, file=f"recipes/{recipe.id}.yaml", field="steps", remedy="leave the recipe out on this machine, or bring what it needs: "
                          "`jouleboard recipes list` says what that is")
    begun = densesteps.begin(session, recipe)
    residency.require_fit(session, recipe)
    rest = msgspec.structs.replace(recipe, steps=recipe.steps[len(begun.steps):])
    request = protocol.Build(
        model=family.model, folder=str(begun.folder), recipe=msgspec.to_builtins(rest), prepared=begun.steps, claims=begun.claims,
        checkpoint=session.checkpoint(recipe),
        calibration=str(data_folder("tasks") / CALIBRATION), threads=family.plan.threads,
        batch_size=recipe.batch_size or family.plan.batch_size, device=torch_device(family.hardware), engine=family.plan.engine,
        planned_batch_size=family.plan.batch_size if recipe.batch_size else None, work=works(family, recipe),
    )
    measured = worker.measure(request, protocol.Built, meter=session.meter, name="build",
                              quiet_s=silence.weights_s(begun.folder) + silence.compile_s(recipe))
    window = measured.there()
    steps = tuple(bills.with_energy(step, window, measured.samples, family.hardware) for step in measured.reply.steps)
    built = msgspec.structs.replace(measured.reply, steps=steps)
    metered = device(session)
    if built.device is not None and metered is not None and built.device != metered:
        raise HardwareError("the variant computes on another device than the one that is measured", field=recipe.id,
                            remedy="let CUDA_VISIBLE_DEVICES name the devices that the profile means, and no others before them")
    if state.built is not None and state.built.realised.weights_sha256 != built.realised.weights_sha256:
        # Its items were scored by the weights that it had then.
        raise UnitError("built twice, it came out as other weights", field=recipe.id,
                        remedy="make its recipe come out the same each time (a fixed seed), or run it with `--resident all`")
    if not state.is_scored_as(built):
        session.display.say(f"  {recipe.id} came out as other weights than those that were scored: it is scored again")
        state.results, state.quality_done, state.complete = [], False, False
    # What it took on the device; on a CPU the machine's own account is asked instead.
    session.resident_bytes[recipe.id] = worker.ask(protocol.Memory(begin_anew=False), protocol.MemoryRead).peak_memory_bytes
    state.built = built
    state.build_window = bills.without_trace(window)
    state.weights_sha256 = session.dense.weights_sha256
    session.display.say(f"  {recipe.id}: {built.realised.weight_bytes / 1e6:.0f} MB, "
                        f"{', '.join(built.realised.claims) or 'dense'}")
    if built.fallback is not None:
        session.display.say(f"  {recipe.id}: the reference engine computes it, since {built.fallback}")
