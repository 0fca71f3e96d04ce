"""Recipes as lines for the terminal: whether each runs here, what it needs, and what it really changes.

Example::

    ID                HERE  NEEDS                 CHANGES       STEPS                     TITLE
    int8-weight-only  yes   torchao               memory        torchao-int8-weight-only  int8 weights (torchao)
    sparse-2-4        no    CUDA 8.0+             memory, work  sparse-2-4                2:4 pruned, sparse kernel

Nothing here is heavy: torch is not loaded, so that a capability of a GPU that is here is looked at when the recipe is built.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from jouleboard import catalogue, columns, hardware, paths, recipes
from jouleboard.errors import PlanError
from jouleboard.recipes import Recipe
from jouleboard.recipes.interface import About

HEADER = ("ID", "HERE", "NEEDS", "CHANGES", "STEPS", "TITLE")
WIDTH = 100


def device_here() -> str:
    """Return torch's name for the device that recipes would run on."""
    here = hardware.look()
    return "cuda:0" if here.nvidia.devices or here.amd.devices else "cpu"


def show() -> int:
    """Print a header and a line for each recipe."""
    device = device_here()
    known = catalogue.load_all(paths.data_folder("recipes"), Recipe)
    rows = [_row(recipe, device) for recipe in known.values()]
    for line in columns.aligned([HEADER, *sorted(rows)]):
        print(line)
    print("\nCHANGES says what is really saved: kind of arithmetic, memory, or work; `control` marks recipes of which no saving is expected.\n"
          "`jouleboard recipes show ID` says why, and what a recipe that does not run here needs.")
    return 0


def show_one(ident: str | None) -> int:
    """Print one recipe: what it is, whether it runs here, and each step with what it needs and changes."""
    if ident is None:
        raise PlanError("which one?", field="show", remedy="jouleboard recipes list names them")
    recipe = recipes.load(ident)
    print(f"{recipe.id}: {recipe.title}\n")
    print(textwrap.fill(recipe.description, WIDTH), end="\n\n")
    why = recipes.missing(recipe, device_here())
    print(f"runs here: {'yes' if why is None else f'no: {why}'}")
    print(f"changes:   {changes(recipe)}")
    for number, step in enumerate(recipe.steps, start=1):
        about = step.about
        print(f"step {number}:    {_name(step)}; gives {about.stage} {'settings' if about.stage == 'runtime' else 'weights'}; "
              f"needs {needs([about])}; changes {', '.join(about.changes) or 'nothing'}")
        if about.control:
            print(textwrap.fill(f"control: {about.control}", WIDTH, initial_indent="           ", subsequent_indent="           "))
    print("\n" + (paths.data_folder("recipes") / f"{ident}.yaml").read_text(encoding="utf-8"), end="")
    return 0


def _row(recipe: Recipe, device: str) -> tuple[str, ...]:
    return (recipe.id, "yes" if recipes.missing(recipe, device) is None else "no", needs(step.about for step in recipe.steps),
            changes(recipe), ", ".join(map(_name, recipe.steps)) or "none", recipe.title)


def _name(step: object) -> str:
    return str(type(step).__struct_config__.tag)  # type: ignore[attr-defined] # every step is a msgspec struct


def needs(abouts: Iterable[About]) -> str:
    """Say what steps need together, besides torch and transformers."""
    found: list[str] = []
    for about in abouts:
        if about.device == "cuda":
            found.append("CUDA" if about.capability is None else f"CUDA {about.capability[0]}.{about.capability[1]}+")
        elif about.device == "cpu":
            found.append("a CPU")
        found += about.packages
    return ", ".join(dict.fromkeys(found)) or "nothing"


def changes(recipe: Recipe) -> str:
    """Say what a recipe really changes; controls are named so."""
    if not recipe.steps:
        return "arithmetic" if recipe.dtype != "bfloat16" else "nothing"
    kinds = {kind for step in recipe.steps for kind in step.about.changes}
    words: Sequence[str] = [kind for kind in ("arithmetic", "memory", "work") if kind in kinds] or ["nothing"]
    return ", ".join(words) + (" (control)" if any(step.about.control for step in recipe.steps) else "")
