"""Where memory does not hold all variants, the base and one at a time are held; what is measured is as sound as before."""

from __future__ import annotations

import io
import json
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import building, check, energy, forecast, plan, quality, residency, run, store
from jouleboard.errors import OutOfTimeError, TooLargeError, UnitError
from jouleboard.meters.model import PowerModelMeter
from jouleboard.plan import Family
from jouleboard.residency import MARGIN, PROCESS_BYTES, Need
from jouleboard.session import Session
from jouleboard.sessionfile import SessionState
from tests import factory, fake_session
from tests.fake_session import PLAN, FakeWorkforce, complete, family_of, session_of

GB = 10**9


@pytest.fixture
def family() -> Family:
    return family_of()


def weights(folder: Path, parameters: int) -> None:
    """Write the header of a safetensors file; its data are not needed to count."""
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [parameters], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def with_memory(session: Session, monkeypatch: pytest.MonkeyPatch, *, parameters: int, available: int) -> None:
    """Give a session weights of a size, on a machine with that much memory left."""
    weights(session.dense.folder, parameters)
    monkeypatch.setattr(residency.hostmemory, "available_bytes", lambda: available)


# --- the choice -------------------------------------------------------------------------------------------------------


def test_weights_while_building_and_afterwards(family: Family) -> None:
    base, int8, _ = family.recipes
    assert residency.need(base, GB) == Need(building_bytes=2 * GB, resident_bytes=2 * GB)
    assert residency.need(int8, GB) == Need(building_bytes=2 * GB, resident_bytes=GB)


def test_all_fit_up_to_the_margin_and_not_a_byte_beyond() -> None:
    needs = [Need(building_bytes=4 * GB, resident_bytes=GB), Need(building_bytes=GB, resident_bytes=GB)]
    used = 2 * GB + 2 * PROCESS_BYTES + 3 * GB
    enough = round(used / (1 - MARGIN))
    assert residency.holds(needs, enough + 1)
    assert not residency.holds(needs, enough - 1)
    assert residency.holds([], 0)


def test_parameters_are_counted_from_headers_and_unknown_where_a_file_is_none(tmp_path: Path) -> None:
    assert residency.parameters(tmp_path) is None
    weights(tmp_path, 12)
    (tmp_path / "second.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    assert residency.parameters(tmp_path) == 24
    for rubbish in (b"", b"\xff" * 8, struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 4) + b"null", struct.pack("<Q", 8) + b'{"w": 1}'):
        (tmp_path / "second.safetensors").write_bytes(rubbish)
        assert residency.parameters(tmp_path) is None


@pytest.mark.parametrize(("available", "expected"), [(100 * GB, "all"), (8 * GB, "pair")])
def test_memory_decides_unless_told(
    available: int, expected: str, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(family, tmp_path)
    with_memory(session, monkeypatch, parameters=2 * GB, available=available)
    assert residency.choose(session, "auto") == expected
    assert residency.choose(session, "all") == "all"
    assert residency.choose(session, "pair") == "pair"
    assert ("takes longer" in session.display.stream.getvalue()) is (expected == "pair")


def test_on_a_gpu_its_memory_counts_and_what_its_workers_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_of("nvidia-h100-sxm-80gb")
    session = session_of(family, tmp_path)
    with_memory(session, monkeypatch, parameters=GB, available=0)
    total = int(family.hardware.memory_bytes.value)
    assert residency.available_bytes(session) == total
    session.resident_bytes = {"bf16": 3 * GB}
    assert residency.available_bytes(session) == total - 3 * GB - PROCESS_BYTES
    session.release("bf16")
    assert residency.available_bytes(session) == total


def test_each_rank_of_a_variant_has_a_context_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = family_of("nvidia-h100-sxm-80gb")
    family = replace(one, hardware=msgspec.structs.replace(one.hardware, count=4))
    session = session_of(family, tmp_path)
    with_memory(session, monkeypatch, parameters=GB, available=0)
    total = 4 * int(family.hardware.memory_bytes.value)
    assert residency.available_bytes(session) == total
    # What the ranks took comes as their sum.
    session.resident_bytes = {"bf16": 3 * GB}
    left = total - 3 * GB - 4 * PROCESS_BYTES
    assert residency.available_bytes(session) == left
    # The contexts of one more variant count four times too: weights that fill the rest but for three contexts do not fit.
    base = family.recipes[0]
    free = int((1 - MARGIN) * left)
    for contexts, fits in ((4, True), (3, False)):
        monkeypatch.setattr(residency, "parameters", lambda _, contexts=contexts: (free - contexts * PROCESS_BYTES) // 2 - 1)
        assert residency.fits(session, [base]) is fits


def test_what_is_left_after_a_build_decides_against_the_estimate(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(family, tmp_path, residency="pair")
    session.residency = "all"
    left = iter([100 * GB, 3 * GB, 3 * GB])
    weights(tmp_path, GB)
    monkeypatch.setattr(residency.hostmemory, "available_bytes", lambda: next(left))
    assert not building.build_while_they_fit(session, family.recipes)
    assert session.workers == {}
    assert all(worker.closed for worker in session.workforce.made)
    assert all(state.failure is None for state in session.state.values())


def test_a_variant_that_memory_cannot_hold_at_all_fails_with_out_of_memory_and_no_worker_is_asked(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    session = session_of(family, tmp_path, asked=asked, residency="pair")
    with_memory(session, monkeypatch, parameters=GB, available=2 * GB - 1)
    building.build_all(session, family.recipes[1:2])
    failure = session.state["int8-weight-only"].failure
    assert failure.code == "out-of-memory"
    assert failure.reason == "its weights need 2000 MB while it is built, 2000 MB are free"
    assert asked == []


# --- the order --------------------------------------------------------------------------------------------------------


def test_each_variant_has_a_group_with_the_base_first_and_last_in_each_cell() -> None:
    order = plan.pair_order(PLAN.cells, ["base", "a", "b", "c"], 4, seed=7)
    assert [slot.group for slot in order] == sorted(slot.group for slot in order)
    for number, name in enumerate("abc"):
        for cell in PLAN.cells:
            mine = [slot.recipe for slot in order if (slot.group, slot.cell) == (number, cell)]
            assert Counter(mine) == {"base": 4, name: 4}
            assert (mine[0], mine[-1]) == ("base", "base")
    assert len({tuple(slot.recipe.replace(name, "x") for slot in order if slot.group == number)
                for number, name in enumerate("abc")}) > 1, "every group has the same order"
    assert {slot.recipe for slot in plan.pair_order(PLAN.cells, ["base"], 2, seed=7)} == {"base"}


def test_the_forecast_of_pairs_is_longer_and_says_why(family: Family) -> None:
    longer = forecast.forecast([family], "pair")
    assert longer.declared_s > forecast.forecast([family], "all").declared_s
    assert longer.computing_s > forecast.forecast([family], "all").computing_s
    text = "\n".join(forecast.lines([family], "pair"))
    assert "one variant at a time" in text
    assert f"({len(plan.pair_order(PLAN.cells, ['a', 'b', 'c'], 2, 1))} trials)" in text
    assert "one variant at a time" not in "\n".join(forecast.lines([family], "all"))


# --- a session in pairs -----------------------------------------------------------------------------------------------


def windows(record: SessionState) -> list[tuple[str, str]]:
    found = [("session", one.window.name) for one in (*record.idle, *record.canary)]
    for recipe, held in record.held.items():
        found += [(recipe, one.window.name) for one in (*held.trials, *held.probes, *([held.live] if held.live else ()))]
    return found


def test_no_more_than_two_variants_are_ever_in_memory_and_all_are_measured(family: Family, tmp_path: Path) -> None:
    asked: list[Any] = []
    session = session_of(family, tmp_path, asked=asked, residency="pair")
    record = complete(session)
    assert isinstance(session.workforce, FakeWorkforce)
    assert session.workforce.most == 2
    assert all(worker.closed for worker in session.workforce.made)
    assert [who for who, name, _ in asked if name.startswith("trial-")] == [slot.recipe for slot in record.order]
    assert len(record.held["bf16"].trials) == 2 * 2 * 2, "the base is measured beside each variant"
    for name in ("int8-weight-only", "kv-int8"):
        held = record.held[name]
        assert (len(held.trials), held.live is not None, len(held.probes)) == (4, True, 4)
    assert [(one.when, one.context) for one in record.idle] == [
        ("before", False), ("before", True), ("after", True), ("after", False)]
    assert [one.when for one in record.canary] == ["before", "after"]
    assert record.residency == "pair"


def test_each_variant_warms_up_long_at_the_beginning_of_its_turn_and_the_base_once(family: Family, tmp_path: Path) -> None:
    asked: list[Any] = []
    complete(session_of(family, tmp_path, asked=asked, residency="pair"))
    for recipe in family.recipes:
        waits = [request.warmup_s for who, name, request in asked if who == recipe.id and name.startswith("trial-")]
        assert waits[0] == 3.0
        assert set(waits[1:]) == {1.0}


def test_while_the_machine_is_idle_with_a_context_there_are_as_many_before_as_after(family: Family, tmp_path: Path) -> None:
    alive: dict[str, int] = {}

    class Meter(fake_session.FakeMeter):
        def begin(self, name: str) -> None:
            super().begin(name)
            alive[name] = len(session.workers)

    session = session_of(family, tmp_path, meter=Meter(), residency="pair")
    complete(session)
    assert alive["idle-before-with"] == alive["idle-after-with"] == 2
    assert alive["idle-before-without"] == 0


def test_entries_of_a_session_in_pairs_are_of_one_session_and_drift_spans_all_groups(tmp_path: Path) -> None:
    family = family_of("simulated-gpu")
    session = session_of(family, tmp_path / "run", meter=Broken(), residency="pair")
    record = complete(session)
    reports = {recipe.id: store.read_report(session.folder.entry(recipe) / store.REPORT) for recipe in family.recipes}
    assert {report.status for report in reports.values()} == {"complete"}
    assert {report.session for report in reports.values()} == {record.name}
    assert all(report.realised is not None and report.build is not None for report in reports.values())
    # Void windows let the gate name what it leans on.
    drift = {gate.subject: gate.reason for gate in reports["bf16"].gates if gate.name == "drift"}
    for subject, workload in (("agent-b2", "agent"), ("replay", "replay")):
        places = [place for place, slot in enumerate(record.order) if (slot.recipe, slot.cell.workload) == ("bf16", workload)]
        assert {record.order[place].group for place in (places[0], places[-1])} == {0, 1}
        assert f"(trial-{places[0]})" in drift[subject]
        assert f"(trial-{places[-1]})" in drift[subject]


class Broken(fake_session.FakeMeter):
    """A simulated device whose sensor fails now and then, so that no more than three windows in a row are lost."""

    def end(self, *, duration_s: float, cpu_s: float | None) -> Any:
        reading = super().end(duration_s=duration_s, cpu_s=cpu_s)
        fails = self.windows[-1].startswith("trial-") and int(self.windows[-1].removeprefix("trial-")) % 4 != 2
        joules = None if fails else 1.0
        made = msgspec.structs.replace(reading.energy, method="simulated", measured_j=joules,
                                       domains_j={} if fails else {"gpu0": 1.0})
        return type(reading)(energy=made, samples=(), void="reading-failed: as the test wants it" if fails else None)


def test_entries_of_a_session_in_pairs_pass_the_check(family: Family, tmp_path: Path) -> None:
    class Model(fake_session.FakeMeter):
        def end(self, *, duration_s: float, cpu_s: float | None) -> Any:
            self.windows.append("")
            return PowerModelMeter(family.hardware).end(duration_s=duration_s, cpu_s=cpu_s)

    complete(session_of(family, tmp_path / "run", meter=Model(), residency="pair"))
    found = check.check_paths([tmp_path / "run"])
    assert found.problems == []
    assert len(found.entries) == 3


@pytest.mark.parametrize("kind", ["interrupted", "out of time"])
def test_a_stop_in_any_window_of_a_session_in_pairs_loses_that_window_and_no_other(
    kind: str, family: Family, tmp_path: Path
) -> None:
    whole = complete(session_of(family, tmp_path / "whole", residency="pair"))
    asked: list[Any] = []
    for number in range(2, 60, 5):
        def stop(name: str, left: list[int] = [number]) -> None:  # noqa: B006 - a counter for this turn
            left[0] -= name != "build"
            if left[0] == 0:
                raise KeyboardInterrupt if kind == "interrupted" else OutOfTimeError(f"no time for {name}")

        session = session_of(family, tmp_path / "cut", asked=asked, stop=stop, residency="pair")
        try:
            complete(session)
        except (KeyboardInterrupt, OutOfTimeError):
            kept = session.folder.session.read()
            assert kept is not None
            assert residency.choose(session, "all") == "pair", "a session keeps what it began with"
            assert [slot.group for slot in kept.order] == [slot.group for slot in whole.order]
            assert [slot.recipe for slot in kept.order] == [slot.recipe for slot in whole.order]
            session.workforce.close()
            continue
        break
    record = session.begun
    assert sorted(windows(record)) == sorted({*windows(whole)} - {("session", "idle-after-without")}) or (
        sorted(windows(record)) == sorted(windows(whole)))
    assert record.pieces > 3
    measured = Counter((who, name) for who, name, _ in asked if name != "build")
    assert set(measured.values()) == {1}, "a window that was closed was measured again"
    for recipe in family.recipes:
        report = store.read_report(session.folder.entry(recipe) / store.REPORT)
        assert report.status == "complete"
        assert report.realised is not None


def test_a_group_that_was_measured_to_its_end_is_not_built_again(family: Family, tmp_path: Path) -> None:
    order = plan.pair_order(PLAN.cells, [recipe.id for recipe in family.recipes], PLAN.trials, family.plan.seed)
    begins = next(place for place, slot in enumerate(order) if slot.group == 1)

    def stop(name: str) -> None:
        if name == f"trial-{begins + 1}":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(session_of(family, tmp_path, stop=stop, residency="pair"))
    asked: list[Any] = []
    session = session_of(family, tmp_path, asked=asked, residency="pair")
    complete(session)
    assert [who for who, name, _ in asked if name == "build"] == ["bf16", "kv-int8"]
    report = store.read_report(session.folder.entry(family.recipes[1]) / store.REPORT)
    assert report.realised == fake_session.built("int8-weight-only").realised
    assert report.build is not None


def test_a_variant_that_comes_out_otherwise_in_a_later_piece_makes_the_session_begin_anew(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(name: str) -> None:
        if name == "trial-4":
            raise KeyboardInterrupt

    first = session_of(family, tmp_path, stop=stop, residency="pair")
    with pytest.raises(KeyboardInterrupt):
        complete(first)
    there = first.folder.session.read()
    assert there is not None
    assert there.held["int8-weight-only"].trials
    real = fake_session.built
    monkeypatch.setattr(fake_session, "built", lambda recipe: real(recipe, "other" if recipe.startswith("int8") else None))
    second = session_of(family, tmp_path, residency="pair")
    record = complete(second)
    assert "measured again, since int8-weight-only came out as other weights" in second.display.stream.getvalue()
    assert record.name != there.name
    assert (record.pieces, len(record.held["int8-weight-only"].trials)) == (1, 4)
    assert [(one.when, one.context) for one in record.idle] == [
        ("before", False), ("before", True), ("after", True), ("after", False)]


def test_a_variant_that_is_not_the_one_that_was_scored_fails_and_is_not_measured(
    family: Family, tmp_path: Path
) -> None:
    session = session_of(family, tmp_path, residency="pair")
    session.state["int8-weight-only"].built = fake_session.built("int8-weight-only", "when it was scored")
    record = complete(session)
    assert session.state["int8-weight-only"].failure.phase == "build"
    assert "other weights" in session.state["int8-weight-only"].failure.reason
    assert "int8-weight-only" not in record.held
    assert session.state["kv-int8"].complete


def test_a_variant_whose_second_build_fails_is_left_out_with_its_group_and_the_others_go_on(family: Family, tmp_path: Path) -> None:
    asked: list[Any] = []
    session = session_of(family, tmp_path, asked=asked, residency="pair")
    real = session.workforce.start

    def start(name: str, log: Path, **more: Any) -> Any:
        worker = real(name, log, **more)
        if name == "kv-int8":
            def die(_window: str) -> None:
                raise UnitError("it died", kind="crash")

            worker._stop = die
        return worker

    session.workforce.start = start
    record = complete(session)
    assert session.state["kv-int8"].failure.phase == "build"
    assert session.state["int8-weight-only"].complete
    assert len(record.held["bf16"].trials) == 4, "the base is not measured beside nobody"
    assert [one.when for one in record.canary] == ["before", "after"]


def test_without_the_base_nothing_of_a_session_in_pairs_is_measured(family: Family, tmp_path: Path) -> None:
    asked: list[Any] = []

    def die(_name: str) -> None:
        raise UnitError("it died")

    session = session_of(family, tmp_path, asked=asked, stop=die, residency="pair")
    assert not energy.measure(session)
    assert asked == []
    assert "since the base failed" in session.display.stream.getvalue()


# --- the quality pass -------------------------------------------------------------------------------------------------


def test_in_pairs_variants_are_built_scored_and_ended_one_after_another_and_built_again_for_their_turns(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    session = session_of(family, tmp_path, asked=asked, residency="pair")
    for state in session.state.values():
        state.quality_done = False
    scored: list[tuple[str, list[str]]] = []

    def score(where: Session, chosen: list[Any]) -> None:
        for recipe in chosen:
            scored.append((recipe.id, list(where.workers)))
            where.state[recipe.id].quality_done = True

    monkeypatch.setattr(quality, "run", score)
    run._phases(session, "pair")
    assert scored == [(recipe.id, [recipe.id]) for recipe in family.recipes]
    assert session.workforce.most == 2
    assert [who for who, name, _ in asked if name == "build"] == [
        "bf16", "int8-weight-only", "kv-int8", "bf16", "int8-weight-only", "kv-int8"]
    assert all(state.complete for state in session.state.values())


def test_auto_falls_back_to_pairs_when_a_build_takes_more_than_was_thought(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    session = session_of(family, tmp_path, asked=asked, residency="pair")
    weights(tmp_path, GB)
    monkeypatch.setattr(residency.hostmemory, "available_bytes", lambda: (5 if asked else 100) * GB)
    monkeypatch.setattr(quality, "run", lambda _session, _chosen: None)
    run._phases(session, "auto")
    assert session.residency == "pair"
    assert session.begun.residency == "pair"
    # Those that waited in vain, then each alone for the quality pass (all were scored before), and for the energy.
    assert [who for who, name, _ in asked if name == "build"] == ["bf16", "bf16", "int8-weight-only", "kv-int8"]


def test_a_variant_fails_where_two_do_not_fit_and_the_base_alone_is_measured(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(family, tmp_path, residency="pair")
    weights(tmp_path, GB)
    monkeypatch.setattr(residency.hostmemory, "available_bytes",
                        lambda: 3 * GB - 2 * GB * ("bf16" in session.resident_bytes))
    said = session.display.stream
    assert isinstance(said, io.StringIO)
    assert energy.measure(session)
    for name in ("int8-weight-only", "kv-int8"):
        failure = session.state[name].failure
        assert failure.code == "out-of-memory"
        assert "beside bf16" in failure.reason
    energy.finish(session)
    report = store.read_report(session.folder.entry(family.base) / store.REPORT)
    assert (report.status, len(report.trials)) == ("complete", 4)


def test_the_identity_of_a_session_is_that_of_what_was_built(family: Family, tmp_path: Path) -> None:
    record = complete(session_of(family, tmp_path, residency="pair"))
    expected = {recipe.id: store.digest([plan.configuration_sha256(family, recipe), factory.sha(f"built {recipe.id}")])
                for recipe in family.recipes}
    assert record.configurations == expected


@pytest.mark.parametrize("error", [TooLargeError("its weights do not fit"), UnitError("the kernel killed it", kind="out-of-memory")])
@pytest.mark.parametrize("victim", ["bf16", "kv-int8"])
def test_auto_falls_back_to_pairs_when_a_build_runs_out_of_memory(
    error: UnitError, victim: str, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(family, tmp_path, residency="pair")
    for state in session.state.values():
        state.quality_done = False
    real, left = session.workforce.start, [error]

    def start(name: str, log: Path, **more: Any) -> Any:
        worker = real(name, log, **more)

        def die(_window: str) -> None:
            if name == victim and left:
                raise left.pop()

        worker._stop = die
        return worker

    session.workforce.start = start
    written: list[str] = []
    write = session.folder.write
    monkeypatch.setattr(session.folder, "write", lambda state, record: (
        written.append(state.recipe.id if state.failure else ""), write(state, record)))

    def score(where: Session, chosen: list[Any]) -> None:
        for recipe in chosen:
            where.state[recipe.id].quality_done = recipe.id in where.workers

    monkeypatch.setattr(quality, "run", score)
    run._phases(session, "auto")
    assert (left, session.residency) == ([], "pair")
    assert all(state.failure is None and state.complete for state in session.state.values())
    assert not any(written), "a failed entry was written of a variant that fits alone"
    assert f"{victim}" in session.display.stream.getvalue()


def test_a_build_that_fails_for_another_reason_is_a_failed_variant_and_no_reason_for_pairs(family: Family, tmp_path: Path) -> None:
    def die(_name: str) -> None:
        raise UnitError("no kernel", kind="unsupported")

    session = session_of(family, tmp_path, stop=die, residency="pair")
    assert building.build_while_they_fit(session, family.recipes[1:2])
    assert session.state["int8-weight-only"].failure.code == "unsupported"


def test_what_is_too_large_alone_fails_in_pairs_too(family: Family, tmp_path: Path) -> None:
    def die(_name: str) -> None:
        raise TooLargeError("too large")

    session = session_of(family, tmp_path, stop=die, residency="pair")
    assert not building.build_while_they_fit(session, family.recipes)
    assert session.workers == {}
    building.build_all(session, family.recipes[1:2])
    assert session.state["int8-weight-only"].failure.code == "out-of-memory"
