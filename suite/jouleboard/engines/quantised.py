"""A key-value cache in few bits: it saves memory, not time, since what is held is unpacked for every step.

Older tokens are rounded to 2, 4 or 8 bits; each group of values of one token and head has a scale and a least value of its own
(asymmetric). The newest tokens stay as they are, and a prefill sees its own keys and values before they are rounded. Source:
KIVI (Liu et al. 2024, arXiv:2402.02750), with keys in groups along the head like values, not along the tokens: so a token can
be rounded as soon as it is old enough, whatever stands beside it.

    head of 64 in bf16, 4 bits, groups of 32:  32 bytes of codes, 2 x 2 x 2 of scales and least values, instead of 128
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

BYTE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """Rounded tensors of shape [rows, heads, tokens, width]."""

    packed: torch.Tensor
    """uint8, shape [rows, heads, tokens, width x bits / 8]."""
    scale: torch.Tensor
    """Shape [rows, heads, tokens, groups], in the dtype of what was rounded."""
    least: torch.Tensor
    """Of the same shape and dtype."""


def quantise(values: torch.Tensor, *, bits: int, group_size: int) -> Codes:
    """Round to the nearest of 2^bits values between the least and the largest of each group.

    Args:
        values: shape [rows, heads, tokens, width]; the width is a multiple of the group.
        bits: 2, 4 or 8.
        group_size: values along the width that share a scale.
    """
    levels = 2**bits - 1
    groups = _split(values.float(), group_size)
    # Rounded before they are used: the codes make up for it.
    least = groups.amin(-1).to(values.dtype)
    scale = ((groups.amax(-1) - least.float()) / levels).to(values.dtype)
    # All values of a group are alike.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = torch.round((groups - least.float()[..., None]) / scale.float()[..., None]).clamp(0, levels).to(torch.uint8)
    return Codes(packed=_pack(codes.flatten(-2), bits), scale=scale, least=least)


def dequantise(codes: Codes, *, bits: int, group_size: int) -> torch.Tensor:
    """Return what `quantise` was given, rounded, in the dtype of the scales."""
    groups = _split(_unpack(codes.packed, bits), group_size).float()
    values: torch.Tensor = (groups * codes.scale.float()[..., None] + codes.least.float()[..., None]).flatten(-2)
    return values.to(codes.scale.dtype)


def _split(held: torch.Tensor, size: int) -> torch.Tensor:
    """Cut the last dimension into groups of a size."""
    return held.reshape(*held.shape[:-1], -1, size)


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == BYTE:
        return codes
    parts = _split(codes, BYTE // bits)
    packed = torch.zeros_like(parts[..., 0])
    for place in range(BYTE // bits):
        packed |= parts[..., place] << (bits * place)
    return packed


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == BYTE:
        return packed
    return torch.stack([(packed >> (bits * place)) & (2**bits - 1) for place in range(BYTE // bits)], dim=-1).flatten(-2)


class QuantisedLayer(DynamicLayer):
    """Keys and values of one layer: the newest as they are (`keys`, `values`), the older ones as codes."""

    keys: torch.Tensor
    values: torch.Tensor
    is_croppable = False

    def __init__(self, *, bits: int, group_size: int, recent: int) -> None:
        """Hold nothing yet; the arguments are those of `runtime.Quantised`."""
        super().__init__()
        self._how = {"bits": bits, "group_size": group_size}
        self._recent = recent
        self.older: dict[str, Codes] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_words: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens, round those that have become old, and return all keys and values as they were before this rounding."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._add("keys", key_states), self._add("values", value_states)

    def _add(self, name: str, new: torch.Tensor) -> torch.Tensor:
        recent = torch.cat([getattr(self, name), new], dim=-2)
        older = self.older.get(name)
        seen = recent if older is None else torch.cat([dequantise(older, **self._how), recent], dim=-2)
        excess = recent.shape[-2] - self._recent
        if excess > 0:
            self.older[name] = _joined(older, quantise(recent[:, :, :excess], **self._how))
            # A view would hold on to the whole.
            recent = recent[:, :, excess:].clone()
        setattr(self, name, recent)
        return seen

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        older = self.older["keys"].packed.shape[-2] if self.older else 0
        return older + (self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep the rows that are named, in that order."""
        self.older = {name: _each(lambda tensor: tensor.index_select(0, beam_idx), codes) for name, codes in self.older.items()}
        if self.keys.numel():
            self.keys, self.values = (held.index_select(0, beam_idx) for held in (self.keys, self.values))


def _each(change: Any, *codes: Codes) -> Codes:
    return Codes(**{field.name: change(*(getattr(one, field.name) for one in codes)) for field in fields(Codes)})


def _joined(older: Codes | None, newer: Codes) -> Codes:
    return newer if older is None else _each(lambda *both: torch.cat(both, dim=-2), older, newer)
