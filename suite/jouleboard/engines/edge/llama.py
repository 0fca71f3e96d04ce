"""llama.cpp through the low-level functions of `llama_cpp`: several sequences in one context, each with positions of its own.

The file is written here in float32 (`gguffile`) and brought to its type by llama.cpp's own quantiser, which leaves the output head and the
embedding finer than the rest, as it does for everybody. Keys and values are float16, its default; behind float32 weights, float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jouleboard.engines import greedy
from jouleboard.engines.edge import gguffile, stepwise
from jouleboard.engines.edge.interface import EngineCache, Exported, Goes, Handed, Loop
from jouleboard.errors import RecipeError, UnitError

FILE_TYPES = {"f32": "LLAMA_FTYPE_ALL_F32", "f16": "LLAMA_FTYPE_MOSTLY_F16", "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
              "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0"}
"""By how the weights are stored: what llama.cpp calls it."""
PIECE_TOKENS = 512
"""Tokens that are computed at once, its default."""
ROUND_TOKENS = 256
"""What the engine rounds the room of a row up to."""


def export(handed: Handed) -> Exported:
    """Write the file and load it.

    Raises:
        RecipeError: the model is no plain Llama, or llama.cpp refuses it.
    """
    import llama_cpp  # noqa: PLC0415 - an optional engine

    stored = str(handed.step["weights"])
    handed.target.mkdir()
    path = handed.target / "f32.gguf"
    gguffile.write(handed.dense, path, handed.config)
    # Kept alive as long as the library may call it.
    LlamaRuns.silence = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(LlamaRuns.silence, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    if stored != "f32":
        path = _quantised(llama_cpp, path, stored, handed.threads)
    weights = gguffile.read(path)
    words = llama_cpp.llama_model_default_params()
    words.n_gpu_layers = 0
    # Read, not mapped: the file goes, and what is resident is what is computed with.
    words.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), words)
    if not model:
        raise RecipeError("llama.cpp does not load the model", field="steps", remedy="use another engine for this model")
    layers = {weight.name.split(".")[1] for weight in weights if weight.name.startswith("blk.")}
    runs = LlamaRuns(llama_cpp, model, threads=handed.threads, vocabulary=int(handed.config.vocab_size), is_float32=stored == "f32")
    return Exported(runs=runs, weights=weights, layers=len(layers), modules={gguffile.ARCHITECTURE: 1})


def _quantised(library: Any, path: Path, stored: str, threads: int) -> Path:
    target = path.with_name(f"{stored}.gguf")
    words = library.llama_model_quantize_default_params()
    words.ftype, words.nthread = getattr(library, FILE_TYPES[stored]), threads
    failed = library.llama_model_quantize(str(path).encode(), str(target).encode(), ctypes.byref(words))
    if failed:
        raise RecipeError(f"llama.cpp cannot store this model as {stored}", field="steps", remedy="use another type, or another engine")
    return target


class LlamaRuns:
    """A loaded model."""

    name = "llama.cpp"
    attention = "llama.cpp"
    silence: Any = None

    def __init__(self, library: Any, model: Any, *, threads: int, vocabulary: int, is_float32: bool) -> None:
        """Keep the model.

        Args:
            library: the module `llama_cpp`.
            model: its handle.
            threads: for prompts and for steps.
            vocabulary: number of tokens.
            is_float32: keys and values are float32.
        """
        self.version = str(library.__version__)
        self.library, self.vocabulary = library, vocabulary
        self._model, self._threads, self._is_float32 = model, threads, is_float32

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits at every position; see `Runs.logits`."""
        rows, tokens = ids.shape
        context = Context(self, rows=rows, capacity=tokens, wanted=rows * tokens)
        try:
            found = context.compute(ids.flatten().tolist(), np.tile(np.arange(tokens), rows), np.repeat(np.arange(rows), tokens),
                                    np.ones(rows * tokens, bool))
            return torch.from_numpy(found.copy()).view(rows, tokens, self.vocabulary)
        finally:
            context.close()

    def write(self, prompts: Sequence[Sequence[int]], goes: Goes, most: int) -> Iterator[torch.Tensor]:
        """Compute prompts and decode; see `Runs.write`."""
        rows = LlamaRows(self, prompts, most)
        try:
            yield from stepwise.write(rows, goes, most)
        finally:
            rows.context.close()

    def hold(self, prompts: Sequence[Sequence[int]], steps: int) -> Loop:
        """Fill a cache; see `Runs.hold`."""
        return stepwise.loop(LlamaRows(self, prompts, steps + 1), steps)

    def words(self, *, rows: int, capacity: int, wanted: int) -> Any:
        """Return the settings of a context.

        Args:
            rows: sequences, each with a cache of its own.
            capacity: tokens of each.
            wanted: places of a piece whose logits are asked for at most.
        """
        library = self.library
        words = library.llama_context_default_params()
        words.n_ctx, words.n_seq_max, words.kv_unified = rows * _rounded(capacity), rows, False
        words.n_batch, words.n_ubatch = max(rows * capacity, PIECE_TOKENS), PIECE_TOKENS
        words.n_outputs_max = max(rows, min(wanted, words.n_batch))
        words.n_threads = words.n_threads_batch = self._threads
        if self._is_float32:
            # Its flash attention rounds to float16 whatever the cache holds.
            words.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        words.type_k = words.type_v = library.GGML_TYPE_F32 if self._is_float32 else library.GGML_TYPE_F16
        return words

    def open(self, words: Any) -> Any:
        """Return a context's handle."""
        context = self.library.llama_init_from_model(self._model, words)
        if not context:
            raise UnitError("llama.cpp gives no context: cannot allocate memory for it", field="engine", kind="out-of-memory",
                            remedy="use smaller batches or shorter requests")
        return context


def _rounded(tokens: int) -> int:
    return -(-tokens // ROUND_TOKENS) * ROUND_TOKENS


class Context:
    """A context, and the batch that is handed to it."""

    def __init__(self, runs: LlamaRuns, *, rows: int, capacity: int, wanted: int) -> None:
        """Open it; see `LlamaRuns.words`."""
        self._runs, self._library = runs, runs.library
        words = runs.words(rows=rows, capacity=capacity, wanted=wanted)
        self._handle = runs.open(words)
        self._batch = self._library.llama_batch_init(words.n_batch, 0, 1)

    def compute(self, tokens: Sequence[int], positions: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Run one pass over tokens of any rows.

        Args:
            tokens: their ids.
            positions: of each token in its row.
            rows: which row each belongs to.
            wanted: whether each one's logits are asked for.

        Returns:
            Logits, shape [wanted, vocabulary], in the order of the tokens; they are the engine's until the next pass.
        """
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        for field, values in ((batch.token, tokens), (batch.pos, positions), (batch.n_seq_id, 1), (batch.logits, wanted)):
            np.ctypeslib.as_array(field, (count,))[:] = values
        for index, row in enumerate(rows.tolist()):
            batch.seq_id[index][0] = row
        code = self._library.llama_decode(self._handle, batch)
        if code:
            raise UnitError(f"llama.cpp did not compute a batch of {count} tokens (code {code})", field="engine",
                            remedy="use smaller batches or shorter requests; if it stays, report the model")
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._handle), (int(wanted.sum()), self._runs.vocabulary))

    def forget(self, row: int, begin: int) -> None:
        """Take a row's cache back to its first tokens."""
        self._library.llama_memory_seq_rm(self._library.llama_get_memory(self._handle), row, begin, -1)

    def close(self) -> None:
        """Give the memory back."""
        if self._handle is not None:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()


class LlamaRows(EngineCache):
    """Rows under way: `stepwise.Session`. Nothing is padded."""

    def __init__(self, runs: LlamaRuns, prompts: Sequence[Sequence[int]], most: int) -> None:
        """Compute the prompts.

        Args:
            runs: the engine.
            prompts: token ids of each row.
            most: tokens that are written behind them at most.
        """
        super().__init__(len(prompts))
        self._rows = np.arange(len(prompts))
        self._prompts = self.lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self.context = Context(runs, rows=len(prompts), capacity=int(self._prompts.max()) + most, wanted=len(prompts))
        wanted = np.zeros(int(self._prompts.sum()), bool)
        wanted[self._prompts.cumsum() - 1] = True
        logits = self.context.compute([token for prompt in prompts for token in prompt],
                                      np.concatenate([np.arange(length) for length in self._prompts]),
                                      np.repeat(self._rows, self._prompts), wanted)
        self.tokens = self._first = greedy.best(torch.from_numpy(logits))

    def step(self) -> None:
        """Give every row one more token."""
        logits = self.context.compute(self.tokens[:, 0].tolist(), self.lengths, self._rows, np.ones(len(self._rows), bool))
        self.lengths = self.lengths + 1
        self.tokens = greedy.best(torch.from_numpy(logits))

    def keep(self, staying: Sequence[int]) -> None:
        """Drop all rows but some."""
        index = list(staying)
        for row in set(self._rows.tolist()) - set(self._rows[index].tolist()):
            self.context.forget(row, 0)
        self.tokens, self._first = self.tokens[index], self._first[index]
        self.lengths, self._prompts, self._rows = self.lengths[index], self._prompts[index], self._rows[index]

    def cut_back(self) -> None:
        """Take the cache back to the prompts."""
        for row, prompt in zip(self._rows.tolist(), self._prompts.tolist(), strict=True):
            self.context.forget(row, prompt)
        self.lengths, self.tokens = self._prompts.copy(), self._first
