"""Products of float32 weights by oneDNN: the same within rounding, in plain layers only, and only while they are wanted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from jouleboard.engines import products
from jouleboard.engines.decoding import Rows
from jouleboard.engines.products import FasterProducts
from jouleboard.meters import kernel

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """Take them for faster, whatever processor this is."""
    torch.set_num_threads(1)
    monkeypatch.setattr(products, "is_faster", lambda: True)


@pytest.fixture
def called(monkeypatch) -> list[int]:
    """The numbers of rows that oneDNN was given."""
    rows: list[int] = []
    plain = products.product

    def spy(module: nn.Linear, given: torch.Tensor) -> torch.Tensor:
        rows.append(given.numel() // given.shape[-1])
        return plain(module, given)

    monkeypatch.setattr(products, "product", spy)
    return rows


def inside(module: nn.Module) -> bool:
    """Whether a layer has a product of ours just now."""
    return "forward" in vars(module)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "blocks"), [
    ((1, 48), [1]), ((5, 1, 48), [5]), ((32, 48), [32]), ((33, 48), [32, 32]), ((4, 32, 48), [128]), ((129, 48), [128, 32]),
    ((3, 100, 48), [128, 128, 32, 32]), ((48,), [1]),
])
def test_products_are_those_of_torch_within_rounding(called, bias, shape, blocks):
    torch.manual_seed(0)
    layer = nn.Linear(48, 80, bias=bias)
    rows = torch.randn(shape)
    with torch.inference_mode():
        wanted = layer(rows)
        with FasterProducts(layer):
            found = layer(rows)
    assert called == blocks
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_lie_in_order_are_multiplied_as_they_are(called):
    torch.manual_seed(0)
    layer, rows = nn.Linear(48, 80), torch.randn(48, 300).T
    with torch.inference_mode():
        for given in (rows[:7], rows):
            wanted = layer(given)
            with FasterProducts(layer):
                torch.testing.assert_close(layer(given), wanted, rtol=1e-5, atol=1e-5)
    assert called


@pytest.mark.parametrize("rows", [torch.zeros(0, 48), torch.zeros(2, 48, dtype=torch.bfloat16)])
def test_no_rows_and_rows_of_another_dtype_are_left_to_torch(called, rows):
    layer = nn.Linear(48, 80)
    with torch.inference_mode(), FasterProducts(layer):
        if rows.dtype == torch.float32:
            assert layer(rows).shape == (0, 80)
        else:
            with pytest.raises(RuntimeError, match="dtype"):
                layer(rows)
    assert not called


# --- which layers, and when ------------------------------------------------------------------------------------------


class OwnLinear(nn.Linear):
    pass


def quantised() -> nn.Linear:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    made = nn.Sequential(nn.Linear(48, 80))
    quantize_(made, Int8WeightOnlyConfig())
    return made[0]


def with_forward_of_its_own() -> nn.Linear:
    made = nn.Linear(48, 80)
    made.forward = lambda rows: nn.functional.linear(rows, made.weight, made.bias)
    return made


def with_weight_across() -> nn.Linear:
    made = nn.Linear(48, 80)
    made.weight = nn.Parameter(torch.randn(48, 80).T)
    return made


@pytest.mark.parametrize("make", [
    lambda: OwnLinear(48, 80), lambda: nn.Linear(48, 80, dtype=torch.bfloat16), quantised, with_forward_of_its_own, with_weight_across,
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(48, 80)), lambda: nn.Linear(48, 80, device="meta"),
], ids=["own class", "bfloat16", "quantised", "own forward", "not contiguous", "parametrised", "not on a processor"])
def test_a_layer_that_is_not_plain_is_left_alone(called, make):
    layer, plain = make(), nn.Linear(48, 80)
    before = vars(layer).get("forward")
    with FasterProducts(nn.Sequential(layer, plain)):
        assert vars(layer).get("forward") is before
        assert inside(plain)
        if layer.weight.device.type != "meta":
            with torch.inference_mode():
                layer(torch.randn(3, 48, dtype=layer.weight.dtype))
        assert not called
    assert vars(layer).get("forward") is before


def test_layers_are_as_they_were_afterwards_also_when_it_fails():
    made = nn.Sequential(nn.Linear(48, 80), nn.Linear(80, 4))
    weights = copy.deepcopy(made.state_dict())
    chosen = FasterProducts(made)
    for _ in range(2):
        with chosen:
            assert all(map(inside, made))
        assert not any(map(inside, made))
    with pytest.raises(RuntimeError), chosen:
        made(torch.randn(3, 47))
    assert not any(map(inside, made))
    assert all(torch.equal(value, weights[name]) for name, value in made.state_dict().items())


def test_hooks_of_a_layer_go_on(called):
    layer, seen = nn.Linear(48, 80), []
    layer.register_forward_hook(lambda _module, _rows, output: seen.append(output.shape))
    with torch.inference_mode(), FasterProducts(layer):
        layer(torch.randn(3, 48))
    assert seen == [(3, 80)]
    assert called == [3]


def test_where_they_are_not_faster_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(products, "is_faster", lambda: False)
    layer = nn.Linear(48, 80)
    with FasterProducts(layer):
        assert not inside(layer)


@pytest.mark.parametrize(("maker", "instructions", "faster"), [
    ("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False), (None, "AVX512", False),
])
def test_they_are_faster_where_mkl_leaves_out_avx_512(monkeypatch, maker, instructions, faster):
    monkeypatch.undo()
    monkeypatch.setattr(kernel, "cpuinfo", lambda *_keys: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products.is_faster() is faster
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not products.is_faster()


def test_prompts_and_steps_use_them_and_the_model_is_left_as_it_was(tiny_model, called):
    model = tiny_model.float()
    rows = Rows(model, pad=0)
    with torch.inference_mode():
        rows.join([(5, 6, 7), (8, 9)])
        prompt_rows, called[:] = set(called), []
        rows.step()
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    assert prompt_rows == {6, 2}
    assert set(called) == {2}
    assert len(called) == len(linears)
    assert not any(map(inside, linears))
