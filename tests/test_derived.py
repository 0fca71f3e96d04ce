"""Derived rows: which cascades a board has, and that they are told apart from what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lxml.html
import msgspec

from jouleboard import cascades, derived, publish, rank
from tests import factory

BASE, INT8, *_, DROP = factory.SPECS
CHEAP = replace(INT8, recipe="cheap", title="A cheap one", cpu_s_per_ktoken=3.0)


def family() -> list[factory.Entry]:
    return factory.family(n=300, specs=(BASE, INT8, CHEAP, DROP))


def test_cascades_are_those_of_cheaper_variants_before_their_base() -> None:
    entries = family()
    (board,) = derived.with_cascades(rank.boards(entries), entries)
    pairs = {(row.small.split("/")[-1], row.large.split("/")[-1]) for one in board.cascades for row in one.rows}
    assert pairs == {("cheap", "base"), ("drop-6-layers", "base")}
    known = {entry.report.recipe: entry for entry in entries}
    assert board.cascades[0] == cascades.derive(known["cheap"], known["base"])
    assert all(row.derived for one in board.cascades for row in one.rows)
    assert not {row.entry for row in (*board.ranked, *board.unranked)} & {row.name for one in board.cascades for row in one.rows}


def test_serving_and_simulated_boards_have_none() -> None:
    served = factory.serving_family(n=60, joules=True, batches=(1,))
    assert {board.workload: bool(board.cascades) for board in derived.with_cascades(rank.boards(served), served)}["agent"] is False
    simulated = [factory.Entry(name=entry.name, items=entry.items, report=msgspec.structs.replace(entry.report, method="simulated"))
                 for entry in served]
    assert not any(board.cascades for board in derived.with_cascades(rank.boards(simulated), simulated))


def test_the_page_says_that_nobody_ran_them(tmp_path: Path) -> None:
    entries = family()
    publish.publish(derived.with_cascades(rank.boards(entries), entries), tmp_path / "out")
    pages = [lxml.html.parse(path).getroot() for path in sorted((tmp_path / "out" / "boards").glob("*/index.html"))]
    (section,) = [found for page in pages for found in page.xpath("//section[h2[starts-with(@id, 'cascades-')]]")]
    assert "Derived, not measured" in section.text_content()
    assert len(section.xpath(".//tbody/tr")) == 4
