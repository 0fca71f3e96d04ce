"""What a training needs to go on where it was stopped, as one file of tensors a piece; the newest two are kept.

    state/
      committed          3
      state-2/           tensors.safetensors, note.json
      state-3/

`committed` is the caller's: the number of the last piece whose bill is stored. Training goes on from the newest whole state up to
that number, and what is newer is deleted: work that nobody paid for does not count. Without the file it begins from the start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jouleboard import storage
from jouleboard.errors import RecipeError

COMMITTED, PREFIX, TENSORS, NOTE = "committed", "state-", "tensors.safetensors", "note.json"
KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A training at one moment."""

    step: int
    """Optimiser steps that are done."""
    facts: dict[str, float]
    tensors: dict[str, torch.Tensor]


class Store:
    """The states of one training in one folder."""

    def __init__(self, folder: Path, origin: str) -> None:
        """Look at what is there, and delete what was never committed.

        Args:
            folder: made where it is missing.
            origin: digest of everything that the training follows from; a state of another one is refused.
        """
        self._folder, self._origin = folder, origin
        with storage.writing(folder / COMMITTED):
            folder.mkdir(parents=True, exist_ok=True)
            self._committed = _committed(folder / COMMITTED)
            for path in folder.glob(f".{PREFIX}*"):
                shutil.rmtree(path, ignore_errors=True)
            for number in self._numbers():
                if number > self._committed:
                    shutil.rmtree(self._path(number))

    def newest(self) -> State | None:
        """Return the newest committed state that is whole; None: begin from the start.

        Raises:
            RecipeError: it is of another training.
        """
        for number in sorted(self._numbers(), reverse=True):
            found = self._read(self._path(number))
            if found is not None:
                return found
            # It serves nobody, and would be counted among the two that are kept.
            shutil.rmtree(self._path(number), ignore_errors=True)
        return None

    def write(self, state: State) -> None:
        """Write the state that ends this piece, and delete all but the newest two.

        Raises:
            StorageError: it cannot be written; the earlier ones are still there.
        """
        number = self._committed + 1
        making, target = self._folder / f".{PREFIX}{number}", self._path(number)
        with storage.writing(target, size_bytes=sum(tensor.nbytes for tensor in state.tensors.values())):
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            try:
                self._fill(making, state)
                shutil.rmtree(target, ignore_errors=True)
                making.rename(target)
                storage.sync_folder(self._folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    shutil.rmtree(making)
                raise
            for old in sorted(self._numbers())[:-KEPT]:
                shutil.rmtree(self._path(old))

    def _fill(self, folder: Path, state: State) -> None:
        try:
            save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, folder / TENSORS)
        except SafetensorError as error:
            # The library tells of a full disk in words.
            raise OSError(str(error)) from None
        note = {"origin": self._origin, "step": state.step, "facts": state.facts, "sha256": _sync(folder / TENSORS)}
        (folder / NOTE).write_text(json.dumps(note), encoding="utf-8")
        _sync(folder / NOTE)
        storage.sync_folder(folder)

    def _read(self, path: Path) -> State | None:
        """Return a state; None where it is not whole."""
        try:
            note: dict[str, Any] = json.loads((path / NOTE).read_text(encoding="utf-8"))
            with (path / TENSORS).open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == note["sha256"]
            if not whole:
                return None
            found = State(step=int(note["step"]), facts=dict(note["facts"]), tensors=load_file(path / TENSORS))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None
        if note.get("origin") != self._origin:
            raise RecipeError("the training that was stopped here began with other weights, text or settings", file=path, field="steps",
                              remedy=f"delete {self._folder} and run the same command again: it begins anew")
        return found

    def _path(self, number: int) -> Path:
        return self._folder / f"{PREFIX}{number}"

    def _numbers(self) -> list[int]:
        names = (path.name.removeprefix(PREFIX) for path in self._folder.glob(f"{PREFIX}*"))
        return [int(name) for name in names if name.isdecimal()]


def _committed(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except ValueError:
        raise RecipeError("is no whole number", file=path, remedy=f"delete {path.parent} and run the same command again: it begins anew") from None


def _sync(path: Path) -> str:
    """Put a file on the disk, and return its digest."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
