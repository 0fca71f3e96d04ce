"""Which models the shared-prefix engine cannot compute, told from their configuration and their weights."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.engines.running import Running

MASKED_ATTENTION = ("eager", "sdpa")
"""Attention implementations that add a mask of four dimensions."""
PERPLEXITY = "each text of a perplexity task is scored alone, so there is nothing to share"
DYNAMIC_MODULES = ("Linear8bitLt",)
"""Linear layers that round activations by what else is in the batch; those of `torch.ao.nn.quantized.dynamic` do too."""
DYNAMIC_WEIGHTS = ("act_quant_kwargs", "activation_quantization")
"""What torchao writes on a weight whose inputs are rounded."""


def refusal(model: PreTrainedModel, *, ranks: int = 1, running: Running | None = None) -> str | None:
    """Say why the reference engine must compute a model; None where the shared-prefix engine can.

    What a runtime does to decoding alone (a cache of another kind, compiled steps, drafts) is no hindrance: packed batches are
    scored without it.

    Args:
        model: the built variant.
        ranks: processes that compute it together.
        running: how it is run; None: as transformers runs it.
    """
    if running is not None and running.compiles_all:
        return "its forward pass is compiled for plain batches, and packed ones have masks and places of their own"
    if ranks > 1:
        return f"{ranks} devices compute the model together, and packed batches were not tried there"
    outside = getattr(model, "computed_by", None)
    if outside is not None:
        return f"the recipe hands the model to {outside}, which takes no packed batches"
    return _layers(model) or _inputs(model) or _activations(model)


def _layers(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if others:
        return f"the model has layers of another kind than full attention ({', '.join(others)})"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"its attention has a sliding window of {config.sliding_window} tokens"
    if getattr(config, "attention_chunk_size", None):
        return f"its attention is cut into chunks of {config.attention_chunk_size} tokens"
    if getattr(model, "_is_stateful", False):
        return "it carries a state from token to token (state space or linear attention)"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder with a decoder"
    return None


def _inputs(model: PreTrainedModel) -> str | None:
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in MASKED_ATTENTION:
        return f"its attention implementation ({attention}) takes no mask of four dimensions"
    takes = inspect.signature(type(model).forward).parameters
    if not {"position_ids", "past_key_values", "attention_mask"} <= takes.keys():
        return "its forward pass takes no positions"
    if getattr(model.config, "alibi", False):
        return "its positions follow from the place in the batch (ALiBi)"
    if model.get_output_embeddings() is None:
        return "it has no output head"
    return None


def _activations(model: PreTrainedModel) -> str | None:
    for name, parameter in model.named_parameters():
        dynamic = any(getattr(parameter, mark, None) is not None for mark in DYNAMIC_WEIGHTS)
        if dynamic or "ActivationQuantized" in type(parameter).__name__:
            return _dynamic(name)
    for name, module in model.named_modules():
        if type(module).__name__ in DYNAMIC_MODULES or ".quantized.dynamic" in type(module).__module__:
            return _dynamic(name)
        # A layer of compressed-tensors says how it rounds its inputs and outputs.
        scheme = getattr(module, "quantization_scheme", None)
        rounded = [one for one in (getattr(scheme, "input_activations", None), getattr(scheme, "output_activations", None)) if one]
        if any(one.dynamic for one in rounded):
            return _dynamic(name)
        if rounded or getattr(module, "activation_qtype", None) is not None:
            return f"activations are quantised by fixed scales ({name}), and packed batches were not tried there"
    return None


def _dynamic(name: str) -> str:
    return (f"activations are quantised dynamically ({name}), so an answer depends on what else is in its batch; "
            "the reference engine feeds what lm-eval feeds")


def computes_in_float32(model: PreTrainedModel) -> bool:
    """Tell whether every product is one of float32: weights may be, and products not (autocast)."""
    arithmetic = getattr(model.forward, "arithmetic", None)
    return arithmetic is None and str(model.dtype) == "torch.float32"
