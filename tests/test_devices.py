"""Energy and gates over several devices of one profile: sums, and the one that strays furthest; on SIMULATED GPUs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from jouleboard import catalogue, check, plan, run
from jouleboard.declared import Band, Cell, DecodePlan, PlanTask, PrefillPlan
from jouleboard.gate_facts import Facts
from jouleboard.gate_trials import of_window
from jouleboard.meters.interface import Reading
from jouleboard.meters.kernel import short_digest
from jouleboard.meters.wanted import Wanted
from jouleboard.meters.watch import Watch
from jouleboard.progress import Display
from jouleboard.windows import Energy, Gate, Window
from tests import test_meter_process, test_worker
from tests.simulated_gpu import Gpu, Segment, enforced_limit, lost, process, temperature, throttle
from tests.simulated_gpu.__main__ import MACHINE
from tests.test_meter_process import code, window

folder = test_worker.folder
machine, opened = test_meter_process.machine, test_meter_process.opened
HOT = 0x40
FIRST = Gpu(trace=(Segment(1.0, 300.0),), tick_s=0.02, numbers={"limit_mw": 700_000})
SECOND = Gpu(trace=(Segment(1.0, 200.0),), tick_s=0.02, base_j=7.0, numbers={"limit_mw": 700_000})
KNOWN = Facts(method="simulated", sensor=True, asked=True, tick_s=0.02, board_limit_w=700.0, limit_w=1400.0, idle_w=140.0,
              least_idle_w=140.0, band=Band(low=10, high=85, source="invented"))


def gates(reading: Reading, seconds: float) -> dict[str, Gate]:
    """The gates of a window, by name."""
    closed = Window(name="trial-0", started_utc="2026-01-01T00:00:00Z", duration_s=seconds, cpu_s=None, energy=reading.energy,
                    start=reading.start, end=reading.end, void=reading.void)
    return {gate.name: gate for gate in of_window(closed, reading.samples, KNOWN)}


def test_two_devices_are_one_reading_and_each_stands_in_it(opened):
    meter, _ = opened(FIRST, SECOND)
    reading = window(meter, 1.2)
    assert reading.void is None
    shares = reading.energy.domains_j
    assert set(shares) == {"gpu0", "gpu1"}
    assert reading.energy.measured_j == pytest.approx(sum(shares.values()))
    # Both were read over one stretch of time, to a tick.
    assert shares["gpu0"] / 300 == pytest.approx(shares["gpu1"] / 200, abs=0.05)
    assert {row.power_w for row in reading.samples} == {500.0}
    counters = [row.counter_j for row in reading.samples]
    assert counters[-1] - counters[0] == pytest.approx(reading.energy.measured_j, abs=500 * 0.05)
    assert reading.start.device == short_digest("GPU-SIMULATED-0000,GPU-SIMULATED-0001")
    found = gates(reading, 1.2)
    assert [found[name].status for name in ("limit", "throttle", "monotone", "bounds", "cross-check")] == ["pass"] * 5


@pytest.mark.parametrize("index", [0, 1])
def test_one_lost_device_voids_the_window_of_all(opened, index):
    meter, simulated = opened(FIRST, SECOND)

    def lose() -> None:
        gone = replace(simulated.gpus[index], spans=(lost(simulated.now_s()),))
        simulated.gpus = tuple(gone if place == index else gpu for place, gpu in enumerate(simulated.gpus))
        simulated.write()

    assert code(window(meter, 0.6, lose)) == "device-lost"


def test_what_is_wrong_with_one_device_is_seen_among_two(opened):
    strays = Gpu(trace=(Segment(1.0, 200.0),), tick_s=0.02, numbers={"limit_mw": 750_000, "max_limit_mw": 800_000}, spans=(
        enforced_limit(750.0, from_s=0.0), temperature(5.0, 5.0, from_s=0.0, to_s=1.0), throttle(HOT, from_s=0.0), process(1)))
    meter, _ = opened(FIRST, strays)
    reading = window(meter, 0.6)
    assert reading.start.power_limit_w == 750.0
    assert reading.start.temperature_c == 5.0
    assert reading.start.foreign_processes == 1
    found = gates(reading, 0.6)
    assert {name: found[name].code for name in ("limit", "throttle", "alone")} == {
        "limit": "limit-changed", "throttle": "throttled", "alone": "not-alone"}


def energy_of(**domains_j: float) -> Reading:
    return Reading(energy=Energy(method="simulated", boundary="gpu", measured_j=sum(domains_j.values()), domains_j=domains_j,
                                 estimate_j=None, estimate_relative_uncertainty=None))


@pytest.mark.parametrize(("domains_j", "found"), [
    ({"gpu0": 7000.0, "gpu1": 7000.0}, "pass"),
    ({"gpu0": 8000.0, "gpu1": 2000.0}, "above-limit"),
    ({"gpu0": 7400.0, "gpu1": 7400.0}, "above-limit"),
    ({"gpu0": 600.0, "gpu1": 600.0}, "below-idle"),
])
def test_a_board_that_reads_too_much_does_not_hide_behind_another(domains_j, found):
    assert gates(energy_of(**domains_j), 10.0)["bounds"].code == found


@pytest.mark.parametrize(("limits_w", "kept"), [
    ((700.0, 700.0), 700.0), ((700.0, 750.0), 750.0), ((650.0, 700.0), 650.0), ((690.0, 720.0), 720.0), ((), None),
])
def test_the_limit_that_is_furthest_from_the_declared_one_is_kept(limits_w: Sequence[float], kept: float | None):
    assert Wanted(limit_w=700.0).limit(limits_w) == kept


def test_without_a_declared_limit_or_band_the_lowest_and_the_highest_are_kept():
    assert Wanted().limit([650.0, 700.0]) == 650.0
    assert Wanted().temperature([40.0, 60.0]) == 60.0


@pytest.mark.parametrize(("temperatures_c", "inside"), [
    ((40.0, 50.0), True), ((60.0, 30.0), True), ((45.0, 29.0), False), ((61.0, 45.0), False), ((20.0, 62.0), False),
])
def test_the_kept_temperature_is_outside_the_band_exactly_where_one_is(temperatures_c: Sequence[float], inside: bool):  # noqa: FBT001
    band = Band(low=30, high=60, source="invented")
    kept = Wanted(band=band).temperature(temperatures_c)
    assert (band.low <= kept <= band.high) == inside


def test_a_counter_that_ticks_slowly_excuses_no_other_one():
    watch = Watch(0.1)
    for step in range(41):
        at_s = step * 0.1
        # The first moves every two seconds, the second stops after two.
        watch.see(at_s, (100.0 + 600.0 * (step // 20), 50.0 + min(step, 20)), 300.0)
    trouble = watch.trouble(4.0)
    assert trouble is not None
    assert trouble.code == "counter-frozen"
    assert "gpu1" in trouble.problem


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_family_runs_on_two_devices_and_its_entry_holds_both(machine, folder, tmp_path):
    """Two processes compute each variant over gloo, two SIMULATED GPUs are measured."""
    machine(*(replace(MACHINE, trace=(Segment(1.0, watts),), tick_s=0.02) for watts in (400.0, 300.0)))
    profile = test_meter_process.profile(count=2)
    chosen = catalogue.plan("quick")
    energy = msgspec.structs.replace(
        chosen.energy, trials=2, cells=(Cell(workload="replay"),), window_s=0.4, replay_tokens=200, first_warmup_s=0.1,
        warmup_s=0.1, idle_s=0.5, canary_s=0.3, live_items=2, probe_window_s=0.2)
    chosen = msgspec.structs.replace(
        chosen, models=(str(folder),), base="fp32", recipes=("fp32", "int8-weight-only"), energy=energy,
        tasks=(PlanTask(task="home_agent_easy", limit=6),), prefill=PrefillPlan(tokens=(32,), batches=(1,)),
        decode=DecodePlan(prompt_tokens=(32,), tokens=4, batches=(1,)))
    [family] = plan.families(chosen, profile)
    said = io.StringIO()
    base, refused = run.run_family(family, tmp_path / "out", Display(stream=said))
    assert (base.complete, base.failure) == (True, None), said.getvalue()
    assert refused.failure is not None
    assert (refused.failure.phase, refused.failure.code) == ("build", "unsupported")
    found = check.check_paths([tmp_path / "out"])
    assert found.problems == []
    report = next(entry.report for entry in found.entries if entry.report.recipe == "fp32")
    assert report.engine.device == "cpu,cpu"
    assert report.realised.claims == ("2 devices hold 50.2%, 50.2% of the weights",)
    assert report.profile.count == 2
    measured = [trial.window for trial in report.trials] + [probe.window for probe in report.probes] + [
        one.window for one in (*report.canary, *report.idle)]
    assert len(report.trials) == 2
    assert len(report.canary) == 2
    for one in measured:
        assert one.void is None
        assert set(one.energy.domains_j) == {"gpu0", "gpu1"}
    assert all(trial.window.cpu_s > 0 and trial.cached_tokens == 0 for trial in report.trials)
    assert {path.name for path in (tmp_path / "out").rglob("fp32*.log")} == {"fp32.log", "fp32.rank1.log"}
    assert not list((tmp_path / "out").rglob(".ranks-*"))
