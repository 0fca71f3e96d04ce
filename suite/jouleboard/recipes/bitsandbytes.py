"""Weights by bitsandbytes: NF4 (Dettmers et al. 2023) and LLM.int8() (Dettmers et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard.declared import NonNegative
from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, require_divisible

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context

CpuKernel = Literal["fused", "dequantise"]
FUSED_OUTPUTS = 32
"""The fused kernel takes layers whose number of outputs is a multiple of this."""


def choose_cpu_kernel(model: PreTrainedModel, kernel: CpuKernel) -> None:
    """Let every `Linear4bit` of a model use one kernel where it computes on a CPU; without this the library takes what it can.

    Raises:
        RecipeError: the processor or a layer does not fit the fused kernel.
    """
    for name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit":
            continue
        # bitsandbytes 0.50 repacks for its fused kernel at the first forward pass where this flag is set.
        module.support_avx512bf16_for_cpu &= kernel == "fused"
        if kernel != "fused" or model.device.type != "cpu":
            continue
        if not module.support_avx512bf16_for_cpu:
            raise RecipeError("this processor has no AVX-512 bf16, so bitsandbytes has no fused kernel",
                              field="steps.cpu_kernel", remedy="use cpu_kernel: dequantise")
        block = module.weight.quant_state.blocksize
        if module.in_features % block or module.out_features % FUSED_OUTPUTS:
            raise RecipeError(f"{name} has {module.in_features} inputs and {module.out_features} outputs; bitsandbytes' fused kernel takes "
                              f"multiples of {block} and {FUSED_OUTPUTS}", field="steps.cpu_kernel", remedy="use cpu_kernel: dequantise")


class Nf4(Declaration, tag="bitsandbytes-nf4", tag_field="step", frozen=True, kw_only=True):
    """NF4 weights, four bits on a non-linear grid with one scale a block of 64; the matrix product runs in the arithmetic's dtype.

    On CPUs with AVX-512 bf16 there are two kernels: `fused` unpacks weights inside the product, which suits decoding one
    token at a time; `dequantise` unpacks a layer and then multiplies, which is several times faster for many tokens.
    Elsewhere only `dequantise` exists, and on GPUs the field has no effect.
    """

    about: ClassVar[About] = About(stage="live", changes=("memory",), weight_bits=4, packages=("bitsandbytes",))

    cpu_kernel: CpuKernel

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
            # Params4bit quantises when it is moved to a device.
            packed.weight = packed.weight.to(model.device)
            packed.requires_grad_(requires_grad=False)
            model.set_submodule(name, packed)
        choose_cpu_kernel(model, self.cpu_kernel)
        return {"claimed_quantised_tensors": len(linears), "claimed_tensor_class": "Params4bit"}


class LlmInt8(Declaration, tag="bitsandbytes-int8", tag_field="step", frozen=True, kw_only=True):
    """LLM.int8(): int8 weights, one scale a row, and int8 activations, one scale a token, but for outlying features.

    Input features of which some value is at least `threshold` are multiplied in float16 beside the product of integers; which
    ones follows from everything that is in the batch. 0: all are rounded. Inputs are cast to float16 first, whatever the dtype.
    """

    about: ClassVar[About] = About(stage="live", changes=("arithmetic", "memory"), weight_bits=8, packages=("bitsandbytes",))

    threshold: NonNegative = 6.0

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Replace every body linear by `Linear8bitLt` holding the same weights, quantised now."""
        from bitsandbytes.nn import Int8Params, Linear8bitLt  # noqa: PLC0415 - heavy, only in workers

        require_divisible(model, 1)
        linears = list(body_linears(model))
        for name, linear in linears:
            packed = Linear8bitLt(linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False,
                                  threshold=self.threshold, device="meta")
            # Int8Params quantises when it is moved from a CPU to a device.
            packed.weight = Int8Params(linear.weight.data.cpu(), requires_grad=False).to(model.device)
            packed.bias = linear.bias
            packed.requires_grad_(requires_grad=False)
            model.set_submodule(name, packed.eval())
        return {"claimed_quantised_tensors": len(linears), "claimed_tensor_class": "Int8Params",
                "claimed_modules": {"Linear8bitLt": len(linears)}}
