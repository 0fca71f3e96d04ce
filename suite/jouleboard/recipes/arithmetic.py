"""Mixed precision: float32 weights, matrix products in bfloat16 (`torch.autocast`)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class Autocast(Declaration, tag="autocast", tag_field="step", frozen=True, kw_only=True):
    """Every forward pass runs under `torch.autocast`: matrix products and attention in bfloat16, sums and norms in float32.

    Weights stay float32 and are cast anew in every pass, so it takes more memory traffic than bf16 weights; it is how models
    are trained. The key-value cache is float32: rotary positions widen keys again, and transformers keeps values alike.
    """

    about: ClassVar[About] = About(stage="runtime", changes=("arithmetic",))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Wrap the model's forward pass."""
        import torch  # noqa: PLC0415

        if model.dtype != torch.float32:
            raise RecipeError(f"mixed precision keeps float32 weights, the recipe is in {str(model.dtype).removeprefix('torch.')}",
                              field="dtype", remedy="declare dtype: float32, or leave the step out")
        inner = model.forward

        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(model.device.type, dtype=torch.bfloat16):
                return inner(*args, **kwargs)

        # By this the engines know it.
        forward.arithmetic = "bfloat16"  # type: ignore[attr-defined]
        model.forward = forward
        return {"claimed_arithmetic": "bfloat16"}
