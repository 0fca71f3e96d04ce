"""Withdrawals of published entries: a file beside an entry's folder that says which entry no longer counts, and why.

Example (`20300101t000000z-0123abcd.withdrawn.json`)::

    {"format": "jouleboard-withdrawal", "digest": "0123abcd...", "withdrawn_utc": "2030-02-01T00:00:00Z", "reason": "The board was ..."}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from jouleboard import check_place, check_text, check_time, store, strictjson
from jouleboard.check_copies import Known
from jouleboard.check_data import from_error
from jouleboard.errors import DataFileError
from jouleboard.problems import Problem
from jouleboard.problems import at as at_file
from jouleboard.records import Withdrawal

MAX_BYTES = 8192
_REMEDY = "write it as reports/README.md shows"


@dataclass(slots=True, kw_only=True)
class Withdrawals:
    """All withdrawals that were read."""

    found: list[tuple[Path, Withdrawal]] = field(default_factory=list)

    @property
    def digests(self) -> set[str | None]:
        """Of the entries that were withdrawn."""
        return {one.digest for _, one in self.found}

    def add(self, path: Path) -> Iterator[Problem]:
        """Read one, and yield what is wrong with it."""
        at = at_file(path)
        try:
            one = read(path)
        except DataFileError as error:
            yield from_error(error, path)
            return
        wrong = False
        for code, what in check_text.wrong("reason", one.reason):
            wrong = True
            yield at("reason", code, what, _REMEDY)
        if check_time.moment(one.withdrawn_utc) is None:
            wrong = True
            yield at("withdrawn_utc", "time", f"{one.withdrawn_utc[:40]!r}", _REMEDY)
        if not wrong:
            self.found.append((path, one))

    def check_names(self, entries: Mapping[str, Known]) -> Iterator[Problem]:
        """Check that each stands beside the entry that it names; after all entries were read."""
        for path, one in self.found:
            folder = path.with_name(path.name.removesuffix(check_place.WITHDRAWN))
            if not _stands_beside(one, folder, entries):
                yield at_file(path)("digest", "withdrawal", f"{one.digest[:16]}… is not the entry in {folder.name}", _REMEDY)


def _stands_beside(one: Withdrawal, folder: Path, entries: Mapping[str, Known]) -> bool:
    known = entries.get(one.digest)
    return known is not None and Path(known.file).parent == folder


def read(path: Path) -> Withdrawal:
    """Read a withdrawal strictly.

    Raises:
        DataFileError: naming what is wrong with it.
    """
    data = store.read_small(path, MAX_BYTES)
    value = strictjson.loads(data, path, remedy=_REMEDY)
    try:
        return msgspec.convert(value, Withdrawal)
    except msgspec.ValidationError as error:
        message, where = store.split_path(str(error))
        raise DataFileError(message, file=path, field=where.strip() or None, remedy=_REMEDY, code="schema") from None

