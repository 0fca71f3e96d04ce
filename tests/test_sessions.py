"""Several runs in one folder: entries end in one session, items stand beside the energy of their own weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from jouleboard import energy, quality, run, store
from jouleboard.errors import UnitError
from jouleboard.plan import Family
from jouleboard.recipes import Recipe
from jouleboard.records import Report
from jouleboard.runfolder import RunFolder
from jouleboard.session import Session
from jouleboard.sessionfile import Residency, SessionState
from jouleboard.traces import HEADER
from tests import fake_session
from tests.fake_session import FakeWorker, complete, family_of, session_of

INT8, DROP = "int8-weight-only", "kv-int8"


@pytest.fixture(scope="module")
def family() -> Family:
    return family_of()


def reports(root: Path, family: Family) -> dict[str, Report]:
    folder = RunFolder(root, family)
    return {recipe.id: store.read_report(folder.entry(recipe) / store.REPORT) for recipe in family.recipes}


def damage(root: Path, family: Family, place: int) -> None:
    """Leave an entry without its measurements."""
    store.write_lines(RunFolder(root, family).entry(family.recipes[place]) / store.TRACE, [HEADER, b"trial-0,0,9.9,,,,,,,,"])


def again(family: Family, root: Path, residency: Residency, *, broken: str | None = None) -> tuple[Session, list[Any]]:
    """Run once more in a folder whose variants are scored; `broken` names one whose build fails."""
    asked: list[Any] = []
    session = session_of(family, root, asked=asked, residency="pair")
    real = session.workforce.start

    def start(name: str, log: Path, **more: Any) -> Any:
        worker = real(name, log, **more)
        if name == broken:
            worker._stop = die
        return worker

    session.workforce.start = start
    run._phases(session, residency)
    return session, asked


def die(_window: str) -> None:
    raise UnitError("it died", kind="crash")


def measured(asked: list[Any]) -> list[str]:
    return [name for _, name, _ in asked if name != "build"]


# --- one session ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residency", ["all", "pair"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_kill_anywhere_while_entries_are_completed_is_mended_without_a_new_measurement(
    number: int, residency: Residency, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(session_of(family, tmp_path))
    damage(tmp_path, family, 1)
    second = session_of(family, tmp_path, residency=residency)
    left = [number]
    real = RunFolder.write

    def write(self: RunFolder, *args: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        real(self, *args)

    monkeypatch.setattr(RunFolder, "write", write)
    monkeypatch.setattr(second.folder.session, "remove", lambda: None)
    try:
        complete(second)
    except KeyboardInterrupt:
        assert number < 4
    monkeypatch.undo()
    name = second.begun.name
    there = [one.session for one in reports(tmp_path, family).values()]
    assert there.count(name) == number - 1
    found = RunFolder(tmp_path, family).existing()
    assert all(state.complete for state in found.values()) == (number == 4), "what is of two sessions passes for complete"
    if number < 4:
        _, asked = again(family, tmp_path, residency)
        assert measured(asked) == [], "what was measured was measured again"
    ended = reports(tmp_path, family).values()
    assert {(one.status, one.session) for one in ended} == {("complete", name)}
    assert {len(one.trials) for one in ended} <= {4, 8}


def test_a_variant_whose_rebuild_failed_is_not_complete_without_its_base_and_joins_the_next_session(
    family: Family, tmp_path: Path
) -> None:
    first = complete(session_of(family, tmp_path)).name
    damage(tmp_path, family, 2)
    session, _ = again(family, tmp_path, "all", broken=INT8)
    there = reports(tmp_path, family)
    assert (there[INT8].session, there["bf16"].session == there[DROP].session) == (first, True)
    assert there["bf16"].session != first
    assert not session.state[INT8].complete, "it has no base any more"
    assert "another session" in session.display.stream.getvalue()
    assert not RunFolder(tmp_path, family).existing()[INT8].complete
    again(family, tmp_path, "all")
    ended = reports(tmp_path, family).values()
    assert {one.status for one in ended} == {"complete"}
    assert len({one.session for one in ended}) == 1


# --- a variant that failed in a session -------------------------------------------------------------------------------


def cut(family: Family, root: Path, residency: Residency = "all") -> SessionState:
    """Let a variant die at its first trial, and the run be ended in the last one of the others."""
    def stop(name: str) -> None:
        if name == "live":
            raise KeyboardInterrupt

    session = session_of(family, root, stop=stop, residency=residency)
    session.workers[INT8] = FakeWorker(INT8, [], die)
    with pytest.raises(KeyboardInterrupt):
        complete(session)
    return session.begun


def test_a_variant_that_failed_in_a_session_stays_out_of_its_later_pieces(family: Family, tmp_path: Path) -> None:
    first = cut(family, tmp_path)
    assert first.failed == (INT8,)
    session, asked = again(family, tmp_path, "all")
    assert not [name for who, name, _ in asked if who == INT8 and name != "build"], "late trials that nothing brackets"
    assert f"{INT8} failed in this session of trials" in session.display.stream.getvalue()
    there = reports(tmp_path, family)
    assert {name: report.status for name, report in there.items()} == {
        "bf16": "complete", INT8: "failed", DROP: "complete"}
    assert there["bf16"].session == first.name
    assert not session.state[INT8].complete
    again(family, tmp_path, "all")
    ended = reports(tmp_path, family).values()
    assert {one.status for one in ended} == {"complete"}
    assert len({one.session for one in ended} | {first.name}) == 2


def test_a_variant_that_fails_between_two_pieces_stays_out_of_the_third(family: Family, tmp_path: Path) -> None:
    def at(window: str) -> Callable[[str], None]:
        def stop(name: str) -> None:
            if name == window:
                raise KeyboardInterrupt
        return stop

    with pytest.raises(KeyboardInterrupt):
        complete(session_of(family, tmp_path, stop=at("trial-4")))
    second = session_of(family, tmp_path, stop=at("trial-10"))
    second.fail(family.recipes[1], "build", UnitError("it died"))
    with pytest.raises(KeyboardInterrupt):
        complete(second)
    session, asked = again(family, tmp_path, "all")
    assert not [name for who, name, _ in asked if who == INT8 and name != "build"]
    assert not session.state[INT8].complete


@pytest.mark.parametrize("retried", [False, True])
def test_what_was_measured_of_a_variant_that_failed_later_is_in_its_entry(*, retried: bool, family: Family, tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name == "live":
            raise KeyboardInterrupt

    first = session_of(family, tmp_path, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        complete(first)
    trials = first.begun.held[INT8].trials
    assert trials
    if retried:
        # It failed in a piece that was ended too, and is scored again in the one that completes the session.
        second = session_of(family, tmp_path, stop=stop)
        second.fail(family.recipes[1], "build", UnitError("it died"))
        with pytest.raises(KeyboardInterrupt):
            complete(second)
    again(family, tmp_path, "all", broken=None if retried else INT8)
    there = reports(tmp_path, family)
    assert there["bf16"].status == "complete"
    assert there[INT8].status == "failed"
    assert [replace(one, void=None) for one in there[INT8].trials] == [replace(one, void=None) for one in trials]
    assert there[INT8].session == first.begun.name


def test_in_pairs_a_variant_that_failed_in_its_turn_is_not_built_for_it_again(family: Family, tmp_path: Path) -> None:
    session = session_of(family, tmp_path, residency="pair")
    real = session.workforce.start

    def start(name: str, log: Path, **more: Any) -> Any:
        worker = real(name, log, **more)
        if name == INT8:
            worker._stop = lambda window: die(window) if window != "build" else None
        if name == DROP:
            worker._stop = interrupt
        return worker

    def interrupt(window: str) -> None:
        if window != "build":
            raise KeyboardInterrupt

    session.workforce.start = start
    with pytest.raises(KeyboardInterrupt):
        complete(session)
    later, asked = again(family, tmp_path, "pair")
    assert INT8 not in [who for who, _, _ in asked]
    assert later.state[DROP].complete
    assert not later.state[INT8].complete


def test_a_session_that_cannot_complete_what_is_missing_is_not_gone_on_with(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was killed after the last entry of the others and before the session was put away."""
    first = cut(family, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("jouleboard.sessionfile.SessionFile.remove", lambda _self: None)
        again(family, tmp_path, "all")
    again(family, tmp_path, "all")
    ended = reports(tmp_path, family).values()
    assert {one.status for one in ended} == {"complete"}
    assert first.name not in {one.session for one in ended}


def test_the_base_stays_in_the_session_that_it_failed_in(family: Family, tmp_path: Path) -> None:
    """Nothing is measured without it, so what is left is measured beside it."""
    session = session_of(family, tmp_path)
    session.workers["bf16"] = FakeWorker("bf16", [], die)
    energy.idle(session, "before", context=False)
    assert not energy.measure(session)
    name = session.begun.name
    again(family, tmp_path, "all")
    assert {(one.status, one.session) for one in reports(tmp_path, family).values()} == {("complete", name)}


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which variants are scored, and let them be."""
    found: list[str] = []

    def score(session: Session, chosen: list[Recipe]) -> None:
        for recipe in chosen:
            state = session.state[recipe.id]
            if state.quality_done or recipe not in session.alive:
                continue
            assert state.results == [], "results of other weights"
            found.append(recipe.id)
            fake_session.scored(session, recipe)

    monkeypatch.setattr(quality, "run", score)
    return found


def other_weights(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = fake_session.built
    monkeypatch.setattr(fake_session, "built", lambda recipe: real(recipe, "other" if recipe in names else None))


@pytest.mark.parametrize("residency", ["all", "pair"])
@pytest.mark.parametrize("name", ["bf16", INT8, DROP])
def test_a_variant_that_comes_out_as_other_weights_is_scored_again_before_it_is_measured(
    name: str, residency: Residency, scored: list[str], family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(session_of(family, tmp_path, residency=residency))
    damage(tmp_path, family, 2)
    other_weights(monkeypatch, name)
    session, _ = again(family, tmp_path, residency)
    assert scored == [name]
    assert "scored again" in session.display.stream.getvalue()
    there = reports(tmp_path, family)
    assert {one.status for one in there.values()} == {"complete"}
    assert there[name].realised.weights_sha256 == fake_session.built(name).realised.weights_sha256
    again(family, tmp_path, residency)
    assert scored == [name], "the same weights are not scored twice"


def test_a_turn_that_was_measured_with_other_weights_than_were_scored_is_not_taken_over(
    scored: list[str], family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of the new weights were not written: a complete entry of the former ones was in their place."""
    complete(session_of(family, tmp_path, residency="pair"))
    damage(tmp_path, family, 2)
    other_weights(monkeypatch, INT8)

    def at_drop(name: str, log: Path, **more: Any) -> Any:
        if name == DROP:
            raise KeyboardInterrupt
        return real(name, log, **more)

    session = session_of(family, tmp_path, residency="pair")
    real = session.workforce.start
    session.workforce.start = at_drop
    with pytest.raises(KeyboardInterrupt):
        complete(session)
    assert session.begun.held[INT8].probes
    assert scored == [INT8]
    again(family, tmp_path, "pair")
    assert scored == [INT8, INT8]
    assert {one.status for one in reports(tmp_path, family).values()} == {"complete"}
