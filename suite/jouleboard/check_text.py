"""Text that strangers publish: plain, short, visible, with https links only, and nothing of the machine that it was written on.

Example: a `model_title` that holds U+202E is named with its place in the report, and so is a `recipe_title` with `<script>` in it.
What a model answered (`Item.response`) is a record of what it wrote and may hold anything; pages show none of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from jouleboard.formats import INVISIBLE
from jouleboard.problems import Make, Problem
from jouleboard.records import Report

MOST_CHARS, MOST_LOG_CHARS, MOST_KEY_CHARS = 4000, 40_000, 200
MOST_RESPONSE_CHARS = 200_000
_TAG = re.compile(r"<[A-Za-z!/?]")
_ACTIVE_TAG = re.compile(
    r"<\s*/?\s*(?:script|iframe|frame|object|embed|applet|svg|math|img|image|video|audio|source|style|link|meta|base|form|input|button|"
    r"textarea|template|html|body|a|div|span|table|marquee)\b", re.IGNORECASE)
_SCHEME = re.compile(r"\b(?:javascript|vbscript|data|file|blob):\S|\b[A-Za-z][A-Za-z0-9+.-]{1,19}://", re.IGNORECASE)
_ACTIVE_SCHEME = re.compile(r"\b(?:javascript|vbscript):\S|\bdata:\s*[a-z]+/[a-z]", re.IGNORECASE)
_HTTPS = "https://"
PRIVATE = re.compile(
    r"(?<![\w.:/-])/(?:home|root|Users|tmp|var|mnt|scratch|data|work|opt|usr|srv|media|private|proc|run|nfs|workspace)/[^\s'\"]+"
    r"|\b[A-Za-z]:\\[^\s'\"]+|\b[\w.+-]+@[\w-]+\.[A-Za-z]{2,}\b|~/\S+")
ADDRESS = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])")
_AGAIN = "write it as plain text, or measure again"


def texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of plain values with its place: `tasks[0].task`, and the names of free fields as `packages{}`."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield f"{where}{{}}", key
            yield from texts(inner, f"{where}.{key[:60]}" if where else key)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from texts(inner, f"{where}[{index}]")


def check_text(report: Report, at: Make) -> Iterator[Problem]:
    """Check every string of a report, names of free fields among them."""
    for where, text in texts(msgspec.to_builtins(report)):
        for code, found in wrong(where, text):
            yield at(where, code, found, _AGAIN)


def wrong(where: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield rule and finding for what a text may not hold.

    Args:
        where: its place; the log of a failure may have lines, and words that programs print between `<` and `>`.
        text: itself.
    """
    log = where.startswith("failure.") and where not in {"failure.phase", "failure.code", "failure.task"}
    # The profile's own fields are declared in this repository, with sources and sentences.
    most = MOST_KEY_CHARS if where.endswith("{}") else MOST_LOG_CHARS if log else MOST_CHARS
    if len(text) > most:
        yield "text-long", f"{len(text)} characters, at most {most} are allowed"
    hidden = INVISIBLE.search(text)
    if hidden is not None or (not log and any(mark in text for mark in "\t\n")):
        yield "text-control", f"U+{ord(hidden[0]):04X}" if hidden else "a tab or a line's end"
    tag = (_ACTIVE_TAG if log else _TAG).search(text)
    if tag is not None:
        yield "text-markup", f"{text[tag.start():tag.start() + 40]!r}"
    for scheme in (_ACTIVE_SCHEME if log else _SCHEME).finditer(text):
        if scheme[0].lower() != _HTTPS:
            yield "link", f"{text[scheme.start():scheme.start() + 40]!r}"
            break
    private = PRIVATE.search(text) or (None if may_hold_numbers(where) else ADDRESS.search(text))
    if private is not None:
        yield "private", f"{private[0][:40]!r}"


def may_hold_numbers(where: str) -> bool:
    """Whether four numbers with points between them are a version there, and no address."""
    return where.startswith(("environment.packages", "environment.python", "engine.")) or where.endswith("version")
