"""Structural edits of parameter-efficient tuning: bottleneck adapters, and a learned prefix of keys and values.

What a model's configuration records of them::

    {"edit": "adapter", "layer": 0, "module": "mlp.down_proj", "width": 32}
    {"edit": "prefix", "layer": 0, "tokens": 16}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jouleboard.declared import Count, Noun, Positive
from jouleboard.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Adapter(Noun, tag="adapter", tag_field="edit", frozen=True, kw_only=True):
    """Behind a linear layer stands a bottleneck: a narrow layer, a nonlinearity, a wide layer, and a way around all three."""

    layer: Count
    module: str
    """The linear layer's name inside the decoder layer: `mlp.down_proj`."""
    width: Positive


class Prefix(Noun, tag="prefix", tag_field="edit", frozen=True, kw_only=True):
    """In a layer's attention stand the keys and values of virtual tokens before those of every sequence."""

    layer: Count
    tokens: Positive


def adapter(model: PreTrainedModel, edit: Adapter) -> None:
    """Put a bottleneck behind a linear layer."""
    from torch import nn  # noqa: PLC0415 - torch is imported only where tokens are computed

    from jouleboard.structure_tuned_modules import AdaptedLinear  # noqa: PLC0415 - imports torch

    layer = model.model.layers[edit.layer]
    old = layer.get_submodule(edit.module)
    if not isinstance(old, nn.Linear):
        raise RecipeError(f"layer {edit.layer}: {edit.module} is {type(old).__name__}, not a dense linear layer", field="steps",
                          remedy="adapters come once, and behind dense layers")
    layer.set_submodule(edit.module, AdaptedLinear(old, edit.width))


def prefix(model: PreTrainedModel, edit: Prefix) -> None:
    """Give a layer's attention room for the keys and values of virtual tokens."""
    from jouleboard import structure_tuned_modules as modules  # noqa: PLC0415 - imports torch

    why = unfit_for_prefix(model)
    if why is not None:
        raise RecipeError(why, field="steps", remedy="use another recipe for this model, such as lora-recovery")
    attention = model.model.layers[edit.layer].self_attn
    if hasattr(attention, modules.KEY):
        raise RecipeError(f"layer {edit.layer} has a prefix already", field="steps", remedy="virtual tokens come once")
    modules.make_room(attention, edit.tokens)


def unfit_for_prefix(model: PreTrainedModel) -> str | None:
    """Say why a model cannot have virtual tokens whose keys and values are computed once; None: it can.

    Their positions are before 0, so that every real token keeps its own. That is the same as moving all tokens back only where
    attention depends on how far two tokens are apart and on nothing else.
    """
    config = model.config
    if getattr(getattr(model, "model", None), "rotary_emb", None) is None:
        return "its positions are no rotations, so a position before the first one has no meaning"
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind in {"dynamic", "longrope"}:
        return f"its rotations ({kind}) depend on how long the text is"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return "it has layers of another kind than full attention"
    if config._attn_implementation != "sdpa":  # noqa: SLF001 - transformers has no public name for it
        return f"its attention is computed by {config._attn_implementation}, and a prefix is known to sdpa only"  # noqa: SLF001
    return None
