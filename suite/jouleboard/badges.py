"""The badge of an entry: what shields.io reads, and a drawing of our own that needs nobody. Pure.

    {"schemaVersion": 1, "label": "jouleboard", "message": "#1 at quality 0.6+, 4.1 J per request", "color": "0a6864"}

A CPU-time board's badge says CPU time, a simulated one says SIMULATED, and what has no rank says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from jouleboard.formats import fixed, shown, visible
from jouleboard.rows import Board, Row

LABEL = "jouleboard"
RANKED, UNRANKED, SIMULATED = "0a6864", "5f5b54", "9c1f28"
CHAR_PX, PAD_PX = 6.7, 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """What a badge says, and how wide its two halves are in pixels."""

    message: str
    color: str
    left: float
    right: float


def badge(board: Board, row: Row) -> Badge:
    """Return the badge of an entry by its place on a board."""
    message, color = _message(board, row)
    return Badge(message=message, color=color, left=_px(LABEL), right=_px(message))


def _message(board: Board, row: Row) -> tuple[str, str]:
    if board.is_simulated:
        return "SIMULATED, never ranked", SIMULATED
    if row.report.status == "failed":
        return "failed", UNRANKED
    if row.rank is None or row.headline_cost is None:
        return "measured, no rank", UNRANKED
    unit = "CPU-s" if board.is_cpu_time else "J"
    place = f"#{row.rank}" if row.tier is None else f"#{row.rank} at quality {fixed(row.tier / 10, 1)} to {fixed((row.tier + 1) / 10, 1)}"
    each = "per request" if board.is_serving else "per 1,000 tokens"
    return f"{place}, {shown(row.headline_cost).value} {unit} {each}", RANKED


def endpoint(found: Badge) -> str:
    """Give the badge as shields.io's endpoint reads it."""
    return json.dumps({"schemaVersion": 1, "label": LABEL, "message": visible(found.message), "color": found.color}, indent=1) + "\n"


def _px(text: str) -> float:
    return round(len(text) * CHAR_PX + 2 * PAD_PX, 1)
