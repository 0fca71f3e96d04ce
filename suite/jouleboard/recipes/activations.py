"""What calibration text shows of the inputs of linear layers, in one pass over the model.

Sums are in float64: masks that follow from them must not depend on the order of addition.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jouleboard import structure
from jouleboard.recipes.linear import body_linears

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Measure = Callable[["torch.Tensor"], "torch.Tensor"]
"""Of inputs, shape [tokens, in], float64: something that adds up over tokens."""
Change = Callable[[int, "nn.Module", dict[str, "nn.Linear"], dict[str, "torch.Tensor"]], None]
"""Told a layer's number, the layer, its linear layers by their names inside it, and what was measured of each."""


def squares(x: torch.Tensor) -> torch.Tensor:
    """Return each input feature's sum of squares, shape [in]."""
    return x.square().sum(0)


def gram(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of outer products, shape [in, in]."""
    return x.T @ x


@contextlib.contextmanager
def watched(linears: Mapping[str, nn.Linear], measure: Measure) -> Iterator[dict[str, torch.Tensor]]:
    """Measure the inputs of linear layers as long as the context is open.

    Args:
        linears: by name.
        measure: what is summed up.

    Yields:
        The sums by name, filled by forward passes.
    """
    found: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            sums = measure(args[0].detach().flatten(0, -2).double())
            found[name] = found[name] + sums if name in found else sums

        return hook

    handles = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def contributions(
    model: PreTrainedModel, ids: torch.Tensor, linears: Mapping[str, nn.Linear], *, groups: int
) -> dict[str, torch.Tensor]:
    """Return how much each group of input channels adds to the output of linear layers: ||X_g W_g^T||_F over all tokens.

    For a group of one channel that is its activation norm times its weight norm, ||X_c||_2 * ||W_c||_2. For several channels it is
    not the sum of those: channels of one head mostly cancel.

    Args:
        model: dense model.
        ids: token ids, shape [sequences, tokens].
        linears: of the model, by name.
        groups: how many groups of neighbouring channels each of them has.

    Returns:
        By name: shape [groups], float64.
    """
    import torch  # noqa: PLC0415 - torch is imported only where tokens are computed

    def grams(x: torch.Tensor) -> torch.Tensor:
        parts = x.view(len(x), groups, -1)
        return torch.einsum("tgi,tgj->gij", parts, parts)

    with watched(linears, grams) as found, torch.no_grad():
        model(ids.to(model.device), logits_to_keep=1, use_cache=False)
    weights = {name: linear.weight.detach().double().view(len(linear.weight), groups, -1) for name, linear in linears.items()}
    return {name: torch.einsum("ogi,gij,ogj->g", weights[name], found[name], weights[name]).clamp_min(0).sqrt() for name in linears}


def layer_by_layer(model: PreTrainedModel, ids: torch.Tensor, measure: Measure, change: Change) -> int:
    """Measure each layer's linear layers, change the layer, and let the next layer see what the changed one gives.

    Each layer is computed twice, before the change and after it. A linear layer that an earlier layer shares is not measured again.

    Args:
        model: dense model, changed in place.
        ids: token ids, shape [sequences, tokens].
        measure: what is summed up of the inputs of each linear layer.
        change: called once a layer.

    Returns:
        How many tokens went through the model.
    """
    import torch  # noqa: PLC0415

    seen: set[nn.Module] = set()
    handles = []
    with contextlib.ExitStack() as open_now:

        def before(layer: nn.Module, _args: tuple[Any, ...]) -> None:
            linears = {name: linear for name, linear in body_linears(layer) if linear not in seen}
            seen.update(linears.values())
            now[layer] = linears, open_now.enter_context(watched(linears, measure))

        def after(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> Any:
            open_now.pop_all().close()
            change(numbers[layer], layer, *now.pop(layer))
            return layer.forward(*args, **kwargs)

        now: dict[nn.Module, tuple[dict[str, nn.Linear], dict[str, torch.Tensor]]] = {}
        numbers = {layer: index for index, layer in enumerate(structure.layers(model))}
        for layer in numbers:
            handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after, with_kwargs=True)]
        try:
            with torch.no_grad():
                model(ids.to(model.device), logits_to_keep=1, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    return 2 * int(ids.numel())
