"""The canary: a small fixed model whose energy tells whether a device has changed, whatever models are measured on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryModel:
    """All that fixes the canary; whoever changes a figure changes the name."""

    name: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    seed: int
    prompt_tokens: int
    output_tokens: int
    """Per loop, at batch 1; the first comes from the prompt's forward pass."""


CANARY = CanaryModel(
    name="canary-1", hidden_size=512, intermediate_size=1536, layers=4, heads=8, kv_heads=4, vocab_size=8192,
    seed=20260101, prompt_tokens=16, output_tokens=64,
)


def build(recipe: CanaryModel, device: str) -> LlamaForCausalLM:
    """Make the canary in float32: weights drawn on the CPU in order of their names, so that they are the same on every device."""
    config = LlamaConfig(
        hidden_size=recipe.hidden_size, intermediate_size=recipe.intermediate_size, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, num_key_value_heads=recipe.kv_heads, vocab_size=recipe.vocab_size,
        max_position_embeddings=recipe.prompt_tokens + recipe.output_tokens, tie_word_embeddings=False,
    )
    # The constructor draws weights of its own: they are overwritten, and its draws disturb nobody.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    model = model.to(torch.float32)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            else:
                # Uniform draws are the same bits on every processor, normal ones are not. A variance of about 1 / inputs
                # keeps activations of order one, and so the tokens varied.
                uniform = torch.rand(weight.shape, generator=generator) * 2 - 1
                weight.copy_(uniform * (3 / recipe.hidden_size) ** 0.5)
    return model.to(device).eval()


def prompt(recipe: CanaryModel, device: str) -> torch.Tensor:
    """Return the canary's token ids, shape [1, prompt_tokens]."""
    generator = torch.Generator().manual_seed(recipe.seed)
    return torch.randint(0, recipe.vocab_size, (1, recipe.prompt_tokens), generator=generator).to(device)
