"""Quantisation by torchao: int8 and float8, of weights alone or of activations too, and int4 in groups.

Activations are rounded by scales that each token's own vector gives, anew in every forward pass ("dynamic"), so no data is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard.declared import Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, require_divisible

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context

FLOAT8_WIDTH = 16
"""torchao's float8 products take layers whose inputs and outputs are multiples of this, and leave others dense in silence."""


def _quantise(model: PreTrainedModel, config: object, kind: str, *, group_size: int = 1) -> dict[str, Any]:
    """Quantise every body linear, after making sure that none would be skipped; returns the claims.

    Args:
        model: dense.
        config: torchao's.
        kind: class of the weights that it gives.
        group_size: that must divide every layer's inputs.
    """
    from torchao.quantization import quantize_  # noqa: PLC0415 - heavy, only in workers

    count = require_divisible(model, group_size)
    names = {name for name, _ in body_linears(model)}

    def chosen(_module: nn.Module, name: str) -> bool:
        return name in names

    quantize_(model, config, filter_fn=chosen)
    return {"claimed_quantised_tensors": count, "claimed_tensor_class": kind}


class Int8WeightOnly(Declaration, tag="torchao-int8-weight-only", tag_field="step", frozen=True, kw_only=True):
    """int8 weights, one scale a row; they are widened to the arithmetic's dtype inside the matrix product."""

    about: ClassVar[About] = About(stage="live", changes=("memory",), weight_bits=8, packages=("torchao",))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Quantise every body linear."""
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415

        return _quantise(model, Int8WeightOnlyConfig(), "Int8Tensor")


class Int8Dynamic(Declaration, tag="torchao-int8-dynamic", tag_field="step", frozen=True, kw_only=True):
    """int8 weights, one scale a row, and int8 activations, one scale a token: the matrix product is one of integers."""

    about: ClassVar[About] = About(stage="live", changes=("arithmetic", "memory"), weight_bits=8, packages=("torchao",))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Quantise every body linear, and from now on its inputs."""
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig  # noqa: PLC0415

        return _quantise(model, Int8DynamicActivationInt8WeightConfig(), "Int8Tensor")


class Int4WeightOnly(Declaration, tag="torchao-int4-weight-only", tag_field="step", frozen=True, kw_only=True):
    """int4 weights in groups along the input, by torchao's CPU kernel (a prototype there)."""

    about: ClassVar[About] = About(stage="live", changes=("memory",), weight_bits=4, packages=("torchao",), device="cpu")

    group_size: Positive
    choose_parameters: Literal["hqq", "tinygemm"] = "hqq"

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - HQQ needs no data
        """Quantise every body linear."""
        from torchao.prototype.quantization.int4 import inference_workflow  # noqa: PLC0415

        config = inference_workflow.PrototypeInt4WeightOnlyConfig(
            group_size=self.group_size, int4_choose_qparams_algorithm=self.choose_parameters
        )
        return _quantise(model, config, "Int4OpaqueTensor", group_size=self.group_size)


class Int4TilePacked(Declaration, tag="torchao-int4-tile-packed", tag_field="step", frozen=True, kw_only=True):
    """int4 weights in groups along the input, tiled for the GPU's tensor cores (the tinygemm kernel).

    The kernel pads inputs to multiples of 1,024, so weights of a narrow model take up to twice their four bits.
    """

    about: ClassVar[About] = About(stage="live", changes=("memory",), weight_bits=4, packages=("torchao",), device="cuda",
                                   capability=(8, 0))

    group_size: Literal[32, 64, 128, 256]
    choose_parameters: Literal["hqq", "tinygemm"] = "hqq"

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - HQQ needs no data
        """Quantise every body linear."""
        from torchao.quantization import Int4WeightOnlyConfig  # noqa: PLC0415

        require_bfloat16(model)
        config = Int4WeightOnlyConfig(group_size=self.group_size, int4_packing_format="tile_packed_to_4d",
                                      int4_choose_qparams_algorithm=self.choose_parameters)
        return _quantise(model, config, "Int4TilePackedTo4dTensor", group_size=self.group_size)


class Int4Unpacked(Declaration, tag="torchao-int4-unpacked", tag_field="step", frozen=True, kw_only=True):
    """int4 weights in groups along the input, by round-to-nearest, each kept in a byte of its own; widened before the product."""

    about: ClassVar[About] = About(
        stage="live", changes=("memory",), weight_bits=4, packages=("torchao",),
        control="each weight of four bits takes eight, and is widened before every product: it shows what four bits do to quality")

    group_size: Positive

    @property
    def stored_bits(self) -> int | None:
        """Bits that a weight takes in memory."""
        return 8

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Quantise every body linear."""
        import torch  # noqa: PLC0415
        from torchao.quantization import IntxWeightOnlyConfig, PerGroup  # noqa: PLC0415

        config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(self.group_size))  # type: ignore[attr-defined]
        return _quantise(model, config, "IntxUnpackedToInt8Tensor", group_size=self.group_size)


class Float8WeightOnly(Declaration, tag="torchao-float8-weight-only", tag_field="step", frozen=True, kw_only=True):
    """float8 weights (four bits of exponent, three of mantissa), one scale a row; they are widened before the matrix product."""

    about: ClassVar[About] = About(stage="live", changes=("memory",), weight_bits=8, packages=("torchao",))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Quantise every body linear."""
        from torchao.quantization import Float8WeightOnlyConfig  # noqa: PLC0415

        return _quantise(model, Float8WeightOnlyConfig(), "Float8Tensor")


class Float8Dynamic(Declaration, tag="torchao-float8-dynamic", tag_field="step", frozen=True, kw_only=True):
    """float8 weights, one scale a row, and float8 activations, one scale a token: the product is one of float8."""

    about: ClassVar[About] = About(stage="live", changes=("arithmetic", "memory"), weight_bits=8, packages=("torchao",),
                                   device="cuda", capability=(8, 9))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Quantise every body linear, and from now on its inputs; none is skipped in silence."""
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow  # noqa: PLC0415

        require_bfloat16(model)
        for name, module in body_linears(model):
            if module.in_features % FLOAT8_WIDTH or module.out_features % FLOAT8_WIDTH:
                raise RecipeError(f"{name} has {module.in_features} inputs and {module.out_features} outputs, and float8 products take "
                                  f"multiples of {FLOAT8_WIDTH} only", field="steps", remedy="use float8 or int8 weights alone")
        return _quantise(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), "Float8Tensor")


def require_bfloat16(model: PreTrainedModel) -> None:
    """Refuse other dtypes, which a kernel does not take.

    Raises:
        RecipeError: naming the dtype.
    """
    import torch  # noqa: PLC0415

    if model.dtype != torch.bfloat16:
        raise RecipeError(f"its kernel multiplies in bfloat16, the recipe is in {str(model.dtype).removeprefix('torch.')}", field="dtype",
                          remedy="declare dtype: bfloat16")
