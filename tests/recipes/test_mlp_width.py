"""MLPs become really narrower: the channels that NumPy says stay, and the model loads like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.recipes.built import IDS, apply, gpt2, logits, realised, tiny
from transformers import AutoModelForCausalLM

from jouleboard.errors import RecipeError
from jouleboard.recipes import Int4WeightOnly, LowRank, PruneMlpWidth, ShareLayers


def test_the_channels_of_largest_activation_and_weight_norm_stay(tmp_path):
    model = tiny(tmp_path, dtype=torch.float32)
    seen, old = {}, {}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_hook(
            lambda _m, args, _o, index=index: seen.update({index: args[0].detach().double().numpy().reshape(-1, 96)}))
        old[index] = {name: part.weight.detach().clone() for name, part in layer.mlp.named_children() if name != "act_fn"}
    logits(model)
    activations = dict(seen)
    apply(model, PruneMlpWidth(keep=0.67))
    for index, layer in enumerate(model.model.layers):
        importance = np.linalg.norm(activations[index], axis=0) * np.linalg.norm(old[index]["down_proj"].double().numpy(), axis=0)
        kept = sorted(importance.argsort()[::-1][:64])
        assert torch.equal(layer.mlp.gate_proj.weight, old[index]["gate_proj"][kept])
        assert torch.equal(layer.mlp.up_proj.weight, old[index]["up_proj"][kept])
        assert torch.equal(layer.mlp.down_proj.weight, old[index]["down_proj"][:, kept])


def test_channels_that_do_nothing_go_without_a_change_of_the_output(tmp_path):
    model = tiny(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 1::3] = 0
    before = logits(model)
    done = apply(model, PruneMlpWidth(keep=2 / 3))
    assert torch.allclose(logits(model), before, atol=1e-5)
    assert done[0]["claimed_config"] == {"intermediate_size": 64}


def test_fewer_bytes_are_held_as_claimed_and_the_folder_loads_without_us(model, tmp_path):
    before = realised(model, [])
    done = apply(model, PruneMlpWidth(keep=0.67))
    after = realised(model, done)
    assert before.parameters - after.parameters == 4 * 32 * 3 * 64
    assert before.weight_bytes - after.weight_bytes == 2 * 4 * 32 * 3 * 64
    assert after.claims == (f"{after.parameters} parameters are left", "intermediate_size is 64")
    assert done[0]["tokens"] == IDS.numel()
    model.save_pretrained(tmp_path / "narrow")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", dtype=torch.bfloat16)
    assert torch.equal(logits(plain), logits(model))


def test_biases_go_with_their_channels(tmp_path):
    model = tiny(tmp_path, mlp_bias=True)
    realised(model, apply(model, PruneMlpWidth(keep=0.67)))
    assert model.model.layers[0].mlp.gate_proj.bias.shape == (64,)
    assert model.model.layers[0].mlp.down_proj.bias.shape == (64,)


@pytest.mark.parametrize(("keep", "multiple", "width"), [(0.75, 32, 64), (0.75, 8, 72), (0.01, 32, 32), (0.5, 1, 48)])
def test_the_width_is_rounded_to_a_multiple(model, keep, multiple, width):
    apply(model, PruneMlpWidth(keep=keep, multiple_of=multiple))
    assert model.config.intermediate_size == width


def test_keeping_everything_is_refused(model):
    with pytest.raises(RecipeError, match="in multiples of 32, are all of them"):
        apply(model, PruneMlpWidth(keep=0.9))


def test_cutting_twice_claims_the_last_width(model):
    done = apply(model, PruneMlpWidth(keep=0.67), PruneMlpWidth(keep=0.5))
    assert model.config.intermediate_size == 32
    assert realised(model, done).claims[-1] == "intermediate_size is 32"


def test_a_quantisers_groups_still_divide_or_it_refuses(tmp_path):
    model = tiny(tmp_path)
    done = apply(model, PruneMlpWidth(keep=0.67), Int4WeightOnly(group_size=32))
    assert realised(model, done).quantised_tensors == 28
    model = tiny(tmp_path)
    with pytest.raises(RecipeError, match="down_proj has 72 inputs, not a multiple of the group size 32"):
        apply(model, PruneMlpWidth(keep=0.75, multiple_of=8), Int4WeightOnly(group_size=32))


def test_a_width_that_is_not_so_fails_the_claim(model):
    done = apply(model, PruneMlpWidth(keep=0.67))
    model.config.intermediate_size = 96
    with pytest.raises(RecipeError, match="claims intermediate_size = 64"):
        realised(model, done)


def test_a_matrix_that_was_not_cut_fails_the_claim(model):
    done = apply(model, PruneMlpWidth(keep=0.67))
    model.model.layers[3].mlp.up_proj = torch.nn.Linear(64, 96, bias=False, dtype=torch.bfloat16)
    with pytest.raises(RecipeError, match="parameters, the built model has"):
        realised(model, done)


def test_other_architectures_and_changed_layers_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"GPT2LMHeadModel has no list `model\.layers`"):
        apply(gpt2(tmp_path), PruneMlpWidth(keep=0.67))
    with pytest.raises(RecipeError, match=r"Phi3ForCausalLM, layer 0: mlp\.gate_proj is missing"):
        apply(tiny(tmp_path / "phi", "Phi3", pad_token_id=0), PruneMlpWidth(keep=0.67))
    with pytest.raises(RecipeError, match=r"mlp\.gate_proj is LowRankLinear, not a dense linear layer"):
        apply(tiny(tmp_path), LowRank(which="mlp", rank=8, weighting="none"), PruneMlpWidth(keep=0.67))
    with pytest.raises(RecipeError, match="put the step that cuts widths before share-layers"):
        apply(tiny(tmp_path), ShareLayers(group=2, weights="first"), PruneMlpWidth(keep=0.67))
