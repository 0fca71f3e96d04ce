"""Mixed precision: float32 weights, products in bfloat16, on both engines."""

from __future__ import annotations

import inspect as signatures

import pytest
import torch
from tests.recipes.quantised import CONTEXT, IDS, built
from tests.test_shared_prefix import MAX_LENGTH, expected, requests, small
from transformers import AutoTokenizer

from jouleboard import recipes
from jouleboard.engines import fitness, inspect
from jouleboard.engines.shared import SharedPrefixLM
from jouleboard.errors import RecipeError
from jouleboard.recipes import Autocast


def test_weights_stay_float32_and_products_are_bfloat16(tiny_model):
    done, found, error = built(tiny_model.float(), Autocast())
    assert found.claims == ("matrix products are bfloat16",)
    assert set(found.dtypes) == {"float32"}
    assert "weight_bits" not in done[0]
    # Eight bits of mantissa, through three layers.
    assert 0 < error < 0.05
    layer = tiny_model(IDS, use_cache=True).past_key_values.layers[0]
    assert layer.keys.dtype == layer.values.dtype == torch.float32


def test_a_model_that_computes_in_float32_does_not_pass_for_it(tiny_model):
    steps = recipes.apply(tiny_model.float(), [Autocast()], CONTEXT)
    del tiny_model.forward
    with pytest.raises(RecipeError, match="claims matrix products in bfloat16, the built model has float32"):
        inspect.realised(tiny_model, steps, 3)


def test_it_decodes_and_keeps_the_signature_of_the_forward_pass(tiny_model):
    before = list(signatures.signature(tiny_model.forward).parameters)
    recipes.apply(tiny_model.float(), [Autocast()], CONTEXT)
    assert list(signatures.signature(tiny_model.forward).parameters) == before
    assert tiny_model.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (2, 35)


def test_weights_of_few_bits_are_no_mixed_precision(tiny_model):
    with pytest.raises(RecipeError, match="keeps float32 weights, the recipe is in bfloat16"):
        recipes.apply(tiny_model, [Autocast()], CONTEXT)


def test_the_shared_prefix_engine_agrees_within_the_rounding_of_bfloat16(dense_model):
    """A mask of float32's least number is minus infinity in bfloat16: no row may see nothing at all."""
    model = small()
    tokenizer = AutoTokenizer.from_pretrained(dense_model)
    recipes.apply(model, [Autocast()], CONTEXT)
    assert fitness.refusal(model) is None
    assert not fitness.computes_in_float32(model)
    asked = requests(shots=40)
    found = SharedPrefixLM(model, tokenizer, batch_size=4, max_length=MAX_LENGTH)._loglikelihood_tokens(asked)
    wanted = expected(model, tokenizer, asked)
    assert all(abs(one[0] - other[0]) < 0.5 * len(request[2]) for one, other, request in zip(found, wanted, asked, strict=True))


def test_float32_alone_is_known_as_such():
    assert fitness.computes_in_float32(small())
    assert not fitness.computes_in_float32(small().bfloat16())
