"""ONNX Runtime: the model is made by ONNX Runtime GenAI's model builder, and run in sessions of ONNX Runtime.

GenAI's own `Generator` computes logits at every position of a prompt, cannot drop a row that has ended, and rewinds a cache at
batch 1 only. Its loop is small: buffers for keys and values that a pass reads and writes in place, a mask, the most likely token.
That loop stands here, over the same model, with what was missing. Tokens are the same, and so is the cost of a step (measured with
the default model in int4 on one thread, tokens a second of CPU time: 169 and 169 at batch 1, 408 and 401 at batch 8).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jouleboard.engines import greedy
from jouleboard.engines.edge import onnxgraph, stepwise
from jouleboard.engines.edge.interface import EngineCache, Exported, Goes, Handed, Loop
from jouleboard.errors import RecipeError

PRECISIONS = {"float32": "fp32", "int8": "int8", "int4": "int4"}
"""By how the weights are stored: what the builder calls it."""
ALGORITHMS = {"rtn": "default", "k_quant": "k_quant"}
"""Likewise; what it calls `rtn` is another implementation of the same, which fails where a row has an odd number of blocks."""
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}
"""Both packages tell their maker over the network how they are used unless this is set before they are imported."""


def export(handed: Handed) -> Exported:
    """Build the model and load it.

    Raises:
        RecipeError: the builder does not know the architecture, or a kernel left weights dense.
    """
    os.environ.update(QUIET)
    import onnxruntime  # noqa: PLC0415 - an optional engine

    path = _build(handed)
    found = onnxgraph.open_places(path, tied=bool(handed.config.tie_word_embeddings))
    if handed.step["weights"] != "float32" and found.dense_products:
        raise RecipeError(f"{found.dense_products} matrix products have dense weights, all were to be {handed.step['weights']}",
                          field="realised", remedy="use another algorithm or block size")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = handed.threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Exported(runs=OnnxRuns(session, found.cache, _version()), weights=found.weights, layers=found.cache.layers,
                    modules=found.modules)


def _build(handed: Handed) -> Path:
    from onnxruntime_genai.models import builder  # noqa: PLC0415

    step, dense, target = handed.step, str(handed.dense), str(handed.target)
    words = [] if step["weights"] == "float32" else [f"block_size={step['block_size']}", f"algo_config={ALGORITHMS[step['algorithm']]}"]
    precision, cache = PRECISIONS[step["weights"]], str(handed.target / "cache")
    try:
        with _quietly():
            options = builder.parse_extra_options(dense, dense, target, precision, "cpu", cache, words)
            builder.create_model(dense, dense, target, precision, "cpu", cache, **options)
    except (NotImplementedError, ValueError) as error:
        raise RecipeError(f"the model builder of ONNX Runtime GenAI cannot export this model: {_first_line(error)}", field="steps",
                          remedy="leave the recipe out for this model, or use another block size, algorithm or engine") from error
    return handed.target / "model.onnx"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep a line for every tensor out of the variant's log, where a reason should be found."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _version() -> str:
    from importlib import metadata  # noqa: PLC0415

    return f"{metadata.version('onnxruntime')}, model by onnxruntime-genai {metadata.version('onnxruntime-genai')}"


class OnnxRuns:
    """A loaded session."""

    name = "onnxruntime"
    attention = "GroupQueryAttention"

    def __init__(self, session: Any, cache: onnxgraph.Cache, version: str) -> None:
        """Keep the session.

        Args:
            session: an `onnxruntime.InferenceSession` over a model of `onnxgraph.open_places`.
            cache: the shape of its keys and values.
            version: of what made the model and of what runs it.
        """
        self.version = version
        self._session, self._cache = session, cache

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits at every position; see `Runs.logits`."""
        rows, tokens = ids.shape
        empty = np.zeros(self._cache.shape(rows, 0), np.float32)
        places = np.broadcast_to(np.arange(tokens)[None, :, None], (rows, tokens, 1))
        (found,) = self._session.run([onnxgraph.LOGITS], {
            "input_ids": ids.numpy(), "attention_mask": np.ones((rows, tokens), np.int64),
            onnxgraph.PLACES: np.ascontiguousarray(places), **dict.fromkeys(self._cache.past, empty),
        })
        return torch.from_numpy(found)

    def write(self, prompts: Sequence[Sequence[int]], goes: Goes, most: int) -> Iterator[torch.Tensor]:
        """Compute prompts and decode; see `Runs.write`."""
        yield from stepwise.write(OnnxRows(self._session, self._cache, prompts, most), goes, most)

    def hold(self, prompts: Sequence[Sequence[int]], steps: int) -> Loop:
        """Fill a cache; see `Runs.hold`."""
        return stepwise.loop(OnnxRows(self._session, self._cache, prompts, steps + 1), steps)


class OnnxRows(EngineCache):
    """Rows under way: `stepwise.Session`.

    Prompts are padded on the right, and the mask says how long each row is. A row's keys and values lie without a gap at the
    beginning of its buffer, so the next ones overwrite what padding left there.
    """

    def __init__(self, session: Any, cache: onnxgraph.Cache, prompts: Sequence[Sequence[int]], most: int) -> None:
        """Compute the prompts.

        Args:
            session: of the engine.
            cache: the shape of its keys and values.
            prompts: token ids of each row.
            most: tokens that are written behind them at most.
        """
        super().__init__(len(prompts))
        self._session, self._cache = session, cache
        self._prompts = np.array([len(prompt) for prompt in prompts], np.int64)
        width = int(self._prompts.max())
        ids = np.zeros((len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        self._binding = session.io_binding()
        self._hold({name: np.zeros(cache.shape(len(prompts), width + most), np.float32) for name in cache.past})
        self.tokens = self._first = self._pass(ids, self._prompts)

    def step(self) -> None:
        """Give every row one more token."""
        self.tokens = self._pass(self.tokens.numpy(), np.ones(len(self.tokens), np.int64))

    def keep(self, staying: Sequence[int]) -> None:
        """Drop all rows but some."""
        index = list(staying)
        self.tokens, self._first = self.tokens[index], self._first[index]
        self.lengths, self._prompts = self.lengths[index], self._prompts[index]
        self._hold({name: array[index] for name, array in self._held.items()})

    def cut_back(self) -> None:
        """Take the cache back to the prompts."""
        self.lengths, self.tokens = self._prompts.copy(), self._first

    def _hold(self, arrays: dict[str, np.ndarray]) -> None:
        """Let the engine read and write these buffers, in place."""
        from onnxruntime import OrtValue  # noqa: PLC0415

        self._held = arrays
        for name, output in zip(self._cache.past, self._cache.present, strict=True):
            value = OrtValue.ortvalue_from_numpy(arrays[name])
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(output, value)

    def _pass(self, ids: np.ndarray, counts: np.ndarray) -> torch.Tensor:
        """Run one pass.

        Args:
            ids: shape [rows, tokens]; those behind a row's count are padding.
            counts: new tokens of each row, shape [rows].
        """
        from onnxruntime import OrtValue  # noqa: PLC0415

        self.lengths = self.lengths + counts
        mask = (np.arange(self.lengths.max())[None, :] < self.lengths[:, None]).astype(np.int64)
        logits = np.empty((len(ids), 1, self._cache.vocabulary), np.float32)
        self._binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        self._binding.bind_cpu_input("attention_mask", mask)
        self._binding.bind_cpu_input(onnxgraph.PLACES, (counts - 1)[:, None, None])
        self._binding.bind_ortvalue_output(onnxgraph.LOGITS, OrtValue.ortvalue_from_numpy(logits))
        self._session.run_with_iobinding(self._binding)
        return greedy.best(torch.from_numpy(logits[:, 0]))
