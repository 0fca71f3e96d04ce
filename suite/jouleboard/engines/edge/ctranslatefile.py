"""Reads what CTranslate2's converter wrote: `model.bin` and the vocabulary.

Format (`ModelSpec._serialize` of 4.8, little-endian): version, name and revision of the specification; the number of variables, then
each one's name, rank, dimensions, type, size and bytes; the number of aliases, then each alias and whose it is. A string is its length
with the closing zero (two bytes), and its bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jouleboard.engines.edge.interface import Weight
from jouleboard.errors import RecipeError

DTYPES: dict[int, tuple[str, Any]] = {
    0: ("float32", np.float32), 1: ("int8", np.int8), 2: ("int16", np.int16), 3: ("int32", np.int32), 4: ("float16", np.float16),
    5: ("bfloat16", None),
}
"""By the number that stands for it: its name, and how numpy calls it."""
VERSIONS = (6, 7)
TIED = frozenset({"decoder/embeddings/weight", "decoder/projection/weight"})
LAYER = re.compile(r"/layer_(\d+)/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a file holds."""

    spec: str
    weights: tuple[Weight, ...]
    layers: int


def vocabulary(path: Path) -> list[str]:
    """Return the tokens by their ids.

    Raises:
        RecipeError: two ids have the same token, so prompts cannot be handed over.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if len(set(found)) < len(found):
        raise RecipeError(f"{len(found) - len(set(found))} tokens of the vocabulary stand for several ids", field="tokenizer",
                          remedy="CTranslate2 takes prompts as tokens: use another engine for this model")
    return [str(one) for one in found]


def read(path: Path) -> Found:
    """Read a model's variables, one at a time.

    Raises:
        RecipeError: the file is of another format.
    """
    with path.open("rb") as file:
        version = _number(file, "<I")
        if version not in VERSIONS:
            raise RecipeError(f"CTranslate2 wrote a file of format {version}, known are {VERSIONS}", field="realised",
                              remedy="install the version of CTranslate2 that `constraints.txt` names")
        spec = _text(file)
        _number(file, "<I")
        variables = [_variable(file) for _ in range(_number(file, "<I"))]
        aliases = [(_text(file), _text(file)) for _ in range(_number(file, "<I"))]
    scaled = {name.removesuffix("_scale") for name, *_ in variables if name.endswith("_scale")}
    weights = {name: _weight(name, shape, kind, data, quantised=name in scaled) for name, shape, kind, data in variables}
    # Of tensors with the same values one is stored; only the head that is tied to the embedding is no weight of its own.
    again = [replace(weights[target], name=alias, bytes=0, countable=0, nonzero=0) for alias, target in aliases
             if not {alias, target} <= TIED]
    layers = {int(match[1]) for name in (*weights, *(alias for alias, _ in aliases)) if (match := LAYER.search(name))}
    return Found(spec=spec, weights=(*weights.values(), *again), layers=len(layers))


def _weight(name: str, shape: tuple[int, ...], kind: int, data: bytes, *, quantised: bool) -> Weight:
    dtype, numpy_dtype = DTYPES[kind]
    is_float = dtype in {"float32", "float16", "bfloat16"}
    # Settings, such as the number of heads, are variables without a dimension.
    stands = bool(shape) and (quantised or (is_float and not name.endswith("_scale")))
    countable = bool(shape) and numpy_dtype is not None and (is_float or dtype == "int8")
    return Weight(
        name=name, owner=dtype if quantised else "Parameter", dtype=dtype, numbers=math.prod(shape) if stands else 0,
        bytes=len(data), countable=math.prod(shape) if countable else 0,
        nonzero=int(np.count_nonzero(np.frombuffer(data, numpy_dtype))) if countable else 0,
        sha256=hashlib.sha256(data).hexdigest())


def _variable(file: BinaryIO) -> tuple[str, tuple[int, ...], int, bytes]:
    name = _text(file)
    shape = tuple(_number(file, "<I") for _ in range(_number(file, "<B")))
    kind = _number(file, "<B")
    return name, shape, kind, file.read(_number(file, "<I"))


def _number(file: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "<H")).removesuffix(b"\0").decode()
