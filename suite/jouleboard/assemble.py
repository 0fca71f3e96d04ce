"""What a run has of a variant, and the report that is made of it. No files here.

Example: a variant that is built and scored, and not yet measured, becomes a report with the status `quality-only`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from jouleboard import bills, plan, protocol, store
from jouleboard.declared import Model
from jouleboard.plan import Family
from jouleboard.recipes import Recipe
from jouleboard.records import RULES_VERSION, Build, Engine, Environment, Failure, Report, TaskResult
from jouleboard.sessionfile import Held, SessionState
from jouleboard.windows import Window


@dataclass(slots=True, kw_only=True)
class Progressed:
    """What one variant has so far; grows while the run goes on."""

    recipe: Recipe
    results: list[TaskResult] = field(default_factory=list)
    quality_done: bool = False
    complete: bool = False
    built: protocol.Built | None = None
    build_window: Window | None = None
    weights_sha256: str | None = None
    failure: Failure | None = None
    scored_sha256: str | None = None
    """Of the built weights that gave the results; None: it was not scored, or in this process."""
    earlier: Report | None = None
    """A complete entry that is on disk: only another complete one takes its place."""

    def is_scored_as(self, built: protocol.Built) -> bool:
        """Whether the results, if there are any, are those of what was built."""
        return not self.quality_done or self.scored_sha256 in {None, built.realised.weights_sha256}


def report(family: Family, state: Progressed, session: SessionState | None, environment: Environment) -> Report:
    """Return a variant's report, without its gates, its files and its seal.

    Args:
        family: what is run.
        state: what the variant is and how it scored.
        session: the session of trials, if it has begun.
        environment: software and machine.
    """
    recipe = state.recipe
    held = Held() if session is None else session.held.get(recipe.id, Held())
    built = state.built
    model, hardware = family.model, family.hardware
    return Report(
        format="jouleboard-report", format_version=2, rules_version=RULES_VERSION, status=_status(state),
        created_utc=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), plan=family.plan.id,
        configuration_sha256=plan.configuration_sha256(family, recipe), provisional=family.plan.provisional,
        model=model.id, model_title=model.title, model_source=_public_source(model),
        model_licence=model.licence, model_weights_sha256=state.weights_sha256,
        prior_quantisation=None if model.prior_quantisation is None else model.prior_quantisation.scheme,
        recipe=recipe.id, recipe_title=recipe.title, recipe_sha256=store.digest(recipe),
        is_base=recipe.id == family.base.id, base=family.base.id,
        hardware=hardware.id, hardware_title=hardware.title, hardware_sha256=store.digest(hardware),
        method=hardware.method, boundary=hardware.boundary, power_model=hardware.power_model,
        profile=hardware, energy_plan=family.plan.energy,
        session=session.name if session and held.trials else None,
        replay_sha256=session.replay_sha256 if session and held.trials else None,
        environment=msgspec.structs.replace(
            environment, torch_cpu_capability=built.torch_cpu_capability if built else None),
        engine=built.engine if built else _unbuilt(family, recipe),
        build=_build(state), realised=built.realised if built else None,
        tasks=tuple(state.results), trials=held.trials, live=held.live, probes=held.probes,
        skipped_probes=held.skipped_probes, idle=() if session is None else session.idle,
        canary=() if session is None else session.canary, peak_memory_bytes=held.peak_memory_bytes, gates=(),
        failure=state.failure, files={}, digest="0" * 64,
    )


def _public_source(model: Model) -> dict[str, Any]:
    """Return where the weights came from, without a path of this machine."""
    source: dict[str, Any] = msgspec.to_builtins(model.source)
    source.pop("path", None)
    return source


def _status(state: Progressed) -> Literal["complete", "quality-only", "failed"]:
    if state.failure is not None:
        return "failed"
    return "complete" if state.complete else "quality-only"


def _unbuilt(family: Family, recipe: Recipe) -> Engine:
    """Name the engine of a variant that never came to be."""
    name = "transformers" if family.plan.engine == "reference" else family.plan.engine
    return Engine(name=name, version=plan.versions().get("transformers", "not installed"), device="none",
                  threads=family.plan.threads, batch_size=recipe.batch_size or family.plan.batch_size, dtype=recipe.dtype,
                  softmax_dtype="float32", attention="none",
                  planned_batch_size=family.plan.batch_size if recipe.batch_size else None)


def _build(state: Progressed) -> Build | None:
    if state.built is None or state.build_window is None:
        return None
    whole = bills.whole(state.build_window, state.built.steps)
    return Build(duration_s=whole.duration_s, cpu_s=whole.cpu_s, energy=whole.energy, steps=state.built.steps,
                 calibration="tasks/data/calibration.txt" if state.built.steps else None)
