"""Depth pruning goes with other steps, and claims what is left."""

from __future__ import annotations

import pytest
import torch
from tests.recipes.built import IDS, apply, gpt2, logits, realised

from jouleboard.errors import RecipeError
from jouleboard.recipes import DropLayers, LowRank
from jouleboard.recipes.depth import block_influence


def test_influence_is_taken_at_the_layers_and_not_after_the_final_norm(model):
    with torch.no_grad():
        # The last layer does nothing; the norm behind it does.
        model.model.layers[3].self_attn.o_proj.weight.zero_()
        model.model.layers[3].mlp.down_proj.weight.zero_()
        states = model(IDS, output_hidden_states=True).hidden_states
    after_norm = 1 - float(torch.nn.functional.cosine_similarity(states[-2].float(), states[-1].float(), dim=-1).mean())
    found = block_influence(model, IDS)
    assert found[3] == pytest.approx(0, abs=1e-6)
    assert after_norm > 1e-3
    assert found[:3] == pytest.approx([
        1 - float(torch.nn.functional.cosine_similarity(states[i].float(), states[i + 1].float(), dim=-1).mean()) for i in range(3)])


def test_what_is_left_is_claimed(model):
    before, one = realised(model, []), sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    done = apply(model, DropLayers(count=1))
    after = realised(model, done)
    assert after.claims == ("3 layers are left", f"{before.parameters - one} parameters are left")
    assert done[0]["tokens"] == IDS.numel()


def test_dropping_twice_claims_the_last_depth(model):
    done = apply(model, DropLayers(count=1), DropLayers(count=2))
    assert [step["claimed_layers"] for step in done] == [3, 1]
    assert realised(model, done).claims[0] == "1 layers are left"
    assert torch.isfinite(logits(model)).all()


def test_a_layer_that_came_back_fails_the_claim(model):
    layers = list(model.model.layers)
    done = apply(model, DropLayers(count=1))
    model.model.layers = torch.nn.ModuleList(layers)
    with pytest.raises(RecipeError, match="parameters, the built model has"):
        realised(model, done)
    model.config.num_hidden_layers = 4
    with pytest.raises(RecipeError, match="claims 3 layers, the built model has 4"):
        realised(model, done)


def test_factorised_layers_are_counted_anew(model):
    done = apply(model, LowRank(which="mlp", rank=8, weighting="none"), DropLayers(count=1))
    assert "9 modules are LowRankLinear" in realised(model, done).claims


def test_other_architectures_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"GPT2LMHeadModel has no list `model\.layers`"):
        apply(gpt2(tmp_path), DropLayers(count=1))
