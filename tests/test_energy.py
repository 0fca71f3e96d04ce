"""A session of trials: its order, what every window is asked for, and that a stop at any point loses no closed window."""

from __future__ import annotations

import datetime as dt
import errno
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import energy, plan, protocol, sessionfile, store, trials
from jouleboard.declared import Band, Figure
from jouleboard.errors import MeterError, OutOfTimeError, StorageError, TooLargeError, UnitError
from jouleboard.plan import Family
from jouleboard.session import MARGIN_S
from jouleboard.sessionfile import Residency, SessionState
from tests.fake_session import PLAN, TASKS, FakeMeter, FakeWorker, complete, family_of, session_of


@pytest.fixture
def family() -> Family:
    return family_of()


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_every_cell_is_asked_for_with_its_lengths_and_the_first_turn_warms_up_longer(family: Family, tmp_path: Path) -> None:
    asked: list[Any] = []
    record = complete(session_of(family, tmp_path, asked=asked))
    turns = [(who, request) for who, name, request in asked if name.startswith("trial-")]
    assert [who for who, _ in turns] == [slot.recipe for slot in record.order]
    served = [request for _, request in turns if isinstance(request, protocol.Serve)]
    assert {(one.prompt_tokens, one.output_tokens, one.batch) for one in served} == {(1500, 40, 2)}
    assert len([one for _, one in turns if isinstance(one, protocol.Replay)]) == len(served) == 6
    for recipe in family.recipes:
        waits = [request.warmup_s for who, request in turns if who == recipe.id]
        assert waits == [3.0, 1.0, 1.0, 1.0]


def test_counts_of_a_trial_are_those_of_all_its_loops(family: Family, tmp_path: Path) -> None:
    record = complete(session_of(family, tmp_path))
    served = next(one for one in record.held["bf16"].trials if one.workload == "agent")
    assert (served.batch, served.loops, served.requests) == (2, 3, 6)
    assert (served.prompt_tokens, served.output_tokens, served.fed_tokens) == (9000, 240, 3 * 2 * 1539)
    replayed = next(one for one in record.held["bf16"].trials if one.workload == "replay")
    # Two batches hold the ten tokens that the plan wants; the shorter row is padded by one token.
    assert (replayed.requests, replayed.prompt_tokens, replayed.output_tokens) == (18, 30, 18)
    assert (replayed.fed_tokens, replayed.computed_tokens) == (30, 36)


def test_a_session_has_idle_with_and_without_context_a_canary_a_live_eval_and_probes(family: Family, tmp_path: Path) -> None:
    session = session_of(family, tmp_path)
    record = complete(session)
    assert [(one.when, one.context) for one in record.idle] == [
        ("before", False), ("before", True), ("after", True), ("after", False)]
    assert [one.when for one in record.canary] == ["before", "after"]
    for held in record.held.values():
        assert held.live is not None
        assert held.live.workload == "live"
        assert [(one.kind, one.batch, one.loops) for one in held.probes] == [
            ("prefill", 1, 3), ("prefill", 1, 3), ("decode", 1, 3), ("decode", 4, 3)]
        assert [(one.kind, one.batch, one.reason) for one in held.skipped_probes] == [("prefill", 64, "64 do not fit")] * 2
        assert held.peak_memory_bytes == 9
    assert all(worker.closed for worker in session.workers.values())


def test_a_window_whose_sensor_failed_is_kept_without_joules_and_keeps_its_cpu_time_and_scores(
    family: Family, tmp_path: Path
) -> None:
    meter = FakeMeter()

    def stop(name: str) -> None:
        meter.broken = "device-lost: the GPU fell off the bus" if name in {"trial-2", "trial-3", "trial-7"} else None

    session = session_of(family, tmp_path, meter=meter, stop=stop)
    complete(session)
    void = []
    for recipe in family.recipes:
        report = store.read_report(session.folder.entry(recipe) / store.REPORT)
        assert report.status == "complete"
        assert report.tasks[0].scores["acc"] is not None
        void += [trial for trial in report.trials if trial.window.void is not None]
    assert sorted(trial.order for trial in void) == [2, 3, 7]
    for trial in void:
        assert trial.void is not None
        assert trial.void.startswith("device-lost")
        assert trial.window.energy.measured_j is None
        assert trial.window.energy.domains_j == {}
        assert trial.window.duration_s > 0


# --- stops ------------------------------------------------------------------------------------------------------------


def windows(record: SessionState) -> list[tuple[str, str]]:
    found = [("session", one.window.name) for one in (*record.idle, *record.canary)]
    for recipe, held in record.held.items():
        found += [(recipe, one.window.name) for one in (*held.trials, *held.probes, *([held.live] if held.live else ()))]
    return found


@pytest.mark.parametrize("kind", ["interrupted", "out of time"])
def test_a_stop_in_any_window_loses_that_window_and_no_other(kind: str, family: Family, tmp_path: Path) -> None:
    whole = complete(session_of(family, tmp_path / "whole"))
    total = len(windows(whole))
    asked: list[Any] = []
    for number in range(1, 36, 3):
        def stop(name: str, left: list[int] = [number]) -> None:  # noqa: B006 - a counter for this turn
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt if kind == "interrupted" else OutOfTimeError(f"no time for {name}")

        session = session_of(family, tmp_path / "cut", asked=asked, stop=stop)
        with pytest.raises((KeyboardInterrupt, OutOfTimeError)):
            complete(session)
        kept = session.folder.session.read()
        assert kept is not None
        assert kept.pieces >= 1
        for recipe, window in windows(kept):
            assert session.folder.session.traces(recipe, [window]), "a window is listed before its trace is there"
        if total - len(windows(kept)) < number + 8:
            break
    record = complete(session_of(family, tmp_path / "cut", asked=asked))
    assert sorted(windows(record)) == sorted(windows(whole))
    assert record.pieces > 3
    measured = Counter((who, name) for who, name, _ in asked)
    assert set(measured.values()) == {1}, "a window that was closed was measured again"
    pieces = [trial.piece for held in record.held.values() for trial in held.trials]
    assert len(set(pieces)) > 1


@pytest.mark.parametrize("residency", ["all", "pair"])
def test_a_disk_that_is_full_at_any_moment_fails_no_variant_and_the_session_goes_on(
    residency: Residency, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = complete(session_of(family, tmp_path / "whole", residency=residency))
    real, asked = os.fsync, []
    stopped = 0
    for number in range(1, 400, 13):
        session = session_of(family, tmp_path / "cut", asked=asked, residency=residency)

        def full(handle: int, left: list[int] = [number]) -> None:  # noqa: B006 - a counter for this turn
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                complete(session)
                error = None
            except StorageError as caught:
                error = caught
        assert [state.failure for state in session.state.values()] == [None] * 3
        if error is None:
            break
        stopped += 1
        assert "No space left on device" in error.problem
        assert not list((tmp_path / "cut").rglob("*.tmp"))
        for path in (tmp_path / "cut").rglob(store.REPORT):
            if not path.parent.name.startswith("."):
                store.read_report(path)
    assert stopped > 3
    record = session.record
    assert record is not None
    assert {name: len(held.trials) for name, held in record.held.items()} == {
        name: len(held.trials) for name, held in whole.held.items()}
    assert all(state.complete for state in session.state.values())


def test_entries_of_a_session_in_pieces_pass_the_check_of_their_files(family: Family, tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name == "trial-7":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(session_of(family, tmp_path, stop=stop))
    session = session_of(family, tmp_path)
    complete(session)
    reports = [store.read_report(session.folder.entry(recipe) / store.REPORT) for recipe in family.recipes]
    assert len({report.session for report in reports}) == 1
    assert all(report.status == "complete" and len(report.trials) == 4 for report in reports)
    assert session.folder.session.read() is None, "a complete session goes on no more"


@pytest.mark.parametrize(("change", "why"), [
    ({"boot": "0" * 16}, "started again"),
    ({"device": "0" * 16}, "device is another one"),
    ({"began_utc": "2020-01-01T00:00:00+00:00"}, "hours ago"),
    ({"began_utc": "2100-01-01T00:00:00+00:00"}, "hours ago"),
    ({"replay_sha256": "0" * 64}, "batches"),
    ({"configurations": {"bf16": "0" * 64}}, "variants"),
])
def test_a_session_of_other_circumstances_begins_anew(
    change: dict[str, Any], why: str, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(name: str) -> None:
        if name == "trial-2":
            raise KeyboardInterrupt

    first = session_of(family, tmp_path, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        complete(first)
    there = first.folder.session.read()
    assert there is not None
    first.folder.session.write(msgspec.structs.replace(there, **change))
    monkeypatch.setattr(energy, "device", lambda _session: "1" * 16)
    second = session_of(family, tmp_path)
    record = complete(second)
    assert record.name != there.name
    assert record.pieces == 1
    assert "measured before is measured again, since" in second.display.stream.getvalue()
    assert why in second.display.stream.getvalue()
    assert [(one.when, one.context) for one in record.idle] == [
        ("before", False), ("before", True), ("after", True), ("after", False)]


def test_a_session_that_cannot_be_read_begins_anew(family: Family, tmp_path: Path) -> None:
    session = session_of(family, tmp_path)
    store.write_atomic(session.folder.root / ".work" / family.model.id / "session.json", b'{"name": 7}')
    assert complete(session).pieces == 1


def test_a_variant_that_fails_in_a_trial_is_left_out_and_the_others_go_on(family: Family, tmp_path: Path) -> None:
    session = session_of(family, tmp_path)

    def die(name: str) -> None:
        raise UnitError("it died")

    session.workers["int8-weight-only"] = FakeWorker("int8-weight-only", [], die)
    record = complete(session)
    assert "int8-weight-only" not in record.held
    assert len(record.held["kv-int8"].trials) == 4
    failed = store.read_report(session.folder.entry(family.recipes[1]) / store.REPORT)
    assert (failed.status, failed.tasks[0].task) == ("failed", TASKS[0])


# --- waits ------------------------------------------------------------------------------------------------------------


def test_a_window_waits_until_the_device_is_in_its_band(family: Family, tmp_path: Path, monkeypatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(trials.time, "sleep", slept.append)
    meter = FakeMeter(temperatures=(90.0, 80.0, 50.0, 40.0))
    session = session_of(family, tmp_path, meter=meter)
    band = Band(low=20, high=60, source="invented")
    session.family = plan.Family(**{
        name: getattr(family, name) for name in ("plan", "model", "recipes", "tasks", "workloads")
    }, hardware=msgspec.structs.replace(family.hardware, start_temperature_c=band))
    trials.settle(session, msgspec.structs.replace(PLAN, settle_s=60, jitter_s=0))
    assert slept == [trials.SETTLE_EVERY_S] * 2 + [0.0]


def test_a_wait_for_the_band_has_an_end(family: Family, tmp_path: Path, monkeypatch) -> None:
    meter = FakeMeter(temperatures=(90.0,) * 1000)
    session = session_of(family, tmp_path, meter=meter)
    session.family = plan.Family(**{
        name: getattr(family, name) for name in ("plan", "model", "recipes", "tasks", "workloads")
    }, hardware=msgspec.structs.replace(family.hardware, start_temperature_c=Band(low=1, high=2, source="invented")))
    monkeypatch.setattr(trials, "SETTLE_EVERY_S", 0.01)
    trials.settle(session, msgspec.structs.replace(PLAN, settle_s=0.05))


def test_starts_are_jittered_within_the_declared_time(family: Family, tmp_path: Path, monkeypatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(trials.time, "sleep", slept.append)
    for _ in range(200):
        trials.settle(session_of(family, tmp_path), msgspec.structs.replace(PLAN, jitter_s=0.5))
        if len(slept) == 20:
            break
    assert len(set(slept)) > 10
    assert all(0 <= one <= 0.5 for one in slept)


def test_a_piece_ends_before_a_step_that_does_not_fit(family: Family, tmp_path: Path) -> None:
    session = session_of(family, tmp_path)
    session.deadline_s = time.monotonic() + MARGIN_S + 5
    session.require_time(1, "a step")
    with pytest.raises(OutOfTimeError, match="a long step needs about 60 s"):
        session.require_time(60, "a long step")
    session.deadline_s = None
    session.require_time(1e9, "anything")


def test_why_a_session_cannot_go_on_is_none_for_its_own_circumstances(family: Family, tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name == "trial-1":
            raise KeyboardInterrupt

    session = session_of(family, tmp_path, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        complete(session)
    there = session.folder.session.read()
    assert there is not None
    same = {"configurations": there.configurations, "replay_sha256": there.replay_sha256}
    assert sessionfile.why_not(there, **same) is None
    assert sessionfile.stale(there, device=None, now=dt.datetime.now(dt.UTC)) is None
    # A device that does not answer now, or did not then, is not thereby another one.
    assert sessionfile.stale(msgspec.structs.replace(there, device="0" * 16), device=None, now=dt.datetime.now(dt.UTC)) is None
    assert sessionfile.stale(there, device="0" * 16, now=dt.datetime.now(dt.UTC)) is None
    # A variant that failed meanwhile leaves the others what they are, and so does one that joins too late.
    fewer = {"bf16": there.configurations["bf16"]}
    assert sessionfile.why_not(there, **(same | {"configurations": fewer})) is None
    assert sessionfile.why_not(there, **(same | {"configurations": {**fewer, "new": "0" * 64}})) is None
    assert sessionfile.why_not(there, **(same | {"configurations": {"bf16": "0" * 64}})) is not None


def test_variants_that_come_out_otherwise_when_built_anew_are_measured_anew(family: Family, tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name == "trial-5":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(session_of(family, tmp_path, stop=stop))
    second = session_of(family, tmp_path)
    built = second.state["bf16"].built
    other = msgspec.structs.replace(built.realised, weights_sha256="0" * 64)
    second.state["bf16"].built = msgspec.structs.replace(built, realised=other)
    assert complete(second).pieces == 1
    assert "variants are others" in second.display.stream.getvalue()


def test_a_variant_that_joins_too_late_keeps_its_scores_and_is_said(family: Family, tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name == "trial-5":
            raise KeyboardInterrupt

    first = session_of(family, tmp_path, stop=stop)
    first.fail(family.recipes[2], "build", UnitError("it died"))
    with pytest.raises(KeyboardInterrupt):
        complete(first)
    second = session_of(family, tmp_path)
    record = complete(second)
    assert record.pieces == 2
    assert "kv-int8 came too late" in second.display.stream.getvalue()
    assert second.state["bf16"].complete
    assert not second.state["kv-int8"].complete


def test_a_cell_that_does_not_fit_is_left_out_and_the_others_are_measured(family: Family, tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name in {"trial-1", "trial-2", "trial-3", "trial-4"}:
            raise TooLargeError("no room")

    session = session_of(family, tmp_path)
    session.workers["int8-weight-only"] = FakeWorker("int8-weight-only", [], stop)
    record = complete(session)
    held = record.held["int8-weight-only"]
    assert held.skipped_cells == ("agent batch 2",)
    assert {trial.workload for trial in held.trials} == {"replay"}
    assert len(record.held["bf16"].trials) == 4
    assert session.state["int8-weight-only"].failure is None


def test_without_the_base_the_rest_of_the_night_is_not_measured(family: Family, tmp_path: Path) -> None:
    asked: list[Any] = []

    def die(name: str) -> None:
        raise UnitError("it died")

    session = session_of(family, tmp_path, asked=asked)
    session.workers["bf16"] = FakeWorker("bf16", asked, die)
    energy.idle(session, "before", context=False)
    assert not energy.measure(session)
    assert not [name for _, name, _ in asked if name.startswith("trial-")]
    assert "no variant can be compared" in session.display.stream.getvalue()


def test_a_sensor_that_is_gone_ends_the_piece_and_its_last_windows_are_measured_again(
    family: Family, tmp_path: Path
) -> None:
    meter = FakeMeter()

    def stop(name: str) -> None:
        if name == "trial-3":
            meter.broken = "driver-gone: the driver does not answer"

    session = session_of(family, tmp_path, stop=stop, meter=meter)
    with pytest.raises(MeterError, match="4 windows in a row"):
        complete(session)
    kept = session.folder.session.read()
    assert sorted(trial.order for held in kept.held.values() for trial in held.trials) == [0, 1, 2]
    record = complete(session_of(family, tmp_path))
    trials_there = [trial for held in record.held.values() for trial in held.trials]
    assert sorted(trial.order for trial in trials_there) == list(range(12))
    assert all(trial.window.void is None for trial in trials_there)


@pytest.mark.parametrize(("window_s", "ticks", "tick_s", "least_s"), [
    (60.0, 300, 0.1, 60.0), (15.0, 300, 0.1, 30.0), (0.0, 300, 1.0, 300.0), (60.0, 300, None, 60.0), (0.0, 0, 0.1, 0.0),
])
def test_a_window_holds_the_seconds_and_the_ticks_of_the_plan(
    window_s: float, ticks: int, tick_s: float | None, least_s: float, family: Family
) -> None:
    tick = None if tick_s is None else Figure(value=tick_s, source="invented")
    hardware = msgspec.structs.replace(family.hardware, counter_tick_s=tick)
    assert trials.least_window_s(msgspec.structs.replace(PLAN, window_s=window_s, ticks=ticks), hardware) == pytest.approx(
        least_s)
