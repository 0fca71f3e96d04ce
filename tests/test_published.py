"""What this repository publishes: every entry passes the check, and the site says of each board whether joules were measured."""

from __future__ import annotations

from pathlib import Path

from lxml import html

from jouleboard import check, publish, rank, store

REPORTS = Path(__file__).parents[1] / "reports"


def test_the_published_entries_pass_the_check_and_the_site_says_what_was_measured(tmp_path: Path) -> None:
    found = check.check_paths([REPORTS])
    assert found.problems == []
    assert found.checked == len(list(store.find_reports(REPORTS)))
    assert found.entries, "a leaderboard without an entry tells nobody anything"
    assert all(entry.report.submitter and entry.report.method != "simulated" for entry in found.entries)
    boards = rank.boards(found.entries)
    publish.publish(boards, tmp_path / "site", folders={entry.name: entry.folder for entry in found.entries})
    front = " ".join(html.parse(str(tmp_path / "site" / "index.html")).getroot().text_content().split())
    measured, cpu = (sum(board.kind == "variants" and board.is_cpu_time is one for board in boards) for one in (False, True))
    assert f"Boards of measured joules: {measured}." in front
    assert f"CPU-time boards, whose joules are estimates and never ranked: {cpu}." in front
    for entry in found.entries:
        page = tmp_path / "site" / "entries" / entry.name / "index.html"
        assert (page.parent / "raw" / store.REPORT).read_bytes() == (entry.folder / store.REPORT).read_bytes()
