"""What an engine outside of torch must be able to do, and what is known of the files that it was given.

Rows of different lengths begin together, each ends when it is told to, and nothing is sampled::

    for newest in runs.write([(5, 6, 7), (8, 9)], goes=lambda row, token: token != 2, most=20):
        ...                             # token ids of the rows that took this step, shape [rows, 1]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import Cache, PreTrainedConfig

Goes = Callable[[int, int], bool]
"""Asked once for each token that is written: of a row, by its place among the prompts, and its newest token, whether it goes on."""
Loop = Callable[[], Iterator[torch.Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What an engine is made of."""

    dense: Path
    """Folder with dense float32 safetensors, configuration and tokenizer, as transformers reads them; gone after the export."""
    target: Path
    """Folder for the engine's own files; it does not exist yet, and is gone once the engine holds them."""
    step: dict[str, Any]
    """The recipe's step, as it is declared."""
    config: PreTrainedConfig
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor as it is stored in the engine's files."""

    name: str
    owner: str
    """What it belongs to: `Parameter` where it is dense, else the engine's name for what unpacks it."""
    dtype: str
    """As it is stored: codes of four bits are bytes."""
    numbers: int
    """How many of the model's weights it stands for: none for scales and tables."""
    bytes: int
    nonzero: int
    """Elements that are not zero, of those that are `countable`."""
    countable: int
    """Elements of dense weights, scales and int8 codes; of packed codes, whose zero is no zero of the weights, none."""
    sha256: str


class Runs(Protocol):
    """An engine that holds the weights. It computes in float32, on the CPU, with as many threads as it was given."""

    name: str
    """As an entry calls it."""
    version: str
    attention: str

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits at every position, of one pass whose cache ends with it.

        Args:
            ids: token ids, shape [batch, tokens]; none of them is padding.

        Returns:
            float32, shape [batch, tokens, vocabulary].
        """

    def write(self, prompts: Sequence[Sequence[int]], goes: Goes, most: int) -> Iterator[torch.Tensor]:
        """Compute prompts with a new cache and decode greedily, as long as rows go on; a row that has ended takes no more steps.

        Args:
            prompts: token ids of each row; their lengths may differ.
            goes: asked of each token, the first ones included.
            most: tokens of a row that is never told to end.

        Yields:
            The newest tokens of the rows that took the step, shape [rows, 1]; where the engine takes prompts of different lengths
            in step by step, the shortest ones are first.
        """

    def hold(self, prompts: Sequence[Sequence[int]], steps: int) -> Loop:
        """Fill a cache with prompts of one length; return what decodes `steps` tokens behind them, again and again the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A loaded engine, and what its files were."""

    runs: Runs
    weights: tuple[Weight, ...]
    layers: int
    modules: dict[str, int] = field(default_factory=dict)
    """What it computes with, by the engine's own names, and how many of each."""


class EngineCache(Cache):
    """Keys and values that an engine holds outside of torch, as `caches.CacheWatch` finds those of transformers."""

    def __init__(self, rows: int) -> None:
        """Hold no token yet; there are no layers of transformers'."""
        self.layers = [self]
        self.lengths = np.zeros(rows, np.int64)
        """Tokens that each row holds."""

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - transformers' signature
        """Return how many tokens the longest row holds."""
        return int(self.lengths.max(initial=0))
