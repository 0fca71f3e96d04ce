"""2:4 weights in the hardware's format: refused where there is no such kernel, computed where there is one (-m gpu)."""

from __future__ import annotations

import pytest
import torch
from tests.recipes.built import CONTEXT, IDS, apply, realised, tiny
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from jouleboard import recipes
from jouleboard.engines import inspect
from jouleboard.errors import RecipeError
from jouleboard.recipes import PruneWanda, Sparse24
from jouleboard.recipes.linear import body_linears
from jouleboard.recipes.sparse import _require_fit

KINDS = (SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS)


def test_a_device_without_such_kernels_is_told_before_anything_is_loaded():
    recipe = recipes.load("sparse-2-4")
    assert recipes.missing(recipe, "cpu") == "sparse-2-4: it runs on CUDA only, and this device is cpu"
    assert recipes.missing(recipe, "cuda:0") is None
    recipes.require_order(recipe)


def test_a_model_on_a_cpu_is_refused(model):
    with pytest.raises(RecipeError, match="run on NVIDIA GPUs only, and this model is on cpu") as caught:
        apply(model, PruneWanda(pattern="2:4"), Sparse24())
    assert "wanda-2-4" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_the_format_does_not_hold_are_refused(kind):
    fits = torch.tensor([1.0, 0.0, 0.0, 2.0]).repeat(64, 32).to(torch.bfloat16)
    _require_fit("x", fits, kind)
    with pytest.raises(RecipeError, match="more than two non-zero weights among four"):
        _require_fit("x", fits + 1, kind)
    with pytest.raises(RecipeError, match="not multiples of"):
        _require_fit("x", fits[:60], kind)
    with pytest.raises(RecipeError, match="the kernels multiply bfloat16 and float16"):
        _require_fit("x", fits.double(), kind)


def test_packed_weights_are_read_back_as_what_they_are(model):
    """The format can be written and read without a GPU, only not multiplied."""
    done = apply(model, PruneWanda(pattern="2:4"))
    before = realised(model, done)
    bodies = list(body_linears(model))
    for _, linear in bodies:
        values, places = sparse_semi_structured_from_dense_cutlass(linear.weight.detach())
        packed = SparseSemiStructuredTensorCUTLASS(linear.weight.shape, packed=values, meta=places, packed_t=None, meta_t=None,
                                                   compressed_swizzled_bitmask=None)
        linear.weight = torch.nn.Parameter(packed, requires_grad=False)
    claim = {"step": "sparse-2-4", "claimed_quantised_tensors": 28, "claimed_tensor_class": "SparseSemiStructuredTensorCUTLASS",
             "claimed_pattern": "2:4"}
    after = inspect.realised(model, [*done, claim], 4)
    body_bytes = sum(2 * linear.weight.numel() for _, linear in bodies)
    # Half of the values, and two bits for the place of each.
    assert before.weight_bytes - after.weight_bytes == body_bytes - body_bytes // 2 - body_bytes // 16
    assert after.parameters == before.parameters
    assert after.quantised_tensors == 0
    assert after.claims[:2] == ("50.0% of the weights are zero", "at most 2 of 4 neighbours in a row are not zero")
    with pytest.raises(RecipeError, match="claims 29 weights of class SparseSemiStructuredTensorCUTLASS"):
        inspect.realised(model, [claim | {"claimed_quantised_tensors": 29}], 4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_gives_what_the_mask_gives(tmp_path, dtype):
    model = tiny(tmp_path, dtype=dtype, hidden_size=128, intermediate_size=256).to("cuda")
    done = recipes.apply(model, [PruneWanda(pattern="2:4")], CONTEXT)
    before = inspect.realised(model, done, 4)
    with torch.inference_mode():
        masked = model(IDS.to("cuda")).logits.float()
    done += recipes.apply(model, [Sparse24()], CONTEXT)
    after = inspect.realised(model, done, 4)
    assert after.weight_bytes < before.weight_bytes
    with torch.inference_mode():
        assert torch.allclose(model(IDS.to("cuda")).logits.float(), masked, atol=0.05, rtol=0.05)
        assert torch.isfinite(model(IDS[:1, :1].to("cuda")).logits).all()
