"""A run as it was really measured passes the rules of a run, and in its public form those for new entries."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from jouleboard import check, check_text, publicform, store
from jouleboard.check import Options
from jouleboard.records import PUBLISHED_RULES, Report
from tests import genuine

MEASURED = Path(__file__).parent / "data" / "format-2"
"""Two entries of a small plan on a machine without a sensor, as `jouleboard run` wrote them under rules 2."""


def public(folder: Path, tmp_path: Path, submitter: str = "octocat") -> Path:
    """Put an entry in its place in its public form."""
    made = publicform.make(folder, store.read_report(folder / store.REPORT), submitter=submitter, root=folder)
    sealed = publicform.write(tmp_path / "new", made)
    target = genuine.place(tmp_path / "reports", sealed)
    target.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "new").rename(target)
    return target


def test_entries_that_were_measured_under_rules_2_pass_as_they_are() -> None:
    found = check.check_paths([MEASURED])
    assert found.problems == []
    assert {entry.report.rules_version for entry in found.entries} == {2}
    assert {entry.report.merkle_root for entry in found.entries} == {None}
    assert {entry.unheld for entry in found.entries} == {()}, "every task of theirs has a manifest"


def test_in_their_public_form_they_pass_as_new_entries(tmp_path: Path) -> None:
    for folder in sorted(MEASURED.iterdir()):
        public(folder, tmp_path)
    found = check.check_paths([tmp_path / "reports"], Options(fresh=True))
    assert found.problems == []
    assert {entry.report.rules_version for entry in found.entries} == {PUBLISHED_RULES}


@pytest.mark.parametrize("name", ["bf16", "ctranslate2-int8"])
def test_the_public_form_changes_no_figure(name: str, tmp_path: Path) -> None:
    before = store.read_report(MEASURED / name / store.REPORT)
    after = store.read_report(public(MEASURED / name, tmp_path) / store.REPORT)
    added = {"rules_version", "digest", "merkle_root", "submitter"}
    assert [field for field in Report.__struct_fields__ if getattr(before, field) != getattr(after, field)] == [
        field for field in Report.__struct_fields__ if field in added]


def test_the_public_form_of_the_public_form_is_the_same(tmp_path: Path) -> None:
    first = public(MEASURED / "bf16", tmp_path)
    (tmp_path / "again").mkdir()
    assert (public(first, tmp_path / "again") / store.REPORT).read_bytes() == (first / store.REPORT).read_bytes()


@pytest.mark.parametrize(("text", "code"), [
    ("in /home/alice/x", "private"), ("at C:\\Users\\alice", "private"), ("alice@example.org", "private"), ("node 10.0.0.7", "private"),
    ("~/secret", "private"), ("a <b>", "text-markup"), ("ftp://x", "link"), ("JavaScript:alert(1)", "link"), ("x\u2066y", "text-control"),
    ("plain, with https://example.org/a and 3/4 of it", None), ("lm-eval 0.4.13", None), ("a < b and b > a", None), ("75 % (18 to 29)", None),
])
def test_what_a_text_may_hold(text: str, code: str | None) -> None:
    assert [found for found, _ in check_text.wrong("environment.platform", text)] == ([] if code is None else [code])


@pytest.mark.parametrize("text", ["Traceback:\n\tFile \"<string>\", line 1\n<class 'int'>", "cost <= 3 and <pad> tokens"])
def test_a_log_may_hold_what_programs_print(text: str) -> None:
    assert list(check_text.wrong("failure.log_tail", text)) == []
    assert list(check_text.wrong("model_title", text))


def test_a_reason_in_a_gate_follows_from_a_window_that_was_cleaned(tmp_path: Path) -> None:
    """What a window says is quoted by a gate, so both are cleaned or neither passes."""
    report, own, rows = genuine.entry()
    void = "device-lost: /home/alice/driver.log says so"
    trials = list(report.trials)
    window = msgspec.structs.replace(trials[1].window, void=void, energy=msgspec.structs.replace(
        trials[1].window.energy, measured_j=None, domains_j={}, integral_j=None))
    trials[1] = msgspec.structs.replace(trials[1], window=window)
    report = msgspec.structs.replace(report, trials=tuple(trials))
    genuine.seal(tmp_path / "run", report, own, [row for row in rows if row.window != "trial-3"])
    folder = public(tmp_path / "run", tmp_path)
    found = check.check_paths([tmp_path / "reports"], Options(fresh=True))
    assert found.problems == []
    assert b"alice" not in (folder / store.REPORT).read_bytes()
    assert "device-lost: PATH says so" in {trial.void for trial in found.entries[0].report.trials}
