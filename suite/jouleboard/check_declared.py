"""What a new entry says of its model, recipe, tasks, workloads and hardware, held against what is declared in this repository.

Only new entries are: what is declared may be mended later, and an entry keeps what was declared in its time.

Example: an entry whose embedded profile has `power_limit_w: 600` where `hardware/<id>.yaml` has 700 is named by the field `profile`.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from jouleboard import asking, catalogue, paths, store
from jouleboard.declared import Hardware, Model, Noun, Workload
from jouleboard.declared_tasks import Task
from jouleboard.errors import DataFileError
from jouleboard.problems import Make, Problem
from jouleboard.recipes import Recipe
from jouleboard.records import PUBLISHED_RULES, Report, TaskResult
from jouleboard.rows import REPLAY

CHANCE_ROUNDING = 0.005
_DECLARE = "propose the declaration in a pull request of its own, and the entry when that is merged"
_AGAIN = "measure again with what is declared"


def check_declared(report: Report, at: Make) -> Iterator[Problem]:
    """Hold a new entry against the declarations of this installation."""
    if report.rules_version != PUBLISHED_RULES:
        yield at("rules_version", "rules", f"{report.rules_version}, a new entry keeps {PUBLISHED_RULES}",
                 "publish it with `jouleboard submit` of this version")
    if report.submitter is None:
        yield at("submitter", "submitter", "missing", "name your account: `jouleboard submit RUN --submitter NAME`")
    yield from _hardware(report, at)
    yield from _model(report, at)
    yield from _recipe(report, at)
    for index, result in enumerate(report.tasks):
        yield from _task(result, f"tasks[{index}]", at)
    yield from _workloads(report, at)


def _read(kind: str, ident: str, noun: type[Noun]) -> Any:
    """Return a declaration, or None; `check_all` says what is wrong with one that cannot be read."""
    path: Path = paths.data_folder(kind) / f"{ident}.yaml"
    with contextlib.suppress(DataFileError):
        return catalogue.read_yaml(path, noun) if path.is_file() else None
    return None


def _hardware(report: Report, at: Make) -> Iterator[Problem]:
    declared: Hardware | None = _read("hardware", report.hardware, Hardware)
    if declared is None:
        yield at("hardware", "declared-hardware", f"{report.hardware} is no declared profile", _DECLARE)
    elif report.method == "wall":
        # Its profile is the declared one without what another sensor would see (see `wall`).
        if report.profile is None or (report.profile.id, report.profile.category) != (declared.id, declared.category):
            yield at("profile", "declared-hardware", "is not the declared one", _AGAIN)
    elif report.profile != declared:
        fields = [name for name in declared.__struct_fields__ if getattr(report.profile, name, None) != getattr(declared, name)]
        yield at("profile", "declared-hardware", f"differs from the declared one in {', '.join(fields[:5])}", _AGAIN)
    if declared is not None:
        strange = [name for name in report.environment.devices if re.search(declared.device_pattern, name) is None]
        if strange or (report.method not in {"model", "none"} and not report.environment.devices):
            yield at("environment.devices", "declared-hardware", f"{strange[:3]}, the profile is of {declared.device_pattern!r}", _AGAIN)
    if declared is not None and report.hardware_title != declared.title:
        yield at("hardware_title", "declared-hardware", f"{report.hardware_title[:60]!r}, declared is {declared.title!r}", _AGAIN)


def _model(report: Report, at: Make) -> Iterator[Problem]:
    declared: Model | None = _read("models", report.model, Model)
    if declared is None:
        # Named on the command line; its source, with the revision, is its identity.
        return
    found = {
        "model_source": (report.model_source, msgspec.to_builtins(declared.source)),
        "model_licence": (report.model_licence, declared.licence),
        "model_title": (report.model_title, declared.title),
    }
    if declared.weights_sha256 is not None and report.model_weights_sha256 is not None:
        found["model_weights_sha256"] = (report.model_weights_sha256, declared.weights_sha256)
    for field, (mine, theirs) in found.items():
        if mine != theirs:
            yield at(field, "declared-model", f"{str(mine)[:80]}, declared is {str(theirs)[:80]}", _AGAIN)
    prior = None if declared.prior_quantisation is None else declared.prior_quantisation.scheme
    if report.prior_quantisation != prior:
        yield at("prior_quantisation", "declared-model", f"{report.prior_quantisation!r}, declared is {prior!r}", _AGAIN)


def _recipe(report: Report, at: Make) -> Iterator[Problem]:
    for field, ident in (("recipe", report.recipe), ("base", report.base)):
        recipe: Recipe | None = _read("recipes", ident, Recipe)
        if recipe is None:
            yield at(field, "declared-recipe", f"{ident} is no declared recipe", _DECLARE)
        elif field == "recipe":
            yield from _steps(report, recipe, at)
        elif recipe.steps:
            yield at(field, "declared-recipe", f"{ident} has steps, and a base has none", _AGAIN)


def _steps(report: Report, recipe: Recipe, at: Make) -> Iterator[Problem]:
    if report.recipe_sha256 != store.digest(recipe):
        yield at("recipe_sha256", "declared-recipe", f"{report.recipe_sha256[:16]}…, the declared recipe has {store.digest(recipe)[:16]}…", _AGAIN)
    if report.recipe_title != recipe.title:
        yield at("recipe_title", "declared-recipe", f"{report.recipe_title[:60]!r}, declared is {recipe.title!r}", _AGAIN)
    if report.build is None:
        return
    declared: list[dict[str, Any]] = list(msgspec.to_builtins(recipe.steps))
    built = [{key: one for key, one in step.items() if key in wanted} for step, wanted in zip(report.build.steps, declared, strict=False)]
    if len(report.build.steps) != len(declared) or built != declared:
        yield at("build.steps", "declared-recipe", f"{[step.get('step') for step in report.build.steps]}, declared are "
                 f"{[step.get('step') for step in declared]} with their parameters", _AGAIN)


def _task(result: TaskResult, where: str, at: Make) -> Iterator[Problem]:
    declared: Task | None = _read("tasks", asking.declared_id(result.task), Task)
    if declared is None:
        yield at(f"{where}.task", "declared-task", f"{result.task} is no declared task", _DECLARE)
        return
    found: dict[str, tuple[object, object]] = {
        "kind": (result.kind, declared.kind), "lm_eval_task": (result.lm_eval_task, declared.lm_eval.task),
        "primary_metric": (result.primary_metric, declared.primary_metric), "scores": (set(result.scores), set(declared.metrics)),
    }
    pinned: tuple[tuple[str, object, object], ...] = (
        ("lm_eval_version", result.lm_eval_version, declared.lm_eval.version), ("data_sha256", result.data_sha256, declared.data_sha256),
        ("items_available", result.items_available, declared.items), ("items_unparsed", result.items_unparsed, declared.unparsed),
    )
    for field, mine, theirs in pinned:
        if theirs is not None:
            found[field] = (mine, theirs)
    for field, (mine, theirs) in found.items():
        if mine != theirs:
            yield at(f"{where}.{field}", "declared-task", f"{str(mine)[:80]}, declared is {str(theirs)[:80]}", _AGAIN)
    if declared.chance is not None and not math.isclose(result.chance.value, declared.chance, abs_tol=CHANCE_ROUNDING):
        yield at(f"{where}.chance.value", "declared-task", f"{result.chance.value}, declared is {declared.chance}", _AGAIN)


def _workloads(report: Report, at: Make) -> Iterator[Problem]:
    """The prompt and the output of a served request are declared, so that a trial's counts follow from its requests."""
    if report.energy_plan is None:
        return
    planned = {(cell.workload, cell.batch) for cell in report.energy_plan.cells}
    for index, trial in enumerate(report.trials):
        if (trial.workload, trial.batch) not in planned:
            yield at(f"trials[{index}].workload", "declared-workload", f"{trial.workload} at batch {trial.batch} is not in the plan", _AGAIN)
        if trial.workload == REPLAY:
            continue
        declared: Workload | None = _read("workloads", trial.workload, Workload)
        if declared is None:
            yield at(f"trials[{index}].workload", "declared-workload", f"{trial.workload} is no declared workload", _DECLARE)
            continue
        wanted = {"requests": trial.loops * (trial.batch or 1), "prompt_tokens": trial.requests * declared.prompt_tokens,
                  "output_tokens": trial.requests * declared.output_tokens,
                  "fed_tokens": trial.requests * (declared.prompt_tokens + declared.output_tokens - 1)}
        for field, count in wanted.items():
            if getattr(trial, field) != count:
                yield at(f"trials[{index}].{field}", "declared-workload", f"{getattr(trial, field)}, the workload gives {count}", _AGAIN)
