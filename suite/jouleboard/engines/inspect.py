"""Read back what a built model really is: bytes, dtypes, classes, quantised tensors, and a fingerprint of its weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jouleboard.errors import RecipeError
from jouleboard.records import Realised


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One plain tensor that a weight is stored in: a dense weight has one part, a quantised one its codes and scales."""

    name: str
    owner: str
    """Class of the weight that it belongs to."""
    tensor: torch.Tensor


def parts(model: nn.Module) -> Iterator[Part]:
    """Yield every stored plain tensor once, tied weights once only.

    `state_dict()` is not used: on CPUs bitsandbytes corrupts the live model in it after the first forward pass.
    """
    seen: set[tuple[int, int]] = set()
    for name, tensor in [*model.named_parameters(remove_duplicate=True), *_stored_buffers(model)]:
        for label, plain in _flatten(name, tensor):
            here = held_here(plain)
            key = (here.data_ptr(), here.numel())
            if plain.numel() == 0 or (here.numel() and key in seen):
                continue
            seen.add(key)
            yield Part(name=label, owner=_class(tensor), tensor=plain)


def held_here(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor that several ranks share (a `DTensor`); any other tensor is held whole."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whole; of one that several ranks share, each gathers it, so all must ask at the same time."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def _class(tensor: torch.Tensor) -> str:
    """Name a weight's class; a weight that several ranks share is as dense as it would be in one place."""
    return "Parameter" if hasattr(tensor, "full_tensor") else type(tensor).__name__


def _stored_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers that belong to the weights; others, such as rotary frequencies, are computed at load time."""
    for prefix, module in model.named_modules():
        for name, tensor in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:  # noqa: SLF001 - torch has no public name for it
                yield f"{prefix}.{name}", tensor


def _flatten(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    flatten = None if hasattr(tensor, "full_tensor") else getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None and type(tensor) not in {torch.Tensor, nn.Parameter}:
        for attribute in flatten()[0]:
            yield from _flatten(f"{name}.{attribute}", getattr(tensor, attribute))
        return
    yield name, tensor.detach()
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        for attribute in ("absmax", "code", "offset"):
            value = getattr(state, attribute, None)
            if isinstance(value, torch.Tensor):
                yield f"{name}.{attribute}", value


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of every stored tensor, in order of name.

    A model that several ranks share has the fingerprint that it would have in one place; all must ask for it at the same time.
    """
    hasher = hashlib.sha256()
    for part in sorted(parts(model), key=lambda part: part.name):
        hasher.update(f"{part.name}|{part.tensor.dtype}|{tuple(part.tensor.shape)}|".encode())
        hasher.update(whole(part.tensor).contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
    return hasher.hexdigest()


def realised(model: nn.Module, steps: list[dict[str, Any]], layers: int) -> Realised:
    """Describe the built model and hold it against what its recipe claims.

    Args:
        model: the model as it will compute; of one that several ranks share, the whole is described, each weight once.
        steps: the recipe's steps with their claims (`claimed_quantised_tensors`, ...), from `recipes.apply`.
        layers: number of transformer layers.

    Raises:
        RecipeError: a claim is not so.
    """
    weights = [tensor for _, tensor in model.named_parameters(remove_duplicate=True)]
    classes = Counter(_class(tensor) for tensor in weights)
    dtypes: Counter[str] = Counter()
    nonzero = countable = 0
    for part in parts(model):
        dtypes[str(part.tensor.dtype).removeprefix("torch.")] += part.tensor.numel() * part.tensor.element_size()
        if part.tensor.dtype.is_floating_point or part.tensor.dtype == torch.int8:
            nonzero += int(torch.count_nonzero(whole(part.tensor)))
            countable += part.tensor.numel()
    quantised = sum(count for name, count in classes.items() if name not in {"Parameter", "Tensor"})
    return Realised(
        weight_bytes=sum(dtypes.values()),
        parameters=sum(_logical_numel(tensor) for tensor in weights),
        dtypes=dict(sorted(dtypes.items())),
        tensor_classes=dict(sorted(classes.items())),
        module_classes=dict(sorted(Counter(type(module).__name__ for module in model.modules()
                                           if not list(module.children())).items())),
        quantised_tensors=quantised,
        nonzero_share=nonzero / countable,
        layers=layers,
        weights_sha256=fingerprint(model),
        claims=tuple(_verify(steps, classes, layers)),
    )


def _logical_numel(tensor: torch.Tensor) -> int:
    """Count weights, not bytes: bitsandbytes packs two of them into one."""
    state = getattr(tensor, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else tensor.numel()


def _verify(steps: list[dict[str, Any]], classes: Counter[str], layers: int) -> Iterator[str]:
    for step in steps:
        kind, claimed = step.get("claimed_tensor_class"), step.get("claimed_quantised_tensors")
        if kind is not None:
            if classes[kind] != claimed:
                raise RecipeError(
                    f"{step['step']} claims {claimed} weights of class {kind}, the built model has {classes[kind]}",
                    field="realised", remedy="the kernel does not take these layers: see the log, use another recipe",
                )
            yield f"{claimed} weights are {kind}"
        if "claimed_layers" in step:
            if step["claimed_layers"] != layers:
                raise RecipeError(f"{step['step']} claims {step['claimed_layers']} layers, the built model has {layers}",
                                  field="realised", remedy="this is a bug in the step: please report it")
            yield f"{layers} layers are left"
