"""lm-eval's templates, compiled once each: by itself it compiles the same few texts again for every document, several times."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import lm_eval.utils

MOST = 256
"""Compiled templates that are kept: a definition has a handful, and its documents must not fill the memory with theirs."""


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Let lm-eval compile a template where it is first met, for as long as this is in force.

    What a compiled template renders follows from the document alone, so nothing else changes. Source: `apply_template` of
    `lm_eval.utils` in lm-eval 0.4.13; Jinja itself keeps only templates that it has loaded by a name.
    """
    environment = lm_eval.utils.env
    before = environment.from_string
    environment.from_string = functools.lru_cache(maxsize=MOST)(before)
    try:
        yield
    finally:
        environment.from_string = before
