"""Every dense technique, alone and behind others, is the same model after it was saved and loaded; so is a quantiser on top."""

from __future__ import annotations

import pytest
import torch
from tests.recipes.built import apply, load, logits, realised, saved

from jouleboard.engines import inspect
from jouleboard.recipes import (
    DropLayers,
    Int8WeightOnly,
    LowRank,
    PruneHeads,
    PruneMagnitude,
    PruneMlpWidth,
    PruneWanda,
    ShareLayers,
)

WIDTH, HEADS, DEPTH = PruneMlpWidth(keep=0.67), PruneHeads(groups=1), DropLayers(count=1)
FACTORS, SHARED = LowRank(which="mlp", rank=8, weighting="whiten"), ShareLayers(group=2, weights="first")
ALONE = (
    PruneMagnitude(rate=0.3, scope="layer"), PruneMagnitude(rate=0.3, scope="global"), PruneMagnitude(threshold=0.02),
    PruneWanda(rate=0.5), PruneWanda(pattern="2:4"), WIDTH, HEADS, DEPTH, FACTORS, LowRank(which="all", keep=0.5, weighting="none"),
    LowRank(which="attention", rank=16, weighting="scale"), SHARED, ShareLayers(group=3, weights="average"),
)
TOGETHER = (
    (WIDTH, HEADS, DEPTH), (DEPTH, HEADS, WIDTH), (DEPTH, DEPTH), (WIDTH, FACTORS), (FACTORS, HEADS), (FACTORS, DEPTH), (FACTORS, SHARED),
    (SHARED, FACTORS), (DEPTH, SHARED), (SHARED, PruneWanda(rate=0.5)), (FACTORS, PruneWanda(pattern="2:4")),
    (PruneMagnitude(rate=0.3, scope="layer"), PruneWanda(rate=0.5)),
    (WIDTH, HEADS, DEPTH, FACTORS, SHARED, PruneWanda(rate=0.5)),
)


def name(steps):
    return "+".join(str(type(step).__struct_config__.tag) for step in steps)


@pytest.mark.parametrize("steps", [*((step,) for step in ALONE), *TOGETHER], ids=name)
def test_a_saved_model_is_the_same_model(model, tmp_path, steps):
    done = apply(model, *steps)
    again = saved(model, tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))
    assert realised(again, done) == realised(model, done)
    assert again.config.to_dict() == model.config.to_dict() | {"_name_or_path": str(tmp_path / "saved")}
    assert torch.isfinite(logits(model)).all()
    # A later run goes on from the folder.
    done += apply(model, Int8WeightOnly())
    apply(again, Int8WeightOnly())
    assert torch.equal(logits(again), logits(model))
    assert inspect.fingerprint(again) == inspect.fingerprint(model)
    assert realised(again, done).quantised_tensors > 0


def test_a_later_step_on_a_loaded_model_is_the_same_as_on_the_live_one(model, tmp_path):
    apply(model, FACTORS, DEPTH)
    again = saved(model, tmp_path / "saved")
    for one in (model, again):
        apply(one, SHARED, PruneWanda(rate=0.5))
    assert inspect.fingerprint(again) == inspect.fingerprint(model)
    twice = saved(again, tmp_path / "twice")
    assert torch.equal(logits(twice), logits(model))


def test_a_float32_folder_is_loaded_in_another_dtype(model, tmp_path):
    wide = model.float()
    apply(wide, FACTORS, SHARED)
    wide.save_pretrained(tmp_path / "wide")
    narrow = load(tmp_path / "wide", torch.bfloat16)
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    assert torch.equal(narrow.model.layers[1].mlp.up_proj.first.weight,
                       wide.model.layers[0].mlp.up_proj.first.weight.to(torch.bfloat16))
