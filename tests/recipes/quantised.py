"""What tests do with a tiny model that a quantiser was applied to."""

from __future__ import annotations

import copy

import torch

from jouleboard import recipes
from jouleboard.engines import inspect
from jouleboard.recipes import Context

IDS = torch.arange(64).reshape(2, 32) * 7 + 3
CONTEXT = Context(calibration_ids=IDS)
BODY = 21
"""Linear layers of the tiny model outside its output head."""


def body(model):
    """Return the body's linear layers by name, of whatever class."""
    return {name: module for name, module in model.named_modules()
            if name.endswith("_proj") and hasattr(module, "in_features")}


def dense_weights(model):
    return {name: module.weight.detach().clone().float() for name, module in body(model).items()}


def integer_product(x, weight):
    """x W^T where both are rounded to int8: x by one scale a token, W by one scale a row."""
    tokens, rows = (one.float().abs().amax(1, keepdim=True) / 127 for one in (x, weight))
    return (torch.round(x.float() / tokens) @ torch.round(weight / rows).T) * tokens * rows.T


def logits(model):
    with torch.inference_mode():
        return model(IDS.to(model.device)).logits.float()


def built(model, *steps):
    """Apply steps, hold the model against what they claim, and let it compute.

    Returns:
        The steps as recorded, what was read back, and the largest error of a logit beside the dense model's.
    """
    dense = logits(copy.deepcopy(model))
    done = recipes.apply(model, steps, CONTEXT)
    found = inspect.realised(model, done, 3)
    assert found.claims
    after = logits(model)
    assert torch.isfinite(after).all()
    assert inspect.fingerprint(model) == found.weights_sha256, "computing changed what is read back"
    return done, found, float((after - dense).abs().max())
