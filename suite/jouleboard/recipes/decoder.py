"""The parts of a Llama-like decoder that structured pruning cuts: gated MLPs and attention with separate projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jouleboard import structure
from jouleboard.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def mlps(model: PreTrainedModel) -> list[Any]:
    """Return every layer's gated MLP.

    Raises:
        RecipeError: naming what is missing.
    """
    return _blocks(model, "mlp", MLP)


def attentions(model: PreTrainedModel) -> list[Any]:
    """Return every layer's attention.

    Raises:
        RecipeError: naming what is missing.
    """
    return _blocks(model, "self_attn", ATTENTION)


def _blocks(model: PreTrainedModel, name: str, projections: Sequence[str]) -> list[Any]:
    from torch import nn  # noqa: PLC0415 - torch is imported only where tokens are computed

    found: list[Any] = []
    for index, layer in enumerate(structure.layers(model)):
        block = getattr(layer, name, None)
        for projection in projections:
            part = getattr(block, projection, None)
            if type(part) is not nn.Linear:
                what = "is missing" if part is None else f"is {type(part).__name__}, not a dense linear layer"
                raise RecipeError(f"{type(model).__name__}, layer {index}: {name}.{projection} {what}", field="steps",
                                  remedy="cut widths before weights are factorised or quantised, and of models built as Llama is")
        found.append(block)
    if len({getattr(block, projection) for block in found for projection in projections}) < len(found) * len(projections):
        raise RecipeError("layers share weights, so one of them cannot be cut alone", field="steps",
                          remedy="put the step that cuts widths before share-layers")
    return found


def keep_outputs(linear: nn.Linear, kept: torch.Tensor) -> None:
    """Leave only some rows of a linear layer: a really smaller matrix."""
    from torch import nn  # noqa: PLC0415

    linear.weight = nn.Parameter(linear.weight.detach()[kept].contiguous(), requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[kept].contiguous(), requires_grad=linear.bias.requires_grad)
    linear.out_features = len(kept)


def keep_inputs(linear: nn.Linear, kept: torch.Tensor) -> None:
    """Leave only some columns of a linear layer: a really smaller matrix."""
    from torch import nn  # noqa: PLC0415

    linear.weight = nn.Parameter(linear.weight.detach()[:, kept].contiguous(), requires_grad=linear.weight.requires_grad)
    linear.in_features = len(kept)


def require_config(model: PreTrainedModel, changed: dict[str, int]) -> None:
    """Make sure that the model's configuration can be written and read again with other sizes.

    Args:
        model: whose configuration is tried; it stays as it is.
        changed: fields and their new values.

    Raises:
        RecipeError: transformers refuses them.
    """
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415

    try:
        type(model.config).from_dict(model.config.to_dict() | changed)
    except (StrictDataclassError, ValueError) as error:
        cause = error.__cause__ or error
        sizes = ", ".join(f"{field} {value}" for field, value in changed.items())
        raise RecipeError(f"{type(model.config).__name__} does not take {sizes}: {cause}", field="steps",
                          remedy="remove another number") from None
