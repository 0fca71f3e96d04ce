"""What a way to run came to, read back from the built variant: compiled graphs, bytes of caches, drafts that were right.

Compiling is done here, at the shapes that will be computed, so that its time and energy are the build's and no window's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import Cache

from jouleboard.engines import kvcache
from jouleboard.engines.caches import held_tokens
from jouleboard.engines.running import CompiledCall, Running
from jouleboard.engines.speculation import Count
from jouleboard.errors import RecipeError
from jouleboard.runtime import Growing, Quantised, Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MORE = 64
"""Tokens by which two caches differ that are compared."""
JUDGED = 256
"""Tokens of a prompt behind which drafts are judged, where none is served."""
DRAFTED = 64
"""Output tokens over which drafts are judged."""
BUG = "this is a bug in Jouleboard: please report it with the recipe and the model"


class Work(Protocol):
    """What will be computed; see `protocol.Work`."""

    @property
    def batch(self) -> int: ...  # noqa: D102 - see the class

    @property
    def prompt_tokens(self) -> int: ...  # noqa: D102

    @property
    def output_tokens(self) -> int: ...  # noqa: D102

    @property
    def of_text(self) -> bool: ...  # noqa: D102


@dataclass(slots=True, kw_only=True)
class Found:
    """What was read back."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Kept in the entry's build, beside the step that they are of."""
    claims: list[str] = field(default_factory=list)


def read(model: PreTrainedModel, running: Running, text: torch.Tensor, works: Sequence[Work]) -> dict[str, Found]:
    """Try a way to run, and say what came of each of its parts.

    Args:
        model: the built variant.
        running: how it is run.
        text: token ids of some text, shape [tokens].
        works: what will be computed and fits into memory.

    Returns:
        By the field of `runtime.Runtime`; nothing for a part that is as transformers runs it.

    Raises:
        RecipeError: a part is not what was asked for.
    """
    runtime, found = running.runtime, dict[str, Found]()
    with torch.inference_mode():
        if runtime.compiled is not None and running.compiled is not None:
            # First: what is tried below would be compiled by the way.
            found["compiled"] = _compiled(model, running, running.compiled, text, works)
        if runtime.cache != Growing():
            found["cache"] = _cache(model, running, text)
        if runtime.window is not None:
            found["window"] = _window(model, running, runtime.window, text)
        if running.speculation is not None:
            found["speculation"] = _speculation(model, running, text, works)
    return found


def told(step: dict[str, Any], part: str | None, found: dict[str, Found]) -> dict[str, Any]:
    """Return a recorded step with what was read back of the part that it set, if it set one."""
    return step | found[part].facts if part in found else step


def claims(found: dict[str, Found]) -> list[str]:
    """Return what was found to be so, in words."""
    return [line for part in found.values() for line in part.claims]


def _filled(model: PreTrainedModel, running: Running, text: torch.Tensor, tokens: int) -> Cache:
    """Return a cache that holds so many tokens of a text, which is read again when it ends."""
    cache = running.new_cache(model, tokens=tokens)
    running.logits(model, _cut(text, tokens)[None], cache, logits_to_keep=1)
    return cache


def _cut(text: torch.Tensor, tokens: int) -> torch.Tensor:
    return text[torch.arange(tokens, device=text.device) % len(text)]


def _kinds(cache: Cache) -> str:
    return ", ".join(sorted({type(layer).__name__ for layer in cache.layers}))


def _require(what: str, found: object, claimed: object) -> None:
    if found != claimed:
        raise RecipeError(f"{what}: {claimed} claimed, {found} found", field="realised", remedy=BUG)


def _cache(model: PreTrainedModel, running: Running, text: torch.Tensor) -> Found:
    kind, dtype, config = running.runtime.cache, model.dtype, model.config.get_text_config()
    wanted = kvcache.bytes_a_token(config, dtype, running.runtime)
    least = kind.recent + MORE if isinstance(kind, Quantised) else MORE
    shorter, longer = (_filled(model, running, text, tokens) for tokens in (least, least + MORE))
    _require("tokens in the cache", held_tokens(longer), least + MORE)
    taken = (kvcache.held_bytes(longer) - kvcache.held_bytes(shorter)) // MORE
    _require("bytes of a token in the cache", taken, wanted)
    if not isinstance(kind, Quantised):
        _require("kind of cache", _kinds(longer), "StaticLayer")
        return Found(facts={"cache_bytes_a_token": taken}, claims=[f"the key-value cache has a fixed length, {taken} bytes a token"])
    plain = kvcache.bytes_a_token(config, dtype)
    return Found(
        facts={"cache_bytes_a_token": taken, "dense_cache_bytes_a_token": plain, "bears_on": "decoding: tasks that score given text fill no cache"},
        claims=[f"a token takes {taken} bytes in the key-value cache instead of {plain}, all but the newest {kind.recent}"])


def _window(model: PreTrainedModel, running: Running, window: Window, text: torch.Tensor) -> Found:
    tokens = window.kept + MORE
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise RecipeError(f"a window of {window.tokens} tokens changes nothing in a context of {context}", field="steps.window",
                          remedy="use a shorter window")
    cache = _filled(model, running, text, tokens)
    held = {int(layer.keys.shape[-2]) for layer in cache.layers}
    _require("tokens that the cache keeps", held, {window.kept})
    return Found(facts={"kept_tokens": window.kept},
                 claims=[f"{len(cache.layers)} layers keep {window.kept} of {tokens} tokens"])


def _speculation(model: PreTrainedModel, running: Running, text: torch.Tensor, works: Sequence[Work]) -> Found:
    """Judge drafts on the very requests that are served one at a time, or on the beginning of the text where none are."""
    # A prompt that repeats its text would flatter them.
    served = {(work.prompt_tokens, work.output_tokens) for work in works
              if work.batch == 1 and work.of_text and work.prompt_tokens <= len(text)}
    found, judged = Found(), []
    for prompt_tokens, output_tokens in sorted(served or {(min(len(text), JUDGED), DRAFTED)}):
        tokens = min(DRAFTED, output_tokens)
        prompt = _cut(text, prompt_tokens)[None]
        plain, _ = _given(model, Running(), prompt, tokens)
        given, count = _given(model, running, prompt, tokens)
        same = next((place for place, (one, other) in enumerate(zip(given, plain, strict=True)) if one != other), tokens)
        judged.append({
            "prompt_tokens": prompt_tokens, "output_tokens": tokens, "passes": count.passes, "drafted": count.drafted,
            "accepted": count.accepted, "same_tokens": same})
        rate = f"{count.accepted / count.drafted:.0%} of {count.drafted} drafted tokens were right" if count.drafted else "nothing was drafted"
        found.claims.append(f"behind {prompt_tokens} tokens of text {tokens - 1} tokens took {count.passes} passes: {rate}; "
                            f"the first {same} are those of plain greedy decoding")
    found.facts["judged"] = judged
    return found


def _given(model: PreTrainedModel, running: Running, prompt: torch.Tensor, tokens: int) -> tuple[list[int], Count]:
    cache = running.new_cache(model)
    row = running.logits(model, prompt, cache, logits_to_keep=1)[:, -1:].argmax(-1)
    given = [int(row)]
    if running.speculation is not None:
        count = Count()
        rest = running.speculation.decode(model, cache, prompt, row, tokens=tokens - 1, count=count)
        return given + [int(one) for one in islice(rest, tokens - 1)], count
    for _ in range(tokens - 1):
        row = running.logits(model, row, cache, logits_to_keep=1)[:, -1:].argmax(-1)
        given.append(int(row))
    return given, Count()


def _compiled(
    model: PreTrainedModel, running: Running, call: CompiledCall, text: torch.Tensor, works: Sequence[Work]
) -> Found:
    """Compile what the works need, and make sure that all of them run without compiling again."""
    from torch._dynamo.utils import counters  # noqa: PLC0415 - slow to import, needed by few

    tries = list(_tries(model, running, text, works))
    before, begun_s = counters["stats"]["unique_graphs"], time.perf_counter()
    for attempt in tries:
        attempt()
    compile_s, graphs = time.perf_counter() - begun_s, counters["stats"]["unique_graphs"] - before
    if not graphs:
        raise RecipeError("nothing was compiled", field="realised", remedy=BUG)
    call.calls = 0
    with running.sealed():
        for attempt in tries:
            attempt()
    _require("passes in compiled graphs", call.calls, len(tries))
    _require("compiled graphs", counters["stats"]["unique_graphs"] - before, graphs)
    return Found(facts={"graphs": graphs, "compile_s": round(compile_s, 3), "tried_shapes": len(tries)},
                 claims=[f"compiled graphs: {graphs}; passes that ran in them without compiling again: {len(tries)}"])


def _tries(model: PreTrainedModel, running: Running, text: torch.Tensor, works: Sequence[Work]) -> Iterator[Callable[[], None]]:
    """Yield one pass of every kind that will be run compiled, the small ones first."""
    decoded = sorted({(work.batch, work.prompt_tokens + work.output_tokens) for work in works if work.output_tokens} or {(1, MORE)})
    for batch, tokens in decoded:
        yield partial(_step, model, running, batch, tokens)
    if not running.compiles_all:
        return
    # The last batch of a task may be of one row, whatever the plan says.
    for batch in (1, 2):
        ids = _cut(text, MORE).expand(batch, -1)
        yield partial(_pass, model, running, ids)
        yield partial(_score, running, ids)


def _step(model: PreTrainedModel, running: Running, batch: int, tokens: int) -> None:
    """Take one decode step at the end of a cache of that length; what stands before it is zeros."""
    cache = running.new_cache(model, tokens=tokens)
    ids = torch.zeros((batch, 1), dtype=torch.long, device=model.device)
    kvcache.initialise(model, cache, batch)
    for layer in cache.layers:
        layer.cumulative_length.fill_(tokens - 1)
    running.logits(model, ids, cache, logits_to_keep=1)


def _pass(model: PreTrainedModel, running: Running, ids: torch.Tensor) -> None:
    running.logits(model, ids, running.new_cache(model, tokens=ids.shape[1] + 1), logits_to_keep=1)


def _score(running: Running, ids: torch.Tensor) -> None:
    running.scored(ids)
