"""Serving, prefill and decode by an engine outside of torch: what `workloads` has under the same names for torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from jouleboard.engines.edge.model import EdgeModel


def _goes(_row: int, _token: int) -> bool:
    return True


def serve(model: EdgeModel, prompts: torch.Tensor, output_tokens: int) -> Iterator[torch.Tensor]:
    """Prefill a batch of prompts with a new cache and decode greedily; yields the tokens of each step, shape [batch, 1]."""
    return model.runs.write(prompts.tolist(), _goes, output_tokens)


def prefill(model: EdgeModel, prompts: torch.Tensor) -> Iterator[torch.Tensor]:
    """Compute prompts with a new cache; yields the first tokens, shape [batch, 1]."""
    return model.runs.write(prompts.tolist(), _goes, 1)


class Decode:
    """Decode steps alone, again and again behind one prefilled batch."""

    def __init__(self, model: EdgeModel, prompts: torch.Tensor, steps: int) -> None:
        """Fill the cache.

        Args:
            model: the built variant.
            prompts: token ids, shape [batch, tokens].
            steps: of each loop.
        """
        self._loop = model.runs.hold(prompts.tolist(), steps)

    def loop(self) -> Iterator[torch.Tensor]:
        """Take the steps; yields the tokens of each, shape [batch, 1]."""
        return self._loop()
