"""`jouleboard export`: the published entries as one table, for whoever wants to compute with them.

    jouleboard export --format csv --out board.csv
    jouleboard export --format parquet --out board.parquet
    jouleboard export --format json --out board.json

The columns are the fields of `tables.Record`; each row is one entry, cell of trials and task.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from jouleboard import reader, store
from jouleboard.errors import PlanError
from jouleboard.tables import Record

COLUMNS = Record.__struct_fields__
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(rows: Sequence[Record]) -> bytes:
    """Return rows as CSV with a header; None is empty, and no text is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([[_cell(getattr(row, name)) for name in COLUMNS] for row in rows])
    return text.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def as_json(rows: Sequence[Record]) -> bytes:
    """Return rows as a JSON list, one row a line."""
    return b"[\n" + b",\n".join(map(msgspec.json.encode, rows)) + b"\n]\n"


def as_parquet(rows: Sequence[Record]) -> bytes:
    """Return rows as Parquet, with a type for each column even where all of it is empty.

    Raises:
        PlanError: what writes it is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise PlanError("the package pyarrow is not installed", field="--format", remedy="pip install pyarrow, or use csv or json")
    import pyarrow as pa  # noqa: PLC0415 - an extra that only this format needs
    import pyarrow.parquet as pq  # noqa: PLC0415

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    schema = pa.schema([(name, kinds[str(Record.__annotations__[name]).removesuffix(" | None")]) for name in COLUMNS])
    table = pa.Table.from_pylist([{name: getattr(row, name) for name in COLUMNS} for row in rows], schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Sequence[Record]], bytes]] = {"csv": as_csv, "json": as_json, "parquet": as_parquet}


def export(reports: Path, kind: str, out: Path | None) -> int:
    """Write the sound entries below a folder as a table.

    Args:
        reports: of entries.
        kind: a key of `FORMATS`.
        out: the file; None: to the terminal.

    Returns:
        0; 1 where some entries did not pass and are not in the table.

    Raises:
        PlanError: a binary table for the terminal.
    """
    if out is None and kind == "parquet":
        raise PlanError("a Parquet table is no text", field="--out", remedy="name a file: --out board.parquet")
    found = reader.checked(reports)
    rows = reader.records(found.entries, reader.trusts(found.entries, reports))
    data = FORMATS[kind](rows)
    if out is None:
        sys.stdout.write(data.decode())
    else:
        store.write_atomic(out, data)
        print(f"{len(rows)} rows of {len(found.entries)} entries in {out}")
    if found.problems:
        left = len({problem.file for problem in found.problems})
        print(f"{left} file(s) did not pass and are left out; `jouleboard check {reports}` lists why", file=sys.stderr)
    return 1 if found.problems else 0
