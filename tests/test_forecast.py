"""What a plan needs is said before it is run: declared times add up, guesses are called guesses."""

from __future__ import annotations

import msgspec
import pytest

from jouleboard import catalogue, forecast, plan
from jouleboard.declared import Cell, EnergyPlan
from jouleboard.plan import Family

NOTHING = {"window_s": 0, "first_warmup_s": 0, "warmup_s": 0, "idle_s": 0}


def family(name: str = "quick", **energy: object) -> Family:
    chosen = catalogue.plan(name)
    changed = msgspec.structs.replace(chosen, energy=msgspec.structs.replace(chosen.energy, **energy))
    (found,) = plan.families(changed, catalogue.hardware("x86-vm"))
    return found


def test_declared_times_add_up() -> None:
    energy = EnergyPlan(trials=3, cells=(Cell(workload="replay"), Cell(workload="chat", batch=1)), window_s=60, replay_tokens=1,
                        first_warmup_s=30, warmup_s=5, jitter_s=2, idle_s=10, canary_s=4, probe_window_s=7)
    chosen = msgspec.structs.replace(catalogue.plan("quick"), energy=energy, recipes=("bf16", "drop-6-layers"))
    (found,) = plan.families(chosen, catalogue.hardware("x86-vm"))
    turns, probes = 2 * 2 * 3, 2 * len(list(plan.wanted_probes(chosen)))
    expected = 2 * 30 + (turns - 2 + probes) * 5 + turns * (60 + 1) + probes * 7 + 4 * 10 + 2 * 4
    assert forecast.forecast([found]).declared_s == expected
    assert forecast.forecast([found, found]).declared_s == 2 * expected


@pytest.mark.parametrize("name", ["quick", "full", "gpu"])
def test_every_plan_has_a_forecast_that_says_what_is_a_guess(name: str) -> None:
    text = "\n".join(forecast.lines([family(name)]))
    assert "at least" in text
    assert "guess" in text


def test_the_plan_for_a_rented_gpu_fits_into_twenty_five_minutes() -> None:
    """Windows and waits alone: computing happens inside windows, loading and scoring took under five minutes when tried."""
    assert forecast.forecast([family("gpu")]).declared_s < 20 * 60


def test_the_full_plan_keeps_the_full_rules() -> None:
    energy = catalogue.plan("full").energy
    assert catalogue.plan("full").provisional is None
    assert (energy.window_s, energy.ticks, energy.trials, energy.first_warmup_s, energy.idle_s) == (60, 300, 5, 30, 30)


def test_more_work_takes_longer() -> None:
    short = forecast.forecast([family(**NOTHING, replay_tokens=1000)]).computing_s
    assert forecast.forecast([family(**NOTHING, replay_tokens=9000)]).computing_s > short
    assert forecast.forecast([family(**NOTHING, trials=9)]).computing_s > short


def test_a_model_of_unknown_size_has_no_disk_forecast() -> None:
    made = family()
    unknown = plan.Family(**{name: getattr(made, name) for name in ("plan", "recipes", "tasks", "hardware", "workloads")},
                          model=msgspec.structs.replace(made.model, parameters=None))
    assert forecast.forecast([unknown]).disk_bytes is None
    assert "unknown" in "\n".join(forecast.lines([unknown]))
