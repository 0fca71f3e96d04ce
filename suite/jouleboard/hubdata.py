"""The documents of a data set on the hub, read from its own files at the pinned commit; no program of it is ever run.

`datasets.load_dataset` would take whatever revision it finds in its cache where there is no network, so it is not used.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jouleboard import hub, hubfaults, hubsplits
from jouleboard.declared import HubSource
from jouleboard.errors import SourceError

CARD = "README.md"
MAX_FLOAT = 2**53
Say = Callable[[str], None]
Row = dict[str, Any]
CONVERTED = ("pin the commit of the branch refs/convert/parquet, where the hub keeps its own conversion, "
             "or name a repository that has the items as files")


def splits(source: HubSource, wanted: Sequence[str], *, used_by: str, say: Say) -> list[list[Row]]:
    """Return the rows of some splits, each in the order of its files.

    Args:
        source: which repository, commit and subset.
        wanted: names of splits.
        used_by: the task that needs them, for the error messages.
        say: told what is fetched.

    Raises:
        SourceError: the hub does not give it, it has no such subset or split, or a file cannot be read.
        StorageError: the disk is full.
    """
    repository = hub.Repository(name=source.repo, revision=source.revision, kind="dataset", used_by=used_by)
    held = hub.listing(repository, say)
    files = {file.path: file for file in held.files}
    text = ""
    if CARD in files:
        text = (hub.fetch(repository, [files[CARD]], say, tell=False) / CARD).read_text(encoding="utf-8", errors="replace")
    try:
        found = hubsplits.splits(list(files), hubsplits.read_card(text), source.subset)
        chosen = [hubsplits.chosen(found, split) for split in wanted]
    except hubsplits.NoSplitError as error:
        raise hubfaults.error(hub.wanted(repository), hubfaults.Reason(why=str(error), remedy=CONVERTED if isinstance(error, hubsplits.UnreadableError) else (
            "correct `subset` and `lm_eval.split` in the task's file" if held.whole else
            "connect to the hub and run the same command again"))) from None
    names = dict.fromkeys(name for _, parts in chosen for name in parts)
    folder = hub.fetch(repository, [files[name] for name in names], say)
    return [[row for name in parts for row in read(folder / name, kind, used_by=used_by)] for kind, parts in chosen]


def file(source: HubSource, *, used_by: str, say: Say) -> bytes:
    """Return the one file that a source names, as it lies in the repository.

    Args:
        source: which repository, commit and file.
        used_by: the task that needs it, for the error messages.
        say: told what is fetched.

    Raises:
        SourceError: the hub does not give it, or there is no such file.
        StorageError: the disk is full.
    """
    repository = hub.Repository(name=source.repo, revision=source.revision, kind="dataset", used_by=used_by)
    return hub.one_file(repository, str(source.file), say).read_bytes()


def read(path: Path, kind: str, *, used_by: str) -> list[Row]:
    """Return the rows of one file; a field that only some rows have is None in the others.

    Args:
        path: of the file.
        kind: `parquet`, `json` (an array, or a line for each row) or `csv`.
        used_by: the task that needs it, for the error message.

    Raises:
        SourceError: it cannot be read, or holds what JSON cannot (pictures).
    """
    try:
        rows = READERS[kind](path)
        names = dict.fromkeys(name for row in rows for name in row)
        return [{name: _plain(row.get(name)) for name in names} for row in rows]
    except (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(f"{used_by}: cannot be read as {kind} ({first})", file=path, field="source",
                          remedy="name a revision or a repository whose files are texts and numbers in this format") from None


def _parquet(path: Path) -> list[Row]:
    import pyarrow.parquet  # noqa: PLC0415 - heavy, and not needed offline

    # Of this file alone: a folder's name like `year=2020` is no column.
    return list(pyarrow.parquet.ParquetFile(path).read().to_pylist())


def _json(path: Path) -> list[Row]:
    data = _bytes(path)
    if data.lstrip()[:1] == b"[":
        return list(json.loads(data))
    # Only these end a line: others may stand inside a text.
    return [json.loads(line) for line in data.split(b"\n") if line.strip()]


def _csv(path: Path) -> list[Row]:
    import pandas as pd  # noqa: PLC0415 - heavy, and not needed offline

    # As `datasets` reads it, so that numbers, truths and what is missing are the same.
    tabs = path.name.removesuffix(".gz").endswith(".tsv")
    frame = pd.read_csv(path, sep="\t" if tabs else ",")
    return [{str(name): value for name, value in row.items()} for row in frame.astype(object).to_dict("records")]


def _bytes(path: Path) -> bytes:
    if path.name.endswith(".gz"):
        with gzip.open(path) as file:
            return file.read()
    return path.read_bytes()


READERS: dict[str, Callable[[Path], list[Row]]] = {"parquet": _parquet, "json": _json, "csv": _csv}


def _plain(value: Any) -> Any:
    """Return a value as canonical JSON can hold it: dates are texts, and what is no number is None.

    Raises:
        ValueError: it is none of text, number, truth, date, list and mapping.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        # RFC 8785 has no larger whole numbers: beyond it they are texts.
        return value if abs(value) < MAX_FLOAT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    raise ValueError(f"a value of type {type(value).__name__}")
