"""Attention to the last tokens and the first few: less work in long prefills, and a cache that stops growing.

Each token sees the last `tokens` tokens, itself among them (as `sliding_window` in transformers), and the `sinks` first ones of
its text (StreamingLLM, Xiao et al. 2024, arXiv:2309.17453). Positions stay what they are, so a text is never longer than the
model's context. A long prefill is computed in blocks of queries, each against the keys that it can see::

    window 3, sinks 1        q = 4 5 6 | 7 8 9
    keys of the first block      0 . 2 3 4 5 6
    keys of the second           0 . . . . 5 6 7 8 9

Held slots are not positions once tokens have left: slot j is token j below `front`, and token j + left behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from jouleboard.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from jouleboard.runtime import Window

NAME = "sdpa-window"
"""What the model's configuration calls this attention."""
SINKS = "attention_sinks"
"""Field of the configuration that holds how many first tokens stay in sight."""
LEAST_BLOCK = 64
"""Queries a block at least: smaller ones cost more in calls than they save."""


class WindowLayer(DynamicSlidingWindowLayer):
    """Keys and values of one layer: those of the first tokens and of the last ones."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, *, window: Window, padding: int = 0) -> None:
        """Hold nothing yet.

        Args:
            window: what a token sees.
            padding: slots on the left of the most padded row; so many more are kept at the front.
        """
        super().__init__(sliding_window=window.tokens)
        self._front = window.sinks + padding if window.sinks else 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_words: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens, forget those that no later one sees, and return all that these may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        keys, values = torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)
        self.keys, self.values = self._kept(keys), self._kept(values)
        return keys, values

    def _kept(self, held: torch.Tensor) -> torch.Tensor:
        left = held.shape[-2] - self._front - (self.sliding_window - 1)
        if left <= 0:
            return held
        return torch.cat([held[:, :, : self._front], held[:, :, self._front + left :]], dim=-2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many slots there will be, and how many tokens have left."""
        held = self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0
        return held + query_length, self.cumulative_length - held


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Some queries, and the slots that they may see: those before `front` and those from `first` to `end`."""

    queries: slice
    front: int
    first: int
    end: int
    mask: torch.Tensor
    """Boolean, shape [rows or 1, 1, queries, slots]."""


def install(model: PreTrainedModel, window: Window) -> None:
    """Let a model compute this attention, and its configuration say so.

    Raises:
        RecipeError: the model has another kind of attention already, or one that cannot be exchanged.
    """
    config = model.config.get_text_config()
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"} or getattr(config, "sliding_window", None) or getattr(
            config, "attention_chunk_size", None):
        raise _unfit("has layers that are not of full attention")
    # ALiBi and the like add to the scores by themselves; those models know no exchangeable attention.
    if not getattr(model, "_supports_attention_backend", False) or config._attn_implementation != "sdpa":  # noqa: SLF001 - transformers has no public name for it
        raise _unfit(f"computes its attention in a way of its own ({config._attn_implementation})")  # noqa: SLF001
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    config.sliding_window = window.tokens
    setattr(config, SINKS, window.sinks)
    model.set_attn_implementation(NAME)


def _unfit(why: str) -> RecipeError:
    return RecipeError(f"the model {why}", field="steps", remedy="leave sliding-window out for this model")


def _mask(
    *, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, attention_mask: torch.Tensor | None = None,
    config: PretrainedConfig, device: torch.device, **_words: Any,
) -> torch.Tensor | tuple[_Block, ...] | None:
    """Say who sees whom, in the arguments of transformers' mask functions.

    Args:
        q_length: new tokens.
        kv_length: slots, the new ones among them.
        q_offset: token of the first new one.
        kv_offset: how many tokens have left the cache.
        attention_mask: shape [rows, tokens]; False where a row is padded on its left. None: no padding.
        config: of the model.
        device: of the mask.

    Returns:
        A boolean mask of shape [rows or 1, 1, new, slots]; blocks of one for a long prefill; None where each sees all before it.
    """
    size, sinks = int(config.sliding_window), int(getattr(config, SINKS))
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not padded and kv_length <= size and q_length in {1, kv_length}:
        return None
    held = kv_length - q_length
    front = held - (size - 1) if kv_offset else held
    slots = torch.arange(kv_length, device=device)
    # Before anything has left, each slot is its own token.
    tokens = slots if not kv_offset else torch.where(slots < front, slots, slots + kv_offset)
    begins = attention_mask.int().argmax(dim=1) if padded and attention_mask is not None else torch.zeros(1, dtype=torch.long, device=device)
    rows = attention_mask if padded else None
    new = torch.arange(q_length, device=device) + q_offset

    def seen(queries: slice, chosen: torch.Tensor) -> torch.Tensor:
        query, key = new[queries][None, :, None], chosen[None, None, :]
        found = (key <= query) & ((key > query - size) | (key < begins[:, None, None] + sinks))
        if rows is not None:
            found = found & rows[:, chosen][:, None, :].bool()
        return found[:, None]

    block = max(LEAST_BLOCK, size // 2)
    if q_length <= size + block:
        return seen(slice(None), tokens)
    reach = sinks + int(begins.max()) if sinks else 0
    return tuple(_blocks(q_length, held, block, size, min(reach, kv_length), tokens, seen))


def _blocks(
    q_length: int, held: int, block: int, size: int, reach: int, tokens: torch.Tensor, seen: Any
) -> list[_Block]:
    """Cut queries into blocks; `held` slots stand before the first query's own, `reach` of them at the front stay in sight."""
    found = []
    for start in range(0, q_length, block):
        end = min(start + block, q_length)
        first = max(0, held + start - size + 1)
        front = min(reach, first)
        queries = slice(start, end)
        chosen = torch.cat([tokens[:front], tokens[first : held + end]])
        found.append(_Block(queries=queries, front=front, first=first, end=held + end, mask=seen(queries, chosen)))
    return found


def _attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | tuple[_Block, ...] | None, **words: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention, in blocks where the mask says so; see `transformers.AttentionInterface` for the arguments."""
    if not isinstance(attention_mask, tuple):
        output: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **words)[0]
        return output, None
    pieces = []
    for block in attention_mask:
        keys, values = (torch.cat([held[:, :, : block.front], held[:, :, block.first : block.end]], dim=2) for held in (key, value))
        pieces.append(sdpa_attention_forward(module, query[:, :, block.queries], keys, values, block.mask, **words)[0])
    return torch.cat(pieces, dim=1), None
