"""OpenVINO: the graph is written here (`openvinograph`), saved and read back by OpenVINO, and run by its CPU plugin.

It computes in float32, keys and values too: left to itself, the plugin would take bf16 where the processor has it, and int8 for the cache.
Where weights are quantised it rounds activations to int8 in groups, which is its default.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from jouleboard.engines import greedy
from jouleboard.engines.edge import openvinograph, stepwise
from jouleboard.engines.edge.interface import EngineCache, Exported, Goes, Handed, Loop, Weight

SETTINGS = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
DTYPES = {"f32": "float32", "i8": "int8", "u4": "uint4"}
OWNERS = {"f32": "Parameter", "i8": "int8 by rows", "u4": "int4 in groups"}


def export(handed: Handed) -> Exported:
    """Write the graph and load it.

    Raises:
        RecipeError: the model is no plain Llama, or a group does not divide a row.
    """
    import openvino  # noqa: PLC0415 - an optional engine

    step, path = handed.step, handed.target / "model.xml"
    handed.target.mkdir()
    graph = openvinograph.Graph(handed.dense, handed.config, stored=step["weights"], group_size=step["group_size"]).model()
    openvino.save_model(graph, str(path), compress_to_fp16=False)
    del graph
    core = openvino.Core()
    model = core.read_model(str(path))
    weights = tuple(_weights(model))
    kinds = Counter(str(one.get_type_name()) for one in model.get_ops())
    compiled = core.compile_model(model, "CPU", {**SETTINGS, "INFERENCE_NUM_THREADS": handed.threads})
    return Exported(runs=OpenvinoRuns(compiled, int(handed.config.vocab_size), openvino.__version__.partition("-")[0]), weights=weights,
                    layers=kinds["ScaledDotProductAttention"], modules=dict(kinds))


def _weights(model: Any) -> Iterator[Weight]:
    """Yield the named constants: weights, and the scales of those that are quantised."""
    for node in model.get_ops():
        name = str(node.get_friendly_name())
        if node.get_type_name() != "Constant" or not name.startswith(("model.", "lm_head.")):
            continue
        kind = str(node.get_element_type().get_type_name())
        data = node.data if kind == "u4" else np.ascontiguousarray(node.data)
        is_scale, is_countable = name.endswith(openvinograph.SCALE), kind != "u4"
        numbers = 1
        for size in node.get_output_shape(0):
            numbers *= int(size)
        yield Weight(
            name=name, owner="Parameter" if is_scale else OWNERS[kind], dtype=DTYPES[kind], numbers=0 if is_scale else numbers,
            bytes=node.get_byte_size(), countable=numbers if is_countable else 0,
            nonzero=int(np.count_nonzero(data)) if is_countable else 0, sha256=hashlib.sha256(data.tobytes()).hexdigest())


class OpenvinoRuns:
    """A compiled graph."""

    name = "openvino"
    attention = "ScaledDotProductAttention"

    def __init__(self, compiled: Any, vocabulary: int, version: str) -> None:
        """Keep the graph.

        Args:
            compiled: an `openvino.CompiledModel`.
            vocabulary: number of tokens.
            version: of the package.
        """
        self.version, self.vocabulary = version, vocabulary
        self._compiled = compiled

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits at every position; see `Runs.logits`."""
        rows, tokens = ids.shape
        places = np.broadcast_to(np.arange(tokens)[None, :, None], (rows, tokens, 1))
        return run(self._compiled.create_infer_request(), ids.numpy(), np.ones((rows, tokens), np.int64), np.arange(rows), places)

    def write(self, prompts: Sequence[Sequence[int]], goes: Goes, most: int) -> Iterator[torch.Tensor]:
        """Compute prompts and decode; see `Runs.write`."""
        yield from stepwise.write(OpenvinoRows(self._compiled.create_infer_request(), prompts), goes, most)

    def hold(self, prompts: Sequence[Sequence[int]], steps: int) -> Loop:
        """Fill a cache; see `Runs.hold`."""
        return stepwise.loop(OpenvinoRows(self._compiled.create_infer_request(), prompts), steps)


def run(request: Any, ids: np.ndarray, mask: np.ndarray, going: np.ndarray, places: np.ndarray) -> torch.Tensor:
    """Run one pass.

    Args:
        request: an inference request, whose states are the cache.
        ids: shape [rows, tokens].
        mask: shape [rows, held tokens], those of this pass included; 0 where padding lies.
        going: which rows of the cache these are, shape [rows].
        places: whose logits are asked for, shape [rows, wanted, 1].

    Returns:
        Logits, shape [rows, wanted, vocabulary].
    """
    positions = (mask.cumsum(axis=1) - 1).clip(min=0)[:, -ids.shape[1]:]
    request.infer({
        "input_ids": np.ascontiguousarray(ids), "attention_mask": mask, "position_ids": np.ascontiguousarray(positions),
        "beam_idx": going.astype(np.int32), "places": np.ascontiguousarray(places),
    })
    return torch.from_numpy(request.get_tensor(openvinograph.LOGITS).data.copy())


class OpenvinoRows(EngineCache):
    """Rows under way: `stepwise.Session`. Prompts are padded on the left."""

    def __init__(self, request: Any, prompts: Sequence[Sequence[int]]) -> None:
        """Compute the prompts.

        Args:
            request: a new inference request.
            prompts: token ids of each row.
        """
        super().__init__(len(prompts))
        self._request = request
        width = max(map(len, prompts))
        ids = np.array([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], np.int64)
        self._mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], np.int64)
        self._prompt, self._rows, self._going = self._mask, len(prompts), np.arange(len(prompts))
        self.tokens = self._first = self._pass(ids)

    def step(self) -> None:
        """Give every row one more token."""
        self._mask = np.concatenate([self._mask, np.ones((len(self._mask), 1), np.int64)], axis=1)
        self.tokens = self._pass(self.tokens.numpy())

    def keep(self, staying: Sequence[int]) -> None:
        """Drop all rows but some; the states follow with the next pass."""
        index = list(staying)
        self.tokens, self._first = self.tokens[index], self._first[index]
        self._mask, self._prompt, self._going = self._mask[index], self._prompt[index], self._going[index]

    def cut_back(self) -> None:
        """Take the cache back to the prompts."""
        import openvino  # noqa: PLC0415

        for state in self._request.query_state():
            state.state = openvino.Tensor(np.ascontiguousarray(state.state.data[:, :, : self._prompt.shape[1]]))
        self._mask, self.tokens = self._prompt, self._first

    def _pass(self, ids: np.ndarray) -> torch.Tensor:
        self.lengths = self._mask.sum(axis=1)
        places = np.full((len(ids), 1, 1), ids.shape[1] - 1, np.int64)
        logits = run(self._request, ids, self._mask, self._going, places)
        self._going = np.arange(len(ids))
        return greedy.best(logits[:, 0])
