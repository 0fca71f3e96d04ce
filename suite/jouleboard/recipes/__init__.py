"""Recipes: ordered compression steps, one file a technique, all of them listed in `TECHNIQUES`.

Example (`suite/recipes/int8-weight-only.yaml`)::

    id: int8-weight-only
    title: int8 weights, bf16 arithmetic (torchao)
    dtype: bfloat16
    steps:
      - step: torchao-int8-weight-only
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from jouleboard import catalogue
from jouleboard.declared import Id, Noun, Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.assisted import Assisted
from jouleboard.recipes.bitsandbytes import Nf4
from jouleboard.recipes.compiled import Compile
from jouleboard.recipes.depth import DropLayers
from jouleboard.recipes.interface import Context, Stage, Technique
from jouleboard.recipes.prompt_lookup import PromptLookup
from jouleboard.recipes.quantised_cache import QuantisedCache
from jouleboard.recipes.sliding_window import SlidingWindow
from jouleboard.recipes.static_cache import StaticCache
from jouleboard.recipes.torchao import Int4WeightOnly, Int8WeightOnly
from jouleboard.runtime import PLAIN, Runtime, conflict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Step = (Int8WeightOnly | Int4WeightOnly | Nf4 | DropLayers
        | SlidingWindow | StaticCache | QuantisedCache | Compile | PromptLookup | Assisted)

TECHNIQUES: dict[str, type[Step]] = {
    "torchao-int8-weight-only": Int8WeightOnly,
    "torchao-int4-weight-only": Int4WeightOnly,
    "bitsandbytes-nf4": Nf4,
    "drop-layers": DropLayers,
    "sliding-window": SlidingWindow,
    "static-cache": StaticCache,
    "quantised-kv-cache": QuantisedCache,
    "compile": Compile,
    "prompt-lookup": PromptLookup,
    "assisted": Assisted,
}


class Recipe(Noun, frozen=True, kw_only=True):
    """An ordered list of steps that turns a base model into a variant; no steps: the base itself."""

    id: Id
    title: str
    description: str
    dtype: Literal["float32", "bfloat16", "float16"]
    """Arithmetic of everything that the steps leave dense."""
    steps: tuple[Step, ...] = ()
    batch_size: Positive | None = None
    """Of the quality pass, where it is part of the variant; None: the plan's."""

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight of the coarsest quantiser among the steps, or None where nothing is quantised."""
        bits = [step.weight_bits for step in self.steps if step.weight_bits is not None]
        return min(bits) if bits else None


def load(ident: str) -> Recipe:
    """Read `suite/recipes/<ident>.yaml`."""
    return catalogue.load("recipes", ident, Recipe)


def missing(recipe: Recipe, device: str) -> str | None:
    """Say what is missing for a recipe to run on a device, before anything is loaded; None: nothing.

    Args:
        recipe: the recipe.
        device: torch's name of it (`cpu`, `cuda:0`).
    """
    found = ((step, step.missing(device)) for step in recipe.steps)
    return next((f"{type(step).__struct_config__.tag}: {why}" for step, why in found if why is not None), None)


ORDER: tuple[Stage, ...] = ("dense", "live", "runtime")


def require_order(recipe: Recipe) -> None:
    """Make sure that steps which need dense weights stand before those that pack them, and both before how the model is run.

    Raises:
        RecipeError: naming the first step that comes too late.
    """
    places = [ORDER.index(step.about.stage) for step in recipe.steps]
    for index, (earlier, later) in enumerate(pairwise(places)):
        if later < earlier:
            names = [str(type(step).__struct_config__.tag) for step in recipe.steps[index : index + 2]]
            raise RecipeError(f"{names[1]} gives {ORDER[later]} weights and comes after {names[0]}", file=f"recipes/{recipe.id}.yaml",
                              field=f"steps[{index + 1}]", remedy=f"put it before {names[0]}")
    runtime(recipe)


def runtime(recipe: Recipe, found: Sequence[Mapping[str, Any]] = ()) -> Runtime:
    """Return how a recipe's finished model is run.

    Args:
        recipe: the recipe.
        found: what each step found out, in their order; empty before the model is built.

    Raises:
        RecipeError: two steps set the same, or what they set does not go together.
    """
    how = PLAIN
    parts = [step.about.sets for step in recipe.steps if step.about.sets is not None]
    twice = next((part for part in parts if parts.count(part) > 1), None)
    for index, step in enumerate(recipe.steps):
        how = step.run_with(how, found[index] if found else {})
    why = conflict(how) if twice is None else f"two steps set the {twice}"
    if why is not None:
        raise RecipeError(why, file=f"recipes/{recipe.id}.yaml", field="steps", remedy="see the descriptions of its steps")
    return how


def apply(model: PreTrainedModel, steps: Sequence[Technique], context: Context) -> list[dict[str, Any]]:
    """Apply the steps in order to a live dense model, in place.

    Args:
        model: dense causal language model, on its device, in the recipe's dtype.
        steps: as the recipe declares them.
        context: what steps may need besides the model, such as calibration text.

    Returns:
        Each step as declared, with what it found out.
    """
    return [msgspec.to_builtins(step) | step.apply(model, context) for step in steps]
