"""An entry as it is published: without what names the machine or its user, with its Merkle root, under the rules for published entries.

Example: a platform `Linux 6.8 x86_64 on node-17` measured on `node-17` becomes `Linux 6.8 x86_64 on HOST`; figures are never touched.
"""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jouleboard import failures, gates, merkle, store, traces
from jouleboard.check_text import ADDRESS, MOST_LOG_CHARS, PRIVATE, may_hold_numbers
from jouleboard.formats import INVISIBLE
from jouleboard.records import PUBLISHED_RULES, Report

_ANYBODY = frozenset({"root", "user", "admin", "ubuntu", "debian", "runner", "localhost", "docker", "jovyan", "host", "nvidia", "home"})
"""Names of hosts and users that name nobody, and are words of what programs print."""
LEAST_CHARS = 3
FILES = (store.REPORT, store.ITEMS, store.TRACE)
"""What an entry consists of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """What is going to be published of an entry."""

    report: Report
    """Without its place among files; `write` seals it."""
    items: tuple[bytes, ...]
    trace: tuple[bytes, ...]
    stripped: tuple[str, ...]
    """Places of the texts that were changed."""


def make(folder: Path, report: Report, *, submitter: str | None, root: Path, replaces: str | None = None) -> Public:
    """Return the public form of an entry.

    Args:
        folder: that it lies in.
        report: as it was read from there.
        submitter: account of whoever proposes it.
        root: of the run, whose path is left out of what is published.
        replaces: digest of the published entry that this one corrects.

    Raises:
        DataFileError: a raw file cannot be read.
    """
    items, trace = store.read_lines(folder / store.ITEMS), store.read_lines(folder / store.TRACE)
    stripped: list[str] = []
    plain = _mapped(msgspec.to_builtins(report), "", _cleaner(root, stripped))
    clean = msgspec.convert(plain, Report)
    if stripped:
        # Reasons of gates quote what a window says.
        clean = gates.apply(clean, traces.decode(trace))
    clean = msgspec.structs.replace(clean, rules_version=PUBLISHED_RULES, submitter=submitter or report.submitter, replaces=replaces or report.replaces)
    clean = msgspec.structs.replace(clean, merkle_root=merkle.of_entry(clean, items, trace))
    return Public(report=store.seal_report(clean), items=tuple(items), trace=tuple(trace), stripped=tuple(stripped))


def write(folder: Path, public: Public) -> Report:
    """Write the three files of an entry, and return its report as it was sealed."""
    files = {store.ITEMS: store.write_lines(folder / store.ITEMS, public.items),
             store.TRACE: store.write_lines(folder / store.TRACE, public.trace)}
    return store.write_report(folder, msgspec.structs.replace(public.report, files=files))


def _mapped(value: Any, where: str, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, str):
        return change(where, value)
    if isinstance(value, dict):
        return {key: _mapped(inner, f"{where}.{key}" if where else key, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, f"{where}[{index}]", change) for index, inner in enumerate(value)]
    return value


def _cleaner(root: Path, stripped: list[str]) -> Callable[[str, str], str]:
    names = _names()

    def clean(where: str, text: str) -> str:
        # What is declared, and what is a digest, an id or a time, names nothing of the machine.
        if where.startswith(("profile.", "model_source.", "gates[")) or len(text) <= LEAST_CHARS or where.endswith("sha256"):
            return text
        found = failures.public(text, root)
        for pattern, word in names:
            found = pattern.sub(word, found)
        found = PRIVATE.sub(lambda match: "SOMEBODY" if "@" in match[0] else "PATH", found)
        found = found if may_hold_numbers(where) else ADDRESS.sub("ADDRESS", found)
        log = where.startswith("failure.")
        found = INVISIBLE.sub("", found)
        found = found[-MOST_LOG_CHARS:] if log else " ".join(found.split()) if "\n" in found or "\t" in found else found
        if found != text:
            stripped.append(where)
        return found

    return clean


def _names() -> list[tuple[re.Pattern[str], str]]:
    """Return what finds this host's and this user's names, as words of their own."""
    host = platform.node()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    return [*_words((host, host.partition(".")[0]), "HOST"), *_words((user,), "USER")]


def _words(names: Iterable[str], word: str) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])", re.IGNORECASE), word) for name in dict.fromkeys(names)
            if len(name) >= LEAST_CHARS and name.lower() not in _ANYBODY]
