"""Magnitude pruning: the smallest weights become zero (Han et al. 2015, Learning both Weights and Connections)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, require_divisible
from jouleboard.recipes.masks import zero_smallest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context

Rate = Annotated[float, msgspec.Meta(gt=0, lt=1)]
MASKS_SAVE_NOTHING = "zeros are stored and multiplied like any other weight: without a sparse kernel they save nothing"


class PruneMagnitude(Declaration, tag="prune-magnitude", tag_field="step", frozen=True, kw_only=True):
    """Set the smallest weights of all body linears to zero: a share of them, or those below a threshold."""

    about: ClassVar[About] = About(stage="dense", changes=(), control=MASKS_SAVE_NOTHING)

    rate: Rate | None = None
    """Share of the weights that become zero."""
    scope: Literal["global", "layer"] | None = None
    """Where a rate holds: in all matrices together, or in each one; only with `rate`."""
    threshold: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Weights of smaller magnitude become zero."""

    def __post_init__(self) -> None:
        """Make sure that one thing is asked for.

        Raises:
            ValueError: both or none of rate and threshold are given, or a scope without its rate.
        """
        if (self.rate is None) == (self.threshold is None):
            raise ValueError("name either a rate or a threshold")
        if (self.rate is None) != (self.scope is None):
            raise ValueError("a rate needs a scope (global or layer), and a threshold takes none")

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Zero weights in place; the claim is exactly the share that must be zero then."""
        require_divisible(model, 1)
        weights = [linear.weight.data for _, linear in body_linears(model)]
        held = sum(weight.numel() for weight in weights)
        if self.threshold is not None:
            below = 0
            for weight in weights:
                small = weight.abs().float() < self.threshold
                weight[small] = 0
                below += int(small.sum())
            if not below:
                raise RecipeError(f"no weight is smaller than {self.threshold}", field="steps.threshold",
                                  remedy="name a larger threshold, or a rate")
            return {"claimed_zero_share": below / held}
        rate = self.rate or 0.0
        if self.scope == "global":
            zero_smallest(weights, int(rate * held))
            return {"claimed_zero_share": int(rate * held) / held}
        for weight in weights:
            zero_smallest([weight], int(rate * weight.numel()))
        return {"claimed_zero_share": sum(int(rate * weight.numel()) for weight in weights) / held}
