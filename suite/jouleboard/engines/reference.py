"""The reference engine: lm-eval's own `hf` model over a live transformers model, with exact token counts.

Nothing is computed otherwise than lm-eval does. What it would compute in one go is planned here by its own rules and handed to
it batch by batch, so that every batch can be counted, kept for replay, and taken from a journal instead.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator

from jouleboard.engines import decoding, generation, prefixes
from jouleboard.engines.inspect import fingerprint
from jouleboard.engines.parallel import Keeps
from jouleboard.engines.rows import Ask
from jouleboard.engines.running import Running
from jouleboard.errors import RecipeError, UnitError
from jouleboard.journal import Answer
from jouleboard.records import ReplayRow, SelfCheck

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from jouleboard.engines.edge.model import EdgeModel

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
    resumed_batches: int = 0
    """Batches that a journal gave."""
    prefill_tokens: int = 0
    """Of the computed tokens of generation: prompts."""
    decode_tokens: int = 0
    """Of the computed tokens of generation: steps behind them."""
    written: list[generation.Written] = field(default_factory=list)
    """Answers in text, in the order that lm-eval asked."""
    least_tokens: int | None = None
    """What the least possible would be: each distinct prefix of the requests computed once; None: not counted."""
    self_check: SelfCheck | None = None
    """The first items on both engines; None: that was not asked for, or this is the reference engine."""

    def count_least(self, tokens: int) -> None:
        """Add what the least possible would be for some requests."""
        self.least_tokens = (self.least_tokens or 0) + tokens


Request = tuple[Any, list[int], list[int]]
"""A request as lm-eval hands it on: its texts, its context's tokens, its continuation's tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of the plan."""

    places: tuple[int, ...]
    """Which requests it answers, in the order that they were asked."""
    rows: tuple[tuple[int, ...], ...]
    """What is fed, without padding; requests that differ in their last token alone share a row."""


def plan_batches(requests: Sequence[Request], *, batch_size: int, max_length: int) -> list[Batch]:
    """Plan, once over all requests, what lm-eval's `hf` model would feed: the longest first, in its own order and grouping.

    Source: `HFLM._loglikelihood_tokens` and `Collator` of lm-eval 0.4.13, which gives the batches.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(tuple(_fed(request)), []).append(place)
    order = Collator(list(requests), sort_fn=_longest_first, group_by="contexts", group_fn=_fed)
    plan = []
    for chunk in order.get_batched(n=batch_size):
        places = sorted(place for request in chunk for place in groups[tuple(_fed(request))])
        plan.append(Batch(places=tuple(places), rows=tuple(tuple(_fed(request)[-max_length:]) for request in chunk)))
    return plan


def _fed(request: Request) -> list[int]:
    """Return a request's tokens but the last, which is scored and never fed."""
    return request[1] + request[2][:-1]


def _longest_first(request: Request) -> tuple[int, tuple[int, ...]]:
    tokens = request[1] + request[2]
    return -len(tokens), tuple(tokens)


def is_rolling(requests: Sequence[Request]) -> bool:
    """Return whether these are windows of long texts: lm-eval gives no texts with them."""
    return bool(requests) and requests[0][0] is None


def require_finite(values: Iterable[float]) -> None:
    """Make sure that log-likelihoods are numbers.

    Raises:
        UnitError: one is not.
    """
    if not all(map(math.isfinite, values)):
        raise UnitError("the model's log-likelihoods are not finite", field="quality", kind="non-finite",
                        remedy="the recipe broke the model: use a gentler one, or another dtype")


class ReferenceLM(HFLM):
    """lm-eval's `hf` model that counts tokens and records its batches."""

    engine_name = "transformers"
    """What an entry calls the engine."""
    takes_in = True
    """Whether waiting rows of generation join those that are under way."""
    check_first = False
    """Whether the first items of a task are held against the reference engine, by an engine that is not the reference."""

    def __init__(
        self,
        model: PreTrainedModel | EdgeModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int,
        on_batch: Callable[[int], None] = lambda _rows: None,
        running: Running | None = None,
    ) -> None:
        """Wrap a built model and make sure that wrapping changed none of its weights.

        Args:
            model: the built variant.
            tokenizer: its own.
            batch_size: rows at once.
            max_length: tokens of its context.
            on_batch: told how many requests a batch has answered.
            running: how the variant is run; None: as transformers runs it.

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
        self.running = running or Running()
        self.tally = Tally()
        self._on_batch = on_batch
        self._served: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        self._journal: Keeps | None = None
        self._planned: list[Batch] = []

    def start_tally(self, journal: Keeps | None = None) -> Tally:
        """Begin to count afresh and return the new tally.

        Args:
            journal: gives the batches that were computed before, and keeps those that are computed now.
        """
        self.tally = Tally()
        self._served = {}
        self._journal = journal
        self._planned = []
        return self.tally

    def _loglikelihood_tokens(self, requests: Sequence[Request], *_args: Any, **_words: Any) -> list[tuple[float, bool]]:
        """Answer requests in whole batches; for texts lm-eval calls this once a batch."""
        self.tally.request_tokens += [(len(context), len(target)) for _, context, target in requests]
        if not is_rolling(requests):
            asks = [Ask(context=tuple(context), target=tuple(target)) for _, context, target in requests]
            self.tally.count_least(prefixes.least_tokens(asks, self.max_length))
        for request in requests:
            fed = tuple(_fed(request)[-self.max_length :])
            self._served.setdefault(fed, []).append((len(request[1]), len(request[2])))
        found: dict[int, tuple[float, bool]] = {}
        for batch in plan_batches(requests, batch_size=int(self.batch_size), max_length=self.max_length):
            asked = [requests[place] for place in batch.places]
            found |= zip(batch.places, self._answers(batch, asked), strict=True)
            self._on_batch(len(batch.places))
        return [found[place] for place in range(len(requests))]

    def reference_answers(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Answer requests as lm-eval does, outside of every count, journal and replay."""
        found: dict[int, tuple[float, bool]] = {}
        for batch in plan_batches(requests, batch_size=int(self.batch_size), max_length=self.max_length):
            answers = self._computed(batch, [requests[place] for place in batch.places])
            found |= zip(batch.places, answers, strict=True)
        return [found[place] for place in range(len(requests))]

    def _answers(self, batch: Batch, asked: list[Request]) -> list[tuple[float, bool]]:
        """Take a batch from the journal, or compute and keep it."""
        number, journal = len(self.tally.batches), self._journal
        asked_sha256 = _digest(asked, batch)
        kept = None if journal is None else journal.answers(number, asked_sha256)
        self.tally.computed_tokens += len(batch.rows) * max(map(len, batch.rows))
        self.tally.batches.append([self._row(row) for row in batch.rows])
        if kept is not None:
            self.tally.resumed_batches += 1
            return [(answer.loglikelihood, answer.greedy) for answer in kept]
        answers = self._computed(batch, asked)
        if journal is not None:
            journal.append(asked_sha256, [Answer(loglikelihood=value, greedy=greedy) for value, greedy in answers])
        return answers

    def _computed(self, batch: Batch, asked: list[Request]) -> list[tuple[float, bool]]:
        self._planned = [batch]
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(asked, disable_tqdm=True)
        if self._planned:
            raise _unplanned()
        require_finite(value for value, _ in answers)
        return answers

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        batch = self._planned.pop() if self._planned else None
        # lm-eval pads with zeros on the right.
        if batch is None or inps.tolist() != [[*row, *[0] * (inps.shape[1] - len(row))] for row in batch.rows]:
            raise _unplanned()
        return self._logits(inps, *args, **kwargs)

    def _logits(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute a batch's logits as lm-eval does, compiled where all passes of the variant are."""
        if self.running.compiles_all:
            return self.running.scored(inps)
        logits: torch.Tensor = super()._model_call(inps, *args, **kwargs)
        return logits

    def _row(self, fed: tuple[int, ...]) -> ReplayRow:
        """Count the requests that a row is fed for."""
        served = self._served[fed]
        return ReplayRow(tokens=fed, requests=len(served), prompt_tokens=sum(context for context, _ in served),
                         output_tokens=sum(target for _, target in served))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002, FBT001, FBT002
        """Answer requests in text; each row stops by itself (see `generation`)."""
        asked = [request.args for request in requests]
        return [one.text for one in generation.generate(self, asked, self._journal, self._on_batch)]

    def decode(
        self, prompts: Sequence[Sequence[int]], *, joins: decoding.Joins, stays: decoding.Stays, most: int
    ) -> Iterator[torch.Tensor]:
        """Decode rows for as long as they go on, `most` tokens each; see `decoding.decode`."""
        rows = decoding.Rows(self.model, pad=int(self.tokenizer.pad_token_id or 0), running=self.running.alone(int(self.batch_size)),
                             most=most)
        return decoding.decode(rows, prompts, joins=joins, stays=stays)

    def score_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Compute one recorded batch again exactly as scoring does: all logits and their log-softmax.

        Args:
            rows: token ids, shape [batch, tokens].

        Returns:
            The most likely next token at every position, shape [batch, tokens].
        """
        logits = self._logits(rows.to(self.device))
        return torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype).argmax(dim=-1)


def _digest(asked: Sequence[Request], batch: Batch) -> str:
    """Return the digest of all that a batch's answers follow from, the weights aside."""
    tokens = [(context, target) for _, context, target in asked]
    return hashlib.sha256(msgspec.json.encode((tokens, batch.rows))).hexdigest()


def _unplanned() -> UnitError:
    return UnitError("lm-eval fed another batch than was planned", field="engine",
                     remedy="this is a bug in Jouleboard: please report it with the version of lm-eval")
