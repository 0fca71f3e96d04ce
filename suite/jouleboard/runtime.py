"""How a finished model is run: what steps of stage `runtime` ask for, folded into one noun. No torch here.

Example: `static-cache`, then `compile` with `passes: decode`::

    Runtime(cache=Fixed(), compiled=Compiled(passes="decode", mode="default"))

`engines.running` carries it out; what it cannot do together is told here, before anything is loaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Passes = Literal["decode", "all"]
"""Which forward passes are compiled: decode steps alone, or prefills and scoring too."""
Mode = Literal["default", "max-autotune-no-cudagraphs"]
"""Modes of `torch.compile`; those with CUDA graphs need one cache for ever, and here every loop makes its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growing:
    """A key-value cache that grows with each token: the one that a model makes for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A key-value cache of fixed length, as long as the prompt and the output together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A growing key-value cache whose older tokens are held in few bits."""

    bits: Literal[2, 4, 8]
    group_size: int
    """Along the head dimension; each group of a token and head has a scale and a least value."""
    recent: int
    """So many of the newest tokens stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Each token sees the last `tokens` tokens, itself among them, and the first `sinks` of the text."""

    tokens: int
    sinks: int

    @property
    def kept(self) -> int:
        """Tokens of a sequence whose keys and values a later token can need."""
        return self.tokens - 1 + self.sinks


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """The forward pass is compiled by `torch.compile`."""

    passes: Passes
    mode: Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Drafts are what followed the last few tokens where they stood in the text before."""

    longest: int
    """Tokens that are looked for; fewer where so many did not stand together before."""
    most: int
    """Drafted tokens a pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Drafts are decoded by the model's own layers without some of them."""

    dropped: tuple[int, ...]
    """Never the first layer."""
    most: int
    """Drafted tokens a pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How a finished model is run; by default as transformers runs it."""

    cache: Growing | Fixed | Quantised = Growing()
    window: Window | None = None
    compiled: Compiled | None = None
    speculation: Lookup | Draft | None = None
    """Greedy speculative decoding, for one sequence at a time."""

    @property
    def refills(self) -> bool:
        """Whether rows may join others that are under way: only plain growing caches can be put together."""
        return self.cache == Growing() and self.window is None

    def replaced(self, **parts: Any) -> Runtime:
        """Return this with other parts."""
        return dataclasses.replace(self, **parts)


PLAIN = Runtime()


def conflict(runtime: Runtime) -> str | None:
    """Say which parts of a runtime do not go together here; None where all do."""
    if runtime.compiled is not None and not isinstance(runtime.cache, Fixed):
        return "a compiled decode step needs a cache of fixed length"
    if runtime.window is not None and runtime.cache != Growing():
        return "a sliding window has a cache of its own"
    if runtime.speculation is not None and (runtime.cache != Growing() or runtime.window is not None):
        return "drafts that are turned down are cut off the cache, and only a plain growing one can be cut"
    return None
