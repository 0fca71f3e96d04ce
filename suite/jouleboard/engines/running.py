"""How a built variant is run, carried out: its cache, what computes its passes, and who drafts for it.

    running = Running()                                # as transformers runs it
    cache = running.new_cache(model, tokens=300)
    logits = running.logits(model, ids, cache)         # of the last position

`install` makes one of what a recipe's runtime steps ask for; `readback` says what came of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, StaticCache

from jouleboard.engines import kvcache, windowed
from jouleboard.engines.speculation import Speculation, without_layers
from jouleboard.runtime import PLAIN, Compiled, Draft, Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Forward = Callable[..., Any]
MOST_GRAPHS = 16
"""Of one model: decode steps, prefills and scoring, each at batch 1 and above, with and without gradients' bookkeeping."""


@dataclass(slots=True, kw_only=True)
class CompiledCall:
    """A compiled forward pass, and how often it was called."""

    forward: Forward
    calls: int = 0

    def __call__(self, *args: Any, **words: Any) -> Any:
        """Compute a pass."""
        self.calls += 1
        return self.forward(*args, **words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How a built model is run."""

    runtime: Runtime = PLAIN
    compiled: CompiledCall | None = None
    speculation: Speculation | None = None

    @property
    def compiles_all(self) -> bool:
        """Whether prefills and scoring are compiled too."""
        return self.runtime.compiled is not None and self.runtime.compiled.passes == "all"

    def new_cache(self, model: PreTrainedModel, *, tokens: int = 0, padding: int = 0) -> Cache:
        """Make an empty cache; see `kvcache.new`."""
        return kvcache.new(model, self.runtime, tokens=tokens, padding=padding)

    def logits(
        self, model: PreTrainedModel, ids: torch.Tensor, cache: Cache, **words: Any
    ) -> torch.Tensor:
        """Run one forward pass that fills the cache.

        Args:
            model: the built variant.
            ids: token ids, shape [rows, tokens].
            cache: grows by `tokens`.
            words: what else the model's forward pass takes: `attention_mask` of shape [rows, tokens so far], `position_ids`, ...

        Returns:
            The last position's logits, shape [rows, 1, vocabulary], or those of all where the model takes no `logits_to_keep`.
        """
        if self.compiled is not None and (ids.shape[1] == 1 or self.compiles_all):
            return _compiled_logits(self.compiled, model, ids, cache, **words)
        found: torch.Tensor = model(ids, past_key_values=cache, use_cache=True, **words).logits
        return found

    def scored(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits at every position of rows without padding on their left, shape [rows, tokens, vocabulary], compiled.

        Raises:
            ValueError: scoring is not compiled.
        """
        if self.compiled is None:
            raise ValueError("scoring is not compiled")
        # In inference mode as everything else: a graph holds for one mode.
        with torch.inference_mode():
            logits: torch.Tensor = self.compiled(_plain(ids), use_cache=False).logits
        return logits

    def refusal(self, batch: int, *, prompt_tokens: int, text_tokens: int) -> str | None:
        """Say why decoding is left out here; None where it is not.

        Args:
            batch: sequences at once.
            prompt_tokens: of each.
            text_tokens: length of the text that prompts are cut from, which is read again when it ends; 0: they are no text.
        """
        if self.speculation is None:
            return None
        if not text_tokens:
            return "what a draft saves depends on the text, and a probe has none: see the serving cells"
        if batch > 1:
            return f"drafts are made for one sequence at a time, not for {batch}"
        if prompt_tokens > text_tokens:
            return (f"prompts of {prompt_tokens} tokens repeat their text of {text_tokens}, and in text that repeats itself drafts are "
                    "nearly always right")
        return None

    def sealed(self) -> AbstractContextManager[Any]:
        """Let nothing be compiled inside: a shape that would need it raises `RuntimeError`."""
        return contextlib.nullcontext() if self.compiled is None else torch.compiler.set_stance("fail_on_recompile")

    def alone(self, rows: int) -> Running:
        """Return how so many rows at a time are run: several of them without drafts."""
        return self if rows == 1 or self.speculation is None else Running()


def _compiled_logits(
    call: CompiledCall, model: PreTrainedModel, ids: torch.Tensor, cache: StaticCache, **words: Any
) -> torch.Tensor:
    """Run a compiled pass, in inference mode and always with the same words, so that serving and generation share their graphs."""
    rows, new = ids.shape
    kvcache.initialise(model, cache, rows)
    positions, mask = words.pop("position_ids", None), words.pop("attention_mask", None)
    if positions is None:
        positions = (torch.arange(new, device=ids.device) + cache.get_seq_length()).expand(rows, -1)
    length = cache.get_max_length()
    # Slots that are not filled yet lie behind every token that sees.
    whole = ids.new_ones((rows, length)) if mask is None else torch.nn.functional.pad(mask, (0, length - mask.shape[1]), value=1)
    found: torch.Tensor = call(_plain(ids), attention_mask=whole, position_ids=_plain(positions), past_key_values=cache,
                               use_cache=True, **{"logits_to_keep": 1, **words}).logits
    return found


def _plain(held: torch.Tensor) -> torch.Tensor:
    """Return a copy that was made in inference mode, with its values side by side: a graph does not hold for other tensors."""
    return held.clone(memory_format=torch.contiguous_format)


def install(model: PreTrainedModel, runtime: Runtime) -> Running:
    """Make what a runtime asks for, without computing anything.

    Raises:
        RecipeError: the model cannot be run so.
    """
    kvcache.require_fit(model, runtime)
    if runtime.window is not None:
        windowed.install(model, runtime.window)
    speculation = None
    if runtime.speculation is not None:
        draft = without_layers(model, runtime.speculation.dropped) if isinstance(runtime.speculation, Draft) else None
        speculation = Speculation(how=runtime.speculation, draft=draft)
    compiled = None if runtime.compiled is None else CompiledCall(forward=_compile(model, runtime.compiled))
    return Running(runtime=runtime, compiled=compiled, speculation=speculation)


def _compile(model: PreTrainedModel, how: Compiled) -> Forward:
    from torch._dynamo import config as dynamo  # noqa: PLC0415 - slow to import, needed by few
    from torch._inductor import config as inductor  # noqa: PLC0415

    # The bill of a build must not depend on what was compiled on this machine before, nor leave helpers behind that go on.
    inductor.force_disable_caches = True
    inductor.compile_threads = 1
    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)
    return torch.compile(model.forward, dynamic=True, fullgraph=True, mode=how.mode)
