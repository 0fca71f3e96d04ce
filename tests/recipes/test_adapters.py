"""Adapters begin as nothing, are trained alone, and are there again when the model is loaded from its folder."""

from __future__ import annotations

import msgspec
import pytest
import torch
from tests.recipes.tiny import UNSEEN, context, distance, student, to_the_end, write_corpus

from jouleboard import recipes, structure
from jouleboard.engines import inspect
from jouleboard.errors import RecipeError
from jouleboard.recipes import Adapters, ShareLayers
from jouleboard.recipes.adapters import insert
from jouleboard.structure_tuned_modules import AdaptedLinear

STEP = Adapters(corpus="tiny", steps=6, batch_size=2, sequence_tokens=24, learning_rate=1e-2, seed=3, width=8)
PLACES = ("self_attn.o_proj", "mlp.down_proj")


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path)


def logits(model):
    with torch.inference_mode():
        return model(UNSEEN).logits.clone()


def test_an_adapter_is_the_textbooks_bottleneck():
    layer = AdaptedLinear(torch.nn.Linear(6, 5), 3)
    x = torch.randn(2, 6)
    y = layer.inner(x)
    hidden = y @ layer.down.weight.T + layer.down.bias
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    assert torch.allclose(layer(x), y + gelu @ layer.up.weight.T + layer.up.bias, atol=1e-6)


def test_before_the_training_the_model_computes_what_it_did():
    found = student()
    before = logits(found)
    added = insert(found, PLACES, width=8, seed=1)
    assert torch.equal(logits(found), before)
    assert len(added) == 3 * 2 * 4


def test_only_the_adapters_are_trained_and_the_student_comes_nearer_to_the_teacher(corpus):
    found, plain = student(), student()
    before = distance(found)
    facts = msgspec.structs.replace(STEP, steps=40).apply(found, context(corpus))
    assert distance(found) < before
    own = dict(found.named_parameters())
    for name, weight in plain.named_parameters():
        kept = own[name] if name in own else own[name.replace("_proj.weight", "_proj.inner.weight")]
        assert torch.equal(kept, weight), name
    added = 3 * 2 * (32 * 8 + 8 + 8 * 32 + 32)
    assert facts["trained_parameters"] == added
    assert facts["claimed_parameters"] == sum(weight.numel() for weight in plain.parameters()) + added
    assert facts["claimed_modules"] == {"AdaptedLinear": 6}
    assert inspect.realised(found, [{"step": "adapters"} | facts], 3).claims


def test_a_saved_model_is_loaded_with_its_adapters(corpus, tmp_path):
    found = student()
    STEP.apply(found, context(corpus))
    found.save_pretrained(tmp_path / "saved")
    again = structure.load(str(tmp_path / "saved"), torch.float32)
    assert inspect.fingerprint(again) == inspect.fingerprint(found)
    assert torch.equal(logits(again), logits(found))
    assert again.config.jouleboard_structure[0] == {"edit": "adapter", "layer": 0, "module": "self_attn.o_proj", "width": 8}


def test_layers_can_be_dropped_afterwards(corpus, tmp_path):
    found = student()
    STEP.apply(found, context(corpus))
    structure.keep_layers(found, [0, 2])
    found.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(structure.load(str(tmp_path / "saved"), torch.float32)), logits(found))


def test_layers_that_share_weights_share_their_adapters(corpus, tmp_path):
    found = student()
    facts = recipes.apply(found, [ShareLayers(group=2, weights="first"), STEP], context(corpus))
    assert facts[1]["claimed_modules"] == {"AdaptedLinear": 4}
    assert inspect.realised(found, facts, 3).claims
    found.save_pretrained(tmp_path / "saved")
    again = structure.load(str(tmp_path / "saved"), torch.float32)
    assert inspect.fingerprint(again) == inspect.fingerprint(found)
    assert torch.equal(logits(again), logits(found))


def test_a_training_that_was_stopped_gives_the_same_bits(corpus, tmp_path):
    whole = student(torch.bfloat16)
    facts = STEP.apply(whole, context(corpus, torch.bfloat16))
    pieces, again, _ = to_the_end(STEP, corpus, tmp_path / "state", [2, 1], lambda: student(torch.bfloat16))
    assert inspect.fingerprint(pieces) == inspect.fingerprint(whole)
    assert again == facts


def test_a_second_adapter_at_the_same_place_is_refused():
    found = student()
    insert(found, PLACES, width=8, seed=1)
    with pytest.raises(RecipeError, match="is AdaptedLinear, not a dense linear layer"):
        insert(found, PLACES, width=8, seed=1)
