"""Cross-layer parameter sharing: neighbouring layers compute with one set of weights (as ALBERT, Lan et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from jouleboard import structure
from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import parameters

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class ShareLayers(Declaration, tag="share-layers", tag_field="step", frozen=True, kw_only=True):
    """Let every `group` adjacent layers share one set of weights; embeddings stay. Fewer bytes are held, the work is the same."""

    about: ClassVar[About] = About(stage="dense", changes=("memory",))

    group: Annotated[int, msgspec.Meta(ge=2)]
    """Layers that share; the last group is smaller where this does not divide their number."""
    weights: Literal["average", "first"]
    """Whose weights a group takes: the mean of its layers, or those of its first."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Average the weights of each group, then let its other layers hold the first one's modules."""
        layers = structure.layers(model)
        if any(isinstance(edit, structure.SharedLayer) for edit in structure.edits(model.config)):
            raise RecipeError("layers share weights already", field="steps", remedy="share once, in larger groups")
        if self.group > len(layers):
            raise RecipeError(f"the model has {len(layers)} layers, {self.group} cannot share", field="steps.group",
                              remedy="share fewer")
        if self.weights == "average" and structure.own_modules(model):
            raise RecipeError("factors of different layers have no common basis, so their mean means nothing", field="steps.weights",
                              remedy="use weights: first, or share before factorising")
        _require_alike(layers)
        left = parameters(model)
        for first in range(0, len(layers), self.group):
            others = range(first + 1, min(first + self.group, len(layers)))
            left -= sum(parameters(layers[other]) for other in others)
            if self.weights == "average":
                _average([layers[index] for index in (first, *others)])
            for other in others:
                structure.make(model, structure.SharedLayer(layer=other, of=first))
        return {"claimed_parameters": left, "claimed_layers": len(layers), "claimed_modules": structure.own_modules(model)}


def _require_alike(layers: nn.ModuleList) -> None:
    shapes = [{name: tensor.shape for name, tensor in layer.named_parameters()} for layer in layers]
    for index, found in enumerate(shapes):
        if found != shapes[0]:
            raise RecipeError(f"layer {index} has other weights than layer 0, so they cannot share", field="steps",
                              remedy="share layers of models whose layers are all built alike")


def _average(group: list[nn.Module]) -> None:
    """Give the first layer the mean of all layers' weights, computed in float32."""
    import torch  # noqa: PLC0415 - torch is imported only where tokens are computed

    with torch.no_grad():
        for name, tensor in group[0].named_parameters():
            tensor.copy_(torch.stack([layer.get_parameter(name).float() for layer in group]).mean(0))
