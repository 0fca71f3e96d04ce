"""The data behind a board as JSON and CSV: one object or line an entry, units in the names, estimates named apart.

rank,variant,quality,...,cpu_s_per_ktoken,...,measured_energy_j_per_ktoken,estimated_energy_j_per_ktoken,...
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import msgspec

from jouleboard.rows import Board, Estimate, Row

Cell = str | int | float | bool | None


def board_json(board: Board) -> str:
    """Give the board with its rows; each report is left to its own file, named by entry and digest."""
    known = msgspec.to_builtins(board)
    rows = zip((*board.ranked, *board.unranked), (*known.pop("ranked"), *known.pop("unranked")), strict=True)
    known["rows"] = [_row_object(row, builtins) for row, builtins in rows]
    return json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _row_object(row: Row, builtins: dict[str, Any]) -> dict[str, Any]:
    energy, per_kilojoule = builtins.pop("energy_j_per_ktoken"), builtins.pop("quality_per_kilojoule")
    kind = "estimated" if builtins.pop("energy_is_estimate") else "measured"
    report = row.report
    builtins |= {
        f"{kind}_energy_j_per_ktoken": energy,
        f"{kind}_quality_per_kilojoule": per_kilojoule,
        "report": {
            "created_utc": report.created_utc,
            "digest": report.digest,
            "model": report.model,
            "provisional": report.provisional,
            "recipe": report.recipe,
            "recipe_title": report.recipe_title,
            "status": report.status,
        },
    }
    return builtins


def board_csv(board: Board) -> str:
    """Give one line a row, ranked rows first; empty cells are not measured."""
    lines = [_line(row) for row in (*board.ranked, *board.unranked)]
    columns = list(dict.fromkeys(name for line in lines for name in line)) or ["entry"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in line.items()} for line in lines)
    return buffer.getvalue()


def _line(row: Row) -> dict[str, Cell]:
    report = row.report
    estimated = row.energy_j_per_ktoken if row.energy_is_estimate else None
    measured = None if row.energy_is_estimate else row.energy_j_per_ktoken
    line: dict[str, Cell] = {
        "rank": row.rank,
        "entry": row.entry,
        "model": report.model,
        "recipe": report.recipe,
        "variant": report.recipe_title,
        "is_base": row.is_base,
        "status": report.status,
        "badges": " ".join(row.badges),
        "unranked": row.unranked,
        **_spread("quality", row.quality),
        **_spread("cpu_s_per_ktoken", row.cpu_s_per_ktoken),
        **_spread("cost_ratio", row.cost_ratio),
        **_spread("measured_energy_j_per_ktoken", measured),
        **_spread("estimated_energy_j_per_ktoken", estimated),
        **_spread("measured_quality_per_kilojoule", None if row.energy_is_estimate else row.quality_per_kilojoule),
        **_spread("estimated_quality_per_kilojoule", row.quality_per_kilojoule if row.energy_is_estimate else None),
        "weight_bytes": row.weight_bytes,
        "peak_memory_bytes": row.peak_memory_bytes,
        "report_digest": report.digest,
    }
    for kind, by_batch in (("prefill", row.prefill_cpu_s_per_ktoken), ("decode", row.decode_cpu_s_per_ktoken)):
        line |= {f"{kind}_batch_{batch}_cpu_s_per_ktoken": by_batch[batch] for batch in sorted(by_batch)}
    for cell in row.tasks:
        line |= _spread(f"{cell.task}.{cell.metric}", cell.score)
    return line


def _spread(name: str, estimate: Estimate | None) -> dict[str, Cell]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _harmless(value: Cell) -> Cell:
    # Spreadsheets run cells that begin so (CSV injection, CWE-1236); a leading apostrophe makes them text.
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") and value else value
