"""Rows of tokens that are decoded together, greedily: a row leaves when it has ended, and another one takes its place.

rows = Rows(model, pad=0)
rows.join([(5, 6, 7), (8, 9)])      # computes the prompts, left-padded; rows.tokens: the first token of each
rows.step()                         # one more token of each
rows.keep([1])                      # the first one has ended
rows.join([(4, 4)])                 # computed apart, then one batch with the row that goes on
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, LogitsProcessorList, PreTrainedModel, RepetitionPenaltyLogitsProcessor

from jouleboard.engines import greedy, keyvalues
from jouleboard.engines.products import FasterProducts
from jouleboard.engines.running import Running
from jouleboard.errors import UnitError

NEUTRAL: dict[str, tuple[object, ...]] = {
    "num_beams": (None, 1), "no_repeat_ngram_size": (None, 0), "bad_words_ids": (None,), "min_length": (None, 0),
    "min_new_tokens": (None, 0), "forced_bos_token_id": (None,), "forced_eos_token_id": (None,), "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,), "sequence_bias": (None,), "guidance_scale": (None, 1, 1.0),
    "exponential_decay_length_penalty": (None,),
}
"""What a model's generation settings may say without changing greedy decoding."""


Joins = Callable[[int, int, int], int]
"""Of the passes so far, the rows that are there and those that wait: how many of these join now."""
Stays = Callable[[Sequence[int], torch.Tensor], Sequence[bool]]
"""Of rows, by their place among the prompts, and their newest tokens: which go on."""


def decode(rows: Rows, prompts: Sequence[Sequence[int]], *, joins: Joins, stays: Stays) -> Iterator[torch.Tensor]:
    """Decode rows for as long as they go on, some of them at a time; prompts join in their order.

    Args:
        rows: holds none yet.
        prompts: token ids of each row.
        joins: asked before each pass where rows can join: they do, or those that are there take a step.
        stays: asked for each new token.

    Yields:
        The newest tokens of the rows that have joined, or of all that took a step, shape [rows, 1].
    """
    here: list[int] = []
    begun = passes = 0
    while here or begun < len(prompts):
        count = joins(passes, len(here), len(prompts) - begun) if not here or rows.can_grow() else 0
        if count:
            new, before = list(range(begun, begun + count)), len(here)
            begun += count
            rows.join([prompts[place] for place in new])
        else:
            new, before = here, 0
            rows.step()
        passes += 1
        yield rows.tokens[before:]
        going = [True] * before + list(stays(new, rows.tokens[before:]))
        here = [*here, *new] if count else here
        staying = [index for index, stay in enumerate(going) if stay]
        rows.keep(staying)
        here = [here[index] for index in staying]


class Rows:
    """Rows that are decoded together."""

    def __init__(self, model: PreTrainedModel, *, pad: int, running: Running | None = None, most: int = 0) -> None:
        """Hold no row yet.

        Args:
            model: the built variant.
            pad: token that fills the left; it is masked.
            running: how it is run; with drafts, one row at a time. None: as transformers runs it.
            most: tokens of the longest answer; only a cache of fixed length heeds it.
        """
        self._model, self._pad, self._running, self._most = model, pad, running or Running(), most
        self._drafted: Iterator[torch.Tensor] | None = None
        self._words = set(inspect.signature(model.forward).parameters)
        self._processors = processors(model)
        self._cache: Cache = keyvalues.new_cache(model)
        # What is compiled has products of its own.
        self._products = FasterProducts(model) if self._running.compiled is None else contextlib.nullcontext()
        none = torch.zeros((0, 0), dtype=torch.long, device=model.device)
        self._ids = self._mask = none
        self.tokens = none.view(0, 1)
        """The newest token of every row, shape [rows, 1]."""

    def can_grow(self) -> bool:
        """Whether rows may join others that are under way: caches of windows and of linear attention cannot be put together."""
        return keyvalues.has_room(self._cache)

    def _new_cache(self, *, tokens: int, padding: int) -> Cache:
        """Make an empty cache of the kind that the variant is run with; a plain growing one has room for tokens to come."""
        if self._running.runtime.refills and self._running.speculation is None:
            return keyvalues.new_cache(self._model)
        return self._running.new_cache(self._model, tokens=tokens, padding=padding)

    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Compute prompts and add their rows behind those that are there.

        Raises:
            ValueError: there are some, and this kind of cache cannot take others in.
        """
        if len(self.tokens) and not self.can_grow():
            raise ValueError("rows cannot join others in this kind of cache")
        width = max(map(len, prompts))
        device = self.tokens.device
        ids = torch.tensor([[self._pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        cache = self._new_cache(tokens=width + self._most, padding=width - min(map(len, prompts)))
        tokens = self._best(ids, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        if not len(self.tokens):
            self._cache, self._ids, self._mask, self.tokens = cache, ids, mask, tokens
            if self._running.speculation is not None and not self._processors and len(prompts) == 1:
                self._drafted = self._running.speculation.decode(self._model, cache, ids, tokens)
            return
        width = max(width, self._mask.shape[1])
        self._mask = torch.cat([_widened(one, width, 0) for one in (self._mask, mask)])
        self._ids = torch.cat([_widened(one, width, self._pad) for one in (self._ids, ids)])
        # Where the longest rows have left, all that remain begin with padding.
        spare = int(self._mask.argmax(dim=1).min())
        self._mask, self._ids = self._mask[:, spare:], self._ids[:, spare:]
        for mine, theirs in zip(self._cache.layers, cache.layers, strict=True):
            mine.join(theirs, length=width - spare)
        self.tokens = torch.cat([self.tokens, tokens])

    def step(self) -> None:
        """Give every row one more token."""
        if self._drafted is not None:
            self.tokens = next(self._drafted)
            return
        self._ids = torch.cat([self._ids, self.tokens], dim=1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self.tokens = self._best(self._ids, self.tokens, self._mask, self._mask.sum(-1, keepdim=True) - 1, self._cache)

    def keep(self, staying: Sequence[int]) -> None:
        """Drop all rows but some.

        Args:
            staying: indices into the rows that are there.
        """
        if len(staying) == len(self.tokens):
            return
        self._drafted = None
        index = torch.tensor(staying, dtype=torch.long, device=self.tokens.device)
        self.tokens, self._mask, self._ids = (held[index] for held in (self.tokens, self._mask, self._ids))
        if len(staying):
            # Not `batch_select_indices`, which layers of linear attention lack.
            self._cache.reorder_cache(index)

    def _best(
        self, before: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        words: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        with self._products:
            logits = self._running.logits(
                self._model, ids, cache, attention_mask=mask, **{name: value for name, value in words.items() if name in self._words},
            )[:, -1]
        if self._processors:
            logits = self._processors(before, logits.float())
        return greedy.best(logits)


def _widened(held: torch.Tensor, width: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(held, (width - held.shape[1], 0), value=value)


def processors(model: PreTrainedModel) -> LogitsProcessorList:
    """Return what the model's own generation settings do to logits before the best token is taken.

    Raises:
        UnitError: they ask for something that is not done here.
    """
    settings = model.generation_config
    for name, neutral in NEUTRAL.items():
        value = getattr(settings, name, None)
        if value not in neutral:
            raise UnitError(f"the model's generation settings say {name} = {value}, which is not done here",
                            field="generation_config.json", kind="unsupported", remedy="leave generation tasks out for this model")
    penalty = getattr(settings, "repetition_penalty", None)
    if penalty in {None, 1.0}:
        return LogitsProcessorList()
    return LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty=float(penalty))])
