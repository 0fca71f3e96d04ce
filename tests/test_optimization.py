"""The two functions that compress a model of the user's own, without plans and boards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jouleboard.errors import DataFileError, PlanError, RecipeError
from jouleboard.hardware import resolve
from jouleboard.meters.model import PowerModelMeter
from jouleboard.optimization import adapt_model, perplexity, run_optimization

TEXTS = [f"Sentence number {number} speaks of a river, a mill and {number * 7 % 13} boats." for number in range(40)]
IDS = torch.arange(64).reshape(2, 32) * 7 + 3


def test_a_folder_is_adapted_by_the_id_of_a_recipe_and_left_as_it_is(tiny_folder: Path):
    before = (tiny_folder / "model.safetensors").read_bytes()
    adapted = adapt_model(tiny_folder, "int8-weight-only")
    assert adapted.realised.quantised_tensors == 21
    assert adapted.steps[0]["bill"]["duration_s"] > 0
    assert torch.isfinite(adapted.model(IDS).logits).all()
    assert (tiny_folder / "model.safetensors").read_bytes() == before


def test_a_live_model_is_changed_in_place_by_a_mapping(tiny_folder: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    adapted = adapt_model(
        model, {"id": "mine", "title": "t", "description": "d", "dtype": "bfloat16", "steps": [{"step": "drop-layers", "count": 1}]},
        tokenizer=AutoTokenizer.from_pretrained(tiny_folder), calibration=TEXTS)
    assert adapted.model is model
    assert len(model.model.layers) == 2
    assert adapted.realised.claims[0] == "2 layers are left"


def test_it_says_what_was_lost_and_what_it_cost(tiny_folder: Path, tmp_path: Path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    found = run_optimization(tiny_folder, texts, _recipe(tmp_path), meter=PowerModelMeter(resolve(None)))
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    held = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS[::10]]
    assert found.perplexity_before == pytest.approx(perplexity(model, held))
    assert found.perplexity_after != found.perplexity_before
    assert found.held_out_tokens == sum(ids.numel() - 1 for ids in held)
    assert found.bill.cpu_s > 0
    assert found.bill.energy.estimate_j > 0


def _recipe(folder: Path) -> Path:
    path = folder / "short.yaml"
    path.write_text("id: short\ntitle: t\ndescription: d\ndtype: bfloat16\nsteps:\n  - step: drop-layers\n    count: 1\n")
    return path


@pytest.mark.parametrize(("recipe", "error", "words"), [
    ("int-8-weight-only", PlanError, "did you mean int8-weight-only"),
    ({"id": "x"}, DataFileError, "title"),
    ({"id": "x", "title": "t", "description": "d", "dtype": "bfloat16", "steps": [{"step": "magic"}]}, DataFileError, "magic"),
    ({"id": "x", "title": "t", "description": "d", "dtype": "bfloat16",
      "steps": [{"step": "torchao-int8-weight-only"}, {"step": "drop-layers", "count": 1}]}, RecipeError, "put it before"),
])
def test_what_is_no_recipe_is_refused_with_a_remedy(tiny_folder: Path, recipe: object, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        adapt_model(tiny_folder, recipe)


def test_a_live_model_needs_its_tokenizer_and_a_data_set_two_texts(tiny_folder: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    with pytest.raises(RecipeError, match="needs its tokenizer"):
        adapt_model(model, "bf16")
    with pytest.raises(RecipeError, match="too few"):
        run_optimization(tiny_folder, ["one"], "bf16")


def test_a_line_without_text_is_named(tiny_folder: Path, tmp_path: Path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(DataFileError, match="line 2"):
        run_optimization(tiny_folder, texts, "bf16")
