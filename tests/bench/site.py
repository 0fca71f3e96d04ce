"""What a site of thousands of entries takes to build, weighs, and how fast its tables answer: `python tests/bench/site.py [--rows 10000]`.

The entries are those of `ranking.py`, made up for load. Printed are build, rebuild without and with one change, memory, files and bytes for a hundredth, a
tenth and all of the rows (time is to grow with the rows), the weight of a board page of 1,000 rows (gzip), and in Chromium, where it is
installed, when such a page can be used, and what a filter and a sort take on a board of 10,000 rows. A file system that has just deleted thousands
of files (ext4) makes new ones thirty times as slowly: `TMPDIR=/dev/shm` measures the build alone.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
from tests.bench import ranking

from jouleboard import publish, rank, sitestamp, store
from jouleboard.rows import Board

BUDGETS = {"build_s": 30.0, "memory_mb": 1024.0, "rebuild_s": 3.0, "board_kb": 150.0, "interactive_ms": 1000.0, "answer_ms": 100.0}
"""Of 10,000 entries on two cores; the page of a board of 1,000 rows; a filter and a sort of 10,000."""


def _boards(rows: int) -> list[Board]:
    # The bench's entries are not sealed, and pages are taken over by digest.
    made = [ranking.Entry(name=one.name, answers=one.answers, report=store.seal_report(one.report)) for one in ranking.entries(rows)]
    return rank.boards(made)


def built(rows: int) -> None:
    """Build a site of so many entries, and print what it took."""
    boards = _boards(rows)
    before = _peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "site"
        took = []
        for _ in range(2):
            begun, cpu = time.perf_counter(), _cpu_s()
            files = publish.publish(boards, out)
            took.append((time.perf_counter() - begun, _cpu_s() - cpu))
        size = sum(path.stat().st_size for path in files)
        unchanged = _unchanged_s(Path(folder), out, rows)
    print(f"{rows:6} entries, {len(boards)} boards: build {took[0][0]:6.1f} s ({took[0][1]:.1f} CPU-s), with every page taken over {took[1][0]:5.1f} s, "
          f"seen to be unchanged {unchanged:.1f} s; {len(files)} files, "
          f"{size / 1e6:,.0f} MB; peak {_peak_mb():,.0f} MB, {before:,.0f} MB of it before the build", flush=True)


def _unchanged_s(folder: Path, out: Path, rows: int) -> float:
    """Time how `jouleboard build` sees that neither so many entries nor the site have changed."""
    reports = folder / "reports"
    for number in range(rows):
        place = reports / f"{number % 100}" / f"{number}"
        place.mkdir(parents=True)
        for name in ("report.json", "items.jsonl.gz", "trace.csv.gz"):
            (place / name).touch()
    sitestamp.keep(out, sitestamp.of(reports, settings=[]))
    begun = time.perf_counter()
    assert sitestamp.is_current(out, sitestamp.of(reports, settings=[]))
    return time.perf_counter() - begun


def wide(rows: int) -> Board:
    """Put so many rows on one board."""
    board = next(one for one in _boards(ranking.BOARD) if one.is_serving)
    found = [msgspec.structs.replace(row, entry=f"{row.entry}-{copy}") for copy in range(rows // len(board.ranked) + 1) for row in board.ranked]
    return msgspec.structs.replace(board, key=f"wide{rows}", ranked=tuple(found[:rows]), unranked=())


def tables(folder: Path) -> None:
    """Build pages of one board of 1,000 and of 10,000 rows, and look at them in Chromium."""
    from jouleboard import sitefolder, sitepages

    out = folder / "site"
    boards = [wide(1000), wide(10_000)]
    begun = time.perf_counter()
    with sitefolder.under_construction(out) as site:
        publish._static(site)
        sitepages.board_pages(site, sitepages.Whole.of(boards, (), ""))
    print(f"pages of a board of 1,000 and one of 10,000 rows: {time.perf_counter() - begun:.1f} s")
    page = [out / "boards/wide1000/index.html", out / "data/board-wide1000.js", out / "static/style.css", *(out / "static/js" / name for name in (
        "jouleboard.js", "board.js")), out / "static/vendor/datatables.min.js"]
    weights = {path.name: len(gzip.compress(path.read_bytes(), 9, mtime=0)) / 1000 for path in page}
    print(f"board page of 1,000 rows, gzip: {sum(weights.values()):.0f} kB (budget {BUDGETS['board_kb']:.0f}) = "
          + " + ".join(f"{name} {size:.0f}" for name, size in weights.items()), flush=True)
    looked_at(out)


def looked_at(out: Path) -> None:
    """Time the tables in Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is missing: interaction is NOT timed")
        return
    ready = """async () => { while (document.getElementById("explorer").dataset.ready !== "1") await new Promise((done) => setTimeout(done, 5)); return performance.now(); }"""
    act = """async (what) => { const form = document.getElementById("filters"), begun = performance.now();
        if (what === "filter") { form.elements.q.value = "v7"; form.dispatchEvent(new Event("input", {bubbles: true})); }
        else if (what === "clear") { form.elements.q.value = ""; form.dispatchEvent(new Event("input", {bubbles: true})); }
        else { const head = document.querySelector("#grid thead th:nth-child(5)"); head.querySelector("[role=button]").click();
          while (!head.getAttribute("aria-sort")) await new Promise((done) => setTimeout(done)); }
        document.body.getBoundingClientRect(); return performance.now() - begun; }"""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-background-networking"])
        for rows in (1000, 10_000):
            page = browser.new_page()
            page.goto((out / f"boards/wide{rows}/index.html").as_uri())
            first = page.evaluate(ready)
            took = {what: page.evaluate(act, what) for what in ("filter", "clear", "sort")}
            print(f"{rows:6} rows in Chromium: usable after {first:.0f} ms; " + ", ".join(f"{what} {one:.0f} ms" for what, one in took.items()), flush=True)
        browser.close()


def _cpu_s() -> float:
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, metavar="N")
    words = parser.parse_args()
    print(f"budgets of 10,000 entries: {BUDGETS}")
    for rows in (words.rows // 100, words.rows // 10, words.rows):
        # Each in a process of its own: a peak of memory is that of a process.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(built, rows).result()
    with tempfile.TemporaryDirectory() as folder:
        tables(Path(folder))


if __name__ == "__main__":
    main()
