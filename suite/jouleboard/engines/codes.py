"""Quantised weights that libraries keep elsewhere than in a module's parameters.

- bitsandbytes keeps the scales of `Linear8bitLt` on the weight, and after the first forward pass in the module's `state`;
- `torch.ao.nn.quantized.dynamic` keeps weight, scales and bias in one packed object;
- modules of AWQ and GPTQ keep codes and scales in buffers, of which `qweight` holds the codes.

Example: a layer of `torch.ao` has the parts `layer.codes` (int8), `layer.scales` and `layer.zero_points`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

PACKED = "LinearPackedParams"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A weight that is no parameter."""

    name: str
    owner: str
    """Class that it belongs to."""
    numel: int
    """Numbers that it stands for."""


def weights(model: nn.Module) -> Iterator[Weight]:
    """Yield every weight, and every bias packed with one, that is no parameter."""
    for name, module in model.named_modules():
        if type(module).__name__ == PACKED:
            weight, bias = module._weight_bias()  # noqa: SLF001 - torch has no public name for it
            yield Weight(name=name, owner=PACKED, numel=weight.numel())
            if bias is not None:
                yield Weight(name=f"{name}.bias", owner="Parameter", numel=bias.numel())
        elif isinstance(module._buffers.get("qweight"), torch.Tensor):  # noqa: SLF001 - named_buffers() would walk
            yield Weight(name=name, owner=type(module).__name__, numel=module.in_features * module.out_features)


def hidden_parts(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield name, owner and plain tensor of all that is stored neither in a parameter nor in a buffer."""
    for name, module in model.named_modules():
        if type(module).__name__ == PACKED:
            yield from _packed(name, module)
        scales = _scales(module)
        if scales is not None:
            yield f"{name}.weight.SCB", type(module.weight).__name__, scales


def _scales(module: nn.Module) -> torch.Tensor | None:
    """Return the scales of a `Linear8bitLt`: on the weight before its first forward pass, in its state afterwards."""
    if type(module).__name__ != "Linear8bitLt":
        return None
    found = getattr(module.weight, "SCB", None)
    return found if found is not None else getattr(module.state, "SCB", None)


def _packed(name: str, module: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    weight, bias = module._weight_bias()  # type: ignore[operator]  # noqa: SLF001 - torch has no public name for it
    yield f"{name}.codes", PACKED, weight.int_repr()
    if weight.qscheme() == torch.per_tensor_affine:
        yield f"{name}.scales", PACKED, torch.tensor([weight.q_scale()], dtype=torch.float64)
        yield f"{name}.zero_points", PACKED, torch.tensor([weight.q_zero_point()])
    else:
        yield f"{name}.scales", PACKED, weight.q_per_channel_scales()
        yield f"{name}.zero_points", PACKED, weight.q_per_channel_zero_points()
    if bias is not None:
        yield f"{name}.bias", "Parameter", bias
