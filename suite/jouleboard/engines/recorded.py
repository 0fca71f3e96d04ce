"""Recorded batches of a quality pass, computed again exactly as they were: the energy trials' `replay`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from jouleboard import replays
from jouleboard.engines import generation, packed
from jouleboard.engines.head import KeptLogits
from jouleboard.engines.packed import Prepared
from jouleboard.engines.reference import ReferenceLM
from jouleboard.engines.shared import SharedPrefixLM
from jouleboard.records import ReplayRow

if TYPE_CHECKING:
    from transformers import DynamicCache

Recorded = torch.Tensor | list[ReplayRow] | Prepared
"""A batch that is scored as lm-eval scores, as token ids of shape [batch, tokens]; the rows of one that is generated; a packed
one."""


def read_batches(path: Path) -> list[list[ReplayRow]]:
    """Read recorded batches."""
    return msgspec.json.decode(path.read_bytes(), type=list[list[ReplayRow]])


def prepare(lm: ReferenceLM, batches: Sequence[Sequence[ReplayRow]], *, own_batch_size: bool = False) -> list[Recorded]:
    """Make what an engine computes of recorded batches, before anything is timed.

    Those that are scored have zeros on the right up to the longest row, as lm-eval pads. Where packed batches meet a variant
    that the reference engine computes, it computes the same requests in its own way.

    Args:
        lm: the engine.
        batches: as they were recorded.
        own_batch_size: whether the engine's batch size is not the one that they were recorded with.
    """
    batches = replays.as_run(batches, batch_size=int(lm.batch_size), own_batch_size=own_batch_size,
                             packs=isinstance(lm, SharedPrefixLM), refills=lm.running.runtime.refills)
    if not lm.takes_in:
        batches = replays.apart(batches)
    prefix_tokens = 0
    ready: list[Recorded] = []
    for rows in batches:
        if isinstance(lm, SharedPrefixLM) and replays.is_packed(rows):
            if replays.is_prefix(rows):
                prefix_tokens = len(rows[0].tokens)
            ready.append(lm.prepare(rows, prefix_tokens))
        elif any(row.decode_steps for row in rows):
            ready.append(list(rows))
        else:
            ready.append(torch.nn.utils.rnn.pad_sequence([torch.tensor(row.tokens) for row in rows], batch_first=True))
    return ready


def replay(lm: ReferenceLM, batches: Sequence[Recorded]) -> Iterator[torch.Tensor]:
    """Compute recorded batches again: scored ones in one forward pass each, as lm-eval does it, whose cache ends with it.

    Args:
        lm: the engine.
        batches: what was recorded; packed ones prepared. A prefix is computed where it stands, and held for those behind it.

    Yields:
        The most likely next token at every position, of the shape of each batch; of a packed one at every scored place; of a
        generated one those of each step. Nothing for a prefix.
    """
    held: DynamicCache | None = None
    kept = KeptLogits(lm.model) if isinstance(lm, SharedPrefixLM) else contextlib.nullcontext()
    for batch in batches:
        if isinstance(batch, torch.Tensor):
            yield lm.score_batch(batch)
        elif isinstance(batch, Prepared):
            if not batch.behind:
                held = None
            if batch.is_prefix:
                held = packed.hold(lm.model, batch)
            else:
                with kept:
                    most_likely = packed.most_likely(lm.model, batch, held, lm.softmax_dtype)
                yield most_likely
        else:
            yield from generation.replay(lm, batch)
