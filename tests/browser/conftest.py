"""Chromium, once for all tests, and pages that watch for what a page must not do."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser import sites

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
FLAGS = ["--no-sandbox", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites.build(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites.hostile(tmp_path_factory.mktemp("hostile"))


@dataclass(slots=True)
class Watch:
    """What a page did that no page of ours does."""

    console: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.console or self.elsewhere or self.dialogs)


@contextmanager
def opened(browser: Browser, address: str, **how: Any) -> Iterator[tuple[Page, Watch]]:
    """Open a page in a fresh context; whatever it asks for beyond its own site is refused and written down."""
    own = address.partition("#")[0].rsplit("/site/", 1)[0]
    how = {"viewport": {"width": 1280, "height": 900}} | how
    context = browser.new_context(**how)
    watch = Watch()

    def asked(route: Any) -> None:
        if route.request.url.startswith((own, "data:")):
            route.continue_()
        else:
            watch.elsewhere.append(route.request.url)
            route.abort()

    context.route("**/*", asked)
    page = context.new_page()
    page.on("console", lambda message: watch.console.append(message.text))
    page.on("pageerror", lambda error: watch.console.append(str(error)))
    page.on("dialog", lambda dialog: (watch.dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    try:
        yield page, watch
    finally:
        context.close()


def settled(page: Page) -> None:
    """Wait until the page's scripts have drawn what they draw. String-form waits need `eval`, which the policy forbids."""
    for _ in range(100):
        if page.evaluate("""() => { const grid = document.getElementById("explorer"), picked = document.getElementById("picked");
            const compared = document.getElementById("compared"), answer = document.getElementById("answer");
            return (!grid || grid.dataset.ready === "1") && (!picked || picked.childElementCount > 0) && (!compared || compared.childElementCount > 0)
              && (!answer || answer.dataset.best !== undefined); }"""):
            return
        page.wait_for_timeout(50)
    raise AssertionError("the page's scripts did not finish")


def complaints(page: Page) -> list[str]:
    """What axe-core finds wrong. It is put in by the debugger, past the page's policy."""
    page.evaluate(AXE)
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations'], preload: false})")
    return [f"{one['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}" for one in found["violations"] for node in one["nodes"]]


@pytest.fixture(scope="session")
def served(site: Path) -> Iterator[str]:
    """The site below a sub-path of a server of this machine."""
    handler = functools.partial(_Quiet, directory=str(site.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/site/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        pass
