"""Magnitude pruning zeroes exactly the weights that NumPy says, and claims exactly their share."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from tests.recipes.built import apply, gpt2, realised

from jouleboard import recipes, strictyaml
from jouleboard.errors import DataFileError, RecipeError
from jouleboard.recipes import PruneMagnitude
from jouleboard.recipes.linear import body_linears
from jouleboard.recipes.masks import zero_smallest


def weights(model):
    return [linear.weight.detach().float().numpy().copy() for _, linear in body_linears(model)]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_masks_are_those_of_a_sort(model, scope):
    before = weights(model)
    apply(model, PruneMagnitude(rate=0.3, scope=scope))
    groups = [before] if scope == "global" else [[one] for one in before]
    expected = []
    for group in groups:
        flat = np.concatenate([one.ravel() for one in group])
        flat[np.abs(flat).argsort(kind="stable")[: int(0.3 * flat.size)]] = 0
        expected += np.split(flat, np.cumsum([one.size for one in group])[:-1])
    for found, wanted in zip(weights(model), expected, strict=True):
        assert np.array_equal(found.ravel(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [0, 1, 37, 511, 512])
def test_exactly_as_many_go_as_asked_for_also_of_equal_ones(dtype, count):
    torch.manual_seed(1)
    tensors = [torch.randn(8, 32).to(dtype), (torch.randint(1, 3, (16, 16)) * 0.5).to(dtype)]
    whole = torch.cat([tensor.flatten().clone() for tensor in tensors])
    zero_smallest(tensors, count)
    order = whole.float().abs().argsort(stable=True)
    whole[order[:count]] = 0
    assert torch.equal(torch.cat([tensor.flatten() for tensor in tensors]), whole)


def test_a_threshold_zeroes_what_is_below_it_and_nothing_else(model):
    before = weights(model)
    done = apply(model, PruneMagnitude(threshold=0.02))
    for found, old in zip(weights(model), before, strict=True):
        assert np.array_equal(found, np.where(np.abs(old) < 0.02, 0, old))
    share = sum((np.abs(old) < 0.02).sum() for old in before) / sum(old.size for old in before)
    assert done[0]["claimed_zero_share"] == pytest.approx(share)
    assert realised(model, done).nonzero_share < 1


def test_a_threshold_below_every_weight_is_refused(model):
    with pytest.raises(RecipeError, match="no weight is smaller"):
        apply(model, PruneMagnitude(threshold=1e-12))


@pytest.mark.parametrize(("fields", "words"), [
    ({}, "either a rate or a threshold"),
    ({"rate": 0.3, "threshold": 0.1, "scope": "layer"}, "either a rate or a threshold"),
    ({"rate": 0.3}, "a rate needs a scope"),
    ({"threshold": 0.1, "scope": "layer"}, "a threshold takes none"),
    ({"rate": 1.0, "scope": "layer"}, "< 1.0"),
])
def test_a_recipe_asks_for_one_thing(fields, words, tmp_path):
    recipe = {"id": "x", "title": "x", "description": "x", "dtype": "bfloat16", "steps": [{"step": "prune-magnitude", **fields}]}
    with pytest.raises(DataFileError, match=words) as caught:
        strictyaml.convert(recipe, recipes.Recipe, tmp_path / "x.yaml")
    assert "steps[0]" in (caught.value.field or "")


def test_masks_are_a_control_that_changes_nothing():
    assert PruneMagnitude.about.changes == ()
    assert "save nothing" in (PruneMagnitude.about.control or "")


def test_nothing_becomes_smaller(model):
    before = realised(model, [])
    after = realised(model, apply(model, PruneMagnitude(rate=0.5, scope="global")))
    assert (after.weight_bytes, after.parameters) == (before.weight_bytes, before.parameters)
    assert after.claims == ("50.0% of the weights are zero",)


def test_zeros_that_were_filled_again_fail_the_claim(model):
    done = apply(model, PruneMagnitude(rate=0.3, scope="layer"))
    weight = model.model.layers[1].mlp.up_proj.weight.data
    weight[weight == 0] = 1e-3
    with pytest.raises(RecipeError, match=r"claims that 30\.0% of the weights are zero") as caught:
        realised(model, done)
    assert "put it before the pruning" in str(caught.value)


def test_pruning_twice_counts_the_zeros_that_are_there(model):
    done = apply(model, PruneMagnitude(rate=0.3, scope="layer"), PruneMagnitude(rate=0.5, scope="layer"))
    assert realised(model, done).claims[1] == "50.0% of the weights are zero"


def test_int8_codes_of_zeros_are_zeros_and_count(model):
    done = apply(model, PruneMagnitude(rate=0.5, scope="layer"), recipes.Int8WeightOnly())
    # Some small weights round to zero besides.
    assert realised(model, done).claims[0].endswith("of the weights are zero")


def test_nf4_holds_zeros_and_they_count(model):
    done = apply(model, PruneMagnitude(rate=0.5, scope="layer"), recipes.Nf4(cpu_kernel="dequantise"))
    assert realised(model, done).claims[0].endswith("of the weights are zero")


def test_int4_whose_grid_need_not_hold_zero_is_not_said_to_be_sparse(model):
    done = apply(model, PruneMagnitude(rate=0.5, scope="layer"), recipes.Int4WeightOnly(group_size=32))
    with pytest.raises(RecipeError, match="claims"):
        realised(model, done)


def test_a_model_without_linear_layers_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no dense linear layer"):
        apply(gpt2(tmp_path), PruneMagnitude(rate=0.3, scope="layer"))


def test_the_output_head_and_the_embedding_stay(model):
    before = model.lm_head.weight.detach().clone()
    apply(model, PruneMagnitude(rate=0.9, scope="global"))
    assert torch.equal(model.lm_head.weight, before)


def test_a_step_is_kept_as_it_was_declared(model):
    done = apply(model, PruneMagnitude(rate=0.3, scope="layer"))
    assert msgspec.convert({key: done[0][key] for key in ("step", "rate", "scope")}, PruneMagnitude) == PruneMagnitude(
        rate=0.3, scope="layer")
