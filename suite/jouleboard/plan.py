"""Expand a plan into families: one base model, its variants and tasks, on one device."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import msgspec

from jouleboard import __version__, asking, catalogue, paths, recipes, replays, sources, store
from jouleboard.declared import Cell, Hardware, Id, Model, Noun, Plan, PlanTask, Workload
from jouleboard.declared_tasks import Task
from jouleboard.errors import HardwareError, PlanError
from jouleboard.meters import detect
from jouleboard.recipes import Recipe
from jouleboard.records import FORMAT_VERSION, RULES_VERSION, ReplayRow

COMPUTING_PACKAGES = ("torch", "transformers", "lm-eval", "torchao", "bitsandbytes", "zeus", "accelerate", "gguf",
                      "tokenizers", "numpy", "datasets", "ctranslate2", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai")


REPLAY = "replay"
"""The workload that computes the recorded batches of the quality pass again."""
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
    workloads: dict[str, Workload]
    """The serving workloads that the plan's cells name, by id."""

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
    chosen = [Chosen(task=catalogue.task(row.task), limit=row.limit) for row in plan.tasks]
    loaded = tuple(recipes.load(name) for name in names)
    for recipe in loaded:
        recipes.require_order(recipe)
    workloads = _workloads(plan)
    return [Family(plan=plan, model=model, recipes=loaded, tasks=_asked(chosen, model), hardware=hardware, workloads=workloads)
            for model in map(catalogue.model, plan.models)]


def _asked(chosen: Sequence[Chosen], model: Model) -> tuple[Chosen, ...]:
    return tuple(Chosen(task=task, limit=row.limit) for row in chosen for task in asking.asked(row.task, model))


def _workloads(plan: Plan) -> dict[str, Workload]:
    cells = plan.energy.cells
    if len(set(cells)) != len(cells):
        raise PlanError("a cell is named twice", field="energy.cells", remedy="name each workload and batch once")
    for cell in cells:
        if (cell.workload == REPLAY) != (cell.batch is None):
            raise PlanError(f"{cell.workload!r} with batch {cell.batch}", field="energy.cells",
                            remedy="a serving workload needs a batch; replay has the batches that were recorded")
    names = {cell.workload for cell in cells} - {REPLAY}
    return {name: catalogue.workload(name) for name in sorted(names)}


def ranks(hardware: Hardware) -> int:
    """Return how many processes compute a variant together: one for each device of the profile.

    Raises:
        HardwareError: the profile has several devices of a kind that a variant is not split over.
    """
    if hardware.count > 1 and hardware.sensor != "nvml":
        raise HardwareError(f"declares {hardware.count} devices; only over NVIDIA GPUs a variant is split",
                            file=f"hardware/{hardware.id}.yaml", field="count", remedy="declare a profile of one device")
    return hardware.count


def torch_device(hardware: Hardware) -> str:
    """Return torch's name for the profile's device; of several, for the first.

    Raises:
        HardwareError: the profile has several devices of a kind that a variant is not split over.
    """
    ranks(hardware)
    if hardware.method == "simulated":
        # Its power is simulated; what computes is the processor.
        return "cpu"
    return {"nvml": "cuda:0", "amdsmi": "cuda:0", "jetson": "cuda:0", "apple": "mps"}.get(hardware.sensor, "cpu")


def limited(plan: Plan, limit: int | None) -> Plan:
    """Return the plan with at most `limit` items a task."""
    if limit is None:
        return plan
    rows = tuple(PlanTask(task=row.task, limit=min(limit, row.limit or limit)) for row in plan.tasks)
    return msgspec.structs.replace(plan, tasks=rows)


def configuration(family: Family, recipe: Recipe) -> dict[str, Any]:
    """Return everything that decides what is computed for one variant, as plain JSON values."""
    return {**_shared(family), "recipe": msgspec.to_builtins(recipe)}


def configurations(family: Family) -> dict[str, dict[str, Any]]:
    """Return the configuration of each variant of a family by its recipe's id; what they share is looked up once."""
    shared = _shared(family)
    return {recipe.id: {**shared, "recipe": msgspec.to_builtins(recipe)} for recipe in family.recipes}


def _shared(family: Family) -> dict[str, Any]:
    plan = family.plan
    return {
        "format_version": FORMAT_VERSION,
        "rules_version": RULES_VERSION,
        "seed": plan.seed,
        "threads": plan.threads,
        "batch_size": plan.batch_size,
        "engine": plan.engine,
        "energy": msgspec.to_builtins(plan.energy),
        "workloads": msgspec.to_builtins(family.workloads),
        "prefill": msgspec.to_builtins(plan.prefill),
        "decode": msgspec.to_builtins(plan.decode),
        "base": plan.base,
        "recipes": [one.id for one in family.recipes],
        "model": msgspec.to_builtins(family.model),
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


class Slot(Noun, frozen=True, kw_only=True):
    """One trial of a session: whose turn it is, and with what."""

    recipe: Id
    cell: Cell
    group: int = 0
    """Trials of one group have the same variants in memory; all are one group where memory holds all."""


def session_order(cells: Sequence[Cell], recipe_ids: Sequence[str], trials: int, seed: int) -> tuple[Slot, ...]:
    """Return the trials of a session: cell after cell, in each the base first and last and the rest interleaved.

    Args:
        cells: what is computed.
        recipe_ids: the base first.
        trials: how many each variant gets of each cell.
        seed: of the shuffles.
    """
    return tuple(Slot(recipe=name, cell=cell) for number, cell in enumerate(cells)
                 for name in trial_order(recipe_ids, trials, seed + number))


def pair_order(cells: Sequence[Cell], recipe_ids: Sequence[str], trials: int, seed: int) -> tuple[Slot, ...]:
    """Return the trials of a session in which the base and one variant at a time are in memory.

    Each variant has a group of its own, with the base first and last in each cell and as many trials of the base as of the
    variant (two at least), so that what changes from group to group meets both. A base without variants is a group too.

    Args:
        cells: what is computed.
        recipe_ids: the base first.
        trials: how many each variant gets of each cell, and the base in each group.
        seed: of the shuffles.
    """
    base, *others = recipe_ids
    groups = [[base, other] for other in others] or [[base]]
    return tuple(msgspec.structs.replace(slot, group=number) for number, group in enumerate(groups)
                 for slot in session_order(cells, group, trials, seed + number * len(cells)))


class WantedProbe(Noun, frozen=True, kw_only=True):
    """A probe of the plan."""

    kind: Literal["prefill", "decode"]
    batch: int
    prompt_tokens: int
    output_tokens: int


def wanted_probes(plan: Plan) -> Iterator[WantedProbe]:
    """Return the probes of a plan, small ones first."""
    for tokens in plan.prefill.tokens:
        for batch in plan.prefill.batches:
            yield WantedProbe(kind="prefill", batch=batch, prompt_tokens=tokens, output_tokens=0)
    for context in plan.decode.prompt_tokens:
        for batch in plan.decode.batches:
            yield WantedProbe(kind="decode", batch=batch, prompt_tokens=context, output_tokens=plan.decode.tokens)


def choose_batches(recorded: Sequence[Sequence[ReplayRow]], tokens: int, seed: int) -> list[list[ReplayRow]]:
    """Choose recorded batches at random until they hold at least `tokens` fed tokens (or all of them).

    A batch behind a prefix brings the prefix with it. Where there is one, batches keep their order, so that a prefix is computed
    once for all of its batches. Of a generated batch that is more than what is left to choose, the rows that begin it are taken.
    """
    prefixes = replays.prefixes(recorded)
    order = [index for index in range(len(recorded)) if not replays.is_prefix(recorded[index])]
    random.Random(seed).shuffle(order)  # noqa: S311 - not for secrets
    chosen: dict[int, list[ReplayRow]] = {}
    held = 0
    for index in order:
        if held >= tokens:
            break
        new = [one for one in (prefixes.get(index), index) if one is not None and one not in chosen]
        chosen |= {one: replays.part(recorded[one], tokens - held) for one in new}
        held += sum(replays.fed_tokens(chosen[one]) for one in new)
    together = sorted(chosen) if prefixes.keys() & chosen.keys() else list(chosen)
    return [chosen[index] for index in together]
