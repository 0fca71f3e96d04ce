"""LLM.int8() of bitsandbytes (NF4 is tested with the recipes of the quick plan)."""

from __future__ import annotations

import pytest
import torch
from tests.recipes.quantised import BODY, CONTEXT, body, built, dense_weights, integer_product

from jouleboard import recipes
from jouleboard.engines import fitness, inspect
from jouleboard.errors import DataFileError
from jouleboard.recipes import LlmInt8, Recipe
from jouleboard.strictyaml import convert


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_it_is_read_back_with_its_scales_before_and_after_the_first_forward_pass(tiny_model, threshold):
    before = inspect.realised(tiny_model, [], 3)
    done, found, error = built(tiny_model, LlmInt8(threshold=threshold))
    assert (found.quantised_tensors, found.module_classes["Linear8bitLt"]) == (BODY, BODY)
    rows = sum(module.out_features for module in body(tiny_model).values())
    dense = before.dtypes["bfloat16"] - 2 * (before.parameters - 49152 * 64 - 7 * 64)
    # bitsandbytes keeps the scales of rows beside the parameters, in float32.
    assert found.dtypes == {"bfloat16": dense, "float32": 4 * rows, "int8": before.parameters - 49152 * 64 - 7 * 64}
    assert done[0]["weight_bits"] == 8
    assert 0 < error < 0.1


def test_without_a_threshold_it_is_a_product_of_integers(tiny_model):
    dense = dense_weights(tiny_model)
    recipes.apply(tiny_model, [LlmInt8(threshold=0.0)], CONTEXT)
    for name, module in body(tiny_model).items():
        x = torch.randn(5, module.in_features, dtype=torch.bfloat16)
        assert torch.allclose(module(x).float(), integer_product(x, dense[name]), atol=0.01, rtol=0.02), name


def test_outlying_features_are_multiplied_as_they_are(tiny_model):
    from copy import deepcopy

    layer = "model.layers.0.mlp.up_proj"
    weight = tiny_model.get_submodule(layer).weight.detach().float()
    rows = weight.abs().amax(1, keepdim=True) / 127
    weight = torch.round(weight / rows) * rows
    x = torch.randn(5, 64)
    x[:, 3] = 200.0
    errors = {}
    for threshold in (0.0, 6.0):
        model = deepcopy(tiny_model)
        recipes.apply(model, [LlmInt8(threshold=threshold)], CONTEXT)
        errors[threshold] = float((model.get_submodule(layer)(x) - x @ weight.T).abs().mean())
    # One scale for a token of 200 leaves a step of 200/127 for everything else.
    assert errors[6.0] < errors[0.0] / 4


def test_what_is_rounded_follows_from_the_batch_so_the_reference_engine_computes_it(tiny_model):
    recipes.apply(tiny_model, [LlmInt8()], CONTEXT)
    assert "quantised dynamically (model.layers.0.self_attn.q_proj)" in fitness.refusal(tiny_model)


def test_a_negative_threshold_is_refused_where_it_is_declared(tmp_path):
    with pytest.raises(DataFileError, match="threshold"):
        convert({"id": "x", "title": "x", "description": "x", "dtype": "bfloat16",
                 "steps": [{"step": "bitsandbytes-int8", "threshold": -1.0}]}, Recipe, tmp_path / "x.yaml")
