"""Factors are the best ones of their rank, in plain or weighted norm, and make the model smaller by as much as is claimed."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from tests.recipes.built import IDS, apply, gpt2, logits, realised, tiny

from jouleboard.errors import RecipeError
from jouleboard.recipes import LowRank
from jouleboard.recipes.low_rank import DAMPING
from jouleboard.structure_modules import LowRankLinear


def product(module):
    return (module.second.weight.double() @ module.first.weight.double()).detach().numpy()


def first_inputs(model, name):
    """Inputs of a linear layer of the first layer, which no factorisation before it changes; shape [tokens, in]."""
    found = []
    handle = model.model.layers[0].get_submodule(name).register_forward_hook(lambda _m, args, _o: found.append(args[0]))
    logits(model)
    handle.remove()
    return found[0].double().numpy().reshape(-1, found[0].shape[-1])


def test_unweighted_factors_are_the_truncated_svd(tmp_path):
    model = tiny(tmp_path, dtype=torch.float32)
    old = {name: part.weight.detach().double().numpy() for name, part in model.model.layers[2].mlp.named_children() if name != "act_fn"}
    apply(model, LowRank(which="mlp", rank=8, weighting="none"))
    for name, weight in old.items():
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
        assert np.allclose(product(getattr(model.model.layers[2].mlp, name)), u[:, :8] * s[:8] @ vt[:8], atol=1e-5)


@pytest.mark.parametrize(("weighting", "root"), [
    ("scale", lambda x: np.diag(np.sqrt(np.sqrt(np.square(x).sum(0))))),
    ("whiten", lambda x: np.linalg.cholesky(x.T @ x + DAMPING * np.diag(np.square(x).sum(0)))),
])
def test_weighted_factors_lose_as_little_of_the_weighted_matrix_as_any_of_their_rank(tmp_path, weighting, root):
    """Eckart-Young: the least error is the norm of the singular values that are cut off."""
    model = tiny(tmp_path, dtype=torch.float32)
    for name in ("mlp.down_proj", "self_attn.q_proj"):
        fresh = copy.deepcopy(model)
        weight = fresh.model.layers[0].get_submodule(name).weight.detach().double().numpy()
        weighted = weight @ root(first_inputs(fresh, name))
        apply(fresh, LowRank(which="all", keep=0.4, weighting=weighting))
        factors = fresh.model.layers[0].get_submodule(name)
        rank = factors.first.out_features
        error = np.linalg.norm((weight - product(factors)) @ root(first_inputs(model, name)))
        least = np.linalg.norm(np.linalg.svd(weighted, compute_uv=False)[rank:])
        assert error == pytest.approx(least, rel=1e-4)


def test_whitening_changes_outputs_on_the_calibration_text_less_than_the_plain_svd(tmp_path):
    model = tiny(tmp_path, dtype=torch.float32)
    x, weight = first_inputs(model, "mlp.up_proj"), model.model.layers[0].mlp.up_proj.weight.detach().double().numpy()
    errors = {}
    for weighting in ("none", "whiten"):
        changed = copy.deepcopy(model)
        apply(changed, LowRank(which="mlp", rank=16, weighting=weighting))
        errors[weighting] = np.linalg.norm(x @ (weight - product(changed.model.layers[0].mlp.up_proj)).T)
    assert errors["whiten"] < 0.95 * errors["none"]


@pytest.mark.parametrize(("which", "modules"), [("mlp", 12), ("attention", 16), ("all", 28)])
def test_the_chosen_layers_become_two_smaller_ones(model, which, modules):
    before = realised(model, [])
    done = apply(model, LowRank(which=which, keep=0.5, weighting="none"))
    after = realised(model, done)
    assert after.claims == (f"{modules} modules are LowRankLinear", f"{after.parameters} parameters are left")
    assert after.parameters < before.parameters
    assert before.weight_bytes - after.weight_bytes == 2 * (before.parameters - after.parameters)
    assert done[0]["tokens"] == 0


def test_each_matrix_keeps_at_most_its_share(model):
    apply(model, LowRank(which="all", keep=0.5, weighting="scale"))
    for module in model.modules():
        if isinstance(module, LowRankLinear):
            held = module.first.weight.numel() + module.second.weight.numel()
            assert 0.4 < held / (module.in_features * module.out_features) <= 0.5


def test_biases_are_kept(tmp_path):
    model = tiny(tmp_path, mlp_bias=True)
    old = model.model.layers[1].mlp.up_proj.bias.detach().clone()
    realised(model, apply(model, LowRank(which="mlp", rank=8, weighting="scale")))
    assert torch.equal(model.model.layers[1].mlp.up_proj.second.bias, old)
    assert model.model.layers[1].mlp.up_proj.first.bias is None


def test_calibrated_layers_see_the_text_twice(model):
    assert apply(model, LowRank(which="mlp", rank=8, weighting="whiten"))[0]["tokens"] == 2 * IDS.numel()


def test_a_layer_that_was_multiplied_out_again_fails_the_claim(model):
    done = apply(model, LowRank(which="mlp", rank=8, weighting="none"))
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 96, bias=False, dtype=torch.bfloat16)
    with pytest.raises(RecipeError, match="claims 12 modules of class LowRankLinear, the built model has 11"):
        realised(model, done)


def test_another_rank_fails_the_claim(model):
    done = apply(model, LowRank(which="mlp", rank=8, weighting="none"))
    model.model.layers[0].mlp.up_proj.first = torch.nn.Linear(64, 9, bias=False, dtype=torch.bfloat16)
    with pytest.raises(RecipeError, match="parameters, the built model has"):
        realised(model, done)


def test_a_rank_that_saves_nothing_is_refused(model):
    with pytest.raises(RecipeError, match=r"self_attn\.k_proj of 32 x 64 is not smaller at rank 22") as caught:
        apply(model, LowRank(which="attention", rank=22, weighting="none"))
    assert "ranks from 1 to 21" in str(caught.value)


def test_factorising_twice_is_refused(model):
    with pytest.raises(RecipeError, match=r"mlp\.gate_proj is factorised already"):
        apply(model, LowRank(which="mlp", rank=8, weighting="none"), LowRank(which="all", keep=0.5, weighting="none"))


def test_mlps_and_attention_may_have_other_ranks(model):
    done = apply(model, LowRank(which="mlp", rank=8, weighting="none"), LowRank(which="attention", rank=4, weighting="scale"))
    assert realised(model, done).claims[0] == "28 modules are LowRankLinear"


@pytest.mark.parametrize("fields", [{}, {"rank": 8, "keep": 0.5}])
def test_a_recipe_asks_for_one_size(fields):
    with pytest.raises(msgspec.ValidationError, match="either a rank or the share"):
        msgspec.convert({"step": "low-rank", "which": "mlp", "weighting": "none", **fields}, LowRank)


def test_other_architectures_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"GPT2LMHeadModel has no list `model\.layers`"):
        apply(gpt2(tmp_path), LowRank(which="mlp", rank=8, weighting="none"))
