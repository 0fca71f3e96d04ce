"""Loads a base's dense weights, and the text that steps of a recipe look at activations with."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from jouleboard import structure
from jouleboard.engines import parallel
from jouleboard.errors import RecipeError


def dense(folder: str, dtype: torch.dtype, device: str, group: parallel.Group) -> PreTrainedModel:
    """Load the dense weights, or this rank's share of them.

    Raises:
        RecipeError: they are quantised already, or structural edits cannot be made again.
    """
    edited = structure.is_edited(folder)
    if edited and group.several:
        raise RecipeError(f"factorised, shared or inserted layers are not split over {group.world} devices here", field="steps",
                          remedy="run this recipe with a profile of one device")
    if group.several:
        model = parallel.load(folder, dtype, group)
    elif edited:
        model = structure.load(folder, dtype).to(device)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False).to(device)
    if getattr(model.config, "quantization_config", None) is not None:
        raise RecipeError("the model's published weights are quantised already", field="model",
                          remedy="name dense weights: what a recipe loses cannot be told on these")
    return model.eval()


def calibration_ids(tokenizer: PreTrainedTokenizerBase, file: str) -> torch.Tensor:
    """Return the token ids of a text, shape [1, tokens]."""
    ids = tokenizer(Path(file).read_text(encoding="utf-8"), return_tensors="pt")["input_ids"]
    return torch.as_tensor(ids)
