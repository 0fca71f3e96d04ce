"""What `from_pretrained` cannot rebuild is recorded, made again, and refused where it does not fit."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from jouleboard import structure
from jouleboard.engines import loading, parallel
from jouleboard.errors import RecipeError
from tests.recipes import built


@pytest.fixture
def model(tmp_path):
    return built.tiny(tmp_path)


@pytest.fixture
def edited(model, tmp_path):
    """Folder of a model with a factorised layer and a shared one."""
    structure.make(model, structure.LowRank(layer=1, module="mlp.up_proj", rank=8))
    structure.make(model, structure.SharedLayer(layer=3, of=2))
    folder = tmp_path / "edited"
    model.save_pretrained(folder)
    return folder


def rewrite(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["jouleboard_structure"])
    (folder / "config.json").write_text(json.dumps(config))


def test_edits_stand_in_the_configuration(edited):
    assert json.loads((edited / "config.json").read_text())["jouleboard_structure"] == [
        {"edit": "low-rank", "layer": 1, "module": "mlp.up_proj", "rank": 8},
        {"edit": "share-layers", "layer": 3, "of": 2},
    ]
    assert structure.is_edited(str(edited))


def test_every_kind_of_edit_has_its_function():
    assert set(structure.SKELETONS) == set(structure.Edit.__args__)


def test_a_plain_model_is_loaded_by_transformers_alone(model, tmp_path, monkeypatch):
    assert not structure.is_edited(str(tmp_path / "base"))
    monkeypatch.setattr(structure, "load", None)
    assert torch.equal(built.logits(built.load(tmp_path / "base")), built.logits(model))


def test_a_loaded_model_is_ready_to_compute_and_generates_as_before(model, edited):
    GenerationConfig(max_new_tokens=7, pad_token_id=0).save_pretrained(edited)
    again = built.load(edited)
    assert not again.training
    assert again.generation_config.max_new_tokens == 7
    assert again.config._attn_implementation == model.config._attn_implementation
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert again.model.layers[3].self_attn is not again.model.layers[2].self_attn
    assert again.model.layers[3].self_attn.q_proj is again.model.layers[2].self_attn.q_proj


def test_dropping_layers_renumbers_the_edits(model):
    structure.make(model, structure.LowRank(layer=0, module="mlp.up_proj", rank=8))
    structure.make(model, structure.LowRank(layer=3, module="mlp.up_proj", rank=9))
    structure.keep_layers(model, [1, 3])
    assert structure.edits(model.config) == (structure.LowRank(layer=1, module="mlp.up_proj", rank=9),)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]


def test_a_module_that_stands_in_several_places_is_replaced_in_all_of_them(model):
    structure.make(model, structure.SharedLayer(layer=1, of=0))
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    with structure.kept_shared(model):
        second.k_proj = new = torch.nn.Linear(64, 32, bias=False)
    assert first.k_proj is new
    with structure.kept_shared(model):
        first.k_proj, second.k_proj = one, other = torch.nn.Linear(64, 32), torch.nn.Linear(64, 32)
    # Each place got its own: that was meant.
    assert (first.k_proj, second.k_proj) == (one, other)


@pytest.mark.parametrize(("change", "words"), [
    (lambda found: found.append({"edit": "unheard-of"}), "cannot be read: Invalid value 'unheard-of'"),
    (lambda found: found[0].update(rank=0), "cannot be read"),
    (lambda found: found[0].update(module="mlp"), "mlp is LlamaMLP, not a dense linear layer"),
    (lambda found: found[0].update(module="mlp.no_proj"), "layer 1: mlp.no_proj is missing"),
    (lambda found: found[0].update(layer=9), "the model has 4 layers, and an edit names layer 9"),
    (lambda found: found[1].update(of=9), "the model has 4 layers, and an edit names layer 9"),
    (lambda found: found[0].update(rank=7), "mlp.up_proj.first.weight of shape (8, 64) is no weight"),
    (lambda found: found.pop(1), "lack the weight model.layers.3."),
    (lambda found: found.pop(0), "is no weight of the model"),
])
def test_edits_that_do_not_fit_the_weights_are_refused(edited, change, words):
    rewrite(edited, change)
    with pytest.raises(RecipeError) as caught:
        # Without any edit left it would be transformers that reads the folder.
        structure.load(str(edited), torch.bfloat16)
    assert words in str(caught.value)


def test_a_weight_that_is_not_there_is_named(edited):
    weights = load_file(edited / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.second.weight"]
    save_file(weights, edited / "model.safetensors")
    with pytest.raises(RecipeError, match=r"lack the weight model\.layers\.1\.mlp\.up_proj\.second\.weight"):
        built.load(edited)


def test_several_devices_are_refused(edited):
    group = parallel.Group(SimpleNamespace(rank=0, world=2))
    with pytest.raises(RecipeError, match="not split over 2 devices"):
        loading.dense(str(edited), torch.bfloat16, "cpu", group)
