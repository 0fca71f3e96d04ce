"""Work with a known number of tokens: replay of recorded batches, and the prefill and decode probes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from jouleboard.engines.reference import ReferenceLM

PROBE_SEED = 20260101


def replay(lm: ReferenceLM, batches: list[torch.Tensor]) -> str:
    """Score recorded batches again and return the digest of the most likely token at every position.

    No cache outlives a batch: each is one forward pass without a key-value cache.

    Args:
        lm: the engine.
        batches: token ids, each of shape [batch, tokens].
    """
    hasher = hashlib.sha256()
    with torch.inference_mode():
        for rows in batches:
            hasher.update(lm.score_batch(rows).to(torch.int32).cpu().numpy().tobytes())
    return hasher.hexdigest()


def probe_ids(model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
    """Draw token ids by a fixed seed, shape [batch, tokens]: the cost of dense layers does not depend on their content."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    return torch.randint(0, model.config.vocab_size, (batch, tokens), generator=generator).to(model.device)


def prefill(model: PreTrainedModel, ids: torch.Tensor) -> Cache | None:
    """Run one forward pass that fills the key-value cache and asks for the last position's logits only.

    Args:
        model: the built variant.
        ids: token ids, shape [batch, tokens].
    """
    with torch.inference_mode():
        cache: Cache | None = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    return cache


def decode(model: PreTrainedModel, cache: Cache | None, batch: int, tokens: int) -> torch.Tensor:
    """Take greedy steps from a filled cache, each one forward pass of one token a sequence.

    Stop tokens are not heeded, so every variant computes the same number of tokens.

    Args:
        model: the built variant.
        cache: from `prefill`; it grows by `tokens`.
        batch: number of sequences.
        tokens: number of steps.

    Returns:
        Token ids, shape [batch, tokens].
    """
    row = probe_ids(model, batch, 1)
    found = []
    with torch.inference_mode():
        for _ in range(tokens):
            row = model(row, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)
            found.append(row)
    return torch.cat(found, dim=1)
