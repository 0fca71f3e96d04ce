"""The reference engine: lm-eval's own `hf` model over a live transformers model, with exact token counts.

Nothing is computed otherwise than lm-eval does: this class only counts, and keeps the batches for later replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

from jouleboard.engines.inspect import fingerprint
from jouleboard.errors import RecipeError, UnitError
from jouleboard.records import ReplayRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SOFTMAX_DTYPE = "float32"
"""bf16 log-likelihoods near 50 are a quarter apart and tie; the softmax is taken in float32, an option of lm-eval's."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one quality pass computed."""

    request_tokens: list[tuple[int, int]] = field(default_factory=list)
    """Context and continuation tokens of each request, in the order that lm-eval asked."""
    batches: list[list[ReplayRow]] = field(default_factory=list)
    """Each batch as the model saw it, padding left out."""
    computed_tokens: int = 0
    """Tokens through the model, padding included."""


class ReferenceLM(HFLM):
    """lm-eval's `hf` model that counts tokens and records its batches."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
        on_batch: Callable[[int], None] = lambda _rows: None,
    ) -> None:
        """Wrap a built model and make sure that wrapping changed none of its weights.

        Raises:
            RecipeError: the wrapper altered the weights.
        """
        # HFLM ties weights again when it is made: a separately compressed output head would become the embedding.
        model.config.tie_word_embeddings = False
        before = fingerprint(model)
        super().__init__(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length,
            softmax_dtype=SOFTMAX_DTYPE,
        )
        if fingerprint(model) != before:
            raise RecipeError("lm-eval's wrapper changed the variant's weights", field="realised",
                              remedy="this is a bug in Jouleboard: please report it with the recipe")
        self.tally = Tally()
        self._on_batch = on_batch
        self._served: dict[tuple[int, ...], list[tuple[int, int]]] = {}

    def start_tally(self) -> Tally:
        """Begin to count afresh and return the new tally."""
        self.tally = Tally()
        self._served = {}
        return self.tally

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        self.tally.request_tokens += [(len(context), len(target)) for _, context, target in requests]
        for _, context, target in requests:
            # The last token is scored but never fed. Requests that differ in it alone share one row.
            fed = tuple((context + target)[-(self.max_length + 1) :][:-1])
            self._served.setdefault(fed, []).append((len(context), len(target)))
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *args, **kwargs)
        if not all(math.isfinite(value) for value, _ in found):
            raise UnitError("the model's log-likelihoods are not finite", field="quality",
                            remedy="the recipe broke the model: use a gentler one, or another dtype")
        return found

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.tally.computed_tokens += inps.numel()
        self.tally.batches.append([self._row(row) for row in inps.tolist()])
        logits: torch.Tensor = super()._model_call(inps, *args, **kwargs)
        self._on_batch(inps.shape[0])
        return logits

    def _row(self, padded: list[int]) -> ReplayRow:
        """Find the request that a row was fed for; lm-eval pads with zeros on the right."""
        fed = tuple(padded)
        while fed not in self._served:
            if not fed or fed[-1] != 0:
                raise UnitError("lm-eval fed a row that it had not been asked for", field="engine",
                                remedy="this is a bug in Jouleboard: please report it")
            fed = fed[:-1]
        served = self._served[fed]
        return ReplayRow(tokens=fed, requests=len(served), prompt_tokens=sum(context for context, _ in served),
                         output_tokens=sum(target for _, target in served))

    def score_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Compute one recorded batch again exactly as scoring does: all logits and their log-softmax.

        Args:
            rows: token ids, shape [batch, tokens].

        Returns:
            The most likely next token at every position, shape [batch, tokens].
        """
        logits = super()._model_call(rows.to(self.device))
        return torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype).argmax(dim=-1)
