"""How the frontier of each board came to be, entry by entry in the order of their dates, and the Atom feed of it. Pure.

An entry joins when nothing that was there is better in both quality and cost; it leaves when a newer one is::

    Change(when_utc="2026-02-03T10:00:00Z", kind="left", row=..., by=<the row that is better in both>, ...)

Values are today's: each build computes them again from the raw records, so an entry that was withdrawn was never there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import feedgenerator

from jouleboard.formats import visible
from jouleboard.rows import Row
from jouleboard.views import BoardView

MOST = 200
"""Changes that the page and the feed show, the newest first."""
TAG = "tag:jouleboard.org,2026:"
"""Ids of feed entries stay the same wherever the site is (RFC 4151)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry joined a frontier or left it."""

    when_utc: str
    kind: Literal["joined", "left"]
    view: BoardView
    row: Row
    by: Row | None
    """Of `left`: what is better in both."""


def changes(views: Sequence[BoardView]) -> tuple[Change, ...]:
    """Return what happened on every board where something is ranked, the newest first."""
    found = [change for view in views for change in _of_board(view)]
    return tuple(sorted(found, key=lambda one: (one.when_utc, one.kind, one.view.board.key, one.row.entry), reverse=True))[:MOST]


def _of_board(view: BoardView) -> list[Change]:
    placed = sorted((row for row in view.board.ranked if row.quality and row.headline_cost), key=lambda row: (row.report.created_utc, row.entry))
    frontier: list[Row] = []
    found = []
    for row in placed:
        if any(_beats(other, row) for other in frontier):
            continue
        when, beaten = row.report.created_utc, [other for other in frontier if _beats(row, other)]
        found.append(Change(when_utc=when, kind="joined", view=view, row=row, by=None))
        found += [Change(when_utc=when, kind="left", view=view, row=other, by=row) for other in beaten]
        frontier = [other for other in frontier if other not in beaten] + [row]
    return found


def _beats(one: Row, other: Row) -> bool:
    """Whether a row is at least as good on both axes and better on one."""
    if not (one.quality and one.headline_cost and other.quality and other.headline_cost):
        return False
    mine, theirs = (one.quality.value, -one.headline_cost.value), (other.quality.value, -other.headline_cost.value)
    return mine != theirs and mine[0] >= theirs[0] and mine[1] >= theirs[1]


def feed(found: Sequence[Change], address: str = "") -> str | None:
    """Give the changes as an Atom feed; None where there is none, because a feed must say when it was last updated.

    Args:
        found: the changes, the newest first.
        address: where the site is published, with a slash at the end; empty: addresses are relative to the feed's own.
    """
    made = feedgenerator.Atom1Feed(
        title="Jouleboard: changes of the frontier", link=f"{address}frontier/index.html" if address else "index.html",
        description="Entries that joined or left the frontier of quality against cost", feed_guid=f"{TAG}frontier", language="en",
        feed_url=f"{address}frontier/feed.xml" if address else None)
    dated = [(change, when) for change in found if (when := _when(change.when_utc)) is not None]
    for change, when in dated:
        made.add_item(title=visible(_title(change)), link=f"{address or '../'}entries/{change.row.entry}/index.html",
                      description=visible(_words(change)), updateddate=when, pubdate=when,
                      unique_id=f"{TAG}{change.view.board.key}/{change.kind}/{change.row.report.digest[:16]}/{change.when_utc}")
    return str(made.writeString("utf-8")) if dated else None


def _title(change: Change) -> str:
    name = f"{change.row.report.recipe_title} of {change.row.report.model_title}"
    return f"{name} joined the frontier" if change.by is None else f"{name} left the frontier"


def _words(change: Change) -> str:
    where = f"{change.view.board.title}, {change.view.cell}"
    cost = "CPU time" if change.view.board.is_cpu_time else "measured joules"
    if change.by is None:
        return f"On {where}: nothing there is better in both quality and {cost}."
    return f"On {where}: {change.by.report.recipe_title} of {change.by.report.model_title} is better in quality or {cost} and no worse in the other."


def _when(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None
