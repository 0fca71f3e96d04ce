"""The way of an entry from a run to a merged pull request, on a throw-away repository, by the commands that are printed and the script that CI runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from jouleboard import check, cli, maintainers, previews
from jouleboard.errors import DataFileError
from tests import factory, genuine

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".github" / "check-entries.sh"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
WHO = {f"GIT_{role}_{part}": "n@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}


def git(where: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(where), *words], check=True, capture_output=True, text=True, env={**os.environ, **WHO}).stdout


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A bare repository whose main branch has one published entry."""
    work, bare = tmp_path / "work", tmp_path / "upstream.git"
    (work / "reports").mkdir(parents=True)
    (work / "reports" / "README.md").write_text("# Published entries\n")
    genuine.publish_one(work / "reports", *genuine.entry(genuine.BASE, session="first"))
    git(tmp_path, "init", "-q", "-b", "main", str(work))
    git(work, "add", "--all")
    git(work, "commit", "-q", "-m", "one entry")
    git(tmp_path, "clone", "-q", "--bare", str(work), str(bare))
    shutil.rmtree(work)
    return bare


@pytest.fixture
def path_with_jouleboard(tmp_path: Path) -> str:
    """A path on which `jouleboard` is this working tree's."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "jouleboard"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m jouleboard "$@"\n')
    command.chmod(0o755)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def by_script(checkout: Path, out: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", str(SCRIPT), "origin/main", str(checkout), str(out)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PATH": path}, cwd=out.parent)


def test_from_a_clean_clone_and_a_run_to_a_branch_that_passes(
    upstream: Path, tmp_path: Path, path_with_jouleboard: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clone, run = tmp_path / "clone", tmp_path / "run"
    git(tmp_path, "clone", "-q", str(upstream), str(clone))
    for recipe in (genuine.BASE, genuine.INT8):
        genuine.run_entry(run / genuine.MODEL / recipe, recipe, session="mine")
    assert cli.main(["submit", str(run), "--reports", str(clone / "reports"), "--submitter", "newcomer"]) == 0
    printed = capsys.readouterr().out
    commands = "\n".join(line for line in printed.splitlines() if line.startswith("  "))
    subprocess.run(["bash", "-ec", commands], check=True, capture_output=True, env={**os.environ, **WHO})
    done = by_script(clone, tmp_path / "preview", path_with_jouleboard)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 files and entries checked, 0 problem(s)" in done.stdout
    assert (tmp_path / "preview" / "index.html").is_file()
    ranks = (tmp_path / "preview" / "ranks.md").read_text()
    assert f"| {genuine.MODEL} / {genuine.INT8} | new |" in ranks
    # It arrived upstream, as entries alone.
    branch = git(clone, "branch", "--show-current").strip()
    changed = git(upstream, "diff", "--name-only", "main", branch).splitlines()
    assert len(changed) == 6
    assert all(name.startswith("reports/") for name in changed)


def test_a_branch_that_edits_an_entry_or_brings_code_does_not_pass_and_has_no_preview(
    upstream: Path, tmp_path: Path, path_with_jouleboard: str
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(upstream), str(clone))
    report = next((clone / "reports").rglob("report.json"))
    report.write_text(report.read_text().replace('"plan": "full"', '"plan": "fast"'))
    (clone / "conftest.py").write_text("raise SystemExit\n")
    done = by_script(clone, tmp_path / "preview", path_with_jouleboard)
    assert done.returncode == 1
    assert "rule append-only" in done.stdout
    assert "rule mixed" in done.stdout
    assert not (tmp_path / "preview").exists()


def test_a_board_that_does_not_change_is_not_told_of() -> None:
    board = factory.board()
    assert previews.lines([board], [board]) == ["No rank changes."]
    told = previews.lines([], [board])
    assert sum("| new |" in line for line in told) == len(board.ranked) + len(board.unranked)
    # Ranks begin at 1 in each tier of quality, so one without the other says nothing.
    rows = tuple(msgspec.structs.replace(row, tier=tier) for row, tier in zip(board.ranked, (6, 6, None), strict=True))
    told = previews.lines([], [msgspec.structs.replace(board, ranked=rows)])
    assert [line.split(" | ")[-1] for line in told if "| new |" in line][:3] == [
        f"{rows[0].rank} (quality 0.6 to 0.7) |", f"{rows[1].rank} (quality 0.6 to 0.7) |", f"{rows[2].rank} |"]


# --- the workflows ----------------------------------------------------------------------------------------------------


def steps(workflow: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_pins_what_it_uses(path: Path) -> None:
    text, workflow = path.read_text(), yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    # YAML 1.1 reads the key `on` as true.
    assert "pull_request_target" not in workflow[True]
    assert "secrets" not in text
    assert "GITHUB_TOKEN" not in text
    for job in workflow["jobs"].values():
        assert job.get("permissions", {"contents": "read"}) == {"contents": "read"}
        assert job["timeout-minutes"] <= 120
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            assert step["uses"].startswith("actions/upload-artifact") or step["with"]["persist-credentials"] is False
        # What an event says must not become words of a shell.
        assert "${{" not in step.get("run", "")


def test_a_pull_request_with_entries_runs_the_code_of_its_base_alone() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "entries.yaml").read_text())
    (install,) = [step["run"] for step in steps(workflow) if step.get("name") == "Install"]
    assert "./base" in install
    assert "proposed" not in install
    (checked,) = [step["run"] for step in steps(workflow) if step.get("name") == "Check and preview"]
    assert "sh base/.github/check-entries.sh" in checked


def test_every_yaml_file_for_contributors_loads() -> None:
    files = [*(ROOT / ".github").rglob("*.y*ml"), ROOT / "reports" / maintainers.FILE]
    assert len(files) >= 6
    for path in files:
        assert yaml.safe_load(path.read_text()), path


def test_maintainers_are_accounts_and_nothing_else(tmp_path: Path) -> None:
    assert maintainers.read(ROOT / "reports") == frozenset()
    assert maintainers.read(tmp_path) == frozenset()
    (tmp_path / maintainers.FILE).write_text("maintainers: [octocat, hubot]\n")
    assert maintainers.read(tmp_path) == {"octocat", "hubot"}
    for text in ("maintainers: [../x]\n", "maintainers: octocat\n", "owners: []\n", "maintainers: !!python/name:os.system ''\n"):
        (tmp_path / maintainers.FILE).write_text(text)
        with pytest.raises(DataFileError):
            maintainers.read(tmp_path)
        assert [problem.file for problem in check.check_all(tmp_path).problems] == [str(tmp_path / maintainers.FILE)]


@pytest.mark.parametrize("name", ["PULL_REQUEST_TEMPLATE.md", "CODEOWNERS", "ISSUE_TEMPLATE/entry.yaml", "ISSUE_TEMPLATE/bug.yaml"])
def test_a_contributor_finds_templates(name: str) -> None:
    assert (ROOT / ".github" / name).read_text().strip()
