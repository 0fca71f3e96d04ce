"""PyTorch's older dynamic quantiser: its weights lie in packed objects, and are read back all the same."""

from __future__ import annotations

import pytest
import torch
from tests.recipes.quantised import BODY, CONTEXT, body, built, dense_weights

from jouleboard import recipes
from jouleboard.engines import fitness, inspect
from jouleboard.errors import RecipeError
from jouleboard.recipes import DynamicInt8

GRANULARITIES = pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])


@GRANULARITIES
def test_packed_weights_are_counted_and_fingerprinted(tiny_model, granularity):
    model = tiny_model.float()
    before = inspect.realised(model, [], 3)
    done, found, error = built(model, DynamicInt8(granularity=granularity))
    assert found.quantised_tensors == found.tensor_classes["LinearPackedParams"] == BODY
    assert found.parameters == before.parameters
    assert found.dtypes["int8"] == sum(module.in_features * module.out_features for module in body(model).values())
    scales = BODY if granularity == "per-tensor" else sum(module.out_features for module in body(model).values())
    assert found.dtypes["float64"] == found.dtypes["int64"] == 8 * scales
    assert done[0]["weight_bits"] == 8
    assert 0 < error < 0.2


@GRANULARITIES
def test_each_weight_is_within_half_a_step(tiny_model, granularity):
    model = tiny_model.float()
    dense = dense_weights(model)
    recipes.apply(model, [DynamicInt8(granularity=granularity)], CONTEXT)
    for name, module in body(model).items():
        weight = module.weight().dequantize()
        largest = dense[name].abs().amax(1, keepdim=True) if granularity == "per-channel" else dense[name].abs().max()
        assert ((weight - dense[name]).abs() <= 0.5001 * largest / 127).all(), name
        x = torch.randn(5, module.in_features)
        # Activations have 128 steps over the range of the whole batch.
        step = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 127
        assert ((module(x) - x @ weight.T).abs() <= 0.51 * step * weight.abs().sum(1)).all(), name


def test_another_weight_is_another_fingerprint(tiny_model):
    from copy import deepcopy

    found = []
    for change in (0.0, 0.1):
        model = deepcopy(tiny_model).float()
        with torch.no_grad():
            model.model.layers[2].mlp.down_proj.weight[5, 7] += change
        recipes.apply(model, [DynamicInt8(granularity="per-channel")], CONTEXT)
        found.append(inspect.fingerprint(model))
    assert found[0] != found[1]


def test_it_wants_float32_and_a_cpu_and_is_a_control(tiny_model):
    step = DynamicInt8(granularity="per-tensor")
    with pytest.raises(RecipeError, match="float32 inputs only, the recipe is in bfloat16"):
        recipes.apply(tiny_model, [step], CONTEXT)
    assert "CPUs only" in step.missing("cuda:0")
    assert "known to be bad" in step.about.control


def test_the_reference_engine_computes_it(tiny_model):
    recipes.apply(tiny_model.float(), [DynamicInt8(granularity="per-tensor")], CONTEXT)
    assert "quantised dynamically (model.layers.0.self_attn.q_proj)" in fitness.refusal(tiny_model)
