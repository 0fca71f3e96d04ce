"""Weight-only quantisation by torchao: int8 a channel, and int4 in groups by its CPU kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard.declared import Positive
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, require_divisible

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


def _quantise(model: PreTrainedModel, config: object) -> None:
    from torchao.quantization import quantize_  # noqa: PLC0415 - heavy, only in workers

    names = {name for name, _ in body_linears(model)}

    def chosen(_module: nn.Module, name: str) -> bool:
        return name in names

    quantize_(model, config, filter_fn=chosen)


class Int8WeightOnly(Declaration, tag="torchao-int8-weight-only", tag_field="step", frozen=True, kw_only=True):
    """int8 weights, one scale a row; they are widened to the arithmetic's dtype inside the matrix product."""

    about: ClassVar[About] = About(stage="live", changes=("memory",), packages=("torchao",))

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight."""
        return 8

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Quantise every body linear."""
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415

        count = require_divisible(model, 1)
        _quantise(model, Int8WeightOnlyConfig())
        return {"claimed_quantised_tensors": count, "claimed_tensor_class": "Int8Tensor"}


class Int4WeightOnly(Declaration, tag="torchao-int4-weight-only", tag_field="step", frozen=True, kw_only=True):
    """int4 weights in groups along the input, by torchao's CPU kernel (a prototype there)."""

    about: ClassVar[About] = About(stage="live", changes=("memory",), packages=("torchao",), device="cpu")

    group_size: Positive
    choose_parameters: Literal["hqq", "tinygemm"] = "hqq"

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight."""
        return 4

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - HQQ needs no data
        """Quantise every body linear, after making sure that none would be skipped."""
        from torchao.prototype.quantization.int4 import inference_workflow  # noqa: PLC0415

        count = require_divisible(model, self.group_size)
        config = inference_workflow.PrototypeInt4WeightOnlyConfig(
            group_size=self.group_size, int4_choose_qparams_algorithm=self.choose_parameters
        )
        _quantise(model, config)
        return {"claimed_quantised_tensors": count, "claimed_tensor_class": "Int4OpaqueTensor"}
