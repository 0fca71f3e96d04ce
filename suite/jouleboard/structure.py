"""Structural edits that plain `from_pretrained` cannot rebuild: recorded in a model's configuration, and made again at load time.

What `config.json` then holds::

    "jouleboard_structure": [
      {"edit": "low-rank", "layer": 0, "module": "mlp.up_proj", "rank": 352},
      {"edit": "share-layers", "layer": 1, "of": 0}
    ]

A step of a recipe calls `make(model, edit)`, which changes the modules and records the edit, and then fills in the weights.
`model.save_pretrained(folder)` writes them, and `load(folder, dtype)` gives the same model again. A new kind of edit is a noun below,
and a function in `SKELETONS`; one that concerns a layer names it in the field `layer`, so that dropping layers can renumber it.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from jouleboard.declared import Count, Noun, Positive
from jouleboard.errors import RecipeError
from jouleboard.structure_tuned import Adapter, Prefix, adapter, prefix

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

ATTRIBUTE = "jouleboard_structure"
"""Of the model's configuration."""


class LowRank(Noun, tag="low-rank", tag_field="edit", frozen=True, kw_only=True):
    """A dense linear layer became two of a smaller width between them."""

    layer: Count
    module: str
    """Its name inside the layer: `mlp.up_proj`."""
    rank: Positive


class SharedLayer(Noun, tag="share-layers", tag_field="edit", frozen=True, kw_only=True):
    """A layer computes with the weights of an earlier one."""

    layer: Count
    of: Count
    """Number of the layer that holds the weights."""


Edit = LowRank | SharedLayer | Adapter | Prefix


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the model's decoder layers.

    Raises:
        RecipeError: it keeps them elsewhere.
    """
    found = getattr(getattr(model, "model", None), "layers", None)
    if found is None:
        raise RecipeError(f"{type(model).__name__} has no list `model.layers`", field="steps",
                          remedy="this step knows decoders that are built as Llama is: use another recipe for this model")
    return cast("nn.ModuleList", found)


def edits(config: PreTrainedConfig) -> tuple[Edit, ...]:
    """Return the edits that a configuration records.

    Raises:
        RecipeError: what stands there is no list of edits.
    """
    try:
        return msgspec.convert(getattr(config, ATTRIBUTE, None) or (), tuple[Edit, ...])
    except msgspec.ValidationError as error:
        raise RecipeError(f"the structure that the model records cannot be read: {error}", field=ATTRIBUTE,
                          remedy="it was written by another version, or by hand: build the model anew") from None


def make(model: PreTrainedModel, edit: Edit) -> None:
    """Change the modules as an edit says, and record it; new weights are not filled in yet."""
    with kept_shared(model):
        SKELETONS[type(edit)](model, edit)
    _record(model, (*edits(model.config), edit))


def _record(model: PreTrainedModel, found: Sequence[Edit]) -> None:
    setattr(model.config, ATTRIBUTE, [msgspec.to_builtins(edit) for edit in found])


@contextlib.contextmanager
def kept_shared(model: nn.Module) -> Iterator[None]:
    """Replace a module that stands in several places in all of them, where a step replaces it in one."""
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    several = {module: names for module, names in places.items() if len(names) > 1}
    yield
    for module, names in several.items():
        now = {name: _at(model, name) for name in names}
        new = next((one for one in now.values() if one not in {None, module}), None)
        for name in [name for name, one in now.items() if one is module and new is not None]:
            model.set_submodule(name, cast("nn.Module", new))


def _at(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave only some of the layers, in their order, and renumber them everywhere.

    Args:
        model: changed in place.
        kept: their numbers, ascending.

    Raises:
        RecipeError: layers share weights, so that one cannot go alone.
    """
    from torch import nn  # noqa: PLC0415 - torch is imported only where tokens are computed

    held, found = layers(model), edits(model.config)
    if any(isinstance(edit, SharedLayer) for edit in found):
        raise RecipeError("layers share weights, so dropping one of them would save no bytes", field="steps",
                          remedy="put the step that drops layers before share-layers")
    model.model.layers = nn.ModuleList([held[index] for index in kept])
    for index, layer in enumerate(model.model.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                # The key-value cache is indexed by this number.
                module.layer_idx = index
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    if found:
        _record(model, [msgspec.structs.replace(edit, layer=kept.index(edit.layer)) for edit in found if edit.layer in kept])


def own_modules(model: PreTrainedModel) -> dict[str, int]:
    """Count the modules of our own classes: a step that removes or merges layers claims them anew."""
    return dict(Counter(type(module).__name__ for module in model.modules() if type(module).__module__.startswith("jouleboard.")))


def _layer(model: PreTrainedModel, number: int) -> nn.Module:
    held = layers(model)
    if number >= len(held):
        raise RecipeError(f"the model has {len(held)} layers, and an edit names layer {number}", field=ATTRIBUTE,
                          remedy="build the model anew")
    return held[number]


def _low_rank(model: PreTrainedModel, edit: LowRank) -> None:
    from torch import nn  # noqa: PLC0415

    from jouleboard.structure_modules import LowRankLinear  # noqa: PLC0415 - imports torch

    layer = _layer(model, edit.layer)
    old = _at(layer, edit.module)
    if not isinstance(old, nn.Linear):
        what = "missing" if old is None else type(old).__name__
        raise RecipeError(f"layer {edit.layer}: {edit.module} is {what}, not a dense linear layer", field="steps",
                          remedy="a layer is factorised once, and before it is quantised")
    layer.set_submodule(edit.module, LowRankLinear(old, edit.rank))


def _share(model: PreTrainedModel, edit: SharedLayer) -> None:
    target, source = _layer(model, edit.layer), _layer(model, edit.of)
    _alias(target, source)
    # transformers asks each module which of its weights are another's, and stores those once. The names are regular expressions
    # behind the layer's own name; this one matches whatever follows it and a real dot (`layers.1.`, not `layers.10`).
    target._tied_weights_keys = {r"(?<=\.)": ""}  # type: ignore[assignment] # noqa: SLF001 - there is no public way


def _alias(target: nn.Module, source: nn.Module) -> None:
    """Let the target hold the source's modules; those that know their layer's number stay, and hold the source's parts."""
    for name, child in source.named_children():
        if any(hasattr(module, "layer_idx") for module in child.modules()):
            _alias(target.get_submodule(name), child)
        else:
            setattr(target, name, child)
    for name, tensor in [*source.named_parameters(recurse=False), *source.named_buffers(recurse=False)]:
        setattr(target, name, tensor)


SKELETONS: dict[type[Edit], Callable[[PreTrainedModel, Any], None]] = {
    LowRank: _low_rank, SharedLayer: _share, Adapter: adapter, Prefix: prefix,
}


def is_edited(folder: str) -> bool:
    """Say whether the model in a folder was edited, so that `load` must read it."""
    config = Path(folder, "config.json")
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get(ATTRIBUTE))


def load(folder: str, dtype: torch.dtype) -> PreTrainedModel:
    """Build an edited model and fill in its weights, on the CPU.

    Args:
        folder: where `save_pretrained` wrote it.
        dtype: of the weights.

    Raises:
        RecipeError: the recorded edits cannot be read or made, or the files hold other weights than the model takes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig  # noqa: PLC0415 - takes seconds to import
    from transformers.initialization import no_init_weights  # noqa: PLC0415

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    found = edits(config)
    setattr(config, ATTRIBUTE, [])
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    for edit in found:
        make(model, edit)
    _fill(model, Path(folder))
    if Path(folder, "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def _fill(model: PreTrainedModel, folder: Path) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch

    held = model.state_dict(keep_vars=True)
    places: dict[int, list[str]] = {}
    for name, tensor in held.items():
        places.setdefault(id(tensor), []).append(name)
    read: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        weights = load_file(file)
        for name, tensor in weights.items():
            if name not in held or held[name].shape != tensor.shape:
                raise RecipeError(f"{name} of shape {tuple(tensor.shape)} is no weight of the model", file=file, field=ATTRIBUTE,
                                  remedy="build the model anew")
        model.load_state_dict(weights, strict=False)
        read.update(weights)
    absent = [names[0] for names in places.values() if read.isdisjoint(names)]
    if absent:
        raise RecipeError(f"the files lack the weight {absent[0]}", file=folder, remedy="build the model anew")
