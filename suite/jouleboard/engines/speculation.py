"""Greedy speculative decoding: drafted tokens are fed together, and those are kept that plain greedy decoding would have given.

    text so far   .. the cat sat on
    drafted       the mat and                   fed behind `on` in one forward pass
    the model     the mat .  then               says after each what it would have said
    given         the mat .                     two were right, and its own next token comes for nothing

Every token is the model's own most likely one, so the text is that of plain greedy decoding as far as a pass over several tokens
rounds as a pass over one does (in float32 tests: equal). What it costs depends on the text. Sources: Leviathan et al. 2023
(arXiv:2211.17192); drafts from the text itself: Saxena 2023, prompt lookup decoding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn
from transformers import DynamicCache

from jouleboard.engines import greedy
from jouleboard.runtime import Draft, Lookup

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


@dataclass(slots=True, kw_only=True)
class Count:
    """What drafts came to."""

    passes: int = 0
    """Forward passes of the model behind the prompt."""
    drafted: int = 0
    accepted: int = 0


class Drafts(Protocol):
    """Guesses how one text goes on."""

    def add(self, tokens: Sequence[int]) -> None:
        """Take the tokens by which the text has grown: at first the prompt with its first output token."""

    def propose(self, most: int) -> list[int]:
        """Return at most so many tokens that may come next."""


class FromText:
    """Looks for the last few tokens earlier in the text, where they stood last, and proposes what followed them."""

    def __init__(self, lookup: Lookup) -> None:
        """Begin with an empty text."""
        self._longest = lookup.longest
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        """Where the text went on behind some tokens."""

    def add(self, tokens: Sequence[int]) -> None:
        """Take new tokens of the text."""
        for token in tokens:
            # The last tokens of the text are not among them yet: nothing is known to follow.
            for size in range(1, min(self._longest, len(self._tokens)) + 1):
                self._behind[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """Return what followed the longest known ending of the text."""
        for size in range(min(self._longest, len(self._tokens)), 0, -1):
            start = self._behind.get(tuple(self._tokens[-size:]))
            if start is not None:
                return self._tokens[start : start + most]
        return []


class FromLayers:
    """Decodes drafts with a smaller model, whose cache follows the text."""

    def __init__(self, draft: PreTrainedModel) -> None:
        """Begin with an empty text."""
        self._draft = draft
        self._cache = DynamicCache(config=draft.config)
        self._tokens: list[int] = []
        self._drafted: list[int] = []
        self._fed = 0
        """Tokens in the cache: of the text, and of the drafts behind it."""

    def add(self, tokens: Sequence[int]) -> None:
        """Take new tokens of the text, and drop drafts that went another way from the cache."""
        right = _agreeing(self._drafted, tokens)
        wrong = self._fed - len(self._tokens) - right
        if wrong > 0:
            self._cache.crop(-wrong)
            self._fed -= wrong
        self._tokens += tokens
        self._drafted = []

    def propose(self, most: int) -> list[int]:
        """Decode greedily with the smaller model."""
        ids = self._tokens[self._fed :]
        for _ in range(most):
            fed = torch.tensor([ids], device=self._draft.device)
            logits = self._draft(fed, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
            self._fed += len(ids)
            ids = [int(logits[0, -1].argmax())]
            self._drafted += ids
        return list(self._drafted)


def _agreeing(drafted: Sequence[int], tokens: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    pairs = zip(drafted, tokens, strict=False)
    return next((place for place, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(drafted), len(tokens)))


def without_layers(model: PreTrainedModel, dropped: Sequence[int]) -> PreTrainedModel:
    """Return a model of the same modules without some layers; nothing is copied, and the model itself stays as it is.

    Args:
        model: with `model.model.layers`.
        dropped: numbers of layers, never 0: the first layer's cache tells how many tokens there are.
    """
    draft, body = copy.copy(model), copy.copy(model.model)
    body._modules = dict(model.model._modules)  # noqa: SLF001 - a shallow copy shares the dictionary of its parts
    draft._modules = dict(model._modules)  # noqa: SLF001
    # Layers keep their numbers, so their keys and values lie where they would lie in the whole model's cache.
    body.layers = nn.ModuleList([layer for index, layer in enumerate(model.model.layers) if index not in set(dropped)])
    draft.model = body
    return draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How drafts are made."""

    how: Lookup | Draft
    draft: PreTrainedModel | None = None
    """The smaller model, where one drafts."""

    def drafts(self) -> Drafts:
        """Begin with a new text."""
        if isinstance(self.how, Lookup):
            return FromText(self.how)
        if self.draft is None:
            raise ValueError("there is no model that drafts")
        return FromLayers(self.draft)

    def decode(
        self, model: PreTrainedModel, cache: Cache, ids: torch.Tensor, first: torch.Tensor, *, tokens: int | None = None,
        count: Count | None = None,
    ) -> Iterator[torch.Tensor]:
        """Give the tokens behind the first one, one by one.

        Args:
            model: the built variant.
            cache: holds the prompt, in plain layers.
            ids: the prompt, shape [1, tokens].
            first: the first output token, shape [1, 1].
            tokens: how many; None: as long as they are asked for.
            count: is added to.

        Yields:
            Tokens, shape [1, 1]; several of one pass come at once.

        Raises:
            UnitError: the model's logits are not finite.
        """
        drafts, newest, count = self.drafts(), first, count or Count()
        drafts.add([*ids[0].tolist(), int(first)])
        left = math.inf if tokens is None else tokens
        while left > 0:
            # A pass gives one token more than are drafted.
            drafted = drafts.propose(int(min(self.how.most, left - 1)))
            fed = torch.cat([newest, torch.tensor([drafted], dtype=newest.dtype, device=newest.device)], dim=1) if drafted else newest
            logits = model(fed, past_key_values=cache, use_cache=True).logits[0]
            best = greedy.best(logits).T
            right = _agreeing(drafted, best[0].tolist())
            if right < len(drafted):
                cache.crop(right - len(drafted))
            given = best[:, : right + 1]
            drafts.add(given[0].tolist())
            count.passes += 1
            count.drafted += len(drafted)
            count.accepted += right
            left -= right + 1
            for place in range(right + 1):
                newest = given[:, place : place + 1]
                yield newest
