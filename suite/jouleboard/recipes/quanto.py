"""Weight-only quantisation by optimum-quanto (the extra `quanto`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, require_divisible

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class QuantoInt8(Declaration, tag="quanto-int8", tag_field="step", frozen=True, kw_only=True):
    """int8 weights, one scale a row; on CPUs in bfloat16 torch's own kernel (`_weight_int8pack_mm`) multiplies them as they are."""

    about: ClassVar[About] = About(stage="live", changes=("memory",), weight_bits=8, packages=("optimum.quanto",), extra="quanto")

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Replace every body linear by a `QLinear` holding the same weights, quantised now."""
        from optimum.quanto import freeze, qint8, quantize  # noqa: PLC0415 - an extra

        count = require_divisible(model, 1)
        quantize(model, weights=qint8, include=[name for name, _ in body_linears(model)])
        freeze(model)
        model.requires_grad_(requires_grad=False)
        return {"claimed_quantised_tensors": count, "claimed_tensor_class": "WeightQBytesTensor", "claimed_modules": {"QLinear": count}}
