"""Every page kind in Chromium: both languages, both themes, a phone, from a folder, without scripts, by keyboard; and nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser import sites
from tests.browser.conftest import complaints, opened, settled

pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 844}
LANGUAGES = {"en": "", "zh": "zh/"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_axe_reports_nothing_and_the_console_stays_empty(browser: Browser, site: Path, language: str, scheme: str) -> None:
    found = {}
    for kind, name in sites.kinds(site).items():
        with opened(browser, (site / LANGUAGES[language] / name).as_uri(), color_scheme=scheme) as (page, watch):
            settled(page)
            wrong = [*complaints(page), *watch.console, *watch.elsewhere]
            if wrong:
                found[kind] = wrong
    assert not found


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_page_scrolls_sideways_on_a_phone(browser: Browser, site: Path, language: str) -> None:
    wide = {}
    for kind, name in sites.kinds(site).items():
        with opened(browser, (site / LANGUAGES[language] / name).as_uri(), viewport=PHONE) as (page, _):
            settled(page)
            width = page.evaluate("() => document.documentElement.scrollWidth")
            if width > PHONE["width"]:
                wide[kind] = width
    assert not wide


def test_everything_works_below_a_sub_path(browser: Browser, site: Path, served: str) -> None:
    for kind, name in sites.kinds(site).items():
        with opened(browser, f"{served}{name}") as (page, watch):
            settled(page)
            assert not watch, (kind, watch)


def test_without_scripts_every_page_shows_what_it_has_to_say(browser: Browser, site: Path) -> None:
    for kind, name in sites.kinds(site).items():
        with opened(browser, (site / name).as_uri(), java_script_enabled=False) as (page, watch):
            words = page.inner_text("main")
            assert len(words) > 40, kind
            assert not page.locator("form:visible").count(), kind
            assert not watch, kind
            if kind.startswith("board "):
                assert page.locator("#fallback table tbody tr").count() > 2 or "never get a rank" in words
    with opened(browser, (site / "index.html").as_uri(), java_script_enabled=False) as (page, _):
        assert "Runner-up" in page.inner_text("#answer")
        assert "7.1" in page.inner_text("main")


def test_reduced_motion_switches_smooth_scrolling_off(browser: Browser, site: Path) -> None:
    with opened(browser, (site / "index.html").as_uri(), reduced_motion="reduce") as (page, _):
        assert page.evaluate("() => getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_a_hostile_entry_runs_nothing_and_reaches_nowhere(browser: Browser, hostile: Path) -> None:
    pages = sorted(path for path in hostile.rglob("*.html"))
    for path in pages:
        with opened(browser, path.as_uri()) as (page, watch):
            settled(page)
            assert not watch, (path.relative_to(hostile), watch)
            assert page.locator("script:not([src])").count() == 0
            assert page.evaluate("() => !document.querySelector('[onerror], iframe, object, a[href^=javascript]')")


def test_the_board_of_a_hostile_entry_shows_its_text_as_text(browser: Browser, hostile: Path) -> None:
    board = next((hostile / "boards").glob("*/index.html"))
    with opened(browser, board.as_uri()) as (page, _):
        settled(page)
        assert "<script>alert(1)</script>" in page.inner_text("#grid")
        assert page.locator("#grid img").count() == 0


def test_the_language_switch_leads_to_the_same_page_and_back(browser: Browser, site: Path) -> None:
    for name in sites.kinds(site).values():
        with opened(browser, (site / name).as_uri()) as (page, _):
            page.click(".languages a")
            assert page.url == (site / "zh" / name).as_uri()
            assert page.evaluate("() => document.documentElement.lang") == "zh-Hans"
            page.click(".languages a")
            assert page.url == (site / name).as_uri()


def test_a_chinese_page_has_no_long_english_sentence_of_ours(browser: Browser, site: Path) -> None:
    """Names and reasons that stand in the records stay as they were recorded; they are marked or short."""
    script = r"""() => { const found = []; const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
        while (walk.nextNode()) { const node = walk.currentNode; const parent = node.parentElement;
          if (parent.closest("code, pre, [lang=en], template, noscript, script")) continue;
          const text = node.textContent.trim(); if (/^[A-Za-z ,.;:()\u2019%0-9-]{40,}$/.test(text)) found.push(text); } return found; }"""
    left: dict[str, list[str]] = {}
    for kind, name in sites.kinds(site).items():
        with opened(browser, (site / "zh" / name).as_uri()) as (page, _):
            settled(page)
            for text in page.evaluate(script):
                if not any(name in text for name in ("Q4_1", "x86-64", "torchao")):
                    left.setdefault(kind, []).append(text)
    assert not left


def node_is_new_enough() -> bool:
    found = re.match(r"v(\d+)", subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout)
    return found is not None and int(found[1]) >= 20


def test_every_page_is_valid_html(site: Path, hostile: Path) -> None:
    if not node_is_new_enough():
        pytest.skip("the validator needs Node 20 or newer")
    for folder in (site, hostile):
        done = subprocess.run(["node", str(Path(__file__).parent / "validity.mjs"), str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
