"""Plain Llamas: the one architecture for which files and graphs are written here, where an engine brings no exporter of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from jouleboard.errors import RecipeError


def require(config: PreTrainedConfig, engine: str) -> None:
    """Make sure that a model is a plain Llama.

    Raises:
        RecipeError: it is another model, or has biases, scaled positions or another activation.
    """
    odd = [words for words, found in (
        ("scaled positions", (_rope(config).get("rope_type") or "default") != "default"),
        ("biases", getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)),
        ("another activation than SiLU", getattr(config, "hidden_act", "silu") != "silu"),
    ) if found]
    if config.model_type != "llama" or odd:
        raise RecipeError(f"a model of type {config.model_type}{' with ' if odd else ''}{' and '.join(odd)} is not written for {engine} "
                          "here, only plain Llamas are", field="steps", remedy="leave the recipe out for this model, or use another engine")


def head_width(config: PreTrainedConfig) -> int:
    """Return the width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotary_base(config: PreTrainedConfig) -> float:
    """Return the base of the rotary frequencies."""
    return float(_rope(config).get("rope_theta", 10000.0))


def tensors(dense: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of every weight in a folder's safetensors."""
    for path in sorted(dense.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                yield name, file.get_tensor(name)


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})
