"""Which layers a quantiser touches: every linear layer but the output head, which shares its weights with the embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jouleboard.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def body_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield name and module of each dense linear layer outside the output head."""
    from torch import nn  # noqa: PLC0415 - torch is imported only where tokens are computed

    for name, module in model.named_modules():
        if type(module) is nn.Linear and name.rpartition(".")[2] != "lm_head":
            yield name, module


def parameters(model: nn.Module) -> int:
    """Return the number of weights, those that are used in several places once."""
    return sum(parameter.numel() for parameter in model.parameters())


def require_divisible(model: nn.Module, group_size: int) -> int:
    """Return the number of body linears; refuse where a quantiser would skip one in silence.

    torchao leaves a layer dense, without a warning, when its width is not a multiple of the group size.

    Raises:
        RecipeError: naming the first such layer, or saying that there is none at all.
    """
    count = 0
    for name, module in body_linears(model):
        count += 1
        if module.in_features % group_size:
            raise RecipeError(
                f"{name} has {module.in_features} inputs, not a multiple of the group size {group_size}",
                field="steps.group_size",
                remedy="choose a group size that divides every layer's width",
            )
    if count == 0:
        raise RecipeError("the model has no dense linear layer that this step could quantise", field="steps",
                          remedy="it is of another architecture (Conv1D, ...) or quantised already: use another recipe")
    return count
