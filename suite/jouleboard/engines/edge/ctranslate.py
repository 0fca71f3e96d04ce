"""CTranslate2: converted from transformers' classes by its own converter, scored and decoded by its `Generator`.

How it takes in prompts of different lengths (its `DecoderReplica::run_generation`, 4.8): what the shortest one has is computed
in one pass, then the others are fed token by token, beside the steps of those that write already. So nothing is padded.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from jouleboard.engines.edge import ctranslatefile
from jouleboard.engines.edge.interface import Exported, Goes, Handed, Loop
from jouleboard.errors import RecipeError

COMPUTE_TYPES = {"float32": "float32", "int8": "int8_float32"}
"""By how the weights are stored: activations and everything between are float32."""
ENDLESS: list[str] = []
"""Tokens that end a row: none, rows end when they are told to. No number that is no token may stand here: the engine writes there."""


def export(handed: Handed) -> Exported:
    """Convert the model and load it.

    Raises:
        RecipeError: CTranslate2 does not know the architecture, or did not store what was asked for.
    """
    import ctranslate2  # noqa: PLC0415 - an optional engine
    from ctranslate2.converters import TransformersConverter  # noqa: PLC0415

    stored = str(handed.step["weights"])
    try:
        TransformersConverter(str(handed.dense)).convert(str(handed.target), quantization=stored)
    except ValueError as error:
        raise RecipeError(f"CTranslate2 cannot convert this model: {next(iter(str(error).splitlines()), '')}", field="steps",
                          remedy="leave the recipe out for this model, or use another engine") from error
    found = ctranslatefile.read(handed.target / "model.bin")
    if stored != "float32" and not any(weight.owner != "Parameter" for weight in found.weights):
        raise RecipeError(f"CTranslate2 stored no weight as {stored}", field="realised", remedy="use another engine")
    generator = ctranslate2.Generator(
        str(handed.target), device="cpu", compute_type=COMPUTE_TYPES[stored], inter_threads=1, intra_threads=handed.threads)
    if generator.compute_type != COMPUTE_TYPES[stored]:
        # It falls back in silence where the processor lacks a kernel.
        raise RecipeError(f"CTranslate2 computes in {generator.compute_type} here, {COMPUTE_TYPES[stored]} was asked for",
                          field="realised", remedy="use weights: float32, or another processor")
    runs = CTranslateRuns(generator, ctranslatefile.vocabulary(handed.target / "vocabulary.json"), ctranslate2.__version__)
    return Exported(runs=runs, weights=found.weights, layers=found.layers, modules={found.spec: 1})


@dataclass(slots=True, kw_only=True)
class _Heard:
    """What the engine said, in the order of its steps."""

    goes: Goes
    starts: list[int]
    """Of each row: the engine's step that writes its first token."""
    going: set[int] = field(default_factory=set)
    step: int = -1
    missing: int = 0
    """Rows that still have to say their token of this step."""
    newest: list[int] = field(default_factory=list)
    said: queue.SimpleQueue[list[int] | None] = field(default_factory=queue.SimpleQueue)
    broken: BaseException | None = None

    def hear(self, step: int, row: int, token: int) -> bool:
        """Take a token; called by the engine, in its own thread, row after row.

        Returns:
            Whether the row is to end.
        """
        if step != self.step:
            self.step, self.missing, self.newest = step, sum(self.starts[one] <= step for one in self.going), []
        self.newest.append(token)
        self.missing -= 1
        try:
            ends = self.broken is not None or not self.goes(row, token)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the tokens are read
            self.broken, ends = error, True
        if ends:
            self.going.discard(row)
        if not self.missing:
            self.said.put(self.newest)
        if not self.going:
            self.said.put(None)
        return ends


def _goes(_row: int, _token: int) -> bool:
    return True


class CTranslateRuns:
    """A loaded `Generator`."""

    name = "ctranslate2"
    attention = "ctranslate2"

    def __init__(self, generator: Any, vocabulary: Sequence[str], version: str) -> None:
        """Keep the engine.

        Args:
            generator: a `ctranslate2.Generator`.
            vocabulary: its tokens by their ids: prompts are handed over as such.
            version: of the package.
        """
        self.version = version
        self._generator, self._vocabulary = generator, vocabulary

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits at every position; see `Runs.logits`."""
        from ctranslate2 import StorageView  # noqa: PLC0415

        rows, tokens = ids.shape
        found = self._generator.forward_batch(
            StorageView.from_array(ids.to(torch.int32).contiguous().numpy()),
            StorageView.from_array(np.full(rows, tokens, np.int32)))
        # The array is a view of memory that belongs to the engine's object, and keeps that alive.
        return torch.from_numpy(np.asarray(found))

    def write(self, prompts: Sequence[Sequence[int]], goes: Goes, most: int) -> Iterator[torch.Tensor]:
        """Compute prompts and decode; see `Runs.write`."""
        yield from self._stream(prompts, goes, most)

    def hold(self, prompts: Sequence[Sequence[int]], steps: int) -> Loop:
        """Keep the first prompt's cache; each loop begins with a copy of it for every row; see `Runs.hold`.

        The engine keeps a cache between calls for one prompt alone (`static_prompt`), which all rows of a call share. What a step
        costs does not depend on which tokens a row holds.
        """
        words = {"static_prompt": self._texts(prompts[0]), "cache_static_prompt": True}
        follows = next(self._stream(prompts[:1], _goes, 1)).tolist()
        first = [follows[0] for _ in prompts]

        def again() -> Iterator[torch.Tensor]:
            yield from self._stream(first, _goes, steps, **words)

        for _ in self._stream(first[:1], _goes, 1, **words):
            pass
        return again

    def _texts(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[one] for one in ids]

    def _stream(self, prompts: Sequence[Sequence[int]], goes: Goes, most: int, **words: Any) -> Iterator[torch.Tensor]:
        counts = [0] * len(prompts)

        def goes_on(row: int, token: int) -> bool:
            counts[row] += 1
            return goes(row, token) and counts[row] < most

        shortest = min(map(len, prompts))
        heard = _Heard(goes=goes_on, starts=[len(one) - shortest for one in prompts], going=set(range(len(prompts))))
        futures = self._generator.generate_batch(
            [self._texts(one) for one in prompts], asynchronous=True, beam_size=1, max_length=most, end_token=ENDLESS,
            include_prompt_in_result=False, callback=lambda said: heard.hear(said.step, said.batch_id, said.token_id), **words)
        try:
            while (newest := heard.said.get()) is not None:
                yield torch.tensor(newest).view(-1, 1)
        finally:
            # A loop may be left before its end: every row is then told to end with its next token.
            heard.goes = lambda _row, _token: False
            for future in futures:
                future.result()
        if heard.broken is not None:
            raise heard.broken
