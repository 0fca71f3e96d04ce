"""Layers that share hold one set of weights: in memory, in the folder, and behind a quantiser."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors import safe_open
from tests.recipes.built import IDS, apply, gpt2, logits, realised, saved, tiny

from jouleboard import recipes
from jouleboard.errors import RecipeError
from jouleboard.recipes import DropLayers, LowRank, ShareLayers

PAIRS = ShareLayers(group=2, weights="first")


def layer_numel(model):
    return sum(parameter.numel() for parameter in model.model.layers[0].parameters())


@pytest.mark.parametrize(("weights", "merge"), [("average", lambda a, b: (a + b) / 2), ("first", lambda a, _b: a)])
def test_a_group_computes_with_the_mean_or_the_first_of_its_weights(tmp_path, weights, merge):
    model = tiny(tmp_path, dtype=torch.float32)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for first in (0, 2):
            pair = by_hand.model.layers[first], by_hand.model.layers[first + 1]
            for (_, one), (_, other) in zip(pair[0].named_parameters(), pair[1].named_parameters(), strict=True):
                value = merge(one, other).clone()
                one.copy_(value)
                other.copy_(value)
    apply(model, ShareLayers(group=2, weights=weights))
    assert torch.equal(logits(model), logits(by_hand))


def test_shared_weights_are_counted_once_and_the_layers_stay(model):
    before = realised(model, [])
    done = apply(model, PAIRS)
    after = realised(model, done)
    assert before.parameters - after.parameters == 2 * layer_numel(model)
    assert before.weight_bytes - after.weight_bytes == 2 * 2 * layer_numel(model)
    assert after.layers == 4
    assert after.claims == ("4 layers are left", f"{after.parameters} parameters are left")


def test_each_layer_has_its_own_place_in_the_cache(model):
    apply(model, PAIRS)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    with torch.inference_mode():
        whole = model(IDS).logits
        cache = model(IDS[:, :-1], use_cache=True).past_key_values
        assert len(cache.layers) == 4
        assert torch.allclose(model(IDS[:, -1:], past_key_values=cache).logits[:, -1], whole[:, -1], atol=0.05)


def test_a_folder_holds_each_weight_once(tmp_path):
    model = tiny(tmp_path, num_hidden_layers=12)
    done = apply(model, ShareLayers(group=5, weights="average"))
    again = saved(model, tmp_path / "shared")
    with safe_open(tmp_path / "shared/model.safetensors", "pt") as file:
        held = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - no mapping
    # Groups of five, five and two: of twelve layers three are stored.
    assert held == realised(model, done).parameters == 3 * layer_numel(model) + 1000 * 64 + 64
    assert realised(again, done) == realised(model, done)
    assert torch.equal(logits(again), logits(model))
    assert again.model.layers[4].mlp is again.model.layers[0].mlp


def test_tying_as_lm_evals_wrapper_does_it_changes_nothing(model):
    done = apply(model, PAIRS)
    before = realised(model, done)
    model.tie_weights()
    assert realised(model, done) == before


@pytest.mark.parametrize("step", [recipes.Int8WeightOnly(), recipes.Nf4(cpu_kernel="dequantise"), recipes.Int4WeightOnly(group_size=32)])
def test_a_quantiser_behind_it_leaves_them_shared(model, step):
    done = apply(model, PAIRS, step)
    after = realised(model, done)
    assert after.quantised_tensors == 14
    assert model.model.layers[1].self_attn.q_proj is model.model.layers[0].self_attn.q_proj
    assert torch.isfinite(logits(model)).all()


def test_factors_are_shared_too(model):
    done = apply(model, PAIRS, LowRank(which="all", keep=0.5, weighting="scale"))
    assert realised(model, done).claims[1] == "14 modules are LowRankLinear"
    assert model.model.layers[1].self_attn.q_proj is model.model.layers[0].self_attn.q_proj


def test_a_layer_that_got_weights_of_its_own_fails_the_claim(model):
    done = apply(model, PAIRS)
    model.model.layers[1].mlp = copy.deepcopy(model.model.layers[1].mlp)
    with pytest.raises(RecipeError, match="parameters, the built model has"):
        realised(model, done)


@pytest.mark.parametrize(("steps", "words"), [
    ((PAIRS, PAIRS), "share weights already"),
    ((ShareLayers(group=5, weights="first"),), "has 4 layers, 5 cannot share"),
    ((PAIRS, DropLayers(count=1)), "put the step that drops layers before share-layers"),
    ((LowRank(which="mlp", rank=8, weighting="none"), ShareLayers(group=2, weights="average")), "no common basis"),
])
def test_what_would_be_wrong_is_refused(model, steps, words):
    with pytest.raises(RecipeError) as caught:
        apply(model, *steps)
    assert words in str(caught.value)


def test_layers_that_differ_cannot_share(model):
    model.model.layers[2].mlp.up_proj = torch.nn.Linear(64, 95, bias=False)
    with pytest.raises(RecipeError, match="layer 2 has other weights than layer 0"):
        apply(model, PAIRS)


def test_other_architectures_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"GPT2LMHeadModel has no list `model\.layers`"):
        apply(gpt2(tmp_path), PAIRS)
