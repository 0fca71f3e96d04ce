"""The place of a torch model that another engine has taken: what of it is asked for by lm-eval, by workloads and by entries."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from jouleboard.engines.edge.interface import Exported, Runs, Weight
from jouleboard.errors import RecipeError
from jouleboard.records import Realised


class EdgeModel(torch.nn.Module):
    """Gives logits like a model of transformers does; it has no parameters, the engine holds them."""

    def __init__(self, runs: Runs, config: PreTrainedConfig, generation_config: GenerationConfig) -> None:
        """Keep the engine.

        Args:
            runs: what computes.
            config: of the model that was exported.
            generation_config: likewise.
        """
        super().__init__()
        self.runs, self.config, self.generation_config = runs, config, generation_config

    @property
    def computed_by(self) -> str:
        """Name of the engine."""
        return self.runs.name

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """What it gives, and computes in where nothing is quantised."""
        return torch.float32

    def tie_weights(self) -> None:
        """Do nothing: lm-eval asks every model to tie its weights, and these are in the engine."""

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        """Return the logits at every position, as `.logits`.

        Args:
            input_ids: shape [batch, tokens]; none of them is padding.
        """
        return SimpleNamespace(logits=self.runs.logits(input_ids))


def realised(made: Exported, steps: Sequence[dict[str, Any]], *, parameters: int, layers: int) -> Realised:
    """Describe what the engine was given, from its files, and hold it against the model that was exported.

    Args:
        made: the loaded engine.
        steps: the recipe's steps with what they found out.
        parameters: of the dense model.
        layers: likewise.

    Raises:
        RecipeError: weights or layers are missing, or nothing is quantised where that was asked for.
    """
    weights = made.weights
    numbers = sum(weight.numbers for weight in weights)
    for what, found, wanted in (("weights", numbers, parameters), ("layers", made.layers, layers)):
        if found != wanted:
            raise RecipeError(f"the dense model has {wanted} {what}, what {made.runs.name} was given has {found}", field="realised",
                              remedy="the engine's own export leaves something out of this architecture: use another engine")
    owners = Counter(weight.owner for weight in weights if weight.numbers)
    dtypes: Counter[str] = Counter()
    for weight in weights:
        if weight.bytes:
            dtypes[weight.dtype] += weight.bytes
    countable = sum(weight.countable for weight in weights)
    return Realised(
        weight_bytes=sum(dtypes.values()), parameters=numbers, dtypes=dict(sorted(dtypes.items())),
        tensor_classes=dict(sorted(owners.items())), module_classes=dict(sorted(made.modules.items())),
        quantised_tensors=sum(count for owner, count in owners.items() if owner != "Parameter"),
        nonzero_share=sum(weight.nonzero for weight in weights) / countable, layers=layers,
        weights_sha256=fingerprint(weights),
        claims=(*_earlier(steps), *(f"{count} weights are {owner}" for owner, count in sorted(owners.items()) if owner != "Parameter"),
                f"{numbers} weights in {layers} layers were given to {made.runs.name}"),
    )


def _earlier(steps: Sequence[dict[str, Any]]) -> list[str]:
    """Repeat what was claimed of layers before the export: it was held against the model that was exported."""
    return [f"{step['claimed_layers']} layers are left" for step in steps if "claimed_layers" in step]


def fingerprint(weights: Sequence[Weight]) -> str:
    """Return the SHA-256 over name, dtype and digest of every stored tensor, in order of name."""
    hasher = hashlib.sha256()
    for weight in sorted(weights, key=lambda weight: weight.name):
        hasher.update(f"{weight.name}|{weight.dtype}|{weight.bytes}|{weight.sha256}\n".encode())
    return hasher.hexdigest()
