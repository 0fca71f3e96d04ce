"""What new entries change on the boards: which rank each takes, and whom it moves. Pure.

Example::

    ## NVIDIA H100 SXM5 80 GB: agent at batch 1
    | entry | rank before | rank after |
    | --- | --- | --- |
    | smollm2-135m-instruct / int8-weight-only | new | 2 (quality 0.3 to 0.4) |
    | smollm2-135m-instruct / bf16 | 2 (quality 0.3 to 0.4) | 3 (quality 0.3 to 0.4) |
"""

from __future__ import annotations

from collections.abc import Sequence

from jouleboard.formats import fixed
from jouleboard.rows import Board, Row


def lines(before: Sequence[Board], after: Sequence[Board]) -> list[str]:
    """Return the lines of a table for each board on which something changed.

    Args:
        before: the boards without the new entries.
        after: with them.
    """
    known = {board.key: board for board in before}
    found: list[str] = []
    for board in after:
        rows = _changed(known.get(board.key), board)
        if rows:
            found += [f"## {_plain(board.title)}: {_plain(_cell(board))}", "| entry | rank before | rank after |", "| --- | --- | --- |", *rows, ""]
    return found or ["No rank changes."]


def _cell(board: Board) -> str:
    return board.workload if board.batch is None else f"{board.workload} at batch {board.batch}"


def _changed(before: Board | None, after: Board) -> list[str]:
    old = {} if before is None else {row.report.digest: row for row in (*before.ranked, *before.unranked)}
    rows = []
    for row in (*after.ranked, *after.unranked):
        earlier = old.get(row.report.digest)
        was = "new" if earlier is None else _rank(earlier)
        if was != _rank(row):
            rows.append(f"| {_plain(row.report.model)} / {_plain(row.report.recipe)} | {was} | {_rank(row)} |")
    return rows


def _rank(row: Row) -> str:
    """Give the rank with its tier: ranks begin at 1 in each."""
    if row.rank is None:
        return "unranked"
    return str(row.rank) if row.tier is None else f"{row.rank} (quality {fixed(row.tier / 10, 1)} to {fixed((row.tier + 1) / 10, 1)})"


def _plain(text: str) -> str:
    """Ids and titles hold no markup, or they would not have passed; what could end a cell of a table is left out all the same."""
    return "".join(letter for letter in text if letter.isalnum() or letter in " .,_-@()")
