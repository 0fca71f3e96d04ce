"""Published entries in a notebook: typed, checked when asked, and as tables.

    from jouleboard import reader
    entries = reader.read("reports")                       # sound entries only, withdrawn and corrected ones left out
    entries[0].report.trials[0].window.energy.measured_j   # nouns of `records` and `windows`, with units in their names
    reader.frame(entries)                                  # pandas: one row an entry, cell of trials and task
    reader.items(entries[0])                               # pandas: one row an item

Nothing is fetched, and what an entry names is never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jouleboard import check, maintainers, tables, trust
from jouleboard.check import Entry, Findings, Problem
from jouleboard.declared import Noun
from jouleboard.errors import DataFileError
from jouleboard.records import Item, Report
from jouleboard.tables import Record
from jouleboard.trust import Published, Trust

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Entry", "Findings", "Item", "Problem", "Record", "Report", "Trust", "checked", "frame", "items", "problems", "read", "records", "trusts"]


def read(reports: str | Path) -> list[Entry]:
    """Read and check every entry below a folder (or one entry), and return those without a problem, in the order of their folders.

    Raises:
        DataFileError: there is no such folder.
    """
    return checked(reports).entries


def problems(reports: str | Path) -> list[Problem]:
    """Return what is wrong below a folder, each with file, field, code, value and remedy."""
    return checked(reports).problems


def checked(reports: str | Path) -> Findings:
    """Check a folder and return all that was found: entries, those set aside, and problems."""
    path = Path(reports)
    if not path.exists():
        raise DataFileError("does not exist", file=path, remedy="name a folder of entries")
    return check.check_paths([path])


def trusts(entries: Sequence[Entry], reports: str | Path | None = None) -> dict[str, Trust]:
    """Return how far each entry may be believed, by its digest.

    Args:
        entries: from `read`, of all published entries.
        reports: the folder, whose `maintainers.yaml` says whose reproductions give L3; None: nobody's.
    """
    accounts = frozenset() if reports is None else maintainers.read(Path(reports))
    return trust.levels([Published(report=entry.report, recomputed=entry.recomputed) for entry in entries], accounts)


def records(entries: Sequence[Entry], levels: dict[str, Trust] | None = None) -> list[Record]:
    """Return one record an entry, cell of trials and task; see `tables.Record` for the columns and their units."""
    return tables.records(entries, trusts(entries) if levels is None else levels)


def frame(entries: Sequence[Entry], levels: dict[str, Trust] | None = None) -> pd.DataFrame:
    """Return `records` as a table of pandas, with the columns of `tables.Record` even where there is no row."""
    return _table(records(entries, levels), Record)


def items(entry: Entry) -> pd.DataFrame:
    """Return an entry's items as a table of pandas, one row an item, a column for each metric (`score_acc`)."""
    return _table(tables.items(entry.items), tables.ItemRecord)


def _table(rows: Sequence[Noun], kind: type[Noun]) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415 - only where a table is asked for

    return pd.DataFrame([{name: getattr(row, name) for name in kind.__struct_fields__} for row in rows], columns=list(kind.__struct_fields__))
