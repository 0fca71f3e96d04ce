"""Depth pruning: drop the layers that change the hidden state least (block influence, Men et al. 2024, ShortGPT)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard import structure
from jouleboard.declared import Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import parameters

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class DropLayers(Declaration, tag="drop-layers", tag_field="step", frozen=True, kw_only=True):
    """Remove `count` layers of least block influence: 1 - cos(input, output), averaged over calibration tokens."""

    about: ClassVar[About] = About(stage="dense", changes=("memory", "work"))

    count: Positive

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Measure every layer's influence, drop the least, renumber the rest."""
        layers = structure.layers(model)
        if self.count >= len(layers):
            raise RecipeError(
                f"the model has {len(layers)} layers, {self.count} cannot be dropped", field="steps.count",
                remedy="drop fewer layers",
            )
        influence = block_influence(model, context.calibration_ids)
        # Stable order: of two equal influences the deeper layer goes.
        dropped = sorted(sorted(range(len(layers)), key=lambda index: (influence[index], -index))[: self.count])
        left = parameters(model) - sum(parameters(layers[index]) for index in dropped)
        structure.keep_layers(model, [index for index in range(len(layers)) if index not in dropped])
        return {"dropped_layers": dropped, "tokens": int(context.calibration_ids.numel()),
                "claimed_layers": len(layers) - self.count, "claimed_parameters": left,
                "claimed_modules": structure.own_modules(model), "block_influence": [round(value, 6) for value in influence]}


def block_influence(model: PreTrainedModel, ids: torch.Tensor) -> list[float]:
    """Return 1 - cos(h_i, h_i+1) of every layer, averaged over tokens.

    The inputs and outputs are taken by hooks at each layer: the last entry of `output_hidden_states` is after the final
    norm and would flatter the last layer.

    Args:
        model: dense model with `model.model.layers`.
        ids: token ids, shape [sequences, tokens].
    """
    import torch  # noqa: PLC0415

    found: list[float] = []

    def hook(_layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        found.append(1.0 - float(cosine.mean()))

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in structure.layers(model)]
    try:
        with torch.inference_mode():
            model(ids.to(model.device), logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return found
