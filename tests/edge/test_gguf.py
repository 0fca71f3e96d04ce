"""The file that llama.cpp is handed holds the very model, as transformers reads such a file too."""

from __future__ import annotations

import pytest
import torch

from jouleboard.engines.edge import gguffile
from jouleboard.errors import RecipeError


def saved(where, **changed):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 300, "max_position_embeddings": 512, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, **changed,
    })).eval()
    model.save_pretrained(where)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_same_model_back(tmp_path, tied):
    from transformers import AutoModelForCausalLM, GgufConfig

    model = saved(tmp_path, tie_word_embeddings=tied)
    (tmp_path / "gguf").mkdir()
    gguffile.write(tmp_path, tmp_path / "gguf/model.gguf", model.config)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "gguf", gguf_file="model.gguf", dtype=torch.float32,
                                                 quantization_config=GgufConfig(dequantize=True))
    ids = torch.arange(40).reshape(2, 20) * 7 + 3
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model(ids).logits)
    weights = gguffile.read(tmp_path / "gguf/model.gguf")
    assert sum(weight.numbers for weight in weights) == sum(weight.numel() for weight in model.parameters())
    assert {weight.dtype for weight in weights} == {"float32"}
    assert sum(weight.bytes for weight in weights) == 4 * sum(weight.numel() for weight in model.parameters())


def test_other_models_and_scaled_positions_are_refused(tmp_path):
    from transformers import Qwen2Config

    with pytest.raises(RecipeError, match="a model of type qwen2 is not written for"):
        gguffile.write(tmp_path, tmp_path / "no.gguf", Qwen2Config())
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    model = saved(tmp_path, rope_parameters=scaled)
    with pytest.raises(RecipeError, match="type llama with scaled positions"):
        gguffile.write(tmp_path, tmp_path / "no.gguf", model.config)
    assert not (tmp_path / "no.gguf").exists()


def test_a_tensor_that_a_llama_has_no_place_for_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = saved(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    save_file(held | {"model.layers.0.mystery.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=r"no place for model\.layers\.0\.mystery\.weight"):
        gguffile.write(tmp_path, tmp_path / "no.gguf", model.config)
