"""Makes ready-made checkpoints of a tiny model, as others publish them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def with_tokenizer(folder: Path, base: Path) -> Path:
    for name in TOKENIZER:
        if (base / name).is_file():
            shutil.copy(base / name, folder / name)
    return folder


def bitsandbytes(base: Path, folder: Path, bits: int) -> Path:
    """Saved by transformers, as most repositories named `...-bnb-4bit` are: their scales are quantised, too."""
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
                             bnb_4bit_use_double_quant=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    # Before the first forward pass: afterwards `state_dict()` corrupts a live 4-bit model on CPUs.
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=how).save_pretrained(folder)
    return with_tokenizer(folder, base)


def compressed(base: Path, folder: Path, bits: int, *, activations: bool) -> tuple[Path, torch.nn.Module]:
    """Made by the library itself, with scales from the largest weight; also returned: the model that it is a checkpoint of."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    grouped = {"strategy": "group", "group_size": 32} if bits == 4 else {"strategy": "channel"}
    rounded = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True) if activations else None
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=bits, type="int", symmetric=True, **grouped),
                                input_activations=rounded)
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"]))
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            groups = module.weight.data.float().reshape(module.out_features, -1, 32 if bits == 4 else module.in_features)
            scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), module.quantization_scheme.weights)
            module.weight_scale.data.copy_(scale)
    from copy import deepcopy

    saved = deepcopy(model)
    compressor = ModelCompressor.from_pretrained_model(saved)
    compressor.compress_model(saved)
    saved.save_pretrained(folder)
    compressor.update_config(folder)
    return with_tokenizer(folder, base), model


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm"}
"""What llama.cpp calls the parts of a layer."""


def gguf(model: torch.nn.Module, file: Path, kind: str, vocabulary: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Write a GGUF file as llama.cpp's converter does, all matrices in one type; returns the weights that are in it by our names.

    Args:
        model: a tiny Llama with tied embeddings.
        file: to write.
        kind: of matrices, as `Q4_0`.
        vocabulary: from `vocabulary`.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    config, held = model.config, {}
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary["tokens"])
    # The first seventeen are control tokens (3), the others ordinary ones (1).
    writer.add_token_types([3] * 17 + [1] * (len(vocabulary["tokens"]) - 17))
    writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    for name, weight in model.named_parameters():
        data = weight.detach().float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        stored = np.ascontiguousarray(_interleaved(data, heads)) if heads else data
        if data.ndim == 1:
            writer.add_tensor(_named(name), stored)
            held[name] = torch.from_numpy(data)
            continue
        packed = quantize(stored, GGMLQuantizationType[kind])
        writer.add_tensor(_named(name), packed, raw_dtype=GGMLQuantizationType[kind])
        rounded = dequantize(packed, GGMLQuantizationType[kind])
        held[name] = torch.from_numpy(np.ascontiguousarray(_split(rounded, heads) if heads else rounded))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def vocabulary(folder: Path, size: int) -> dict[str, Any]:
    """Return the first tokens of a real vocabulary, and the merges that make no others."""
    held = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(held["vocab"], key=held["vocab"].get)[:size]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in held["merges"]]
    return {"tokens": tokens, "merges": [" ".join(pair) for pair in pairs if {*pair, "".join(pair)} <= set(tokens)]}


def _named(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, part = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring rows of a head, transformers the rows of its two halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _split(weight: np.ndarray, heads: int) -> np.ndarray:
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def config_only(folder: Path, base: Path, quantisation: dict[str, object], tensors: dict[str, np.ndarray]) -> Path:
    """A checkpoint of which only the files' outsides are right: enough for what is refused before anything is loaded."""
    from safetensors.numpy import save_file

    folder.mkdir()
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": quantisation}
    (folder / "config.json").write_text(json.dumps(config))
    if tensors:
        save_file(tensors, folder / "model.safetensors")
    return with_tokenizer(folder, base)
