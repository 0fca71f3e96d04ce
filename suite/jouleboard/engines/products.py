"""Products with dense float32 weights by oneDNN, where MKL leaves out a processor's widest instructions.

torch computes `linear` in float32 by MKL, and in bfloat16 by oneDNN. On AMD's processors MKL takes AVX2 even where there is AVX-512.
The default model's 211 products of a decode step, on one core of an EPYC 9005 with torch 2.13, in ms::

    rows      1     2     4     8    16
    MKL      29    48    45    54    75
    oneDNN   19    28    28    33    42

and those of prompts take half the time. Weights, inputs and sums are the same float32, added in another order, and nothing is
repacked: weights are held once. oneDNN keeps about 0.6 MB for each number of rows that it has met with each shape of weights, so
many rows are multiplied in blocks of two sizes.

On other makers' processors MKL is left alone: where it takes AVX-512, it is twice as fast as oneDNN for up to three rows.
"""

from __future__ import annotations

from functools import partial
from types import TracebackType

import torch
from torch import nn

from jouleboard.meters import kernel

MOST_ROWS = 32
"""So many rows are multiplied at once, whatever their number; of more, blocks."""
BLOCK_ROWS = 128
"""Rows of a block, as long as so many are left: larger ones are no faster."""
MAKERS = frozenset({"AuthenticAMD"})
"""Makers of processors on which MKL takes slower instructions, as `/proc/cpuinfo` calls them."""


def is_faster() -> bool:
    """Whether oneDNN is here, and faster than what torch takes by itself."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return (has_both and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and torch.backends.cpu.get_cpu_capability() == "AVX512" and kernel.cpuinfo("vendor_id") in MAKERS)


class FasterProducts:
    """Gives a model's plain linear layers the faster product, for as long as it is entered."""

    def __init__(self, model: nn.Module) -> None:
        """Look for the layers; quantised ones, and others that are not exactly torch's, are left alone.

        Args:
            model: the built variant.
        """
        fitting = [module for module in model.modules() if isinstance(module, nn.Linear) and _fits(module)] if is_faster() else []
        # A layer's own `forward` goes before its class's; `vars`, since setting it as an attribute takes a microsecond each.
        self._changed = [(vars(module), partial(_linear, module)) for module in fitting]

    def __enter__(self) -> None:
        """Change the layers."""
        for attributes, product in self._changed:
            attributes["forward"] = product

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Change them back."""
        for attributes, _ in self._changed:
            del attributes["forward"]


def _fits(module: nn.Linear) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    # A quantised or distributed tensor is of a class of its own, also inside a plain layer.
    return (type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32
            and weight.layout == torch.strided and weight.is_contiguous())


def _linear(module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    values = rows.numel()
    if rows.dtype != torch.float32 or not values:
        return nn.functional.linear(rows, module.weight, module.bias)
    if values <= MOST_ROWS * module.in_features:
        return product(module, rows)
    count = values // module.in_features
    flat = rows.reshape(count, module.in_features)
    found = rows.new_empty(count, module.out_features)
    begin = 0
    while begin < count:
        size = BLOCK_ROWS if count - begin >= BLOCK_ROWS else MOST_ROWS
        # The last block begins early rather than being a smaller one: some of its rows are computed twice.
        begin = min(begin, count - size)
        found[begin : begin + size] = product(module, flat[begin : begin + size])
        begin += size
    return found.view(*rows.shape[:-1], module.out_features)


def product(module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """Compute what a layer gives for some rows by oneDNN.

    Source: `torch/_inductor/fx_passes/mkldnn_fusion.py`, which puts this operator in the place of `linear`.
    """
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, module.weight, module.bias, "none", [], "")  # noqa: SLF001
    return found
