"""One packed batch as tensors, and its forward pass: rows with branches, behind a prefix whose keys and values are held.

Example::

    prefix  1 2 3        computed once, as a batch of one; its keys and values stand before those of every row
    row     4 5 6 7      `parents` -1 0 1 1: 6 and 7 both follow 5 and do not see each other
    logits      ^ ^ ^    only where something is scored
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from jouleboard.errors import UnitError
from jouleboard.records import ReplayRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOFTMAX_ROWS = {"cpu": 8}
"""Rows of logits whose softmax is taken at once, by kind of device: on a processor its copy in float32 stays in the cache."""
OTHER_ROWS = 256
"""The same on other devices, where each piece of work costs a launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A batch that is ready to be computed."""

    ids: torch.Tensor
    """Token ids, shape [rows, width]; zeros on the right."""
    positions: torch.Tensor | None
    """Position of each token, of the same shape; None: one after the other."""
    mask: torch.Tensor | None
    """What is added to attention scores, shape [rows, 1, width, prefix + width]; None: each token sees all before it."""
    scored: torch.Tensor
    """Places whose logits are wanted, in the flattened batch."""
    behind: bool
    """Whether it continues a prefix."""
    is_prefix: bool
    """Whether it is one itself."""


class _HeldLayer(DynamicLayer):
    """Keys and values of a prefix, which every row of a batch continues; what is added is handed on and not kept."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_words: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prefix before each row's own keys and values."""
        rows = key_states.shape[0]
        return (torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
                torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2))


def prepare(rows: Sequence[ReplayRow], prefix_tokens: int, *, device: torch.device, dtype: torch.dtype) -> Prepared:
    """Make the tensors of a batch.

    Args:
        rows: the batch.
        prefix_tokens: length of the prefix before it, where its rows are behind one.
        device: where it is computed.
        dtype: of the model: a mask that is added must have it, and a boolean one is wrong under eager attention.
    """
    width = max(len(row.tokens) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.tokens)] = row.tokens
    before = prefix_tokens if rows[0].behind else 0
    positions = mask = None
    if before or any(row.parents for row in rows):
        places, seen = _tree(rows, width, before)
        positions = torch.from_numpy(places).to(device)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
        mask.masked_fill_(torch.from_numpy(~seen).to(device), torch.finfo(dtype).min)
    scored = [number * width + place for number, row in enumerate(rows) for place in _scored(row)]
    return Prepared(ids=torch.from_numpy(ids).to(device), positions=positions, mask=mask, behind=bool(before),
                    scored=torch.tensor(scored, device=device), is_prefix=not rows[0].requests)


def _scored(row: ReplayRow) -> Sequence[int]:
    """Return the places that are asked for; of a prefix only the last, since some are always computed."""
    return row.scored or (len(row.tokens) - 1,)


def _tree(rows: Sequence[ReplayRow], width: int, before: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions, shape [rows, width], and who sees whom, shape [rows, 1, width, before + width]."""
    positions = np.zeros((len(rows), width), dtype=np.int64)
    seen = np.zeros((len(rows), 1, width, before + width), dtype=bool)
    seen[..., :before] = True
    for number, row in enumerate(rows):
        own, depth = seen[number, 0, :, before:], positions[number]
        parents = row.parents or range(-1, len(row.tokens) - 1)
        for place, parent in enumerate(parents):
            if parent >= 0:
                own[place] = own[parent]
            own[place, place] = True
            depth[place] = depth[parent] + 1 if parent >= 0 else before
        # Padding sees itself, or its softmax would be over nothing.
        padding = np.arange(len(row.tokens), width)
        own[padding, padding] = True
    return positions, seen


def hold(model: PreTrainedModel, prefix: Prepared) -> DynamicCache:
    """Compute a prefix and return its keys and values, for any number of batches behind it."""
    cache = DynamicCache(config=model.config)
    forward(model, prefix, cache)
    held = DynamicCache()
    held.layers = [_held(layer) for layer in cache.layers]
    return held


def _held(layer: DynamicLayer) -> _HeldLayer:
    held = _HeldLayer()
    held.lazy_initialization(layer.keys, layer.values)
    held.keys, held.values = layer.keys, layer.values
    return held


def forward(model: PreTrainedModel, batch: Prepared, cache: DynamicCache | None) -> torch.Tensor:
    """Compute a batch's logits at its scored places only.

    The output head gets those places alone, so that whatever a model does to its logits behind the head is done to them too.

    Args:
        model: a causal language model.
        batch: what to feed.
        cache: the held prefix before it, or an empty one that keeps what is computed; None: neither.

    Returns:
        Logits, shape [scored, vocabulary].

    Raises:
        UnitError: the model's output does not come from its head.
    """
    def only_scored(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.scored)[None], *args[1:])

    places = {} if batch.positions is None else {"position_ids": batch.positions}
    hook = model.get_output_embeddings().register_forward_pre_hook(only_scored)
    try:
        with torch.no_grad():
            logits: torch.Tensor = model(batch.ids, attention_mask=batch.mask, past_key_values=cache,
                                         use_cache=cache is not None, **places).logits
    finally:
        hook.remove()
    if logits.shape[:2] != (1, len(batch.scored)):
        raise UnitError(f"the model gave logits of shape {tuple(logits.shape)} for {len(batch.scored)} places", field="engine",
                        remedy="run it with `--engine reference`")
    return logits[0]


def score(
    logits: torch.Tensor, wanted: Sequence[tuple[int, int]], dtype: torch.dtype
) -> tuple[list[float], torch.Tensor]:
    """Take the log-softmax of every row.

    Args:
        logits: shape [scored, vocabulary].
        wanted: pairs of a row and a token id, in the order of the rows.
        dtype: of the softmax.

    Returns:
        The log-likelihood of each wanted token, and each row's most likely token.
    """
    size, vocabulary = SOFTMAX_ROWS.get(logits.device.type, OTHER_ROWS), logits.shape[-1]
    pairs = np.array(wanted, dtype=np.int64).reshape(-1, 2)
    bounds = np.searchsorted(pairs[:, 0], range(0, len(logits) + size, size))
    # Where each wanted value stands in its piece.
    places = torch.from_numpy(pairs[:, 0] % size * vocabulary + pairs[:, 1]).to(logits.device)
    # The same memory for all pieces: taken anew for each, it costs a third as much as the softmax itself. On a processor a row is
    # written when the softmax has gone over it, so the result may stand in the place of its input: a tenth faster.
    copies = 1 if logits.device.type == "cpu" else 2
    room = torch.empty((copies, min(size, len(logits)), vocabulary), dtype=dtype, device=logits.device)
    found, greedy = [], []
    for number, rows in enumerate(torch.split(logits, size)):
        wide = rows if rows.dtype == dtype else room[0, : len(rows)].copy_(rows)
        likely = torch.log_softmax(wide, dim=-1, out=room[-1, : len(rows)])
        greedy.append(_argmax(likely))
        found.append(likely.take(places[bounds[number] : bounds[number + 1]]))
    return torch.cat(found).tolist(), torch.cat(greedy)


def _argmax(rows: torch.Tensor) -> torch.Tensor:
    """Return where each row is largest; of equal ones the first. On processors numpy's is ten times as fast as torch's."""
    return torch.from_numpy(rows.numpy().argmax(axis=-1)) if rows.device.type == "cpu" else rows.argmax(dim=-1)


def most_likely(model: PreTrainedModel, batch: Prepared, held: DynamicCache | None, dtype: torch.dtype) -> torch.Tensor:
    """Compute one recorded batch again exactly as scoring does.

    Args:
        model: a causal language model.
        batch: what `prepare` made.
        held: the prefix, where the batch is behind one.
        dtype: of the softmax.

    Returns:
        The most likely next token at every scored place, shape [scored].
    """
    return score(forward(model, batch, held if batch.behind else None), [], dtype)[1]
