"""Dynamic int8 quantisation by PyTorch's own, older way (`torch.ao.quantization.quantize_dynamic`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, require_divisible

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class DynamicInt8(Declaration, tag="torch-dynamic-int8", tag_field="step", frozen=True, kw_only=True):
    """int8 weights, one scale a layer or a row, and activations of seven bits, one scale for all of a batch.

    The kernels round activations to 0...127 lest sums overflow on older processors. Source: torch.ao.quantization.
    """

    about: ClassVar[About] = About(
        stage="live", changes=("arithmetic", "memory"), weight_bits=8, device="cpu",
        control="known to be bad for language models: one scale for the activations of a whole batch drowns small ones, "
        "and PyTorch no longer develops it")

    granularity: Literal["per-tensor", "per-channel"]

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Replace every body linear by a dynamically quantised one."""
        import torch  # noqa: PLC0415
        from torch.ao.quantization import (  # noqa: PLC0415
            default_dynamic_qconfig,
            per_channel_dynamic_qconfig,
            quantize_dynamic,
        )

        if model.dtype != torch.float32:
            raise RecipeError(f"its kernel multiplies float32 inputs only, the recipe is in {str(model.dtype).removeprefix('torch.')}",
                              field="dtype", remedy="declare dtype: float32")
        count = require_divisible(model, 1)
        chosen = default_dynamic_qconfig if self.granularity == "per-tensor" else per_channel_dynamic_qconfig
        quantize_dynamic(model, {name: chosen for name, _ in body_linears(model)}, inplace=True)  # type: ignore[no-untyped-call]
        return {"claimed_quantised_tensors": count, "claimed_tensor_class": "LinearPackedParams",
                "kernels": torch.backends.quantized.engine}
