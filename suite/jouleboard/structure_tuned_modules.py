"""Modules and attention of parameter-efficient tuning (see `structure_tuned`)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

KEY, VALUE = "prefix_key", "prefix_value"
IMPLEMENTATION = "jouleboard_prefix"
"""Name of the attention below, in the configuration that an attention module with a prefix has for itself. The model's own
configuration says `sdpa` as before, so masks are made, and read by the engines, as they always are."""


class AdaptedLinear(nn.Module):
    """A linear layer with a bottleneck adapter behind it (Houlsby et al. 2019): y + up(gelu(down(y)))."""

    def __init__(self, linear: nn.Linear, width: int) -> None:
        """Make the bottleneck, not yet filled, on the device and in the dtype of the layer.

        Args:
            linear: the layer, which stays as it is.
            width: of the bottleneck.
        """
        super().__init__()
        device, dtype = linear.weight.device, linear.weight.dtype
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.inner = linear
        self.down = nn.Linear(linear.out_features, width, device=device, dtype=dtype)
        self.up = nn.Linear(width, linear.out_features, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with the bottleneck's added; x has the shape [..., in]."""
        plain = self.inner(x)
        found: torch.Tensor = plain + self.up(functional.gelu(self.down(plain)))
        return found


def make_room(attention: nn.Module, tokens: int) -> None:
    """Give an attention module a prefix, not yet filled: keys and values, shape [key-value heads, tokens, head width].

    Args:
        attention: of a decoder layer; it computes with the prefix from now on.
        tokens: virtual ones.
    """
    weight: torch.Tensor = attention.k_proj.weight  # type: ignore[union-attr,assignment]
    width = int(attention.head_dim)  # type: ignore[arg-type]
    shape = (weight.shape[0] // width, tokens, width)
    for name in (KEY, VALUE):
        attention.register_parameter(name, nn.Parameter(torch.zeros(shape, device=weight.device, dtype=weight.dtype)))
    AttentionInterface.register(IMPLEMENTATION, with_prefix)
    own: Any = copy.copy(attention.config)
    own._attn_implementation = IMPLEMENTATION  # noqa: SLF001 - transformers has no public name for it
    attention.config = own


def with_prefix(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
                **more: Any) -> tuple[torch.Tensor, None]:
    """Compute attention over a prefix and what the key-value cache gave, each query seeing all of the prefix.

    Args:
        module: with the prefix.
        query: shape [batch, heads, queries, head width].
        key: shape [batch, key-value heads, keys, head width]; the cache holds no prefix.
        value: the same.
        attention_mask: over `keys`, as transformers makes it, or an additive one of shape [batch, 1, queries, keys]; None: causal.
        more: what transformers' own function takes besides.
    """
    parts = [(getattr(module, name).to(key.dtype).expand(len(key), -1, -1, -1), own) for name, own in ((KEY, key), (VALUE, value))]
    key, value = (torch.cat(pair, dim=2) for pair in parts)
    tokens = getattr(module, KEY).shape[1]
    if attention_mask is not None:
        seen = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = functional.pad(attention_mask, (tokens, 0), value=seen)
    elif query.shape[2] > 1:
        # Without a mask torch would let the first query see the first key only, and that is one of the prefix.
        allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        attention_mask = allowed.tril(diagonal=key.shape[2] - query.shape[2])[None, None]
    found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    return found
