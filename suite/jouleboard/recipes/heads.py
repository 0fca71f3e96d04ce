"""Head pruning by whole key-value groups: a key-value head goes together with all query heads that read it (Ainslie et al. 2023, GQA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard.declared import Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.activations import contributions
from jouleboard.recipes.decoder import ATTENTION, attentions, keep_inputs, keep_outputs, require_config
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import parameters

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context

PER_HEAD = ("q_norm", "k_norm")
"""Norms over one head's width, which stay as they are when heads go."""


class PruneHeads(Declaration, tag="prune-heads", tag_field="step", frozen=True, kw_only=True):
    """Remove `groups` key-value groups from every layer: those that add least to the output of attention.

    How much a group adds is the norm of what `o_proj` makes of it over the calibration tokens. The sum of its channels' norms would
    not do: with the default model it removes groups whose loss multiplies the perplexity by 49, this one by 1.6.

    A model without grouped queries has groups of one head. The key-value cache shrinks with the groups.
    """

    about: ClassVar[About] = About(stage="dense", changes=("memory", "work"))

    groups: Positive
    """How many groups each layer loses."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Measure all layers in one pass of the whole model, then cut them."""
        blocks = attentions(model)
        before = _heads(model, blocks)
        kept = before.kv_heads - self.groups
        if kept < 1:
            raise RecipeError(f"each layer has {before.kv_heads} key-value groups, {self.groups} cannot be removed",
                              field="steps.groups", remedy="remove fewer")
        # The width of a head must be said: from now on it is no longer the hidden size by the number of heads.
        now = {"num_attention_heads": kept * before.per_group, "num_key_value_heads": kept, "head_dim": before.width}
        require_config(model, now)
        held = parameters(model)
        outputs = {str(index): block.o_proj for index, block in enumerate(blocks)}
        importances = contributions(model, context.calibration_ids, outputs, groups=before.kv_heads)
        removed = []
        for block, importance in zip(blocks, importances.values(), strict=True):
            # Of equally important groups the last goes.
            order = importance.argsort(descending=True, stable=True)
            removed.append(sorted(order[kept:].tolist()))
            held -= self.groups * _group_parameters(block, before)
            _cut(block, order[:kept].sort().values, before)
        for field, value in now.items():
            setattr(model.config, field, value)
        return {"removed_groups": removed, "tokens": int(context.calibration_ids.numel()), "claimed_parameters": held,
                "claimed_config": now}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """How a model's attention is divided."""

    kv_heads: int
    per_group: int
    """Query heads that read one key-value head."""
    width: int
    """Of one head."""


def _heads(model: PreTrainedModel, blocks: list[Any]) -> Heads:
    config = model.config
    query, kv = int(config.num_attention_heads), int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    heads = Heads(kv_heads=kv, per_group=query // kv, width=int(blocks[0].o_proj.in_features) // query)
    for index, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            part = name.partition(".")[0]
            if part not in ATTENTION and not (part in PER_HEAD and parameter.numel() == heads.width):
                raise RecipeError(f"{type(model).__name__}, layer {index}: self_attn.{name} is not known to this step", field="steps",
                                  remedy="prune heads of models whose attention is built as Llama's is")
        found = [linear.out_features for linear in (block.q_proj, block.k_proj, block.v_proj)]
        if found != [query * heads.width, kv * heads.width, kv * heads.width]:
            raise RecipeError(f"{type(model).__name__}, layer {index}: the projections have {found} outputs, which are not {query} "
                              f"query heads and {kv} key and value heads of one width", field="steps",
                              remedy="prune heads of models whose attention is built as Llama's is")
    return heads


def _group_parameters(block: Any, heads: Heads) -> int:
    """Return how many weights one key-value group has: rows of queries, keys and values with their biases, columns of the output."""
    rows = {block.q_proj: heads.per_group * heads.width, block.k_proj: heads.width, block.v_proj: heads.width}
    incoming = sum(count * (linear.in_features + (linear.bias is not None)) for linear, count in rows.items())
    return int(incoming + heads.per_group * heads.width * block.o_proj.out_features)


def _cut(block: Any, groups: torch.Tensor, heads: Heads) -> None:
    """Leave only some groups.

    Args:
        block: an attention module.
        groups: numbers of the key-value groups that stay, ascending.
        heads: as they are before the cut.
    """
    rows = _channels(groups, heads.width)
    queries = _channels(groups, heads.per_group * heads.width)
    keep_outputs(block.q_proj, queries)
    keep_outputs(block.k_proj, rows)
    keep_outputs(block.v_proj, rows)
    keep_inputs(block.o_proj, queries)
    for field, value in (("num_heads", len(groups) * heads.per_group), ("num_key_value_heads", len(groups))):
        if hasattr(block, field):
            setattr(block, field, value)


def _channels(groups: torch.Tensor, width: int) -> torch.Tensor:
    """Return the numbers of the channels of groups that are `width` channels each."""
    import torch  # noqa: PLC0415 - torch is imported only where tokens are computed

    return (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()
