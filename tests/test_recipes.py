"""Every recipe of the quick plan is really built, really runs, and is what it claims to be."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from jouleboard import catalogue, paths, recipes
from jouleboard.engines import inspect
from jouleboard.engines.reference import ReferenceLM
from jouleboard.errors import RecipeError
from jouleboard.recipes import Context, DropLayers, Int4WeightOnly, Int8WeightOnly, Nf4

IDS = torch.arange(64).reshape(2, 32) * 7 + 3
CONTEXT = Context(calibration_ids=IDS)


def test_every_recipe_file_reads_and_names_techniques_that_exist():
    found = catalogue.load_all(paths.data_folder("recipes"), recipes.Recipe)
    assert {"bf16", "int8-weight-only", "int4-g32", "nf4", "drop-6-layers"} <= set(found)
    for recipe in found.values():
        for step in recipe.steps:
            assert recipes.TECHNIQUES[type(step).__struct_config__.tag] is type(step)


def test_int8_layers_agree_with_the_dequantised_matrix_product(tiny_model):
    dense = {name: module.weight.detach().clone() for name, module in tiny_model.named_modules()
             if isinstance(module, torch.nn.Linear)}
    recipes.apply(tiny_model, [Int8WeightOnly()], CONTEXT)
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    for name, module in tiny_model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head" or module.in_features != 64:
            continue
        weight = dense[name].float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        reference = x.float() @ (torch.round(weight / scale).clamp(-128, 127) * scale).T
        assert torch.allclose(module(x).float(), reference, atol=0.03, rtol=0.03), name


def test_int4_layers_agree_with_the_dense_ones_within_the_grid(tiny_model):
    layer = tiny_model.model.layers[0].mlp.up_proj
    dense = layer.weight.detach().clone().float()
    recipes.apply(tiny_model, [Int4WeightOnly(group_size=32, choose_parameters="tinygemm")], CONTEXT)
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    step = (dense.reshape(96, 2, 32).amax(-1) - dense.reshape(96, 2, 32).amin(-1)).max() / 15
    worst = (x.float().abs().sum(1, keepdim=True) * step * 0.55).max()
    assert (layer(x).float() - x.float() @ dense.T).abs().max() < worst


def test_a_group_size_that_would_skip_a_layer_in_silence_is_refused(tiny_model):
    with pytest.raises(RecipeError, match="not a multiple of the group size 128"):
        recipes.apply(tiny_model, [Int4WeightOnly(group_size=128)], CONTEXT)


@pytest.mark.parametrize("step", [Int8WeightOnly(), Int4WeightOnly(group_size=32), Nf4(cpu_kernel="dequantise")])
def test_a_quantised_model_is_read_back_as_what_it_claims(tiny_model, step):
    before = inspect.realised(tiny_model, [], 3)
    steps = recipes.apply(tiny_model, [step], CONTEXT)
    after = inspect.realised(tiny_model, steps, 3)
    assert after.quantised_tensors == 21
    assert after.weight_bytes < before.weight_bytes
    assert after.parameters == before.parameters
    assert after.claims
    with torch.inference_mode():
        assert torch.isfinite(tiny_model(IDS).logits).all()


def test_a_claim_that_is_not_so_fails_the_variant(tiny_model):
    steps = recipes.apply(tiny_model, [Int8WeightOnly()], CONTEXT)
    steps[0]["claimed_quantised_tensors"] += 1
    with pytest.raises(RecipeError, match="claims 22 weights"):
        inspect.realised(tiny_model, steps, 3)


def test_the_layers_of_least_influence_are_dropped_and_the_rest_renumbered(tiny_model):
    with torch.no_grad():
        # A layer whose output projections are zero is the identity: it has no influence at all.
        tiny_model.model.layers[1].self_attn.o_proj.weight.zero_()
        tiny_model.model.layers[1].mlp.down_proj.weight.zero_()
    with torch.inference_mode():
        whole = tiny_model(IDS).logits.clone()
    steps = recipes.apply(tiny_model, [DropLayers(count=1)], CONTEXT)
    assert steps[0]["dropped_layers"] == [1]
    assert [layer.self_attn.layer_idx for layer in tiny_model.model.layers] == [0, 1]
    assert tiny_model.config.num_hidden_layers == 2
    with torch.inference_mode():
        assert torch.equal(tiny_model(IDS).logits, whole)
        cached = tiny_model(IDS, use_cache=True).past_key_values
        assert cached.get_seq_length() == 32


@pytest.mark.parametrize("step", [Int8WeightOnly(), Int4WeightOnly(group_size=32), Nf4(cpu_kernel="dequantise")])
def test_a_step_that_would_change_nothing_is_refused(step):
    from transformers import GPT2Config, GPT2LMHeadModel

    # GPT-2 multiplies by Conv1D modules: there is no linear layer but the head.
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=100)).eval()
    with pytest.raises(RecipeError, match="no dense linear layer"):
        recipes.apply(model, [step], CONTEXT)


def test_dropping_every_layer_is_refused(tiny_model):
    with pytest.raises(RecipeError, match="has 3 layers, 3 cannot be dropped"):
        recipes.apply(tiny_model, [DropLayers(count=3)], CONTEXT)


@pytest.fixture
def untied(tiny_model):
    """A model whose output head was compressed apart from the embedding, though its configuration says tied."""
    tiny_model.lm_head.weight = torch.nn.Parameter(tiny_model.lm_head.weight.detach().clone() * 0.5)
    return tiny_model


@pytest.mark.slow
def test_lm_evals_wrapper_alone_would_replace_a_separately_compressed_head(untied, dense_model):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    before = untied.lm_head.weight.detach().clone()
    HFLM(pretrained=untied, tokenizer=AutoTokenizer.from_pretrained(dense_model), batch_size=1)
    assert not torch.equal(untied.lm_head.weight, before)


@pytest.mark.slow
def test_our_wrapper_never_alters_a_variant(untied, dense_model):
    from transformers import AutoTokenizer

    before = untied.lm_head.weight.detach().clone()
    fingerprint = inspect.fingerprint(untied)
    ReferenceLM(untied, AutoTokenizer.from_pretrained(dense_model), batch_size=1, max_length=128)
    assert torch.equal(untied.lm_head.weight, before)
    assert inspect.fingerprint(untied) == fingerprint


@pytest.mark.slow
def test_the_real_model_has_210_quantised_tensors_and_24_layers_after_dropping_six(dense_model):
    model = AutoModelForCausalLM.from_pretrained(dense_model, dtype=torch.bfloat16).eval()
    steps = recipes.apply(model, [DropLayers(count=6)], CONTEXT)
    assert inspect.realised(model, steps, model.config.num_hidden_layers).layers == 24
    model = AutoModelForCausalLM.from_pretrained(dense_model, dtype=torch.bfloat16).eval()
    steps = recipes.apply(model, [Int8WeightOnly()], CONTEXT)
    found = inspect.realised(model, steps, 30)
    assert found.quantised_tensors == 210
    assert found.dtypes["int8"] == 106_323_840
