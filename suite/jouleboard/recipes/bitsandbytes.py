"""NF4 weights by bitsandbytes (Dettmers et al. 2023): four bits, a non-linear grid, one scale a block of 64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, require_divisible

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class Nf4(Declaration, tag="bitsandbytes-nf4", tag_field="step", frozen=True, kw_only=True):
    """NF4 weights; the matrix product runs in the arithmetic's dtype.

    On CPUs with AVX-512 bf16 there are two kernels: `fused` unpacks weights inside the product, which suits decoding one
    token at a time; `dequantise` unpacks a layer and then multiplies, which is several times faster for many tokens.
    Elsewhere only `dequantise` exists, and on GPUs the field has no effect.
    """

    about: ClassVar[About] = About(stage="live", changes=("memory",), packages=("bitsandbytes",))

    cpu_kernel: Literal["fused", "dequantise"]

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight."""
        return 4

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Replace every body linear by `Linear4bit` holding the same weights, quantised now."""
        from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: PLC0415 - heavy, only in workers

        require_divisible(model, 1)
        linears = list(body_linears(model))
        for name, linear in linears:
            packed = Linear4bit(
                linear.in_features, linear.out_features, bias=linear.bias is not None,
                compute_dtype=linear.weight.dtype, quant_type="nf4", device="meta",
            )
            packed.weight = Params4bit(
                linear.weight.data, requires_grad=False, quant_type="nf4", module=packed
            )
            packed.bias = linear.bias
            # bitsandbytes 0.50 repacks for its fused kernel at the first forward pass where this flag is set.
            packed.support_avx512bf16_for_cpu &= self.cpu_kernel == "fused"
            # Params4bit quantises when it is moved to a device.
            packed.weight = packed.weight.to(model.device)
            packed.requires_grad_(requires_grad=False)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, packed)
        if self.cpu_kernel == "fused" and model.device.type == "cpu" and not packed.support_avx512bf16_for_cpu:
            raise RecipeError("this processor has no AVX-512 bf16, so bitsandbytes has no fused kernel",
                              field="steps.cpu_kernel", remedy="use cpu_kernel: dequantise")
        return {"claimed_quantised_tensors": len(linears), "claimed_tensor_class": "Params4bit"}
