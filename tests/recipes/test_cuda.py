"""On a real GPU: what runs there only, and what must come out alike there. Run with `pytest -m gpu tests/recipes`."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tests.recipes.quantised import BODY, CONTEXT, built

from jouleboard import recipes
from jouleboard.engines import fitness, inspect
from jouleboard.recipes import (
    Autocast,
    Float8Dynamic,
    Float8WeightOnly,
    Int4TilePacked,
    Int4Unpacked,
    Int8Dynamic,
    Int8WeightOnly,
    LinearMinMax,
    LlmInt8,
    Nf4,
    Nonlinear,
    QuantoInt8,
)

pytestmark = pytest.mark.gpu


@pytest.fixture
def on_gpu(tiny_model):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")
    return tiny_model.to("cuda:0")


@pytest.mark.parametrize(("step", "largest_error"), [
    (Float8Dynamic(), 0.2), (Int4TilePacked(group_size=32), 0.5), (Int4TilePacked(group_size=32, choose_parameters="tinygemm"), 0.5),
    (Int8Dynamic(), 0.1), (Int8WeightOnly(), 0.05), (Float8WeightOnly(), 0.2), (Int4Unpacked(group_size=32), 0.5),
    (LlmInt8(), 0.1), (Nf4(cpu_kernel="dequantise"), 0.5)])
def test_each_quantiser_is_built_on_a_gpu_and_read_back_as_what_it_claims(on_gpu, step, largest_error):
    why = step.missing("cuda:0")
    if why is not None:
        pytest.skip(why)
    if torch.cuda.get_device_capability() < (step.about.capability or (0, 0)):
        pytest.skip("the GPU is too old")
    before = inspect.realised(on_gpu, [], 3)
    _, found, error = built(on_gpu, step)
    assert found.quantised_tensors == BODY
    assert found.parameters == before.parameters
    assert all(tensor.device.type == "cuda" for tensor in on_gpu.parameters())
    assert 0 < error < largest_error
    assert (fitness.refusal(on_gpu) is not None) == ("arithmetic" in step.about.changes)


def test_quanto_is_built_on_a_gpu(on_gpu):
    pytest.importorskip("optimum.quanto")
    _, found, error = built(on_gpu, QuantoInt8())
    assert found.quantised_tensors == BODY
    assert 0 < error < 0.05


def test_mixed_precision_runs_on_a_gpu(on_gpu):
    _, found, error = built(on_gpu.float(), Autocast())
    assert found.claims == ("matrix products are bfloat16",)
    assert 0 < error < 0.05


@pytest.mark.parametrize("step", [LinearMinMax(bits=4, granularity="per-channel"), Nonlinear(bits=3, granularity="group", group_size=32)])
def test_simulated_quantisers_round_alike_on_gpu_and_cpu(on_gpu, step):
    # In float32: sums in another order may fall on the other side of a border of bfloat16.
    beside = deepcopy(on_gpu.float()).cpu()
    for model in (on_gpu, beside):
        inspect.realised(model, recipes.apply(model, [step], CONTEXT), 3)
    for name, weight in on_gpu.named_parameters():
        assert torch.allclose(weight.cpu(), beside.get_parameter(name), atol=1e-6), name
