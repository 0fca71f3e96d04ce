"""Tiny models of several architectures as they come from a folder, and what tests do with them after a recipe."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from jouleboard import recipes
from jouleboard.engines import inspect, loading, parallel
from jouleboard.recipes import Context

IDS = (torch.arange(96).reshape(2, 48) * 37 + 3) % 1000
CONTEXT = Context(calibration_ids=IDS)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 1000, "max_position_embeddings": 512, "tie_word_embeddings": True}
SMALL_GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 1000}
SMALL_NEOX = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 1000}


def tiny(folder: Path, kind: str = "Llama", dtype: torch.dtype = torch.bfloat16, **sizes):
    """A random model, saved and loaded: a model that `.to(dtype)` made has rotary frequencies in that dtype, a loaded one has not."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**({} if kind in {"GPT2", "GPTNeoX"} else SIZES) | sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms and biases that are all alike would hide a mistake.
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder / "base")
    return load(folder / "base", dtype)


def load(folder: Path, dtype: torch.dtype = torch.bfloat16):
    return loading.dense(str(folder), dtype, "cpu", parallel.Group())


def gpt2(folder: Path):
    return tiny(folder, "GPT2", **SMALL_GPT2)


def apply(model, *steps):
    return recipes.apply(model, steps, CONTEXT)


def realised(model, done):
    return inspect.realised(model, done, model.config.num_hidden_layers)


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits.float()


def saved(model, folder: Path):
    """The model as a later run gets it."""
    model.save_pretrained(folder)
    return load(folder, model.dtype)
