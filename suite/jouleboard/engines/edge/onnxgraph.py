"""Reads what ONNX Runtime GenAI's model builder wrote, and lets a pass give logits only where they are asked for.

The builder's model multiplies every position of a prompt by the output head, which on small models is a fifth of the work and most of
the memory. One node more takes the hidden states of the wanted places::

    final norm -> [batch, tokens, hidden] -> GatherND(places: [batch, wanted, 1]) -> output head -> logits [batch, wanted, vocabulary]
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jouleboard.engines.edge.interface import Weight
from jouleboard.errors import RecipeError

LOGITS, PLACES, HIDDEN = "logits", "places", "places_of_interest"
PAST = "past_key_values."
KNOWN = frozenset({"input_ids", "attention_mask"})
"""Inputs besides keys and values."""
PACKED = "MatMulNBits"
"""A product with packed weights: codes, scales, perhaps zero points, as inputs 1, 2 and 3."""
TABLES = frozenset({"cos_cache", "sin_cache"})
"""Rotary tables: computed, no weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Shape of the keys and values."""

    past: tuple[str, ...]
    present: tuple[str, ...]
    """The outputs that belong to those inputs, in the same order."""
    heads: int
    width: int
    vocabulary: int

    @property
    def layers(self) -> int:
        """Layers that hold them."""
        return len(self.past) // 2

    def shape(self, rows: int, tokens: int) -> tuple[int, int, int, int]:
        """Return the shape of one of them."""
        return rows, self.heads, tokens, self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a model holds."""

    weights: tuple[Weight, ...]
    cache: Cache
    modules: dict[str, int]
    dense_products: int
    """Matrix products whose weights are not packed."""


def open_places(path: Path, *, tied: bool) -> Found:
    """Read a model, and write it back with an input for the wanted places.

    Args:
        path: `model.onnx`; its tensors lie beside it.
        tied: the output head is the embedding; where the builder stores both, they are one weight of the model's all the same.

    Raises:
        RecipeError: it has inputs that are not known here, such as those of windows or of recurrent layers.
    """
    import onnx  # noqa: PLC0415 - an optional engine

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    cache = _cache(graph)
    found = Found(
        weights=(*_weights(graph, path.parent, tied=tied), _graph(graph)), cache=cache,
        modules=dict(Counter(node.op_type for node in graph.node)), dense_products=len(_dense_products(graph)))
    _insert(graph)
    onnx.save(model, str(path))
    return found


def _cache(graph: Any) -> Cache:
    past = tuple(one.name for one in graph.input if one.name.startswith(PAST))
    strange = sorted({one.name for one in graph.input} - set(past) - KNOWN)
    if strange or not past:
        raise RecipeError(f"the exported model has the inputs {', '.join(strange) or 'of no cache'}, which are not known here",
                          field="steps", remedy="leave the recipe out for this model, or use another engine")
    shape = [dim.dim_value for dim in next(one for one in graph.input if one.name == past[0]).type.tensor_type.shape.dim]
    logits = next(one for one in graph.output if one.name == LOGITS)
    return Cache(past=past, present=tuple(name.replace(PAST, "present.") for name in past), heads=shape[1], width=_width(graph, shape),
                 vocabulary=logits.type.tensor_type.shape.dim[2].dim_value)


def _width(graph: Any, shape: list[int]) -> int:
    """Return the width of a head: of the cache's own shape where it says, else of its output's, else of the rotary tables."""
    if shape[3]:
        return shape[3]
    present = next(one for one in graph.output if one.name.startswith("present."))
    found = present.type.tensor_type.shape.dim[3].dim_value
    return int(found or 2 * next(one.dims[1] for one in graph.initializer if one.name == "cos_cache"))


def _insert(graph: Any) -> None:
    from onnx import TensorProto, helper  # noqa: PLC0415

    makes = {output: node for node in graph.node for output in node.output}
    head = makes[LOGITS]
    while head.op_type not in {"MatMul", PACKED}:
        head = makes[head.input[0]]
    node = helper.make_node("GatherND", [head.input[0], PLACES], [HIDDEN], name="/places/GatherND", batch_dims=1)
    head.input[0] = HIDDEN
    # Nodes stand in the order in which they are computed.
    graph.node.insert(list(graph.node).index(head), node)
    graph.input.append(helper.make_tensor_value_info(PLACES, TensorProto.INT64, ["batch_size", "wanted", 1]))
    after = {LOGITS, *head.output}
    for value in [*graph.output, *graph.value_info]:
        if value.name in after:
            value.type.tensor_type.shape.dim[1].Clear()
            value.type.tensor_type.shape.dim[1].dim_param = "wanted"


def _dense_products(graph: Any) -> list[str]:
    names = {one.name for one in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and names.intersection(node.input)]


def _graph(graph: Any) -> Weight:
    """Stand in for the graph itself, so that a fingerprint covers it; its own name holds a folder and is left out."""
    data = b"".join(node.SerializeToString(deterministic=True) for node in graph.node)
    return Weight(name="", owner="graph", dtype="graph", numbers=0, bytes=0, nonzero=0, countable=0,
                  sha256=hashlib.sha256(data).hexdigest())


def _weights(graph: Any, folder: Path, *, tied: bool) -> list[Weight]:
    from onnx import external_data_helper, helper, numpy_helper  # noqa: PLC0415

    packed: dict[str, dict[str, int]] = {}
    for node in graph.node:
        if node.op_type == PACKED:
            packed[node.input[1]] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    aside = {name for node in graph.node if node.op_type == PACKED for name in node.input[2:] if name} | TABLES
    if tied and packed:
        aside |= {node.input[0] for node in graph.node if node.op_type == "Gather"}
    found = []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor, str(folder))
        found.append(_weight(tensor.name, array, packed.get(tensor.name), stands=tensor.name not in aside))
        if external_data_helper.uses_external_data(tensor):
            # Reading it brought its bytes into the graph.
            tensor.ClearField("raw_data")
    return found


def _weight(name: str, array: np.ndarray, packed: dict[str, int] | None, *, stands: bool) -> Weight:
    is_float = array.dtype.kind == "f"
    numbers = 0
    if packed is not None:
        numbers = packed["N"] * packed["K"]
    elif stands and is_float:
        numbers = math.prod(array.shape)
    return Weight(
        name=name, owner="Parameter" if packed is None else f"int{packed['bits']} in blocks of {packed['block_size']}",
        dtype=str(array.dtype), numbers=numbers, bytes=array.nbytes, countable=array.size if is_float else 0,
        nonzero=int(np.count_nonzero(array)) if is_float else 0, sha256=hashlib.sha256(array.tobytes()).hexdigest())
