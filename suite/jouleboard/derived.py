"""Derived rows of the boards: cascades of each family's cheapest variants before its base, from the items of both. Reads items when asked.

boards = derived.with_cascades(rank.boards(entries), entries)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from jouleboard import cascades
from jouleboard.cascaderows import Derived
from jouleboard.pairs import Answered
from jouleboard.placing import family
from jouleboard.rows import Board, Row

MOST = 5
"""Variants of a family of which cascades are derived: those with the least cost ratio. Each takes a moment, and there may be hundreds."""


def with_cascades(boards: Sequence[Board], entries: Iterable[Answered]) -> list[Board]:
    """Add to each board of replayed items the cascades of its families; what cannot be derived is left out.

    Args:
        boards: as `rank` made them.
        entries: those that they were made of; only the items of those that are needed are read.
    """
    known = {entry.name: entry for entry in entries}
    return [board if board.is_serving or board.is_simulated else msgspec.structs.replace(board, cascades=_cascades(board, known))
            for board in boards]


def _cascades(board: Board, known: dict[str, Answered]) -> tuple[Derived, ...]:
    found = []
    for base in (row for row in board.ranked if row.is_base):
        for variant in _cheapest(board, base):
            derived = cascades.derive(known[variant.entry], known[base.entry])
            if isinstance(derived, Derived):
                found.append(derived)
    return tuple(found)


def _cheapest(board: Board, base: Row) -> list[Row]:
    """Return the variants of a base's session that cost less than it, the cheapest first."""
    mine = [(row.cost_ratio.value, row.entry, row) for row in board.ranked
            if not row.is_base and row.cost_ratio is not None and row.cost_ratio.value < 1
            and row.report.session == base.report.session and family(row.report) == family(base.report)]
    return [row for _, _, row in sorted(mine, key=lambda one: one[:2])][:MOST]
