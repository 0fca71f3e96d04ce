"""Every fault of a sensor makes its trials void, with the reason; scores stay, and no joule is ever zero or negative.

The whole chain runs here but for the models: run driver, meter process, pynvml and Zeus on the simulated GPU (or RAPL from
plain files), gates, entries, check. Faults come and go while windows are open.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from jouleboard import check, meters, store
from jouleboard.declared import Cell, EnergyPlan
from jouleboard.meters import interface
from jouleboard.records import Report
from tests.fake_session import TASKS, complete, family_of, session_of
from tests.simulated_gpu import (
    DRIVER_NOT_LOADED,
    Gpu,
    SimulatedGpu,
    enforced_limit,
    fails,
    lost,
    process,
    reset,
    square,
    throttle,
)
from tests.simulated_rapl import DRAM, PSYS, SimulatedRapl, Zone

PLAN = EnergyPlan(trials=8, cells=(Cell(workload="replay"),), window_s=0, replay_tokens=10, first_warmup_s=0, warmup_s=0,
                  idle_s=0.5)
WINDOW_S = 1.3
"""Longer than the period of what is polled once a second."""

FAULTS: dict[str, tuple[str, Callable[[SimulatedGpu, float], None]]] = {
    "counter reset": ("counter-reset", lambda gpu, now_s: gpu.set(spans=(reset(now_s),))),
    "counter frozen": ("counter-frozen", lambda gpu, now_s: gpu.set(freeze_s=now_s)),
    "device lost": ("device-lost", lambda gpu, now_s: gpu.set(spans=(lost(now_s),))),
    "driver gone": ("driver-gone", lambda gpu, _now_s: gpu.set(faults=(fails(DRIVER_NOT_LOADED),))),
    "throttled by heat": ("throttled", lambda gpu, now_s: gpu.set(spans=(throttle(0x20, from_s=now_s),))),
    "power brake": ("throttled", lambda gpu, now_s: gpu.set(spans=(throttle(0x80, from_s=now_s),))),
    "foreign process": ("not-alone", lambda gpu, now_s: gpu.set(spans=(process(4_000_001, from_s=now_s),))),
    "other limit": ("limit-changed", lambda gpu, now_s: gpu.set(spans=(enforced_limit(350, from_s=now_s),))),
    "clock set": ("clock-stepped", lambda _gpu, _now_s: None),
}
TRIALS = {f"trial-{1 + 2 * number}": name for number, name in enumerate(FAULTS)}
"""Every second trial has a fault, so that each is followed by a sound one."""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Report]]:
    """Run one session with all faults, one after the other, and give its entries."""
    folder = tmp_path_factory.mktemp("faults")
    sound = {"spans": (), "freeze_s": None, "faults": ()}
    gpu = SimulatedGpu(folder, Gpu(trace=square(high_w=430, low_w=330, period_s=0.17), idle_w=70.0, name="SIMULATED GPU"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in gpu.environment().items():
            patch.setenv(name, value)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

        def start(_window: str) -> None:
            gpu.set(**sound)
            patch.setattr(interface.time, "time", real)
            gpu.load("on", gpu.now_s())
            time.sleep(0.15)

        def during(window: str) -> None:
            time.sleep(0.2)
            fault = TRIALS.get(window)
            if fault is not None:
                FAULTS[fault][1](gpu, gpu.now_s())
            if fault == "clock set":
                patch.setattr(interface.time, "time", lambda: real() + 3600)
            time.sleep(WINDOW_S)

        real = time.time
        family = family_of("simulated-gpu", PLAN)
        meter = meters.choose(family.hardware)
        try:
            complete(session_of(family, folder / "run", stop=during, start=start, meter=meter))
        finally:
            meter.close()
    found = check.check_paths([folder / "run"])
    assert found.problems == []
    return folder / "run", [entry.report for entry in found.entries]


def trial(reports: list[Report], name: str):
    (found,) = [one for report in reports for one in report.trials if one.window.name == name]
    return found


@pytest.mark.parametrize("window", TRIALS)
def test_a_fault_makes_its_trial_void_with_the_reason(window: str, faulty: tuple[Path, list[Report]]) -> None:
    _, reports = faulty
    found = trial(reports, window)
    assert found.void is not None, TRIALS[window]
    assert found.void.split(":")[0] == FAULTS[TRIALS[window]][0], found.void
    assert len(found.void) > len(FAULTS[TRIALS[window]][0]) + 10, "a code needs its words"


def test_the_trials_between_the_faults_are_sound(faulty: tuple[Path, list[Report]]) -> None:
    _, reports = faulty
    voids = {one.window.name: one.void for report in reports for one in report.trials}
    assert {name for name, void in voids.items() if void is not None} == set(TRIALS), voids


def test_no_window_has_zero_or_negative_joules_and_scores_are_kept(faulty: tuple[Path, list[Report]]) -> None:
    _, reports = faulty
    assert len(reports) == 3
    for report in reports:
        assert report.status == "complete"
        assert report.tasks[0].task == TASKS[0]
        assert report.tasks[0].scores["acc"] is not None
        windows = [*(one.window for one in report.trials), *(one.window for one in report.probes)]
        for window in windows:
            assert window.energy.measured_j is None or window.energy.measured_j > 0
            assert window.energy.measured_j is not None or window.void is not None


def test_a_sound_trial_is_measured_within_the_tick(faulty: tuple[Path, list[Report]]) -> None:
    _, reports = faulty
    for report in reports:
        for one in report.trials:
            if one.void is None:
                joules, seconds = one.window.energy.measured_j, one.window.duration_s
                # Between the trace's two powers, a tick of 0.1 s and the calls' time at its ends.
                assert 330 * (seconds - 0.2) < joules < 430 * (seconds + 0.2)


def test_everything_that_is_written_says_simulated(faulty: tuple[Path, list[Report]]) -> None:
    folder, reports = faulty
    for report in reports:
        assert report.method == "simulated"
        assert report.hardware_title.startswith("SIMULATED")
        assert check.publishable(report) is not None
    assert all(b"SIMULATED" in path.read_bytes() for path in folder.rglob(store.REPORT))


# --- RAPL -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedRapl:
    """A package of 50 W whose counter wraps each minute, memory of 8 W, and a platform zone that contains both."""
    made = SimulatedRapl(tmp_path / "tree", Zone(path="0", name="package-0", range_uj=2_900_000_000),
                         replace(DRAM, start_uj=5_000_000), PSYS)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    return made


def rapl_run(tmp_path: Path, during: Callable[[str], None]) -> list[Report]:
    family = family_of("x86-rapl", msgspec.structs.replace(PLAN, trials=2, idle_s=0))
    meter = meters.choose(family.hardware)
    try:
        complete(session_of(family, tmp_path / "run", stop=during, meter=meter))
    finally:
        meter.close()
    found = check.check_paths([tmp_path / "run"])
    assert found.problems == []
    return [entry.report for entry in found.entries]


def work(tree: SimulatedRapl) -> None:
    """Let twenty seconds of the tree go by in little more than one of ours."""
    for _ in range(4):
        tree.set(now_s=tree.now_s() + 5.0)
        time.sleep(0.3)


def test_wraps_of_rapl_are_corrected_and_the_platform_zone_is_not_added(tree: SimulatedRapl, tmp_path: Path) -> None:
    reports = rapl_run(tmp_path, lambda _window: work(tree))
    trials = [one for report in reports for one in report.trials]
    assert len(trials) == 6
    assert tree.now_s() * 50 > 2_900, "the counter wrapped at least once"
    for one in trials:
        assert one.void is None
        assert one.window.energy.measured_j == pytest.approx(58 * 20, rel=1e-6)


@pytest.mark.parametrize(("fault", "codes"), [
    ("unreadable", {"rapl-unreadable"}), ("gone", {"rapl-gone"}), ("backwards", {"rapl-reset", "rapl-wrap-unsure"}),
])
def test_a_fault_of_rapl_makes_its_trial_void(fault: str, codes: set[str], tree: SimulatedRapl, tmp_path: Path) -> None:
    counter = tree.place(tree.zones[0]) / "energy_uj"

    def during(window: str) -> None:
        work(tree)
        if window == "trial-2":
            kept = counter.read_text()
            _break(fault, counter)
            time.sleep(1.3)
            _mend(counter, kept)

    reports = rapl_run(tmp_path, during)
    voids = {one.window.name: one.void for report in reports for one in report.trials}
    void = voids.pop("trial-2")
    assert void.split(":")[0] in codes, void
    assert set(voids.values()) == {None}, voids
    assert all(report.tasks[0].scores["acc"] is not None for report in reports)
    for report in reports:
        for one in report.trials:
            assert one.window.energy.measured_j is None or one.window.energy.measured_j > 0


def _break(fault: str, counter: Path) -> None:
    kept = int(counter.read_text())
    if fault == "backwards":
        _mend(counter, f"{kept - 40_000_000}\n")
        return
    counter.unlink()
    if fault == "unreadable":
        # Not by its mode: root reads any. `test_rapl` has another user who may not.
        counter.mkdir()


def _mend(counter: Path, kept: str) -> None:
    if counter.is_dir():
        counter.rmdir()
    # Whole at any moment, as the kernel's file is.
    partial = counter.with_name(".mended")
    partial.write_text(kept)
    partial.replace(counter)
