"""optimum-quanto's int8 weights."""

from __future__ import annotations

import pytest
import torch
from tests.recipes.quantised import BODY, CONTEXT, body, built, dense_weights

from jouleboard import recipes
from jouleboard.engines import fitness, inspect
from jouleboard.recipes import QuantoInt8, interface


def test_without_the_extra_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(interface, "is_installed", lambda _name: False)
    assert QuantoInt8().missing("cpu") == "the package optimum.quanto is not installed (pip install 'jouleboard[quanto]')"


def test_a_package_whose_parent_is_missing_is_missing():
    assert not interface.is_installed("no_such_package.part")
    assert interface.is_installed("json.decoder")


class TestInstalled:
    @pytest.fixture(autouse=True)
    def _there(self):
        pytest.importorskip("optimum.quanto")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_it_is_read_back_as_what_it_claims(self, tiny_model, dtype):
        before = inspect.realised(tiny_model.to(dtype), [], 3)
        _, found, error = built(tiny_model, QuantoInt8())
        assert (found.quantised_tensors, found.module_classes["QLinear"]) == (BODY, BODY)
        assert found.parameters == before.parameters
        assert found.dtypes["int8"] == sum(module.in_features * module.out_features for module in body(tiny_model).values())
        assert 0 < error < 0.05

    def test_layers_agree_with_the_dequantised_product(self, tiny_model):
        dense = dense_weights(tiny_model)
        recipes.apply(tiny_model, [QuantoInt8()], CONTEXT)
        for name, module in body(tiny_model).items():
            scale = dense[name].abs().amax(1, keepdim=True) / 127
            reference = torch.round(dense[name] / scale).clamp(-128, 127) * scale
            x = torch.randn(5, module.in_features, dtype=torch.bfloat16)
            assert torch.allclose(module(x).float(), x.float() @ reference.T, atol=0.03, rtol=0.03), name

    def test_weights_alone_do_not_hinder_the_shared_prefix_engine_and_activations_do(self, tiny_model):
        from copy import deepcopy

        from optimum.quanto import qint8, quantize

        rounded = deepcopy(tiny_model)
        recipes.apply(tiny_model, [QuantoInt8()], CONTEXT)
        assert fitness.refusal(tiny_model) is None
        quantize(rounded, weights=qint8, activations=qint8, include="*_proj")
        assert "quantised by fixed scales (model.layers.0.self_attn.q_proj)" in fitness.refusal(rounded)
