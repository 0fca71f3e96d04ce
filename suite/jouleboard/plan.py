"""Expand a plan into families: one base model, its variants and tasks, on one device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import msgspec

from jouleboard import __version__, catalogue, paths, recipes, sources, store
from jouleboard.declared import Hardware, Model, Plan, PlanTask, Task
from jouleboard.errors import PlanError
from jouleboard.meters import detect
from jouleboard.recipes import Recipe
from jouleboard.records import FORMAT_VERSION, RULES_VERSION, ReplayRow

COMPUTING_PACKAGES = ("torch", "transformers", "lm-eval", "torchao", "bitsandbytes", "zeus", "accelerate", "gguf",
                      "tokenizers", "numpy", "datasets")


CALIBRATION = "data/calibration.txt"
"""Our own text, relative to `tasks/`, for steps that need activations; never eval items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A task of a plan with its limit."""

    task: Task
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model with all recipes and tasks of a plan; the first recipe is the base."""

    plan: Plan
    model: Model
    recipes: tuple[Recipe, ...]
    tasks: tuple[Chosen, ...]
    hardware: Hardware

    @property
    def base(self) -> Recipe:
        """The recipe that the others are compared with."""
        return self.recipes[0]


def families(plan: Plan, hardware: Hardware) -> list[Family]:
    """Load everything that a plan names.

    Raises:
        PlanError: something named does not exist, or is named twice.
    """
    if plan.base not in plan.recipes:
        raise PlanError(f"the base {plan.base!r} is not among the recipes", field="base",
                        remedy="add it to the recipes: every variant is compared with the base in the same run")
    names = [plan.base, *(name for name in plan.recipes if name != plan.base)]
    for label, used in (("recipes", names), ("models", plan.models), ("tasks", [row.task for row in plan.tasks])):
        if len(set(used)) != len(used):
            raise PlanError(f"{label} are named twice", field=label, remedy="name each once")
    chosen = tuple(Chosen(task=catalogue.task(row.task), limit=row.limit) for row in plan.tasks)
    loaded = tuple(recipes.load(name) for name in names)
    for recipe in loaded:
        recipes.check(recipe)
    return [Family(plan=plan, model=catalogue.model(model), recipes=loaded, tasks=chosen, hardware=hardware)
            for model in plan.models]


def limited(plan: Plan, limit: int | None) -> Plan:
    """Return the plan with at most `limit` items a task."""
    if limit is None:
        return plan
    rows = tuple(PlanTask(task=row.task, limit=min(limit, row.limit or limit)) for row in plan.tasks)
    return msgspec.structs.replace(plan, tasks=rows)


def configuration(family: Family, recipe: Recipe) -> dict[str, Any]:
    """Return everything that decides what is computed for one variant, as plain JSON values."""
    plan = family.plan
    return {
        "format_version": FORMAT_VERSION,
        "rules_version": RULES_VERSION,
        "seed": plan.seed,
        "threads": plan.threads,
        "batch_size": plan.batch_size,
        "energy": msgspec.to_builtins(plan.energy),
        "prefill": msgspec.to_builtins(plan.prefill),
        "decode": msgspec.to_builtins(plan.decode),
        "base": plan.base,
        "recipes": [one.id for one in family.recipes],
        "model": msgspec.to_builtins(family.model),
        "recipe": msgspec.to_builtins(recipe),
        "tasks": [[msgspec.to_builtins(row.task), row.limit] for row in family.tasks],
        "hardware": msgspec.to_builtins(family.hardware),
        "packages": versions(),
        "jouleboard": __version__,
        "processor": detect.cpu_model(),
        "contents": contents(family),
    }


def contents(family: Family) -> dict[str, str]:
    """Return the digests of files that decide what is computed and are named, not held, by the declarations."""
    folder = paths.data_folder("tasks")
    named = {CALIBRATION, *(row.task.lm_eval.definition for row in family.tasks if row.task.lm_eval.definition)}
    return {name: sources.file_sha256(folder / name) for name in sorted(named)}


def configuration_sha256(family: Family, recipe: Recipe) -> str:
    """Return the digest that tells whether a stored result may be used again."""
    return store.digest(configuration(family, recipe))


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that compute, without importing them."""
    found = {}
    for name in COMPUTING_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def trial_order(recipe_ids: Sequence[str], trials: int, seed: int) -> list[str]:
    """Return the sequence of energy trials: the base first and last, everything else interleaved at random.

    Args:
        recipe_ids: the base first.
        trials: how many each variant gets; the base gets at least two.
        seed: of the shuffle.
    """
    base, *others = recipe_ids
    middle = [base] * max(trials - 2, 0) + [name for name in others for _ in range(trials)]
    random.Random(seed).shuffle(middle)  # noqa: S311 - not for secrets
    return [base, *middle, base]


def choose_batches(recorded: Sequence[Sequence[ReplayRow]], tokens: int, seed: int) -> list[list[ReplayRow]]:
    """Choose recorded batches at random until they hold at least `tokens` fed tokens (or all of them)."""
    order = list(range(len(recorded)))
    random.Random(seed).shuffle(order)  # noqa: S311 - not for secrets
    chosen: list[list[ReplayRow]] = []
    held = 0
    for index in order:
        if held >= tokens:
            break
        chosen.append(list(recorded[index]))
        held += sum(len(row.tokens) for row in recorded[index])
    return chosen
