"""The table of a board and the chooser of the front page, as a visitor uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import opened, settled

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def board(site: Path) -> str:
    """Address of the board of joules with most ranked entries."""
    return next(path for path in sorted((site / "boards").glob("*/index.html")) if "Ranked by measured joules per request" in path.read_text()).as_uri()


def names(page: Page) -> list[str]:
    return [one.strip() for one in page.locator("#grid tbody th a").all_inner_texts()]


def until(page: Page, part: str) -> None:
    """Wait until the address says something: the table sorts a moment after the click."""
    for _ in range(100):
        if part in page.url:
            return
        page.wait_for_timeout(50)


def sorted_by(page: Page, head: Any, way: str) -> None:
    for _ in range(100):
        if head.get_attribute("aria-sort") == way:
            return
        page.wait_for_timeout(50)


def column(page: Page, title: str) -> int:
    return page.locator("#grid thead th").all_inner_texts().index(title)


def test_the_table_comes_in_the_order_of_the_ranks(browser: Browser, board: str) -> None:
    with opened(browser, board) as (page, _):
        settled(page)
        assert not page.locator("#fallback").is_visible()
        assert names(page) == ["Base, bf16", "int8 weights (torchao)", "Six layers dropped"]


def test_a_click_and_a_key_sort_and_say_so(browser: Browser, board: str) -> None:
    with opened(browser, board) as (page, _):
        settled(page)
        head = page.locator("#grid thead th", has_text="Energy, measured")
        head.click()
        sorted_by(page, head, "ascending")
        assert head.get_attribute("aria-sort") == "ascending"
        assert names(page)[0] == "Six layers dropped"
        head.locator("[role=button]").focus()
        page.keyboard.press("Enter")
        sorted_by(page, head, "descending")
        assert head.get_attribute("aria-sort") == "descending"
        assert names(page)[-1] == "Six layers dropped"


WORTH_AGAINST_TIERS = """let kept; Object.defineProperty(window, "jouleboard", {get: () => kept, set: (made) => {
    const { board } = made;
    kept = {...made, board: (found) => {
      for (const row of found.rows) if (row.tier !== undefined) row.perkj = [100 - row.tier, String(100 - row.tier)];
      board(found); }}; }});"""
"""Before the page's own scripts: let every variant of a lower tier be worth more."""


def test_what_a_kilojoule_buys_orders_only_inside_a_tier(browser: Browser, board: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(WORTH_AGAINST_TIERS)
    page.goto(board)
    settled(page)
    head = page.locator("#grid thead th", has_text="Quality per kilojoule")
    assert page.locator("#grid thead th").nth(1).inner_text().startswith("Quality tier")
    for way in ("ascending", "descending"):
        head.click()
        sorted_by(page, head, way)
        tiers = page.locator("#grid tbody tr td:nth-child(2)").all_inner_texts()
        assert len(set(tiers)) > 1, "a board of one tier shows nothing here"
        assert tiers == sorted(tiers, reverse=way == "descending")
    context.close()


def test_filters_and_order_stand_in_the_address_and_come_back_from_it(browser: Browser, board: str) -> None:
    with opened(browser, board) as (page, _):
        settled(page)
        page.select_option("#filters [name=technique]", "quantised")
        assert names(page) == ["int8 weights (torchao)"]
        page.locator("#grid thead th", has_text="Weights").click()
        until(page, "sort=weights-asc")
        address = page.url
    assert "technique=quantised" in address
    assert "sort=weights-asc" in address
    assert "model=" not in address
    with opened(browser, address) as (page, watch):
        settled(page)
        assert names(page) == ["int8 weights (torchao)"]
        assert page.locator("#grid thead th", has_text="Weights").get_attribute("aria-sort") == "ascending"
        page.click("#filters button[type=reset]")
        page.wait_for_timeout(100)
        assert len(names(page)) == 3
        assert not watch


def test_memory_and_quality_filter_by_number(browser: Browser, board: str) -> None:
    with opened(browser, board) as (page, _):
        settled(page)
        page.fill("#filters [name=memory]", "0.85")
        assert names(page) == ["int8 weights (torchao)", "Six layers dropped"]
        page.select_option("#filters [name=tier]", index=1)
        assert names(page) == ["int8 weights (torchao)"]
        page.fill("#filters [name=memory]", "0.001")
        assert "No entry keeps all filters." in page.inner_text("#grid")


def test_the_table_says_the_same_as_the_one_without_scripts(browser: Browser, board: str) -> None:
    with opened(browser, board) as (page, _):
        settled(page)
        place = column(page, "Energy, measured")
        shown = page.locator("#grid tbody tr").first.locator("th, td").nth(place).locator(".num").inner_text()
        plain = page.locator("#fallback tbody tr.is-base td.c-cost .num, #fallback tbody tr.is-base td .num").first
        assert shown in page.locator("#fallback tbody tr.is-base").first.evaluate("(row) => row.textContent")
        assert plain.count() == 1


def test_the_chooser_answers_with_the_least_cost_at_a_quality(browser: Browser, site: Path) -> None:
    with opened(browser, (site / "index.html").as_uri()) as (page, watch):
        settled(page)
        assert "Base, bf16" in page.inner_text(".answer-best")
        page.select_option("#chooser [name=tier]", "-1")
        assert "Six layers dropped" in page.inner_text(".answer-best")
        assert "Base, bf16" in page.inner_text(".answer-next")
        address = page.url
        page.fill("#chooser [name=first]", "0.000001")
        assert "No ranked entry keeps these limits." in page.inner_text("#answer")
        assert not watch
    assert "tier=-1" in address
    with opened(browser, address) as (page, _):
        settled(page)
        assert "Six layers dropped" in page.inner_text(".answer-best")


def test_the_chooser_knows_cpu_time_boards_and_says_so(browser: Browser, site: Path) -> None:
    with opened(browser, (site / "index.html").as_uri()) as (page, _):
        settled(page)
        options = page.locator("#chooser [name=machine] option")
        values = [one.get_attribute("value") for one in options.all()]
        page.select_option("#chooser [name=machine]", next(one for one in values if one and one.endswith("model")))
        page.wait_for_timeout(300)
        assert "CPU-time board: no energy was measured" in page.inner_text("#answer")
        assert "joules" not in page.inner_text("#answer").lower()


def test_the_skip_link_is_first_and_leads_to_the_content(browser: Browser, board: str) -> None:
    with opened(browser, board) as (page, _):
        settled(page)
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("() => document.activeElement.id") == "content"


def test_every_control_is_reached_by_the_keyboard_and_shows_it(browser: Browser, board: str) -> None:
    with opened(browser, board) as (page, _):
        settled(page)
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("() => document.activeElement.name || document.activeElement.tagName"))
        assert {"q", "model", "technique", "engine", "tier", "memory", "first", "unranked", "BUTTON", "A"} <= reached
