"""`jouleboard withdraw` and `submit --replaces`: entries leave the boards, and nothing that is published changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jouleboard import check, cli, store
from tests import genuine
from tests.test_submit import call, change, reports, run_folder, tree

__all__ = ["reports"]
REASON = "The machine was shared with another job during all trials."


def published(run: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Path]:
    """Publish a run; folders by recipe."""
    assert call(run, reports, capsys)[0] == 0
    return {path.parent.parent.name: path.parent for path in store.find_reports(reports)}


def withdraw(entry: Path, reason: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["withdraw", str(entry), "--reason", reason])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_withdrawn_entry_leaves_the_boards_and_stays_as_it_is(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = published(run_folder(tmp_path / "run"), reports, capsys)
    before, entry = tree(reports), places[genuine.INT8]
    code, out, _ = withdraw(entry, f"  {REASON} ", capsys)
    assert code == 0
    file = entry.with_name(f"{entry.name}.withdrawn.json")
    assert json.loads(file.read_bytes())["reason"] == REASON
    assert {name: data for name, data in tree(reports).items() if not name.endswith(".withdrawn.json")} == before
    found = check.check_paths([reports])
    assert found.problems == []
    assert {one.report.recipe for one in found.entries} == {genuine.BASE, genuine.DROP}
    assert f"git add -- reports/{file.relative_to(reports).as_posix()}" in out
    code, _, err = withdraw(entry, REASON, capsys)
    assert (code, "was withdrawn before" in err) == (2, True)


@pytest.mark.parametrize(("reason", "words"), [("", "ten characters"), ("short", "ten characters"), ("left \u202e right and more", "202E"), ("<script>alert(1)</script>", "no tags")])
def test_a_reason_is_plain_text_for_everybody(
    reason: str, words: str, tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = published(run_folder(tmp_path / "run", genuine.BASE), reports, capsys)[genuine.BASE]
    before = tree(reports)
    code, _, err = withdraw(entry, reason, capsys)
    assert code == 2
    assert "--reason" in err
    assert words in err
    assert tree(reports) == before


def test_only_a_published_entry_is_withdrawn(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", genuine.BASE)
    for place in (tmp_path / "nothing", run / genuine.MODEL / genuine.BASE):
        code, _, err = withdraw(place, REASON, capsys)
        assert code == 2
        assert "reports/HARDWARE/MODEL/RECIPE/UTC-DIGEST" in err


def test_a_correction_names_the_entry_that_it_replaces(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = published(run_folder(tmp_path / "run", genuine.BASE), reports, capsys)[genuine.BASE]
    again = run_folder(tmp_path / "again", genuine.BASE, session="b" * 16, created_utc="2026-03-02T10:00:00Z")
    code, out, err = call(again, reports, capsys, "--replaces", str(old))
    assert (code, err) == (0, ""), out
    found = check.check_paths([reports], check.Options(fresh=True))
    assert found.problems == []
    (left,) = found.entries
    assert left.report.replaces == store.read_report(old / store.REPORT).digest


def test_who_did_not_submit_an_entry_does_not_correct_it(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", genuine.BASE)
    old = published(run, reports, capsys)[genuine.BASE]
    code = cli.main(["submit", str(run), "--reports", str(reports), "--submitter", "hubot", "--replaces", str(old)])
    assert code == 2
    assert "was submitted by octocat" in capsys.readouterr().err


def test_a_correction_without_a_counterpart_is_refused(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = published(run_folder(tmp_path / "run"), reports, capsys)
    before = tree(reports)
    for folders, words in (([genuine.INT8], "no entry of"), ([genuine.BASE, genuine.BASE], "no other entry of")):
        code, _, err = call(run_folder(tmp_path / "base", genuine.BASE), reports, capsys, "--replaces", *(str(places[one]) for one in folders))
        assert code == 2
        assert words in err
    assert tree(reports) == before


def test_a_failed_variant_is_published_as_such_only_where_it_is_asked_for(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", genuine.BASE, genuine.INT8)
    genuine.fail(run, genuine.INT8)
    code, out, _ = call(run, reports, capsys)
    assert code == 0
    assert "--failed publishes it as such" in out
    assert len(list(store.find_reports(reports))) == 1
    code, out, _ = call(run, reports, capsys, "--failed")
    assert code == 0, out
    assert "failed    in the phase build" in out
    found = check.check_paths([reports], check.Options(fresh=True))
    assert found.problems == []
    assert {one.report.status for one in found.entries} == {"complete", "failed"}


def test_a_changed_report_is_not_published_as_failed(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", genuine.BASE, genuine.INT8)
    change(run, genuine.INT8, status="failed")
    code, _, _ = call(run, reports, capsys, "--failed")
    assert code == 1
    assert tree(reports) == {}
