"""Read back what a built model really is: bytes, dtypes, classes, quantised tensors, and a fingerprint of its weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jouleboard.engines import codes, levels
from jouleboard.errors import RecipeError
from jouleboard.records import Realised

SPARSE = "SparseSemiStructured"
"""Beginning of torch's classes of packed 2:4 weights: fewer values are stored, each as it was."""


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
    for label, owner, plain in codes.hidden_parts(model):
        yield Part(name=label, owner=owner, tensor=plain.detach())


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
    # The scales of bitsandbytes may be quantised themselves, with a state of their own.
    for label, held in ((name, state), (f"{name}.state2", getattr(state, "state2", None))):
        for attribute in ("absmax", "code", "offset"):
            value = getattr(held, attribute, None)
            if isinstance(value, torch.Tensor):
                yield f"{label}.{attribute}", value


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
    classes, numbers = _weights(model)
    dtypes: Counter[str] = Counter()
    nonzero = countable = 0
    for part in parts(model):
        dtypes[str(part.tensor.dtype).removeprefix("torch.")] += part.tensor.numel() * part.tensor.element_size()
        if part.tensor.dtype.is_floating_point or part.tensor.dtype == torch.int8:
            nonzero += _nonzero(whole(part.tensor))
            countable += part.tensor.numel()
    quantised = sum(count for name, count in classes.items()
                    if name not in {"Parameter", "Tensor"} and not name.startswith(SPARSE))
    return Realised(
        weight_bytes=sum(dtypes.values()),
        parameters=numbers,
        dtypes=dict(sorted(dtypes.items())),
        tensor_classes=dict(sorted(classes.items())),
        module_classes=dict(sorted(Counter(type(module).__name__ for module in model.modules()
                                           if not list(module.children())).items())),
        quantised_tensors=quantised,
        nonzero_share=nonzero / countable,
        layers=layers,
        weights_sha256=fingerprint(model),
        claims=tuple(_verify(model, steps, classes, layers)),
    )


def _weights(model: nn.Module) -> tuple[Counter[str], int]:
    """Count the weights by class, and the numbers that they stand for."""
    held = [tensor for _, tensor in model.named_parameters(remove_duplicate=True)]
    beside = list(codes.weights(model))
    classes = Counter([*(_class(tensor) for tensor in held), *(weight.owner for weight in beside)])
    return classes, sum(map(_logical_numel, held)) + sum(weight.numel for weight in beside)


def _nonzero(tensor: torch.Tensor) -> int:
    """Count what is not zero; torch counts float8 on no CPU."""
    return int(torch.count_nonzero(tensor.float() if tensor.dtype.itemsize == 1 and tensor.is_floating_point() else tensor))


def _logical_numel(tensor: torch.Tensor) -> int:
    """Count weights, not bytes: bitsandbytes packs two of them into one."""
    state = getattr(tensor, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else tensor.numel()


def _verify(model: nn.Module, steps: list[dict[str, Any]], classes: Counter[str], layers: int) -> Iterator[str]:
    for step in _standing(steps):
        name = step["step"]
        if "claimed_tensor_class" in step:
            kind, claimed = step["claimed_tensor_class"], step["claimed_quantised_tensors"]
            _require(name, f"{claimed} weights of class {kind}", classes[kind], claimed,
                     "the kernel does not take these layers: see the log, use another recipe")
            yield f"{claimed} weights are {kind}"
        if "claimed_layers" in step:
            _require(name, f"{step['claimed_layers']} layers", layers, step["claimed_layers"])
            yield f"{layers} layers are left"
        modules = Counter(type(module).__name__ for module in model.modules())
        for kind, claimed in step.get("claimed_modules", {}).items():
            _require(name, f"{claimed} modules of class {kind}", modules[kind], claimed)
            yield f"{claimed} modules are {kind}"
        if "claimed_parameters" in step:
            _, found = _weights(model)
            _require(name, f"{step['claimed_parameters']} parameters", found, step["claimed_parameters"])
            yield f"{found} parameters are left"
        for field, claimed in step.get("claimed_config", {}).items():
            _require(name, f"{field} = {claimed}", getattr(model.config, field, None), claimed)
            yield f"{field} is {claimed}"
        yield from _of_values(model, step)


def _of_values(model: nn.Module, step: dict[str, Any]) -> Iterator[str]:
    """Hold what a step claims of the weights' values, and of the arithmetic, against the model."""
    name = step["step"]
    if "claimed_zero_share" in step:
        yield _zeros(model, name, float(step["claimed_zero_share"]))
    if "claimed_pattern" in step:
        yield _pattern(model, name, str(step["claimed_pattern"]))

    if "claimed_levels" in step:
        yield levels.verify(model, step)
    if "claimed_arithmetic" in step:
        given = _arithmetic(model)
        _require(name, f"matrix products in {step['claimed_arithmetic']}", given, step["claimed_arithmetic"])
        yield f"matrix products are {given}"


def _standing(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave of several claims about one thing the last: what one step claimed, a later one changes by claiming it anew."""
    seen: set[tuple[str, str]] = set()
    found = []
    for step in reversed(steps):
        kept = dict(step)
        for claim in ("claimed_layers", "claimed_parameters"):
            if (claim, "") in seen:
                kept.pop(claim, None)
            elif claim in step:
                seen.add((claim, ""))
        for claim in ("claimed_modules", "claimed_config"):
            kept[claim] = {about: value for about, value in step.get(claim, {}).items() if (claim, about) not in seen}
            seen.update((claim, about) for about in kept[claim])
        found.append(kept)
    return found[::-1]


BUG = "this is a bug in the step: please report it"


def _require(step: str, what: str, found: object, claimed: object, remedy: str = BUG) -> None:
    if found != claimed:
        raise RecipeError(f"{step} claims {what}, the built model has {found}", field="realised", remedy=remedy)


MASK = "a later step filled zeros again or removed them: put it before the pruning, and use quantisers whose grid holds zero"


def _zeros(model: nn.Module, step: str, claimed: float) -> str:
    """Count the zeros of the body's weights; a claim holds to a thousandth."""
    zeros = held = 0
    for values in _values(model, step):
        zeros += int((values == 0).sum())
        held += values.numel()
    if not held:
        raise RecipeError(f"{step} claims zeros, and there is no linear layer left to count them in", field="realised", remedy=MASK)
    share = zeros / held
    if share < claimed - 1e-3:
        raise RecipeError(f"{step} claims that {claimed:.1%} of the weights are zero, in the built model {share:.1%} are",
                          field="realised", remedy=MASK)
    return f"{share:.1%} of the weights are zero"


def _pattern(model: nn.Module, step: str, claimed: str) -> str:
    """Look for more than n non-zero weights among m neighbours in a row (`2:4`)."""
    kept, of = (int(part) for part in claimed.split(":"))
    for values in _values(model, step):
        most = int((values.view(len(values), -1, of) != 0).sum(-1).max())
        if most > kept:
            raise RecipeError(f"{step} claims the pattern {claimed}, in the built model {most} of {of} neighbours are not zero",
                              field="realised", remedy=MASK)
    return f"at most {kept} of {of} neighbours in a row are not zero"


def _values(model: nn.Module, step: str) -> Iterator[torch.Tensor]:
    """Yield what each of the body's linear layers multiplies by, packed weights unpacked."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.rpartition(".")[2] == "lm_head":
            continue
        weight = module.weight.detach()
        state = getattr(module.weight, "quant_state", None)
        if state is not None:
            from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 - heavy, and only where it packed the weights

            weight = dequantize_4bit(module.weight.data, state)
        elif type(weight) is not torch.Tensor:
            unpack = next((getattr(weight, way) for way in ("dequantize", "to_dense")
                           if getattr(type(weight), way) is not getattr(torch.Tensor, way)), None)
            if unpack is None:
                raise RecipeError(f"{step} claims zeros, which cannot be counted in {name}, a {type(weight).__name__}",
                                  field="realised", remedy="use another quantiser behind the pruning")
            weight = unpack()
        yield whole(weight)


def _arithmetic(model: nn.Module) -> str:
    """Return the dtype that the first linear layer gives in a forward pass, as torch names it."""
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    found: list[torch.dtype] = []

    def look(_layer: nn.Module, _args: object, output: torch.Tensor) -> None:
        found.append(output.dtype)

    handle = layer.register_forward_hook(look)
    try:
        with torch.inference_mode():
            model(torch.zeros((1, 1), dtype=torch.long, device=layer.weight.device))
    finally:
        handle.remove()
    return str(found[0]).removeprefix("torch.")
