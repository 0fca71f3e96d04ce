"""Wanda's masks are exactly those of a NumPy reference that takes its inputs from the pruned layers before."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from tests.recipes.built import IDS, SMALL_NEOX, apply, gpt2, realised, tiny

from jouleboard.errors import RecipeError
from jouleboard.recipes import PruneWanda, ShareLayers
from jouleboard.recipes.linear import body_linears


def inputs(model, number):
    """Inputs of every linear layer of one layer, in float64, shape [tokens, in]."""
    found = {}
    linears = dict(body_linears(model.model.layers[number]))
    handles = [linear.register_forward_hook(lambda _m, args, _o, name=name: found.update({name: args[0].double().numpy()}))
               for name, linear in linears.items()]
    with torch.no_grad():
        model(IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: values.reshape(-1, values.shape[-1]) for name, values in found.items()}


def reference(weight, x, group, zeros):
    """Sun et al. 2023, eq. 1: |W_ij| * ||X_j||_2, compared within a row (or within groups of neighbours in it)."""
    importance = np.abs(weight.astype(np.float64)) * np.sqrt(np.square(x).sum(0))
    pruned = weight.copy()
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], group):
            order = importance[row, start : start + group].argsort(kind="stable")
            pruned[row, start + order[:zeros]] = 0
    return pruned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("step", "group", "zeros"), [
    (PruneWanda(rate=0.5), None, None), (PruneWanda(rate=0.3), None, None), (PruneWanda(pattern="2:4"), 4, 2),
    (PruneWanda(pattern="1:4"), 4, 3), (PruneWanda(pattern="4:8"), 8, 4),
])
def test_masks_agree_with_numpy_layer_after_layer(tmp_path, dtype, step, group, zeros):
    dense = tiny(tmp_path, dtype=dtype)
    pruned = copy.deepcopy(dense)
    apply(pruned, step)
    # Layer i of the reference sees the pruned layers before it, and is not pruned itself yet.
    mixed = copy.deepcopy(dense)
    for number in range(4):
        seen = inputs(mixed, number)
        for name, linear in body_linears(dense.model.layers[number]):
            weight = linear.weight.detach().float().numpy()
            width = weight.shape[1]
            wanted = reference(weight, seen[name], group or width, int(step.rate * width) if zeros is None else zeros)
            found = pruned.model.layers[number].get_submodule(name).weight.detach().float().numpy()
            assert np.array_equal(found, wanted), (number, name)
        mixed.model.layers[number].load_state_dict(pruned.model.layers[number].state_dict())


def test_later_layers_see_the_pruned_ones(tmp_path):
    dense = tiny(tmp_path)
    pruned = copy.deepcopy(dense)
    apply(pruned, PruneWanda(rate=0.5))
    one_shot = []
    for number in range(4):
        seen = inputs(dense, number)
        one_shot += [np.array_equal(
            pruned.model.layers[number].get_submodule(name).weight.detach().float().numpy(),
            reference(linear.weight.detach().float().numpy(), seen[name], linear.in_features, linear.in_features // 2),
        ) for name, linear in body_linears(dense.model.layers[number])]
    # Layers after the first one would have other masks if all inputs came from the dense model.
    assert all(one_shot[:7])
    assert not all(one_shot[7:])


def test_every_row_loses_equally_many_and_every_token_went_through_twice(model):
    done = apply(model, PruneWanda(rate=0.3))
    for _, linear in body_linears(model):
        assert set((linear.weight == 0).sum(1).tolist()) == {int(0.3 * linear.in_features)}
    assert done[0]["tokens"] == 2 * IDS.numel()
    assert realised(model, done).claims == ("29.6% of the weights are zero",)


def test_the_pattern_is_read_back(model):
    done = apply(model, PruneWanda(pattern="2:4"))
    assert realised(model, done).claims == (
        "50.0% of the weights are zero", "at most 2 of 4 neighbours in a row are not zero")


def test_a_mask_of_another_pattern_fails_the_claim(model):
    done = apply(model, PruneWanda(rate=0.5))
    with pytest.raises(RecipeError, match="claims the pattern 2:4, in the built model 4 of 4"):
        realised(model, [done[0] | {"claimed_pattern": "2:4"}])


def test_weights_that_came_back_fail_the_claim(model):
    done = apply(model, PruneWanda(pattern="2:4"))
    with torch.no_grad():
        model.model.layers[2].mlp.gate_proj.weight.fill_(1.0)
    with pytest.raises(RecipeError, match=r"claims that 50\.0%"):
        realised(model, done)


def test_pruning_twice_keeps_the_zeros(model):
    done = apply(model, PruneWanda(rate=0.25), PruneWanda(pattern="2:4"))
    # Some groups of four had lost three weights already.
    assert realised(model, done).claims[1:] == ("51.2% of the weights are zero", "at most 2 of 4 neighbours in a row are not zero")


def test_a_shared_layer_is_pruned_once(model):
    done = apply(model, ShareLayers(group=2, weights="first"), PruneWanda(rate=0.5))
    assert realised(model, done).claims[-1] == "50.0% of the weights are zero"


def test_the_model_is_left_without_hooks(model):
    apply(model, PruneWanda(rate=0.5))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("fields", "words"), [
    ({}, "either a rate or a pattern"), ({"rate": 0.5, "pattern": "2:4"}, "either a rate or a pattern"),
    ({"pattern": "4:4"}, "keeps every weight"), ({"pattern": "2-4"}, "regex"), ({"rate": 0.0}, "> 0.0"),
])
def test_a_recipe_asks_for_one_thing(fields, words):
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert({"step": "prune-wanda", **fields}, PruneWanda)


def test_a_pattern_that_does_not_divide_the_width_is_refused(model):
    with pytest.raises(RecipeError, match="64 inputs, not a multiple of 5"):
        apply(model, PruneWanda(pattern="2:5"))


def test_other_architectures_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="no dense linear layer"):
        apply(gpt2(tmp_path), PruneWanda(rate=0.5))
    with pytest.raises(RecipeError, match=r"GPTNeoXForCausalLM has no list `model\.layers`"):
        apply(tiny(tmp_path / "neox", "GPTNeoX", **SMALL_NEOX), PruneWanda(rate=0.5))


def test_masks_are_a_control_that_changes_nothing():
    assert PruneWanda.about.changes == ()
    assert "save nothing" in (PruneWanda.about.control or "")
