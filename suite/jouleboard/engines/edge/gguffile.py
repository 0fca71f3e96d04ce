"""Writes a dense Llama as a GGUF file of float32, and reads back what such a file holds.

Two things differ from the safetensors of transformers: names, and the order of the rows of the query and key projections. transformers
rotates the first half of a head against the second, llama.cpp rotates neighbours, so those rows are interleaved (llama.cpp's own
`LlamaModel.permute`). No tokenizer is written: the engine is fed token ids.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from jouleboard.engines.edge import plain
from jouleboard.engines.edge.interface import Weight
from jouleboard.errors import RecipeError

ARCHITECTURE = "llama"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Dense types as they are called elsewhere; the others keep their own names."""


def write(dense: Path, target: Path, config: PreTrainedConfig) -> None:
    """Write the file.

    Args:
        dense: folder with safetensors.
        target: the file to make.
        config: of the model.

    Raises:
        RecipeError: the model is no plain Llama.
    """
    import gguf  # noqa: PLC0415 - only where it is written

    plain.require(config, "llama.cpp")
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    _describe(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(config.num_hidden_layers))
    for name, tensor in plain.tensors(dense):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise RecipeError(f"llama.cpp has no place for {name} in a Llama", field="steps", remedy="use another engine for this model")
        writer.add_tensor(called, _interleaved(name, tensor, config).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> tuple[Weight, ...]:
    """Return the tensors of a file."""
    import gguf  # noqa: PLC0415

    return tuple(_weight(tensor) for tensor in gguf.GGUFReader(path).tensors)


def _describe(writer: Any, config: PreTrainedConfig) -> None:
    head_dim = plain.head_width(config)
    writer.add_file_type(0)  # LLAMA_FTYPE_ALL_F32
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_context_length(int(config.max_position_embeddings))
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(int(config.num_attention_heads))
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(plain.rotary_base(config))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_tokenizer_model("no_vocab")


def _interleaved(name: str, tensor: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    halves = tensor.reshape(int(heads), 2, tensor.shape[0] // int(heads) // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()


def _weight(tensor: Any) -> Weight:
    kind = str(tensor.tensor_type.name)
    dtype = DTYPES.get(kind, kind.lower())
    countable = kind in {"F32", "F16"}
    return Weight(
        name=str(tensor.name), owner="Parameter" if kind in DTYPES else kind, dtype=dtype, numbers=int(tensor.n_elements),
        bytes=int(tensor.n_bytes), countable=int(tensor.n_elements) if countable else 0,
        nonzero=int(np.count_nonzero(tensor.data)) if countable else 0, sha256=hashlib.sha256(tensor.data.tobytes()).hexdigest())
