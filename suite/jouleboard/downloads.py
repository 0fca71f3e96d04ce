"""The data behind a board as JSON and CSV: one object or line an entry, units in the names, estimates named apart.

rank,variant,quality,...,cpu_s_per_ktoken,...,measured_energy_j_per_ktoken,estimated_energy_j_per_ktoken,...
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from typing import Any

import msgspec

from jouleboard.costmodel import Crossover
from jouleboard.estimates import Estimate
from jouleboard.rows import Board, Latency, Row
from jouleboard.statistics.evidence import Verdict

Cell = str | int | float | bool | None
_ENERGIES = ("energy_j_per_ktoken", "energy_j_per_request", "quality_per_kilojoule")
_OF_ENERGY = ("worth",)
"""What follows from joules by declared factors is as measured, or as estimated, as these."""


def _kind(row: Row) -> str:
    """Say what a row's joules are; columns of different kinds never share a name."""
    return "simulated" if row.report.method == "simulated" else "estimated" if row.energy_is_estimate else "measured"


def board_json(board: Board) -> str:
    """Give the board with its rows; each report is left to its own file, named by entry and digest."""
    known = msgspec.to_builtins(board, str_keys=True)
    rows = zip((*board.ranked, *board.unranked), (*known.pop("ranked"), *known.pop("unranked")), strict=True)
    known["rows"] = [_row_object(row, builtins) for row, builtins in rows]
    return dumped(known)


def dumped(value: Any) -> str:
    """Write JSON for reading, keys in order; numbers that are none are an error."""
    try:
        # A hundred times as fast as `json`, and it writes NaN as null.
        return msgspec.json.format(msgspec.json.encode(_finite(value), order="sorted"), indent=1).decode() + "\n"
    except UnicodeEncodeError:
        # A lone surrogate in somebody's text has no UTF-8 form.
        return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return the value; raise where `json` would."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"Out of range float values are not JSON compliant: {value!r}")
    elif isinstance(value, dict):
        for inner in value.values():
            _finite(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _finite(inner)
    return value


def _row_object(row: Row, builtins: dict[str, Any]) -> dict[str, Any]:
    kind, report = _kind(row), row.report
    builtins.pop("energy_is_estimate")
    builtins |= {f"{kind}_{name}": builtins.pop(name) for name in (*_ENERGIES, *_OF_ENERGY)}
    builtins |= {
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


def has_parquet() -> bool:
    """Whether Parquet can be written here: pyarrow is no dependency of the site."""
    return importlib.util.find_spec("pyarrow") is not None


def board_parquet(board: Board) -> bytes | None:
    """Give the same lines as Parquet; None where pyarrow is missing."""
    if not has_parquet():
        return None
    import pyarrow as pa  # noqa: PLC0415 - seconds, and only where it is there
    from pyarrow import parquet  # noqa: PLC0415

    lines = [_line(row) for row in (*board.ranked, *board.unranked)]
    columns = list(dict.fromkeys(name for line in lines for name in line)) or ["entry"]
    buffer = io.BytesIO()
    parquet.write_table(pa.table({str(_writable(name)): [_writable(line.get(name)) for line in lines] for name in columns}), buffer)
    return buffer.getvalue()


def _writable(value: Cell) -> Cell:
    # A lone surrogate has no UTF-8 form.
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _line(row: Row) -> dict[str, Cell]:
    report = row.report
    line: dict[str, Cell] = {
        "rank": row.rank,
        "tier": row.tier,
        "rank_low": row.rank_low,
        "rank_high": row.rank_high,
        "frontier_probability": row.frontier_share,
        "entry": row.entry,
        "model": report.model,
        "recipe": report.recipe,
        "variant": report.recipe_title,
        "is_base": row.is_base,
        "status": report.status,
        "workload": row.workload,
        "batch": row.batch,
        "badges": " ".join(row.badges),
        "unranked": row.unranked,
        **_spread("quality", row.quality),
        **_spread("accuracy", row.accuracy),
        **_verdict(row.verdict),
        "retention": None if row.with_base is None else row.with_base.retention,
        "lost_share": None if row.with_base is None else row.with_base.lost_share,
        "gained_share": None if row.with_base is None else row.with_base.gained_share,
        "divergence_nats": None if row.with_base is None else row.with_base.divergence_nats,
        **_spread("cpu_s_per_ktoken", row.cpu_s_per_ktoken),
        **_spread("cpu_s_per_request", row.cpu_s_per_request),
        **_spread("cost_ratio", row.cost_ratio),
        "base_drift": row.base_drift,
        **_energies(row),
        **_latency("first_token", row.first_token),
        **_latency("inter_token", row.inter_token),
        **_crossover(row.crossover),
        **_spread("cost_per_item", row.cost_per_item),
        **_spread("cost_per_correct_answer", None if row.per_correct is None else row.per_correct.value),
        "cost_per_prompt_token": row.per_prompt_token,
        "cost_per_output_token": row.per_output_token,
        "bill": None if row.break_even is None else row.break_even.bill,
        **_spread("break_even_requests", None if row.break_even is None else row.break_even.requests),
        **_spread("break_even_days", None if row.break_even is None else row.break_even.days),
        "weight_bytes": row.weight_bytes,
        "peak_memory_bytes": row.peak_memory_bytes,
        "report_digest": report.digest,
    }
    for kind, by_batch in (("prefill", row.prefill_cpu_s_per_ktoken), ("decode", row.decode_cpu_s_per_ktoken)):
        line |= {f"{kind}_batch_{batch}_cpu_s_per_ktoken": by_batch[batch] for batch in sorted(by_batch)}
    for cell in row.tasks:
        line |= _spread(f"{cell.task}.{cell.metric}", cell.score)
    return line


def _energies(row: Row) -> dict[str, Cell]:
    line: dict[str, Cell] = {}
    for name in _ENERGIES:
        for kind in dict.fromkeys(("measured", "estimated", _kind(row))):
            line |= _spread(f"{kind}_{name}", getattr(row, name) if kind == _kind(row) else None)
    return line


def _latency(name: str, found: Latency | None) -> dict[str, Cell]:
    return {f"{name}_median_s": None if found is None else found.median_s,
            f"{name}_p95_s": None if found is None else found.p95_s,
            f"{name}_samples": None if found is None else found.samples,
            f"{name}_context_tokens": None if found is None else found.context_tokens}


def _verdict(found: Verdict | None) -> dict[str, Cell]:
    return {
        "verdict": None if found is None else found.kind,
        "verdict_reason": None if found is None else found.reason,
        **_spread("accuracy_difference", None if found is None else found.quality),
        "needs_items": None if found is None else found.needs_items,
        "needs_trials": None if found is None else found.needs_trials,
    }


def _crossover(found: Crossover | None) -> dict[str, Cell]:
    return {
        "crossover_cheaper": None if found is None else found.cheaper,
        "crossover_batch": None if found is None else found.batch,
        "crossover_batch_low": None if found is None else found.low,
        "crossover_batch_high": None if found is None else found.high,
        "crossover_decided": None if found is None else found.decided,
        "crossover_extrapolated": None if found is None else "; ".join(found.extrapolated),
        "crossover_reason": None if found is None else found.reason,
    }


def _spread(name: str, estimate: Estimate | None) -> dict[str, Cell]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _harmless(value: Cell) -> Cell:
    # Spreadsheets run cells that begin so (CSV injection, CWE-1236); a leading apostrophe makes them text.
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") and value else value
