"""Key-value caches with room for tokens to come: a step writes its token there, and what stands before it is not copied again.

The cache of one layer, two rows of the same length, padded on the left; `.` is room::

    keys   0 K K K K . . .     all of it is one tensor; what the model sees is a view of its front
           K K K K K . . .

transformers' own dynamic layer copies all keys and values at every step. Its static one needs the greatest length beforehand, and
computes attention over all of it. Layers of another kind than the plain dynamic one (windows, linear attention) stay what they are.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

ROOM_TOKENS = 64
"""Tokens for which room is made at a time: with the default model in float32, 2.9 MB a row."""


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, at the front of tensors that have room behind them."""

    def __init__(self, **words: Any) -> None:
        """Hold nothing yet."""
        super().__init__(**words)
        self._roomy: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_words: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values behind those that are there.

        Args:
            key_states: shape [rows, heads, new tokens, width].
            value_states: likewise; its width may be another one.

        Returns:
            All keys and all values: views that are valid until the next update.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        self.keys = self._written("keys", before, key_states)
        self.values = self._written("values", before, value_states)
        return self.keys, self.values

    def _written(self, name: str, before: int, new: torch.Tensor) -> torch.Tensor:
        held, roomy, after = getattr(self, name), self._roomy.get(name), before + new.shape[2]
        # What is held may have been cut, or replaced by a copy: it counts, and room that is not behind it is of no use.
        behind = roomy is not None and before and held.data_ptr() == roomy.data_ptr() and len(held) == len(roomy)
        if roomy is None or not behind or after > roomy.shape[2]:
            roomy = self._roomy[name] = new.new_empty((*new.shape[:2], after + ROOM_TOKENS, new.shape[3]))
            if before:
                roomy[:, :, :before] = held
        roomy.narrow(2, before, new.shape[2]).copy_(new)
        return roomy.narrow(2, 0, after)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep some rows, and the room behind them.

        Args:
            beam_idx: indices into the rows that are there.
        """
        for name, roomy in self._roomy.items():
            held = getattr(self, name)
            self._roomy[name] = roomy.index_select(0, beam_idx.to(roomy.device))
            setattr(self, name, self._roomy[name][:, :, : held.shape[2]])

    def join(self, other: RoomyLayer, *, length: int) -> None:
        """Take the rows of another layer in behind those that are there; the last tokens of all stand in the same place.

        Args:
            other: of the same heads and widths; it is emptied.
            length: of all rows afterwards: longer ones are cut on the left, shorter ones filled with zeros, which are masked.
        """
        for name in ("keys", "values"):
            parts = [getattr(self, name), getattr(other, name)]
            rows = sum(map(len, parts))
            roomy = parts[0].new_zeros((rows, parts[0].shape[1], length + ROOM_TOKENS, parts[0].shape[3]))
            first = 0
            for part in parts:
                kept = min(part.shape[2], length)
                roomy[first : first + len(part), :, length - kept : length] = part[:, :, part.shape[2] - kept :]
                first += len(part)
            self._roomy[name] = roomy
            setattr(self, name, roomy[:, :, :length])
        other.reset()


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """Make an empty cache of the kind that the model would make for itself, with room in its plain layers."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def has_room(cache: DynamicCache) -> bool:
    """Whether all layers have room: the others cannot take rows in either."""
    return all(type(layer) is RoomyLayer for layer in cache.layers)
