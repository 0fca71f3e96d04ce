"""The shared-prefix engine: what requests begin with alike is computed once, and logits only where something is scored.

It answers lm-eval's log-likelihood requests; texts of perplexity tasks, and answers in text, go the way of the reference engine.
All batches are planned once over all requests (`prefixes`), so an answer depends on its own batch and its prefix alone, and a
run that goes on after a stop gives the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from jouleboard import replays
from jouleboard.engines import fitness, packed, prefixes, selfcheck
from jouleboard.engines.head import KeptLogits
from jouleboard.engines.parallel import Keeps
from jouleboard.engines.reference import ReferenceLM, Request, Tally, is_rolling, require_finite
from jouleboard.engines.rows import Ask, Packed
from jouleboard.errors import UnitError
from jouleboard.journal import Answer
from jouleboard.records import ReplayRow

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

    from jouleboard.engines.running import Running

NAME = "shared-prefix"


class SharedPrefixLM(ReferenceLM):
    """The reference engine with another way to compute log-likelihoods."""

    engine_name = NAME

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
        on_batch: Callable[[int], None] = lambda _rows: None,
        running: Running | None = None,
    ) -> None:
        """Wrap a built model that `fitness.refusal` has nothing against; the arguments are those of the reference engine."""
        # lm-eval encodes a context again for each of its choices.
        self._encode = functools.lru_cache(maxsize=2)(super().tok_encode)
        super().__init__(model, tokenizer, batch_size=batch_size, max_length=max_length, on_batch=on_batch, running=running)
        self._items: list[int] | None = None
        self._answered = 0

    def start_tally(self, journal: Keeps | None = None) -> Tally:
        """Begin to count afresh; see `ReferenceLM.start_tally`."""
        self._answered = 0
        self._encode.cache_clear()
        return super().start_tally(journal)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None,  # noqa: FBT001 - lm-eval's
        **words: Any,
    ) -> list[int]:
        """Return the token ids of a text as lm-eval encodes it; nobody may change the list."""
        encoded: list[int] = self._encode(string, add_special_tokens, left_truncate_len, **words)
        return encoded

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: FBT001, FBT002
        """Answer requests of lm-eval; the first items are held against the reference engine (see `check_first`)."""
        self._items = [request.doc_id for request in requests] if self.check_first else None
        try:
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._items = None
        return answers

    def _loglikelihood_tokens(self, requests: Sequence[Request], *args: Any, **words: Any) -> list[tuple[float, bool]]:
        """Answer requests in packed batches."""
        if is_rolling(requests):
            return super()._loglikelihood_tokens(requests, *args, **words)
        self.tally.request_tokens += [(len(context), len(target)) for _, context, target in requests]
        asks = [_ask(request, self.max_length) for request in requests]
        plan = prefixes.plan(asks, batch_size=int(self.batch_size), max_length=self.max_length)
        self.tally.count_least(plan.least_tokens)
        checker = self._checker(requests)
        prefix, kept = _Prefix(self), KeptLogits(self.model)
        found: dict[int, tuple[float, bool]] = {}
        for batch in plan.batches:
            with kept:
                values = self._packed_answers(batch, asks, prefix)
            answers = dict(zip((one.place for one in batch.served), values, strict=True))
            if checker is not None:
                checker.add(answers)
            found |= answers
            self._on_batch(len(answers))
        if checker is not None and checker.expected:
            self.tally.self_check = checker.result()
        return [found[place] for place in range(len(requests))]

    def _packed_answers(self, batch: Packed, asks: Sequence[Ask], prefix: _Prefix) -> list[tuple[float, bool]]:
        """Take a batch from the journal, or compute and keep it."""
        rows = replay_rows(batch, asks)
        if prefix.begin(batch.prefix):
            self.tally.batches.append([prefix.row])
            self.tally.computed_tokens += len(batch.prefix)
        self.tally.batches.append(rows)
        self.tally.computed_tokens += replays.computed_tokens(rows)
        asked_sha256 = _digest(batch, asks)
        number, journal = self._answered, self._journal
        self._answered += 1
        kept = None if journal is None else journal.answers(number, asked_sha256)
        if kept is not None:
            self.tally.resumed_batches += 1
            return [(answer.loglikelihood, answer.greedy) for answer in kept]
        answers = self._score(rows, batch, asks, prefix)
        if journal is not None:
            journal.append(asked_sha256, [Answer(loglikelihood=value, greedy=greedy) for value, greedy in answers])
        return answers

    def _score(
        self, rows: Sequence[ReplayRow], batch: Packed, asks: Sequence[Ask], prefix: _Prefix
    ) -> list[tuple[float, bool]]:
        prepared = self.prepare(rows, len(batch.prefix))
        logits = packed.forward(self.model, prepared, prefix.cache())
        # Where each scored place of each row stands among the rows of logits.
        lines: dict[tuple[int, int], int] = {}
        for number, row in enumerate(batch.rows):
            for place in row.scored:
                lines[number, place] = len(lines)
        told = [[lines[one.row, place] for place in one.scored] for one in batch.served]
        wanted = sorted({(line, token) for where, one in zip(told, batch.served, strict=True)
                         for line, token in zip(where, asks[one.place].target, strict=True)})
        values, most_likely = packed.score(logits, wanted, self.softmax_dtype)
        greedy = most_likely.tolist()
        likely = dict(zip(wanted, values, strict=True))
        answers = []
        for where, one in zip(told, batch.served, strict=True):
            target = asks[one.place].target
            answers.append((math.fsum(likely[pair] for pair in zip(where, target, strict=True)),
                            all(greedy[line] == token for line, token in zip(where, target, strict=True))))
        require_finite(value for value, _ in answers)
        return answers

    def _checker(self, requests: Sequence[Request]) -> selfcheck.Checker | None:
        """Let the reference engine answer the first items, uncounted; None where that is not wanted."""
        if self._items is None:
            return None
        places = selfcheck.first_items(self._items)
        answers = self.reference_answers([requests[place] for place in places])
        return selfcheck.Checker(is_float32=fitness.computes_in_float32(self.model), expected={
            place: selfcheck.Checked(item=self._items[place], place=place, tokens=len(requests[place][2]),
                                     chars=len(requests[place][0][1]), answer=answer)
            for place, answer in zip(places, answers, strict=True)})

    def prepare(self, rows: Sequence[ReplayRow], prefix_tokens: int) -> packed.Prepared:
        """Make the tensors of a recorded batch that is packed, or of a prefix.

        Args:
            rows: the batch.
            prefix_tokens: length of the last prefix before it.
        """
        return packed.prepare(rows, prefix_tokens, device=self.device, dtype=self.model.dtype)


class _Prefix:
    """The prefix of the batches that are computed now; its keys and values are made where one of them is computed."""

    def __init__(self, lm: SharedPrefixLM) -> None:
        self._lm = lm
        self._tokens: tuple[int, ...] = ()
        self._cache: DynamicCache | None = None

    @property
    def row(self) -> ReplayRow:
        return ReplayRow(tokens=self._tokens, requests=0, prompt_tokens=0, output_tokens=0)

    def begin(self, tokens: tuple[int, ...]) -> bool:
        """Take the next batch's prefix, and say whether it is another one than before, and not empty."""
        if tokens == self._tokens:
            return False
        self._tokens, self._cache = tokens, None
        return bool(tokens)

    def cache(self) -> DynamicCache | None:
        if self._tokens and self._cache is None:
            self._cache = packed.hold(self._lm.model, self._lm.prepare([self.row], 0))
        return self._cache


def replay_rows(batch: Packed, asks: Sequence[Ask]) -> list[ReplayRow]:
    """Record a packed batch for replay."""
    served: list[list[Ask]] = [[] for _ in batch.rows]
    for one in batch.served:
        served[one.row].append(asks[one.place])
    chains = [row.parents == tuple(range(-1, len(row.tokens) - 1)) for row in batch.rows]
    return [
        ReplayRow(
            tokens=row.tokens, requests=len(mine), prompt_tokens=sum(len(ask.context) for ask in mine),
            output_tokens=sum(len(ask.target) for ask in mine), parents=() if chain else row.parents, scored=row.scored,
            ends=row.ends, behind=bool(batch.prefix),
        )
        for row, mine, chain in zip(batch.rows, served, chains, strict=True)
    ]


def _ask(request: Request, max_length: int) -> Ask:
    _, context, target = request
    if not context or not target or len(target) > max_length:
        raise UnitError(f"a request has {len(context)} context and {len(target)} scored tokens, of {max_length} that the model takes",
                        field="engine", remedy="give every choice a text, shorter than the model's context")
    return Ask(context=tuple(context), target=tuple(target))


def _digest(batch: Packed, asks: Sequence[Ask]) -> str:
    """Return the digest of all that a batch's answers follow from, the weights aside."""
    asked = [(asks[one.place].context, asks[one.place].target) for one in batch.served]
    return hashlib.sha256(msgspec.json.encode((asked, batch.prefix, batch.rows))).hexdigest()
