"""Looks for key-value caches that live on when a loop of measured work begins: what they hold was computed before it.

No code is trusted to have dropped its cache: every `transformers` cache object of the process is looked for, whoever made it.
"""

from __future__ import annotations

import gc
import weakref
from types import TracebackType
from typing import Self

from transformers import Cache


class CacheWatch:
    """Finds the cache objects of this process, cheaply while a window is open.

    Walking over all objects takes about half a second, so it is done once, on entering. Objects that are there by then are frozen
    (`gc.freeze`: the collector skips them until `gc.unfreeze`), and a later look walks over the few that came after.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: list[weakref.ref[Cache]] = []

    def __enter__(self) -> Self:
        """Look at everything once, and freeze it."""
        gc.collect()
        self._known = [weakref.ref(cache) for cache in _live()]
        gc.freeze()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let the collector see all objects again."""
        gc.unfreeze()

    def held_tokens(self) -> int:
        """Return the largest number of tokens that any cache object holds now."""
        found = self._most()
        if found:
            # A dead cache in a cycle of references serves nobody.
            gc.collect()
            found = self._most()
        return found

    def _most(self) -> int:
        known = [cache for cache in (reference() for reference in self._known) if cache is not None]
        return max((held_tokens(cache) for cache in [*known, *_live()]), default=0)


def held_tokens(cache: Cache) -> int:
    """Return how many tokens a cache holds: those of its longest layer."""
    return max((int(layer.get_seq_length()) for layer in cache.layers if hasattr(layer, "get_seq_length")), default=0)


def _live() -> list[Cache]:
    # By type and not by isinstance: that would wake lazy modules and proxies.
    return [found for found in gc.get_objects() if issubclass(type(found), Cache)]
