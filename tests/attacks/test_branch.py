"""What a branch may not do: change or remove published entries, bring code with entries, bring too much; and what it may."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jouleboard import branch, check, cli, store
from tests import genuine
from tests.attacks import entry


def git(where: Path, *words: str) -> str:
    who = {f"GIT_{role}_{part}": "n@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    return subprocess.run(["git", "-C", str(where), "-c", "core.autocrlf=false", *words], check=True, capture_output=True, text=True,
                          env={**os.environ, **who}).stdout


@pytest.fixture
def checkout(tmp_path: Path, copied) -> Path:
    """A repository with one published entry, on a branch."""
    copied()
    (tmp_path / "reports" / "README.md").write_text("# Published entries\n")
    (tmp_path / "tox.ini").write_text("[tox]\n")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "-q", "-m", "one entry")
    git(tmp_path, "switch", "-q", "-c", "mine")
    return tmp_path


def published(checkout: Path) -> Path:
    return next(store.find_reports(checkout / "reports")).parent


def codes(checkout: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    code = cli.main(["check", "--base", "main", "--json", str(checkout)])
    found = json.loads(capsys.readouterr().out)
    assert code == (1 if found["problems"] else 0)
    return {problem["code"] for problem in found["problems"]}


def add_int8(checkout: Path) -> Path:
    return genuine.publish_one(checkout / "reports", *genuine.entry(genuine.INT8))


@pytest.mark.parametrize("state", ["committed", "not committed"])
def test_a_branch_that_adds_an_entry_passes_and_only_that_one_is_checked(state: str, checkout: Path, capsys) -> None:
    add_int8(checkout)
    if state == "committed":
        git(checkout, "add", "--all")
        git(checkout, "commit", "-q", "-m", "another entry")
    assert cli.main(["check", "--base", "main", str(checkout)]) == 0
    assert "1 files and entries checked, 0 problem(s)" in capsys.readouterr().out


def test_a_branch_without_entries_is_not_looked_at(checkout: Path, capsys) -> None:
    (checkout / "tox.ini").write_text("[tox]\nmin_version = 4\n")
    assert codes(checkout, capsys) == set()


def test_what_main_did_meanwhile_is_not_the_branch_s(checkout: Path, capsys) -> None:
    git(checkout, "switch", "-q", "main")
    (checkout / "new.py").write_text("pass\n")
    git(checkout, "add", "--all")
    git(checkout, "commit", "-q", "-m", "code")
    git(checkout, "switch", "-q", "mine")
    add_int8(checkout)
    assert codes(checkout, capsys) == set()


def edit(checkout: Path) -> None:
    found = entry.read(published(checkout))
    found.raw["plan"] = "quick"
    entry.seal(found, move=False)


def replace_whole(checkout: Path) -> None:
    found = entry.read(published(checkout))
    found.raw["plan"] = "quick"
    entry.seal(found)


def remove(checkout: Path) -> None:
    shutil.rmtree(published(checkout))


def edit_trace(checkout: Path) -> None:
    path = published(checkout) / store.TRACE
    path.write_bytes(path.read_bytes() + b"\0")


def execute(checkout: Path) -> None:
    (published(checkout) / store.REPORT).chmod(0o755)


def to_link(checkout: Path) -> None:
    path = published(checkout) / store.REPORT
    path.unlink()
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("change", [edit, replace_whole, remove, edit_trace, execute, to_link])
def test_a_published_entry_is_never_changed(change: Callable[[Path], None], checkout: Path, capsys) -> None:
    change(checkout)
    assert "append-only" in codes(checkout, capsys)


def code_too(checkout: Path) -> None:
    add_int8(checkout)
    (checkout / "tox.ini").write_text("[tox]\nmin_version = 4\n")


def workflow_too(checkout: Path) -> None:
    add_int8(checkout)
    (checkout / ".github" / "workflows").mkdir(parents=True)
    (checkout / ".github" / "workflows" / "own.yaml").write_text("on: push\n")


def declaration_too(checkout: Path) -> None:
    add_int8(checkout)
    (checkout / "hardware").mkdir()
    (checkout / "hardware" / "mine.yaml").write_text("id: mine\n")


def readme_too(checkout: Path) -> None:
    add_int8(checkout)
    (checkout / "reports" / "README.md").write_text("# Mine\n")


@pytest.mark.parametrize("change", [code_too, workflow_too, declaration_too, readme_too])
def test_entries_do_not_come_with_anything_else(change: Callable[[Path], None], checkout: Path, capsys) -> None:
    change(checkout)
    assert codes(checkout, capsys) == {"mixed"}


def yaml(checkout: Path) -> None:
    (checkout / "reports" / "entry.yaml").write_text("a: 1\n")


def link(checkout: Path) -> None:
    (checkout / "reports" / "nvidia-h100-sxm-80gb" / "a").symlink_to("/")


def into_a_published_one(checkout: Path) -> None:
    (published(checkout) / "weights.pkl").write_bytes(b"")


def twin(checkout: Path) -> None:
    shutil.copytree(published(checkout).parent, published(checkout).parent.with_name("BF16"))


def copy_of_a_published_one(checkout: Path) -> None:
    source = published(checkout)
    copied = source.with_name("20260401t000000z-00000000")
    shutil.copytree(source, copied)
    found = entry.read(copied)
    found.raw.update(submitter="mallory", created_utc="2026-04-01T00:00:00Z", session="1" * 64)
    found.window("trial-3")["cpu_s"] += 0.1
    entry.seal(found)


@pytest.mark.parametrize(("change", "code"), [
    (yaml, "stray-file"), (link, "symlink"), (into_a_published_one, "stray-file"), (twin, "case-twin"), (copy_of_a_published_one, "copied"),
])
def test_what_is_added_is_held_against_what_is_there(change: Callable[[Path], None], code: str, checkout: Path, capsys) -> None:
    change(checkout)
    assert code in codes(checkout, capsys)


def test_too_many_entries_at_once_are_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(branch, "MAX_ENTRIES", 1)
    add_int8(checkout)
    genuine.publish_one(checkout / "reports", *genuine.entry(genuine.INT8, session="two"))
    assert codes(checkout, capsys) == {"branch-size"}


def test_a_withdrawal_beside_a_published_entry_passes_and_takes_it_off_the_boards(checkout: Path, capsys) -> None:
    folder = published(checkout)
    digest = store.read_report(folder / store.REPORT).digest
    folder.with_name(f"{folder.name}.withdrawn.json").write_text(json.dumps({
        "format": "jouleboard-withdrawal", "digest": digest, "withdrawn_utc": "2026-04-01T00:00:00Z",
        "reason": "The board was not alone in its machine."}))
    assert codes(checkout, capsys) == set()
    found = check.load_entries(checkout / "reports")
    assert (found.problems, found.entries, len(found.set_aside)) == ([], [], 1)


def test_a_correction_takes_the_place_of_what_it_names(checkout: Path, capsys) -> None:
    source = published(checkout)
    copied = source.with_name("20260401t000000z-00000000")
    shutil.copytree(source, copied)
    found = entry.read(copied)
    found.raw.update(replaces=store.read_report(source / store.REPORT).digest, created_utc="2026-04-01T00:00:00Z")
    entry.seal(found)
    assert codes(checkout, capsys) == set()
    loaded = check.load_entries(checkout / "reports")
    assert [one.report.replaces is not None for one in loaded.entries] == [True]
    assert [one.report.replaces for one in loaded.set_aside] == [None]


@pytest.mark.parametrize("base", ["no-such-branch", "--output=/tmp/x"])
def test_a_base_that_is_none_is_named(base: str, checkout: Path, capsys) -> None:
    assert cli.main(["check", f"--base={base}", str(checkout)]) == 2
    assert "--base" in capsys.readouterr().err


def test_hooks_and_filters_of_the_branch_are_not_run(checkout: Path, capsys) -> None:
    (checkout / ".git" / "hooks" / "post-index-change").write_text(f"#!/bin/sh\ntouch {checkout}/ran\n")
    (checkout / ".git" / "hooks" / "post-index-change").chmod(0o755)
    (checkout / ".gitattributes").write_text("*.json diff=evil\n")
    git(checkout, "config", "diff.evil.command", f"touch {checkout}/ran")
    git(checkout, "config", "diff.external", f"touch {checkout}/ran")
    git(checkout, "config", "core.fsmonitor", f"touch {checkout}/ran")
    assert codes(checkout, capsys) == set()
    assert not (checkout / "ran").exists()
