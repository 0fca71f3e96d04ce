"""A random Llama of a small vocabulary in float32, in which batched and stepwise passes agree in their tokens."""

from __future__ import annotations

from typing import Any


def llama(**changed: Any):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 300, "max_position_embeddings": 512, "tie_word_embeddings": True, "initializer_range": 0.2, **changed,
    })).eval()
