"""Whole key-value groups go, with the query heads that read them, and the model loads like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.recipes.built import IDS, apply, gpt2, logits, realised, saved, tiny
from transformers import AutoModelForCausalLM

from jouleboard.engines import memory
from jouleboard.errors import RecipeError
from jouleboard.recipes import PruneHeads, ShareLayers

SIX = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}


def test_the_group_that_adds_least_to_the_output_goes(tmp_path):
    model = tiny(tmp_path, dtype=torch.float32, **SIX)
    seen, old = {}, {}
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.register_forward_hook(
            lambda _m, args, _o, index=index: seen.update({index: args[0].detach().double().numpy().reshape(-1, 96)}))
        old[index] = {name: part.weight.detach().clone() for name, part in layer.self_attn.named_children()}
    logits(model)
    activations = dict(seen)
    done = apply(model, PruneHeads(groups=1))
    for index, layer in enumerate(model.model.layers):
        # Three groups of two query heads, each 16 wide.
        parts, weight = np.split(activations[index], 3, axis=1), np.split(old[index]["o_proj"].double().numpy(), 3, axis=1)
        gone = int(np.argmin([np.linalg.norm(x @ w.T) for x, w in zip(parts, weight, strict=True)]))
        assert done[0]["removed_groups"][index] == [gone]
        query = [c for c in range(96) if c // 32 != gone]
        key = [c for c in range(48) if c // 16 != gone]
        assert torch.equal(layer.self_attn.q_proj.weight, old[index]["q_proj"][query])
        assert torch.equal(layer.self_attn.k_proj.weight, old[index]["k_proj"][key])
        assert torch.equal(layer.self_attn.v_proj.weight, old[index]["v_proj"][key])
        assert torch.equal(layer.self_attn.o_proj.weight, old[index]["o_proj"][:, query])


@pytest.mark.parametrize(("kind", "sizes"), [
    ("Llama", {}), ("Llama", {"num_key_value_heads": 4}), ("Llama", {"attention_bias": True}), ("Llama", {"head_dim": 32}),
    ("Qwen2", {}), ("Qwen3", {"head_dim": 16}), ("Mistral", {}),
])
def test_groups_that_do_nothing_go_without_a_change_of_the_output(tmp_path, kind, sizes):
    model = tiny(tmp_path, kind, dtype=torch.float32, **sizes)
    groups = model.config.num_key_value_heads // 2
    with torch.no_grad():
        for layer in model.model.layers:
            half = layer.self_attn.o_proj.weight.shape[1] // 2
            layer.self_attn.o_proj.weight[:, :half] = 0
    before = logits(model)
    done = apply(model, PruneHeads(groups=groups))
    assert torch.allclose(logits(model), before, atol=1e-5)
    realised(model, done)
    assert done[0]["claimed_config"]["num_attention_heads"] == 2
    # As a later run gets it, and as any other program does.
    assert torch.equal(logits(saved(model, tmp_path / "pruned")), logits(model))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")), logits(model))


def test_fewer_bytes_are_held_as_claimed_and_the_cache_shrinks(model):
    before, cache = realised(model, []), memory.need(model, torch.bfloat16, batch=1, prompt_tokens=8, output_tokens=8).cache_bytes
    done = apply(model, PruneHeads(groups=1))
    after = realised(model, done)
    assert before.parameters - after.parameters == 4 * (2 * 32 * 64 + 2 * 16 * 64)
    assert after.claims == (f"{after.parameters} parameters are left", "num_attention_heads is 2", "num_key_value_heads is 1",
                            "head_dim is 16")
    assert done[0]["tokens"] == IDS.numel()
    assert memory.need(model, torch.bfloat16, batch=1, prompt_tokens=8, output_tokens=8).cache_bytes == cache // 2
    cached = model(IDS, use_cache=True).past_key_values
    assert cached.layers[0].keys.shape == (2, 1, 48, 16)


def test_a_head_count_that_is_not_so_fails_the_claim(model):
    done = apply(model, PruneHeads(groups=1))
    model.config.num_key_value_heads = 2
    with pytest.raises(RecipeError, match="claims num_key_value_heads = 1"):
        realised(model, done)


def test_a_matrix_that_was_not_cut_fails_the_claim(model):
    done = apply(model, PruneHeads(groups=1))
    model.model.layers[3].self_attn.o_proj = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    with pytest.raises(RecipeError, match="parameters, the built model has"):
        realised(model, done)


def test_removing_all_groups_is_refused(model):
    with pytest.raises(RecipeError, match="has 2 key-value groups, 2 cannot be removed"):
        apply(model, PruneHeads(groups=2))


def test_a_number_of_heads_that_the_configuration_refuses_is_refused_before_anything_is_cut(tmp_path):
    model = tiny(tmp_path, num_key_value_heads=4)
    with pytest.raises(RecipeError, match=r"does not take num_attention_heads 3.*not a multiple"):
        apply(model, PruneHeads(groups=1))
    assert model.config.num_attention_heads == 4
    assert model.model.layers[0].self_attn.q_proj.out_features == 64


def test_other_architectures_and_changed_layers_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"GPT2LMHeadModel has no list `model\.layers`"):
        apply(gpt2(tmp_path), PruneHeads(groups=1))
    with pytest.raises(RecipeError, match=r"layer 0: self_attn\.q_proj is missing"):
        apply(tiny(tmp_path / "phi", "Phi3", pad_token_id=0), PruneHeads(groups=1))
    with pytest.raises(RecipeError, match=r"self_attn\.q_norm\.weight is not known"):
        apply(tiny(tmp_path / "olmo", "Olmo2"), PruneHeads(groups=1))
    with pytest.raises(RecipeError, match="before share-layers"):
        apply(tiny(tmp_path), ShareLayers(group=2, weights="first"), PruneHeads(groups=1))
