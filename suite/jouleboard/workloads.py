"""Work with a known number of tokens, in whole loops: serving, prefill and decode, the canary (replay: `engines.recorded`).

A piece of work is a `Loop`: a function that begins the work anew each time it is called, and yields the most likely tokens
of each batch or step. Every loop makes its own key-value cache, so nothing computed in one serves the next.

How often work is done depends on a clock. Where several ranks compute together, each has its own: all that a clock decides
goes through a `Decide`, which gives every rank the answer of one.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import Cache, PreTrainedModel

from jouleboard.engines import canary, kvcache
from jouleboard.engines.caches import CacheWatch
from jouleboard.engines.running import Running

PROBE_SEED = 20260101
CANARY = canary.CANARY
LATENCY_REPEATS = 3
LATENCY_BUDGET_S = 2.0
"""A prefill is not timed again once timing took this long: on a small machine one alone takes seconds."""
Loop = Callable[[], Iterator[torch.Tensor]]
Decide = Callable[[bool], bool]
"""Gives the answer by which all ranks go on: `parallel.Group.decide`."""
PLAIN = Running()
"""As transformers runs a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looped:
    """What a run of whole loops gave; fields as in `protocol.Worked`."""

    loop_ends_s: tuple[float, ...]
    output_sha256: str
    loops_changed: int
    first_token_s: tuple[float, ...]
    cached_tokens: int


def alone(mine: bool) -> bool:  # noqa: FBT001 - a `Decide`
    """Go by one's own clock: nobody else computes."""
    return mine


def warm_up(loop: Loop, device: torch.device, *, seconds: float, whole: bool, decide: Decide = alone) -> None:
    """Do the work unmeasured until `seconds` have passed, to the nearest batch or step.

    Args:
        loop: the work.
        device: where it is done. The clock is the host's: a GPU that lags behind is waited for once, at the end.
        seconds: how long; 0: not at all.
        whole: do at least one whole loop: on a GPU the first use of a shape loads and chooses kernels.
        decide: of the ranks that do this work together.
    """
    end_s = time.perf_counter() + seconds
    with torch.inference_mode():
        while whole or decide(time.perf_counter() < end_s):
            for _ in loop():
                if not whole and decide(time.perf_counter() >= end_s):
                    break
            whole = False
    synchronise(device)


def run(
    loop: Loop, device: torch.device, *, go: Callable[[], None], window_s: float, stepwise: bool = False,
    decide: Decide = alone,
) -> Looped:
    """Do whole loops after `go` until `window_s` have passed, at least one.

    Outputs stay on the device within a loop. At its end their token ids (4 bytes each) are copied to the host, which is
    the one point where the host waits for the device; the clock is read then, and they are hashed. Measured with the
    default model on two CPU cores, copying, hashing and the look at caches take 0.2 ms a loop: 0.005 % of a loop of 4 s.

    Args:
        loop: the work.
        device: where it is done.
        go: called when all is prepared; returns when the window is open.
        window_s: no loop begins later than this after `go`.
        stepwise: the loop yields tokens of shape [batch, 1], one step at a time, and the first one is waited for and timed:
            a second wait in each loop.
        decide: of the ranks that do this work together; asked once after each loop.
    """
    ends_s: list[float] = []
    digests: list[str] = []
    first_s: list[float] = []
    cached = 0
    with torch.inference_mode(), CacheWatch() as watch:
        go()
        opened_s = time.perf_counter()
        while not ends_s or decide(ends_s[-1] < window_s):
            cached = max(cached, watch.held_tokens())
            begun_s = time.perf_counter()
            pieces: list[torch.Tensor] = []
            for piece in loop():
                pieces.append(piece)
                if stepwise and len(pieces) == 1:
                    synchronise(device)
                    first_s.append(time.perf_counter() - begun_s)
            output = _joined(pieces, stepwise=stepwise).to(torch.int32).cpu()
            ends_s.append(time.perf_counter() - opened_s)
            digests.append(hashlib.sha256(output.numpy().tobytes()).hexdigest())
    return Looped(
        loop_ends_s=tuple(ends_s), output_sha256=digests[0], first_token_s=tuple(first_s), cached_tokens=cached,
        loops_changed=sum(digest != digests[0] for digest in digests),
    )


def _joined(pieces: list[torch.Tensor], *, stepwise: bool) -> torch.Tensor:
    return torch.cat(pieces, dim=1) if stepwise else torch.cat([piece.flatten() for piece in pieces])


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cut_prompts(text_ids: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
    """Cut prompts of exactly `tokens` tokens from a text that is read again from its beginning when it ends.

    Sequence i begins at token floor(i x length / batch), so prompts differ as long as the text is not shorter than the batch.

    Args:
        text_ids: token ids of the text, shape [length].
        batch: number of prompts.
        tokens: length of each.

    Returns:
        Token ids, shape [batch, tokens].
    """
    length = len(text_ids)
    starts = torch.arange(batch)[:, None] * length // batch
    return text_ids[(starts + torch.arange(tokens)[None, :]) % length]


def probe_ids(model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
    """Draw token ids by a fixed seed, shape [batch, tokens]: the cost of dense layers does not depend on their content."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    return torch.randint(0, model.config.vocab_size, (batch, tokens), generator=generator).to(model.device)


def new_cache(model: PreTrainedModel, running: Running = PLAIN, *, tokens: int = 0) -> Cache:
    """Make an empty key-value cache of the kind that the variant is run with; by default the model's own.

    Args:
        model: the built variant.
        running: how it is run.
        tokens: of each sequence at most, prompt and output.
    """
    return running.new_cache(model, tokens=tokens)


def advance(model: PreTrainedModel, ids: torch.Tensor, cache: Cache, running: Running = PLAIN) -> torch.Tensor:
    """Run one forward pass that fills the cache, with the last position's logits only.

    Args:
        model: the built variant.
        ids: token ids, shape [batch, tokens].
        cache: grows by `tokens`.
        running: how the variant is run.

    Returns:
        The most likely next token, shape [batch, 1]. Stop tokens are not heeded and nothing is sampled, so that every variant
        computes the same number of tokens.
    """
    return running.logits(model, ids, cache, logits_to_keep=1)[:, -1:].argmax(-1)


def serve(
    model: PreTrainedModel, prompts: torch.Tensor, output_tokens: int, running: Running = PLAIN
) -> Iterator[torch.Tensor]:
    """Prefill a batch of prompts with a new cache and decode greedily.

    Args:
        model: the built variant.
        prompts: token ids, shape [batch, tokens].
        output_tokens: per sequence; the first comes from the prefill, so there are `output_tokens - 1` decode steps.
        running: how the variant is run; with drafts a pass may give several tokens.

    Yields:
        The tokens of each step, shape [batch, 1].
    """
    cache = new_cache(model, running, tokens=prompts.shape[1] + output_tokens)
    row = advance(model, prompts, cache, running)
    yield row
    if running.speculation is not None:
        yield from running.speculation.decode(model, cache, prompts, row, tokens=output_tokens - 1)
        return
    for _ in range(output_tokens - 1):
        row = advance(model, row, cache, running)
        yield row


def prefill(model: PreTrainedModel, prompts: torch.Tensor, running: Running = PLAIN) -> Iterator[torch.Tensor]:
    """Run one forward pass over prompts with a new cache; yields the first tokens, shape [batch, 1]."""
    yield advance(model, prompts, new_cache(model, running, tokens=prompts.shape[1]), running)


class Decode:
    """Decode steps alone, again and again behind one prefilled batch: the cache is cut back before each loop."""

    def __init__(self, model: PreTrainedModel, prompts: torch.Tensor, steps: int, running: Running = PLAIN) -> None:
        """Fill the cache.

        Args:
            model: the built variant.
            prompts: token ids, shape [batch, tokens].
            steps: of each loop.
            running: how the variant is run.
        """
        self._model, self._steps, self._running = model, steps, running
        with torch.inference_mode():
            self._cache = new_cache(model, running, tokens=prompts.shape[1] + steps)
            self._first = advance(model, prompts, self._cache, running)
            self._mark = kvcache.Mark(self._cache)

    def loop(self) -> Iterator[torch.Tensor]:
        """Take the steps; yields the tokens of each, shape [batch, 1]."""
        self._cut_back()
        row = self._first
        for _ in range(self._steps):
            row = advance(self._model, row, self._cache, self._running)
            yield row

    def _cut_back(self) -> None:
        self._mark.restore()


def first_token_s(loop: Loop, device: torch.device, *, decide: Decide = alone) -> float:
    """Return the median time of a few prefills, each waited for, in seconds."""
    times_s: list[float] = []
    with torch.inference_mode():
        while len(times_s) < LATENCY_REPEATS and decide(sum(times_s) < LATENCY_BUDGET_S):
            begun_s = time.perf_counter()
            for _ in loop():
                synchronise(device)
            times_s.append(time.perf_counter() - begun_s)
    return statistics.median(times_s)


def step_s(loop: Loop, device: torch.device) -> tuple[float, ...]:
    """Return the time of every step of one loop, each waited for, in seconds."""
    synchronise(device)
    times_s: list[float] = []
    with torch.inference_mode():
        begun_s = time.perf_counter()
        for _ in loop():
            synchronise(device)
            now_s = time.perf_counter()
            times_s.append(now_s - begun_s)
            begun_s = now_s
    return tuple(times_s)


def sing(device: str, *, go: Callable[[], None], warmup_s: float, window_s: float) -> Looped:
    """Decode with the canary at batch 1, in whole loops, after a warm-up of at least one loop."""
    model, prompt = canary.build(CANARY, device), canary.prompt(CANARY, device)

    def loop() -> Iterator[torch.Tensor]:
        return serve(model, prompt, CANARY.output_tokens)

    warm_up(loop, model.device, seconds=warmup_s, whole=True)
    return run(loop, model.device, go=go, window_s=window_s, stepwise=True)
