"""Greedy generation for lm-eval's `generate_until`: each row stops by itself and leaves its batch, and all tokens are counted.

lm-eval's `hf` model ends a batch only when every row has met the same stop string. Here a row ends with the token after which
its own text holds one of its own stop strings, with the end-of-text token, or at its longest length, and a waiting one joins::

    two at a time, left-padded   steps 1 ..
    Q A B C D                    x x x x x x x x x x x|
    . Q A B C                    x x x|
    .. Q A B                           x x x x x|
    ... Q A                                      x x x x|

What a row's text is follows lm-eval 0.4.13 (`HFLM.generate_until`): prompts cut on the left, special tokens left out, the text
cut at the first stop string. So texts equal those of `hf` at batch 1; at larger batches too, unless a stop string is a special
token that does not end the text by the model's own configuration (there `hf` goes on as long as other rows do).

The cache is that which the variant is run with, by default a dynamic one with room for tokens to come (`keyvalues`): a row that
leaves is dropped from it, which a static one, whose tensors have a fixed batch, cannot turn into less work. Where a cache cannot take
rows in (of fixed length, quantised, windows, linear attention), those that wait begin when all have left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec
import torch
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from transformers import PreTrainedModel

from jouleboard import replays
from jouleboard.engines.decoding import Joins, Stays
from jouleboard.engines.parallel import Keeps
from jouleboard.engines.running import Running
from jouleboard.errors import UnitError
from jouleboard.journal import Answer
from jouleboard.records import ReplayRow

FILLS = 4
"""Requests of a batch, for each that is computed at a time: the more, the fewer steps are taken by a few last rows alone."""
SPARE_TOKENS = 8
"""A stop string of n bytes lies within the last n tokens; so many more are looked at, for special tokens in between."""
GREEDY = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"})
"""Arguments of a request that greedy decoding heeds, or that mean nothing to it."""


class Engine(Protocol):
    """What of lm-eval's `hf` model is used."""

    model: Any
    running: Running
    tokenizer: Any
    tally: Any
    max_length: int
    max_gen_toks: int
    batch_size: Any
    add_bos_token: bool | None
    engine_name: str

    def decode(self, prompts: Sequence[Sequence[int]], *, joins: Joins, stays: Stays, most: int) -> Iterator[torch.Tensor]:
        """Decode rows for as long as they go on, at most so many tokens each; see `decoding.decode`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request: what is fed, and when its answer ends."""

    text: str
    prompt: tuple[int, ...]
    stops: tuple[str, ...]
    most: int
    """Tokens of the longest answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One answer."""

    tokens: tuple[int, ...]
    """All that were computed for it, the one that ended it among them."""
    text: str
    stopped: Literal["stop", "length"]


def generate(
    lm: Engine, arguments: Sequence[tuple[str, dict[str, Any]]], journal: Keeps | None, on_rows: Callable[[int], None]
) -> list[Written]:
    """Answer requests in batches that are planned once over all of them.

    Args:
        lm: lm-eval's model with its tally.
        arguments: prompt and settings of each request, as lm-eval asks.
        journal: gives the batches that were computed before, and keeps those that are computed now.
        on_rows: told how many requests have been answered since it was told last.

    Raises:
        UnitError: a request asks for more than greedy decoding, or the model's answers are not finite.
        StorageError: the journal cannot be written.
    """
    asked = read(lm, arguments)
    found: dict[int, Written] = {}
    with torch.inference_mode():
        for places in plan(asked, FILLS * int(lm.batch_size)):
            batch = [asked[place] for place in places]
            found |= zip(places, _answers(lm, batch, journal, on_rows), strict=True)
    written = [found[place] for place in range(len(asked))]
    lm.tally.request_tokens += [(len(one.prompt), len(text.tokens)) for one, text in zip(asked, written, strict=True)]
    lm.tally.written += written
    return written


def read(lm: Engine, arguments: Sequence[tuple[str, dict[str, Any]]]) -> list[Asked]:
    """Read requests as lm-eval does: prompts as tokens, cut on the left to what the longest answer leaves of the context.

    Raises:
        UnitError: sampling, several beams or another setting is asked for that is not greedy; or the context is too short.
    """
    eos = lm.tokenizer.decode(lm.tokenizer.eos_token_id, skip_special_tokens=False)
    asked = []
    for (text, settings), ids in zip(arguments, _encode(lm, [text for text, _ in arguments]), strict=True):
        known: dict[str, Any] = normalize_gen_kwargs(settings, lm.max_gen_toks)
        strange = sorted(set(known) - GREEDY)
        if known["do_sample"] or strange:
            raise UnitError(f"a request asks for {strange[0] if strange else 'sampling'}: only greedy decoding is comparable",
                            field="generation_kwargs", kind="unsupported", remedy="let the task's definition say do_sample: false")
        most, until = int(known["max_gen_toks"]), known.get("until") or []
        if most < 1 or most >= lm.max_length:
            raise UnitError(f"an answer of {most} tokens leaves nothing of the context of {lm.max_length}",
                            field="max_output_tokens", remedy="declare a shorter longest answer, or use a longer context")
        if not ids:
            raise UnitError("a prompt has no tokens", field="generation", remedy="mend the task's prompt, or its data")
        stops = [until] if isinstance(until, str) else list(until)
        asked.append(Asked(text=text, prompt=tuple(ids[-(lm.max_length - most):]), most=most,
                           stops=tuple(stop for stop in dict.fromkeys([*stops, eos]) if stop)))
    return asked


def _encode(lm: Engine, texts: list[str]) -> list[list[int]]:
    """Encode prompts by lm-eval's rule for a token at the beginning: none is added where the text has it already."""
    bos = getattr(lm.tokenizer, "bos_token", None)
    found: list[list[int]] = []
    for text in texts:
        words: dict[str, bool] = {} if lm.add_bos_token is None else {"add_special_tokens": lm.add_bos_token}
        if bos is not None and text.startswith(bos):
            words = {"add_special_tokens": False}
        found.append(list(lm.tokenizer(text, **words)["input_ids"]))
    return found


def plan(asked: Sequence[Asked], most: int) -> list[tuple[int, ...]]:
    """Plan batches of `most` requests once over all of them, as lm-eval groups and sorts: same settings together, the longest first."""
    groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for place, one in enumerate(asked):
        groups.setdefault((one.stops, one.most), []).append(place)
    batches = []
    for members in groups.values():
        order = sorted(members, key=lambda place: (-len(asked[place].prompt), asked[place].text))
        batches += [tuple(order[start : start + most]) for start in range(0, len(order), most)]
    return batches


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """A batch's answers, and after how many of its passes each row joined."""

    answers: list[Written]
    joins: list[int]


def _answers(lm: Engine, batch: list[Asked], journal: Keeps | None, on_rows: Callable[[int], None]) -> list[Written]:
    """Take a batch from the journal, or compute and keep it; count it either way."""
    asked_sha256 = _digest(lm, batch)
    kept = None if journal is None else journal.answers(len(lm.tally.batches), asked_sha256)
    if kept is None:
        made = write(lm, batch, on_rows)
        if journal is not None:
            journal.append(asked_sha256, [
                Answer(loglikelihood=0.0, greedy=True, tokens=one.tokens, stopped=one.stopped, joins=joins)
                for one, joins in zip(made.answers, made.joins, strict=True)])
    else:
        lm.tally.resumed_batches += 1
        made = _Batch(joins=[one.joins for one in kept], answers=[
            Written(tokens=one.tokens, stopped=one.stopped or "length", text=_text(lm, asked, one.tokens))
            for asked, one in zip(batch, kept, strict=True)])
        on_rows(len(batch))
    rows = [ReplayRow(tokens=asked.prompt, requests=1, prompt_tokens=len(asked.prompt), output_tokens=len(one.tokens),
                      decode_steps=len(one.tokens), joins=joins)
            for asked, one, joins in zip(batch, made.answers, made.joins, strict=True)]
    lm.tally.batches.append(rows)
    computed, decoded = replays.computed_tokens(rows, lm.engine_name), sum(row.decode_steps - 1 for row in rows)
    lm.tally.prefill_tokens += computed - decoded
    lm.tally.decode_tokens += decoded
    lm.tally.computed_tokens += computed
    return made.answers


def _digest(lm: Engine, batch: Sequence[Asked]) -> str:
    """Return the digest of all that a batch's answers follow from, the weights aside."""
    return hashlib.sha256(msgspec.json.encode(
        ("generate", [(one.prompt, one.stops, one.most) for one in batch], sorted(_ends(lm.model))))).hexdigest()


def _ends(model: PreTrainedModel) -> frozenset[int]:
    """Return the tokens that end a text by the model's own generation settings."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


def write(lm: Engine, batch: Sequence[Asked], on_rows: Callable[[int], None] = lambda _rows: None) -> _Batch:
    """Generate the answers of one batch; a row leaves with its last token, and waiting ones take the place of those that left.

    Args:
        lm: the engine.
        batch: the requests; as many at once as lm-eval's batch size says.
        on_rows: told how many rows have ended.

    Raises:
        UnitError: the model's answers are not finite, or its settings ask for more than greedy decoding.
    """
    ends, window = _ends(lm.model), SPARE_TOKENS + max(len(stop.encode()) for one in batch for stop in one.stops)
    at_once = int(lm.batch_size)
    tokens: list[list[int]] = [[] for _ in batch]
    stopped: list[Literal["stop", "length"]] = ["length"] * len(batch)
    joined: list[int] = []

    def joins(passes: int, here: int, waiting: int) -> int:
        free = at_once - here
        # Putting caches together costs about a step, so it waits until a quarter of the rows have left.
        if here and 4 * free < at_once:
            return 0
        joined.extend([passes] * min(free, waiting))
        return min(free, waiting)

    def stays(places: Sequence[int], newest: torch.Tensor) -> list[bool]:
        found = []
        for place, token in zip(places, newest[:, 0].tolist(), strict=True):
            tokens[place].append(token)
            recent = lm.tokenizer.decode(tokens[place][-window:], skip_special_tokens=False)
            if token in ends or any(stop in recent for stop in batch[place].stops):
                stopped[place] = "stop"
            found.append(stopped[place] == "length" and len(tokens[place]) < batch[place].most)
        if not all(found):
            on_rows(len(found) - sum(found))
        return found

    most = max(one.most for one in batch)
    for _ in lm.decode([one.prompt for one in batch], joins=joins, stays=stays, most=most):
        pass
    return _Batch(joins=joined, answers=[
        Written(tokens=tuple(found), stopped=why, text=_text(lm, asked, found))
        for asked, found, why in zip(batch, tokens, stopped, strict=True)])


def _text(lm: Engine, asked: Asked, tokens: Sequence[int]) -> str:
    whole = lm.tokenizer.decode(list(tokens), skip_special_tokens=True)
    return str(postprocess_generated_text(whole, list(asked.stops), None))


def replay(lm: Engine, rows: Sequence[ReplayRow]) -> Iterator[torch.Tensor]:
    """Compute a recorded batch again with the same schedule: every row joins, takes its recorded number of steps, and leaves.

    Args:
        lm: the engine.
        rows: the batch.

    Yields:
        The most likely tokens of each step, shape [rows that take it, 1].
    """
    left = [row.decode_steps for row in rows]

    def joins(passes: int, _here: int, waiting: int) -> int:
        return sum(row.joins <= passes for row in rows[len(rows) - waiting :])

    def stays(places: Sequence[int], _newest: torch.Tensor) -> list[bool]:
        for place in places:
            left[place] -= 1
        return [left[place] > 0 for place in places]

    yield from lm.decode([row.tokens for row in rows], joins=joins, stays=stays, most=max(left))
