"""One (variant, task) of the quality pass on disk: its working files, and the record that says that it is finished.

Layout, below `OUT/.work/<model>/<recipe>/`::

    <task>.journal         the batches computed so far; gone when the unit is finished (see `journal`)
    <task>.items.jsonl     the scored items
    <task>.batches.json    the batches as they were fed, for replay
    <task>.unit.json       the record, written last: a unit is finished when it is there and fits the files beside it
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import rfc8785

from jouleboard import sources, storage, store
from jouleboard.declared import Id, Noun, Sha256
from jouleboard.records import TaskResult

ZERO = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFiles:
    """Working files of one task of one variant."""

    items: Path
    batches: Path
    record: Path
    journal: Path


def files(folder: Path, task: str) -> WorkFiles:
    """Name the working files of a task below a variant's working folder."""
    return WorkFiles(items=folder / f"{task}.items.jsonl", batches=folder / f"{task}.batches.json",
                     record=folder / f"{task}.unit.json", journal=folder / f"{task}.journal")


class Origin(Noun, frozen=True, kw_only=True):
    """Everything that decides what a unit computes. Its digest names the unit's journal."""

    task: Id
    configuration_sha256: Sha256
    """Of the variant: plan, recipe, task with its limit, seed, batch size, packages, machine."""
    weights_sha256: Sha256
    """Of the base's dense weights."""
    variant_sha256: Sha256
    """Of the weights that the recipe made of them."""
    data_sha256: Sha256
    """Of the task's documents."""


class UnitRecord(Noun, frozen=True, kw_only=True):
    """A finished unit."""

    format: Literal["jouleboard-unit"] = "jouleboard-unit"
    format_version: Literal[1] = 1
    origin: Origin
    result: TaskResult
    items_sha256: Sha256
    """Of the bytes of the items file; likewise the next one."""
    batches_sha256: Sha256
    digest: Sha256
    """Of every other field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is of a unit."""

    result: TaskResult | None
    """None where it must be scored."""
    wrong: str | None = None
    """Why a record that is there cannot be used."""


def write(where: WorkFiles, origin: Origin, result: TaskResult) -> None:
    """Say that a unit is finished: its last write. Then its journal is removed.

    Args:
        where: its working files; items and batches are there and whole.
        origin: what it was made of.
        result: what it gave.

    Raises:
        StorageError: it cannot be written.
    """
    with storage.writing(where.record):
        record = UnitRecord(origin=origin, result=result, items_sha256=sources.file_sha256(where.items),
                            batches_sha256=sources.file_sha256(where.batches), digest=ZERO)
    sealed = msgspec.structs.replace(record, digest=store.digest(record))
    store.write_atomic(where.record, store.canonical(sealed) + b"\n")
    finish(where)


def read(where: WorkFiles, origin: Origin) -> Found:
    """Return the result of a finished unit, if it was made of the same and its files are as it left them."""
    record = _decode(where.record)
    if record is None:
        there = where.record.exists() or where.record.is_symlink()
        return Found(result=None, wrong="its record is damaged" if there else None)
    if record.origin != origin or record.result.task != origin.task:
        return Found(result=None, wrong=f"its record is of {_other(record.origin, origin)}")
    wrong = _changed(where, record)
    return Found(result=None, wrong=wrong) if wrong else Found(result=record.result)


def batches_are_whole(where: WorkFiles) -> bool:
    """Whether the recorded batches are there, and are those of the unit's record where there is one."""
    record = _decode(where.record)
    if record is None:
        return where.batches.is_file()
    return _sha256(where.batches) == record.batches_sha256


def put_aside(where: WorkFiles) -> Path:
    """Move a record that cannot be used out of the way, and keep it; return where it is now.

    Raises:
        StorageError: it cannot be moved.
    """
    target = where.record.with_name(f"{where.record.name}.aside")
    with storage.writing(target):
        where.record.replace(target)
    return target


def finish(where: WorkFiles) -> None:
    """Remove what only an unfinished unit needs.

    Raises:
        StorageError: it cannot be removed.
    """
    with storage.writing(where.journal):
        where.journal.unlink(missing_ok=True)


def _decode(path: Path) -> UnitRecord | None:
    """Return a record that is what it was when it was written; None for anything else."""
    with contextlib.suppress(OSError, msgspec.DecodeError, rfc8785.CanonicalizationError, UnicodeError, RecursionError):
        record = msgspec.json.decode(path.read_bytes(), type=UnitRecord)
        if record.digest == store.digest(msgspec.structs.replace(record, digest=ZERO)):
            return record
    return None


def _other(held: Origin, wanted: Origin) -> str:
    names = {"task": "another task", "configuration_sha256": "another configuration", "weights_sha256": "other weights",
             "variant_sha256": "a variant with other weights", "data_sha256": "other items"}
    return next((words for field, words in names.items() if getattr(held, field) != getattr(wanted, field)), "another task")


def _changed(where: WorkFiles, record: UnitRecord) -> str | None:
    for path, expected in ((where.items, record.items_sha256), (where.batches, record.batches_sha256)):
        found = _sha256(path)
        if found != expected:
            return f"{path.name} {'is missing' if found is None else 'was changed after it was written'}"
    return None


def _sha256(path: Path) -> str | None:
    try:
        return sources.file_sha256(path)
    except OSError:
        return None
