"""The data that scripts of the site read: one classic script a board and one for all, because pages from `file://` may fetch nothing else.

    jouleboard.board({"key": "3f…", "unit": "CPU-s", "rows": [{"entry": "m/int8", "cost": [1.2, "1.20 [1.10, 1.30]"], ...}]});

Every estimate comes with its text, so that numbers are formatted in one place (`formats`); its bounds are what the text says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jouleboard import costmodel, formats, picking
from jouleboard.estimates import Estimate
from jouleboard.rows import Row
from jouleboard.techniques import techniques
from jouleboard.views import BoardView, base_qualities, floor, quality_axis, session_of, standing

Plain = dict[str, Any]


def board_script(view: BoardView, trust: Mapping[str, str] | None = None) -> str:
    """Give a board as a script.

    Args:
        view: the board with what is derived from it.
        trust: the codes of entries' levels of trust, by digest.
    """
    bases = base_qualities(view.rows)
    rows = [_row(row, trust or {}, bases.get(session_of(row)), view.common_badges) for row in view.rows]
    found = summary(view) | {"axis": [_six(end) for end in quality_axis(view.rows)], "rows": rows}
    return f"jouleboard.board({_json(found)});\n"


def fits_script(view: BoardView) -> str:
    """Give what only the budget picker and the comparison need: fitted models, and the factors of the cost of a correct answer."""
    fits = {row.entry: fit for row in view.board.ranked if (fit := _fit(row)) is not None}
    correct = {row.entry: factors for row in view.rows if (factors := _correct(row)) is not None}
    return f"jouleboard.fits({_json({'key': view.board.key, 'fits': fits, 'correct': correct})});\n"


def site_script(views: Sequence[BoardView]) -> str:
    """Give the list of boards as a script: what choosers offer."""
    return f"jouleboard.site({_json({'boards': [summary(view) for view in views]})});\n"


def summary(view: BoardView) -> Plain:
    """Say what a board is."""
    board = view.board
    first = next(iter(view.rows), None)
    return {
        "key": board.key, "title": board.title, "cell": view.cell, "machine": first.report.hardware_title if first else board.hardware,
        "hardware": board.hardware, "models": list(view.models), "kind": board.kind, "workload": board.workload, "batch": board.batch,
        "prompt": board.prompt_tokens, "output": board.output_tokens, "cpu": board.is_cpu_time, "simulated": board.is_simulated,
        "unit": "CPU-s" if board.is_cpu_time else "J", "serving": board.is_serving, "uncertainty": view.uncertainty,
        "floor": floor(board), "ranked": len(board.ranked), "entries": len(view.rows), "method": board.method,
        "tiers": sorted({row.tier for row in board.ranked if row.tier is not None}, reverse=True),
    }


def _row(row: Row, trust: Mapping[str, str], base_quality: float | None, common: Sequence[str]) -> Plain:
    report = row.report
    found: Plain = {
        "entry": row.entry, "name": report.recipe_title, "model": report.model_title, "base": row.is_base or None, "rank": row.rank,
        "set": _set(row), "tier": row.tier, "quality": _shown(row.quality), "cost": _shown(row.headline_cost),
        "ratio": None if row.is_base else _shown(row.cost_ratio), "standing": "base" if row.is_base else standing(row),
        "drift": None if row.base_drift is None else formats.percent(row.base_drift),
        "verdict": None if row.verdict is None else row.verdict.kind, "perkj": _shown(row.quality_per_kilojoule),
        "weights": row.weight_bytes, "memory": row.peak_memory_bytes, "first": row.first_token and _six(row.first_token.median_s),
        "next": row.inter_token and _six(row.inter_token.median_s), "techniques": list(techniques(report)),
        "engine": report.engine.name, "method": report.method, "trust": trust.get(report.digest), "badges": [code for code in row.badges if code not in common],
        "why": row.unranked, "frontier": _six(row.frontier_share), "status": report.status, "mark": _six(base_quality),
    }
    return {name: value for name, value in found.items() if value not in (None, [], ())}


def _set(row: Row) -> str | None:
    if row.rank_low is None or row.rank_high is None or row.rank_low == row.rank_high:
        return None
    return f"{row.rank_low}\N{EN DASH}{row.rank_high}"


def _shown(estimate: Estimate | None) -> list[object] | None:
    """Give the value, and value and interval as text."""
    if estimate is None:
        return None
    text = formats.shown(estimate)
    return [_six(estimate.value), text.value if text.low is None else f"{text.value} [{text.low}, {text.high}]"]


def _correct(row: Row) -> list[float | None] | None:
    one = row.per_correct
    return None if one is None else [_six(one.per_token), _six(one.tokens_per_answer), _six(one.share_correct), _six(one.value.value),
                                     _six(one.value.low), _six(one.value.high)]


def _fit(row: Row) -> Plain | None:
    """Give the fitted models with all their digits: the picker computes with them."""
    found = picking.candidate(row)
    if found is None:
        return None
    batches = costmodel.probed_batches(found.cost)
    spans = (found.cost.prompts, batches, found.cost.contexts)
    return {"cost": _terms(found.cost), "time": None if found.time is None else _terms(found.time), "idle_w": found.idle_w,
            "per_unit": found.joules_per_unit, "spans": [[span.low, span.high] for span in spans]}


def _terms(fit: costmodel.Fit) -> list[float]:
    return [fit.value(name) for name in ("a0", "a1", "a2", "d0", "d1", "d2")]


def _six(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _json(value: object) -> str:
    """Give JSON that is a script too: what could end one or turn the direction of text is written by its code."""
    return json.dumps(_visible(value), separators=(",", ":"), ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")


def _visible(value: object) -> object:
    if isinstance(value, str):
        return formats.visible(value)
    if isinstance(value, Mapping):
        return {str(key): _visible(one) for key, one in value.items()}
    return [_visible(one) for one in value] if isinstance(value, list | tuple) else value

