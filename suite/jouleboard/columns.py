"""Rows as lines whose columns stand one below the other, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable


def aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a line for each row, every column as wide as its longest text.

    Args:
        rows: at least one, all of the same length.
    """
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip() for row in table]
