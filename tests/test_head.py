"""Logits in memory that is kept: the same numbers, and a head that is left as it was."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from jouleboard.engines.head import KeptLogits, is_plain


def model_of(head: torch.nn.Module) -> SimpleNamespace:
    return SimpleNamespace(get_output_embeddings=lambda: head)


def linear(dtype: torch.dtype = torch.float32, *, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(64, 4096, bias=bias).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_the_logits_are_those_of_the_head_bit_for_bit(dtype, rows):
    head, hidden = linear(dtype), torch.randn(1, rows, 64).to(dtype)
    expected = head(hidden)
    with KeptLogits(model_of(head)):
        found = head(hidden)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


@torch.no_grad()
def test_batches_share_one_memory_that_grows_with_the_largest():
    head = linear()
    kept = KeptLogits(model_of(head))
    batches = [torch.randn(1, rows, 64) for rows in (3, 9, 2, 9)]
    places = []
    for hidden in batches:
        with kept:
            logits = head(hidden)
        assert torch.equal(logits, head(hidden))
        places.append(logits.data_ptr())
    assert len(set(places[1:])) == 1


@torch.no_grad()
def test_hooks_of_the_head_still_run():
    head, hidden = linear(), torch.randn(1, 6, 64)
    head.register_forward_pre_hook(lambda _module, args: (args[0][:, ::2],))
    with KeptLogits(model_of(head)):
        assert head(hidden).shape == (1, 3, 4096)


@torch.no_grad()
def test_the_head_gets_its_own_product_back_after_an_error_too():
    head = linear()

    def fail() -> None:
        with KeptLogits(model_of(head)):
            assert "forward" in vars(head)
            head(torch.randn(1, 1, 3))

    with pytest.raises(RuntimeError, match="shapes"):
        fail()
    assert "forward" not in vars(head)
    assert is_plain(head)


def test_other_heads_are_left_alone():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantised = torch.nn.Sequential(linear(torch.bfloat16))
    quantize_(quantised, Int8WeightOnlyConfig())
    wrapped = linear()
    wrapped.forward = copy.copy(wrapped.forward)
    masked = linear()
    torch.nn.utils.parametrize.register_parametrization(masked, "weight", torch.nn.Identity())
    for head in (linear(bias=True), quantised[0], wrapped, masked, torch.nn.Identity(), linear().to("meta")):
        assert not is_plain(head)
        before = vars(head).get("forward")
        with KeptLogits(model_of(head)):
            assert vars(head).get("forward") is before
