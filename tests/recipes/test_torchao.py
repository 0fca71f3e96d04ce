"""torchao's quantisers: what they compute beside the dequantised product, and what is read back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.recipes.quantised import BODY, CONTEXT, body, built, dense_weights, integer_product

from jouleboard import recipes
from jouleboard.engines import fitness, inspect
from jouleboard.errors import RecipeError
from jouleboard.recipes import Float8Dynamic, Float8WeightOnly, Int4TilePacked, Int4Unpacked, Int8Dynamic

ON_GPUS = [Float8Dynamic(), Int4TilePacked(group_size=32)]


@pytest.mark.parametrize(("step", "codes", "bits"), [
    (Int8Dynamic(), "int8", 8), (Float8WeightOnly(), "float8_e4m3fn", 8), (Int4Unpacked(group_size=32), "int8", 4)])
def test_a_quantised_model_is_read_back_as_what_it_claims(tiny_model, step, codes, bits):
    before = inspect.realised(tiny_model, [], 3)
    done, found, error = built(tiny_model, step)
    assert found.quantised_tensors == BODY
    assert found.parameters == before.parameters
    assert found.weight_bytes < before.weight_bytes
    assert found.dtypes[codes] >= sum(module.in_features * module.out_features for module in body(tiny_model).values())
    assert 0.99 * before.nonzero_share < found.nonzero_share <= 1
    assert done[0]["weight_bits"] == step.weight_bits == bits
    assert 0 < error < 0.3


def test_int8_with_dynamic_activations_is_a_product_of_integers(tiny_model):
    dense = dense_weights(tiny_model)
    recipes.apply(tiny_model, [Int8Dynamic()], CONTEXT)
    for name, module in body(tiny_model).items():
        x = torch.randn(5, module.in_features, dtype=torch.bfloat16)
        # A value half-way between two codes may go either way: it moves the product by a weight times the token's scale.
        assert torch.allclose(module(x).float(), integer_product(x, dense[name]), atol=0.01, rtol=0.02), name
        unrounded = x.float() @ dense[name].T
        assert not torch.allclose(module(x).float(), unrounded, atol=1e-4, rtol=1e-3), "activations were not rounded"


def test_float8_weights_have_three_bits_of_mantissa_and_one_scale_a_row(tiny_model):
    dense = dense_weights(tiny_model)
    recipes.apply(tiny_model, [Float8WeightOnly()], CONTEXT)
    for name, module in body(tiny_model).items():
        scale = dense[name].abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
        reference = (dense[name] / scale).to(torch.float8_e4m3fn).float() * scale
        x = torch.randn(5, module.in_features, dtype=torch.bfloat16)
        assert torch.allclose(module(x).float(), x.float() @ reference.T, atol=0.02, rtol=0.02), name
        # Half a unit in the last of three places, relative to the weight, or of the smallest subnormal.
        assert ((reference - dense[name]).abs() <= dense[name].abs() * 2**-4 + scale * 2**-10).all()


def test_unpacked_int4_weights_are_within_half_a_step_of_a_symmetric_grid(tiny_model):
    dense = dense_weights(tiny_model)
    recipes.apply(tiny_model, [Int4Unpacked(group_size=32)], CONTEXT)
    for name, module in body(tiny_model).items():
        found = module.weight.dequantize().float()
        groups = dense[name].reshape(-1, 32)
        step = (torch.maximum(groups.amax(1) / 7.5, -groups.amin(1) / 7.5))[:, None]
        # Scale and result are rounded to bfloat16: the outermost of eight steps moves by up to 2 x 8 / 256 of one.
        assert ((found.reshape(-1, 32) - groups).abs() <= (0.5 + 2 * 8 / 256) * step).all(), name
        x = torch.randn(5, module.in_features, dtype=torch.bfloat16)
        assert torch.allclose(module(x).float(), x.float() @ found.T, atol=0.02, rtol=0.02), name
        assert all(len(group.unique()) <= 16 for group in found.reshape(-1, 32))


def test_only_quantised_activations_hinder_the_shared_prefix_engine(tiny_model):
    recipes.apply(tiny_model, [Int8Dynamic()], CONTEXT)
    assert "quantised dynamically" in fitness.refusal(tiny_model)


@pytest.mark.parametrize("step", [Float8WeightOnly(), Int4Unpacked(group_size=32)])
def test_weights_alone_do_not_hinder_it(tiny_model, step):
    recipes.apply(tiny_model, [step], CONTEXT)
    assert fitness.refusal(tiny_model) is None


def test_float8_activations_are_told_from_float8_weights(tiny_model):
    """The kernel runs on GPUs only, and what the engine looks at is on the weight."""
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows import float8

    kwargs = float8.float8_tensor.QuantizeTensorToFloat8Kwargs(torch.float8_e4m3fn, PerRow())
    layer = tiny_model.model.layers[1].mlp.up_proj
    rounded = float8.float8_tensor.Float8Tensor.from_hp(layer.weight.data, granularity=PerRow(), act_quant_kwargs=kwargs)
    layer.weight = torch.nn.Parameter(rounded, requires_grad=False)
    assert "layers.1.mlp.up_proj.weight" in fitness.refusal(tiny_model)


@pytest.mark.parametrize("step", ON_GPUS)
def test_what_runs_on_gpus_only_says_so_before_anything_is_loaded(step):
    assert "CUDA only, and this device is cpu" in step.missing("cpu")
    assert step.missing("cuda:0") is None


@pytest.mark.parametrize("step", ON_GPUS)
def test_a_gpu_that_is_too_old_is_refused(step, monkeypatch):
    least = step.about.capability
    on_gpu = SimpleNamespace(device=torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    with pytest.raises(RecipeError, match=rf"compute capability {least[0]}\.{least[1]}, this one has 7\.5"):
        recipes.apply(on_gpu, [step], CONTEXT)


def test_a_layer_that_float8_products_would_skip_in_silence_is_refused(tiny_model):
    tiny_model.model.layers[2].mlp.up_proj = torch.nn.Linear(64, 100, bias=False, dtype=torch.bfloat16)
    with pytest.raises(RecipeError, match=r"layers\.2\.mlp\.up_proj has 64 inputs and 100 outputs"):
        recipes.apply(tiny_model, [Float8Dynamic()], CONTEXT)


@pytest.mark.parametrize("step", ON_GPUS)
def test_kernels_for_bfloat16_take_no_other_dtype(tiny_model, step):
    with pytest.raises(RecipeError, match="the recipe is in float32"):
        recipes.apply(tiny_model.float(), [step], CONTEXT)


@pytest.mark.parametrize("step", [Int4TilePacked(group_size=64), Int4Unpacked(group_size=64)])
def test_a_group_size_that_would_skip_a_layer_in_silence_is_refused(tiny_model, step):
    with pytest.raises(RecipeError, match="not a multiple of the group size 64"):
        recipes.apply(tiny_model, [step], CONTEXT)


def test_int4_in_bytes_says_that_it_is_stored_in_eight_bits():
    assert (Int4Unpacked(group_size=32).weight_bits, Int4Unpacked(group_size=32).stored_bits) == (4, 8)
    assert Int4Unpacked.about.control
