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

from jouleboard import catalogue, structure
from jouleboard.declared import Id, Noun, Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.adapters import Adapters
from jouleboard.recipes.arithmetic import Autocast
from jouleboard.recipes.assisted import Assisted
from jouleboard.recipes.bitsandbytes import LlmInt8, Nf4
from jouleboard.recipes.checkpoint import Checkpoint, CompressedTensors, Gguf
from jouleboard.recipes.compiled import Compile
from jouleboard.recipes.depth import DropLayers
from jouleboard.recipes.distil import Distil
from jouleboard.recipes.edge import CTranslate2, LlamaCpp, OnnxGenai, OpenVino
from jouleboard.recipes.grids import LinearMinMax, Nonlinear
from jouleboard.recipes.heads import PruneHeads
from jouleboard.recipes.interface import Context, Stage, Technique
from jouleboard.recipes.lora import LoraRecovery
from jouleboard.recipes.low_rank import LowRank
from jouleboard.recipes.magnitude import PruneMagnitude
from jouleboard.recipes.mlp_width import PruneMlpWidth
from jouleboard.recipes.prompt import PromptTuning
from jouleboard.recipes.prompt_lookup import PromptLookup
from jouleboard.recipes.quantised_cache import QuantisedCache
from jouleboard.recipes.quanto import QuantoInt8
from jouleboard.recipes.share import ShareLayers
from jouleboard.recipes.sliding_window import SlidingWindow
from jouleboard.recipes.sparse import Sparse24
from jouleboard.recipes.static_cache import StaticCache
from jouleboard.recipes.student import Student
from jouleboard.recipes.torchao import (
    Float8Dynamic,
    Float8WeightOnly,
    Int4TilePacked,
    Int4Unpacked,
    Int4WeightOnly,
    Int8Dynamic,
    Int8WeightOnly,
)
from jouleboard.recipes.torchdynamic import DynamicInt8
from jouleboard.recipes.wanda import PruneWanda
from jouleboard.runtime import PLAIN, Runtime, conflict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Step = (
    Int8WeightOnly | Int4WeightOnly | Nf4 | DropLayers | Distil | LoraRecovery | PruneMagnitude
    | PruneWanda | Sparse24 | PruneMlpWidth | PruneHeads | LowRank | ShareLayers | Student | Adapters
    | PromptTuning | CTranslate2 | LlamaCpp | OnnxGenai | OpenVino | Autocast | LlmInt8 | LinearMinMax | Nonlinear | QuantoInt8
    | DynamicInt8 | Float8Dynamic | Float8WeightOnly | Int4TilePacked | Int4Unpacked | Int8Dynamic
    | Checkpoint | CompressedTensors | Gguf | SlidingWindow | StaticCache | QuantisedCache | Compile
    | PromptLookup | Assisted
)

TECHNIQUES: dict[str, type[Step]] = {
    "torchao-int8-weight-only": Int8WeightOnly,
    "torchao-int4-weight-only": Int4WeightOnly,
    "bitsandbytes-nf4": Nf4,
    "drop-layers": DropLayers,
    "distil": Distil,
    "lora-recovery": LoraRecovery,
    "prune-magnitude": PruneMagnitude,
    "prune-wanda": PruneWanda,
    "sparse-2-4": Sparse24,
    "prune-mlp-width": PruneMlpWidth,
    "prune-heads": PruneHeads,
    "low-rank": LowRank,
    "share-layers": ShareLayers,
    "student": Student,
    "adapters": Adapters,
    "prompt-tuning": PromptTuning,
    "ctranslate2": CTranslate2,
    "llama-cpp": LlamaCpp,
    "onnx-genai": OnnxGenai,
    "openvino": OpenVino,
    "autocast": Autocast,
    "bitsandbytes-int8": LlmInt8,
    "linear-min-max": LinearMinMax,
    "nonlinear": Nonlinear,
    "quanto-int8": QuantoInt8,
    "torch-dynamic-int8": DynamicInt8,
    "torchao-float8-dynamic": Float8Dynamic,
    "torchao-float8-weight-only": Float8WeightOnly,
    "torchao-int4-tile-packed": Int4TilePacked,
    "torchao-int4-unpacked": Int4Unpacked,
    "torchao-int8-dynamic": Int8Dynamic,
    "checkpoint": Checkpoint,
    "checkpoint-compressed-tensors": CompressedTensors,
    "checkpoint-gguf": Gguf,
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
        return min((step.weight_bits for step in self.steps if step.weight_bits is not None), default=None)

    @property
    def stored_bits(self) -> int | None:
        """Bits that a weight takes in memory, or None where all stays as dense as the recipe's dtype."""
        return min((step.stored_bits for step in self.steps if step.stored_bits is not None), default=None)

    @property
    def export(self) -> Step | None:
        """The step that hands the model to another engine, or None where torch computes it."""
        return next((step for step in self.steps if step.about.exports), None)


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
        RecipeError: naming the first step that comes too early or too late.
    """
    places = [ORDER.index(step.about.stage) for step in recipe.steps]
    for index, (earlier, later) in enumerate(pairwise(places)):
        if later < earlier:
            names = [str(type(step).__struct_config__.tag) for step in recipe.steps[index : index + 2]]
            raise RecipeError(f"{names[1]} gives {ORDER[later]} weights and comes after {names[0]}", file=f"recipes/{recipe.id}.yaml",
                              field=f"steps[{index + 1}]", remedy=f"put it before {names[0]}")
    for index, step in enumerate(recipe.steps):
        if index and step.needs_source is not None:
            raise RecipeError("a ready-made checkpoint replaces the model, and what steps before it did would be lost",
                              file=f"recipes/{recipe.id}.yaml", field=f"steps[{index}]", remedy="put it first")
    _require_dense_export(recipe)
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


def _require_dense_export(recipe: Recipe) -> None:
    """Make sure that what another engine is handed is dense, and that nothing comes after it."""
    for index, step in enumerate(recipe.steps):
        others = [other for other in recipe.steps if other is not step and other.about.stage != "dense"]
        if step.about.exports and others:
            names = [str(type(one).__struct_config__.tag) for one in (step, others[0])]
            raise RecipeError(f"{names[0]} hands dense weights to another engine, and {names[1]} stands beside it",
                              file=f"recipes/{recipe.id}.yaml", field=f"steps[{index}]",
                              remedy=f"leave {names[1]} out: before {names[0]} only steps that give dense weights can stand")


def apply(model: PreTrainedModel, steps: Sequence[Technique], context: Context) -> list[dict[str, Any]]:
    """Apply the steps in order to a live dense model, in place.

    Args:
        model: dense causal language model, on its device, in the recipe's dtype.
        steps: as the recipe declares them.
        context: what steps may need besides the model, such as calibration text.

    Returns:
        Each step as declared, with its bits and what it found out.

    Raises:
        RecipeError: a step does not take this model or this device.
    """
    return [apply_one(model, step, context) for step in steps]


def apply_one(model: PreTrainedModel, step: Technique, context: Context) -> dict[str, Any]:
    """Apply one step in place; return it as declared, with its bits and what it found out."""
    _require_capability(step, model)
    declared: dict[str, Any] = msgspec.to_builtins(step)
    bits = {} if step.weight_bits is None else {"weight_bits": step.weight_bits}
    with structure.kept_shared(model):
        return declared | bits | step.apply(model, context)


def _require_capability(step: Technique, model: PreTrainedModel) -> None:
    """Refuse a GPU that is older than the step's kernels."""
    import torch  # noqa: PLC0415 - torch is imported only where tokens are computed

    least = step.about.capability
    if least is None or model.device.type != "cuda":
        return
    found = torch.cuda.get_device_capability(model.device)
    if found < least:
        raise RecipeError(f"its kernels need a GPU of compute capability {least[0]}.{least[1]}, this one has {found[0]}.{found[1]}",
                          field="steps", remedy="leave the recipe out on this GPU")
