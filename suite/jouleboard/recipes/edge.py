"""Steps that hand the finished dense model to another engine than torch, made for small devices; it computes from then on.

A step only says which engine, and how it is to store the weights. `engines.edge` exports the model and loads the engine::

    steps:
      - step: drop-layers
        count: 6
      - step: ctranslate2
        weights: int8
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard.recipes.interface import About, Declaration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class EngineStep(Declaration, frozen=True, kw_only=True):
    """Base of these steps: nothing of the torch model changes, it is replaced when all steps are done."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - see the class
        """Leave the model as it is."""
        return {}


class CTranslate2(EngineStep, tag="ctranslate2", tag_field="step", frozen=True, kw_only=True):
    """CTranslate2, which computes in float32.

    `int8` stores every linear layer and the embedding in int8 with one scale a row, and rounds activations to int8 with one
    scale a token, so an answer does not depend on what else is in its batch.
    """

    about: ClassVar[About] = About(stage="runtime", changes=("arithmetic", "memory"), device="cpu", packages=("ctranslate2",),
                                   extra="ctranslate2", exports=True)

    weights: Literal["float32", "int8"]

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight."""
        return 8 if self.weights == "int8" else None


class OnnxGenai(EngineStep, tag="onnx-genai", tag_field="step", frozen=True, kw_only=True):
    """A model of ONNX Runtime GenAI's model builder, computed by ONNX Runtime in float32.

    `int4` and `int8` store every linear layer and the output head in blocks along the input with one scale each; activations are
    rounded to int8 in the same blocks (the builder's default on CPUs, `accuracy_level` 4). A tied embedding is the int4 head itself;
    beside an int8 head it is stored once more, dense.
    """

    about: ClassVar[About] = About(
        stage="runtime", changes=("arithmetic", "memory"), device="cpu",
        packages=("onnxruntime_genai", "onnxruntime", "onnx", "onnx_ir"), extra="onnx-genai", exports=True)

    weights: Literal["float32", "int8", "int4"]
    block_size: Literal[16, 32, 64, 128, 256] = 32
    algorithm: Literal["rtn", "k_quant"] = "rtn"
    """How a block's scale is found: rounding to the nearest, or the search of llama.cpp's k-quants."""

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight."""
        return {"float32": None, "int8": 8, "int4": 4}[self.weights]
