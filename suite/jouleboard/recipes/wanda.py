"""Wanda (Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models): |W| times the norm of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from jouleboard.errors import RecipeError
from jouleboard.recipes.activations import layer_by_layer, squares
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import require_divisible
from jouleboard.recipes.magnitude import MASKS_SAVE_NOTHING, Rate

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class PruneWanda(Declaration, tag="prune-wanda", tag_field="step", frozen=True, kw_only=True):
    """Zero, in every output row, the weights of least |W_ij| * ||X_j||_2; X_j is input feature j over the calibration tokens.

    Layers are pruned one after the other, and later ones see what the pruned ones give.
    """

    about: ClassVar[About] = About(stage="dense", changes=(), control=MASKS_SAVE_NOTHING)

    rate: Rate | None = None
    """Share of each row that becomes zero."""
    pattern: Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]?:[1-9][0-9]?\Z")] | None = None
    """`2:4`: two of every four neighbours in a row stay."""

    def __post_init__(self) -> None:
        """Make sure that one thing is asked for.

        Raises:
            ValueError: both or none of rate and pattern are given, or a pattern that keeps everything.
        """
        if (self.rate is None) == (self.pattern is None):
            raise ValueError("name either a rate or a pattern")
        if self.pattern is not None and self._kept_of()[0] >= self._kept_of()[1]:
            raise ValueError(f"the pattern {self.pattern} keeps every weight")

    def _kept_of(self) -> tuple[int, int]:
        kept, _, of = (self.pattern or "").partition(":")
        return int(kept), int(of)

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Measure and prune layer by layer."""
        require_divisible(model, 1)
        zeros = held = 0

        def prune(index: int, _layer: nn.Module, linears: dict[str, nn.Linear], found: dict[str, torch.Tensor]) -> None:
            nonlocal zeros, held
            for name, linear in linears.items():
                groups = self._groups(linear, f"layer {index}, {name}")
                importance = linear.weight.detach().double().abs() * found[name].sqrt()
                zeros += _zero_least(linear.weight.data, importance, groups, self._zeros_of(groups))
                held += linear.weight.numel()

        tokens = layer_by_layer(model, context.calibration_ids, squares, prune)
        pattern = {} if self.pattern is None else {"claimed_pattern": self.pattern}
        return {"tokens": tokens, "claimed_zero_share": zeros / held} | pattern

    def _groups(self, linear: nn.Linear, where: str) -> int:
        """Return how many neighbours in a row are compared: all of them, or those of the pattern."""
        if self.pattern is None:
            return linear.in_features
        of = self._kept_of()[1]
        if linear.in_features % of:
            raise RecipeError(f"{where} has {linear.in_features} inputs, not a multiple of {of}", field="steps.pattern",
                              remedy="choose a pattern that divides every layer's width")
        return of

    def _zeros_of(self, group: int) -> int:
        return group - self._kept_of()[0] if self.pattern is not None else int(group * (self.rate or 0.0))


def _zero_least(weight: torch.Tensor, importance: torch.Tensor, group: int, zeros: int) -> int:
    """Zero the least important weights of every group of neighbours in a row; of equal ones the first go.

    Args:
        weight: shape [out, in], changed in place.
        importance: of the same shape.
        group: how many neighbours are compared.
        zeros: how many of them become zero.

    Returns:
        How many are zero now.
    """
    least = importance.view(len(importance), -1, group).argsort(dim=-1, stable=True)[..., :zeros]
    weight.view(len(weight), -1, group).scatter_(-1, least, 0)
    return int(least.numel())
