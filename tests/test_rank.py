"""Boards: what is compared, in which order, and with which intervals. Metamorphic where no second formula is at hand."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import proportion

from jouleboard import costmodel, costs, downloads, rank, scores
from jouleboard.estimates import Estimate
from jouleboard.records import Report
from jouleboard.rows import Board, Row
from jouleboard.statistics import intervals
from jouleboard.windows import Gate
from tests import factory
from tests.factory import Entry

N = 40
BASE, INT8, INT4, NF4, DROP = factory.SPECS


@pytest.fixture(scope="module")
def family() -> list[Entry]:
    """Base, int8, int4 and NF4 (both withheld) and drop-6, on a CPU."""
    return factory.family(n=N)


def changed(entry: Entry, **fields: Any) -> Entry:
    """Give the entry with other fields in its report."""
    return Entry(name=fields.pop("name", entry.name), items=entry.items,
                 report=msgspec.structs.replace(entry.report, **fields))


def with_costs(entry: Entry, costs: Sequence[float | None], *, void: Sequence[int] = ()) -> Entry:
    """Give the entry with these CPU-seconds for its trials."""
    sample = entry.report.trials[0]
    trials = tuple(
        msgspec.structs.replace(sample, order=index, window=msgspec.structs.replace(sample.window, cpu_s=cost),
                                void="throttled" if index in void else None)
        for index, cost in enumerate(costs))
    return changed(entry, trials=trials)


def over_windows(entry: Entry, change: Callable[[Any], Any]) -> Entry:
    """Give the entry with every window changed."""
    report = entry.report

    def each(parts: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(msgspec.structs.replace(part, window=change(part.window)) for part in parts)

    return changed(entry, trials=each(report.trials), probes=each(report.probes))


def one(entries: Sequence[Entry]) -> Board:
    """Give the only board of these entries."""
    (board,) = rank.boards(entries)
    return board


def rows(board: Board) -> dict[str, Row]:
    return {row.report.recipe: row for row in (*board.ranked, *board.unranked)}


def order(board: Board) -> list[str]:
    return [row.report.recipe for row in board.ranked]


def test_a_batch_size_of_the_recipe_stands_beside_the_base_and_one_of_the_plan_does_not(family: list[Entry]) -> None:
    base, variant = family[0], family[-1]
    batch = base.report.engine.batch_size

    def at(planned: int | None) -> Entry:
        engine = msgspec.structs.replace(variant.report.engine, batch_size=batch + 1, planned_batch_size=planned)
        return changed(variant, engine=engine)

    assert order(one([base, at(batch)])) == order(one([base, variant]))
    assert rows(one([base, at(batch)]))[variant.report.recipe].cost_ratio is not None
    apart = rank.boards([base, at(None)])
    assert len(apart) == 2
    assert rows(apart[0]).keys() != rows(apart[1]).keys()


# --- order ------------------------------------------------------------------------------------------------------------


def test_no_entries_make_no_boards() -> None:
    assert rank.boards([]) == []


def test_ranks_follow_the_cost_from_1_up_inside_a_tier_of_quality(family: list[Entry]) -> None:
    board = one(family)
    assert order(board) == ["base", "int8-weights", "drop-6-layers"]
    assert [(row.tier, row.rank) for row in board.ranked] == [(4, 1), (4, 2), (2, 1)]
    assert board.is_cpu_time
    costs = [row.cpu_s_per_ktoken.value for row in board.ranked if row.cpu_s_per_ktoken]
    assert costs[0] < costs[1]
    assert costs[2] == min(costs)


def test_the_order_of_entries_does_not_matter(family: list[Entry]) -> None:
    entries = [*family, *(changed(entry, hardware_sha256=factory.sha("other"), name=f"other/{entry.name}")
                          for entry in family)]
    expected = rank.boards(entries)
    assert len(expected) == 2
    for seed in range(5):
        random.Random(seed).shuffle(entries)
        assert rank.boards(entries) == expected


def test_all_orders_of_a_small_family_give_the_same_board(family: list[Entry]) -> None:
    found = {_as_bytes(rank.boards(entries)) for entries in itertools.permutations(family[:4])}
    assert len(found) == 1


def _as_bytes(boards: list[Board]) -> bytes:
    return msgspec.json.encode(boards)


def test_an_entry_of_another_device_changes_no_other_board(family: list[Entry]) -> None:
    before = one(family)
    stranger = changed(family[1], hardware_sha256=factory.sha("other"), name="other/int8")
    after = {board.key: board for board in rank.boards([*family, stranger])}
    assert after.pop(before.key) == before
    assert [list(rows(board)) for board in after.values()] == [["int8-weights"]]
    (alone,) = after.values()
    assert alone.ranked == ()
    assert "base is not on this board" in (alone.unranked[0].unranked or "")


@pytest.mark.parametrize("change", [
    {"hardware_sha256": factory.sha("x")}, {"method": "rapl"}, {"boundary": "wall"},
    {"environment": factory.environment(cpu_model="Another CPU")}, {"environment": factory.environment(devices=("A",))},
    {"engine": factory.engine(threads=1)}, {"engine": factory.engine(batch_size=1)},
    {"replay_sha256": factory.sha("x")},
])
def test_entries_that_were_not_measured_alike_never_share_a_board(change: dict[str, Any], family: list[Entry]) -> None:
    assert len(rank.boards([family[0], changed(family[1], **change)])) == 2


@pytest.mark.parametrize("field", ["data_sha256", "inputs_sha256"])
def test_entries_that_saw_other_items_never_share_a_board(field: str, family: list[Entry]) -> None:
    other = family[1].report.tasks
    tasks = (msgspec.structs.replace(other[0], **{field: factory.sha("x")}), *other[1:])
    assert len(rank.boards([family[0], changed(family[1], tasks=tasks)])) == 2


def test_boards_with_a_sensor_come_first(family: list[Entry]) -> None:
    boards = rank.boards([*family, *factory.family(n=N, measured_w=200.0)])
    assert [board.is_cpu_time for board in boards] == [False, True]


def test_where_a_sensor_measures_joules_decide_and_not_cpu_seconds() -> None:
    entries = factory.family(n=N, measured_w=200.0, specs=(BASE, INT8))
    cheap = over_windows(entries[1], lambda window: msgspec.structs.replace(
        window, energy=msgspec.structs.replace(window.energy, measured_j=window.energy.measured_j / 100)))
    board = one([entries[0], cheap])
    assert order(board) == ["int8-weights", "base"]
    row = rows(board)["int8-weights"]
    assert not row.energy_is_estimate
    assert row.energy_j_per_ktoken is not None
    joules = [trial.window.energy.measured_j for trial in entries[1].report.trials]
    assert row.energy_j_per_ktoken.value == pytest.approx(np.mean(joules) / 600)


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_twice_the_cpu_seconds_are_twice_the_cost_and_the_same_ratios(family: list[Entry]) -> None:
    def twice(window: Any) -> Any:
        return msgspec.structs.replace(window, cpu_s=2 * window.cpu_s)

    before, after = one(family), one([over_windows(entry, twice) for entry in family])
    assert order(before) == order(after)
    for name, row in rows(before).items():
        other = rows(after)[name]
        assert row.cpu_s_per_ktoken is not None
        assert other.cpu_s_per_ktoken is not None
        for part in ("value", "low", "high"):
            assert getattr(other.cpu_s_per_ktoken, part) == pytest.approx(2 * getattr(row.cpu_s_per_ktoken, part))
        assert other.cost_ratio is not None
        assert row.cost_ratio is not None
        assert other.cost_ratio.value == pytest.approx(row.cost_ratio.value)
        assert other.cost_ratio.low == pytest.approx(row.cost_ratio.low)
        assert other.prefill_cpu_s_per_ktoken == pytest.approx(
            {batch: 2 * value for batch, value in row.prefill_cpu_s_per_ktoken.items()})
        assert other.prefill_tokens_per_s == row.prefill_tokens_per_s
        assert other.quality == row.quality


def test_twice_the_tokens_are_half_the_cost(family: list[Entry]) -> None:
    doubled = changed(family[1], trials=tuple(
        msgspec.structs.replace(trial, fed_tokens=2 * trial.fed_tokens) for trial in family[1].report.trials))
    row, other = rows(one(family))["int8-weights"], rows(one([family[0], doubled]))["int8-weights"]
    assert other.cpu_s_per_ktoken is not None
    assert row.cpu_s_per_ktoken is not None
    assert other.cpu_s_per_ktoken.value == pytest.approx(row.cpu_s_per_ktoken.value / 2)
    assert row.cost_ratio is not None
    assert other.cost_ratio is not None
    assert other.cost_ratio.value == pytest.approx(row.cost_ratio.value / 2)


def test_requests_that_share_a_row_are_not_counted_several_times(family: list[Entry]) -> None:
    """Prompt and output tokens are summed over requests; what was computed is what was fed."""
    shared = changed(family[1], trials=tuple(msgspec.structs.replace(
        trial, requests=5 * trial.requests, prompt_tokens=5 * trial.prompt_tokens) for trial in family[1].report.trials))
    assert rows(one([family[0], shared]))["int8-weights"].cpu_s_per_ktoken == rows(one(family))[
        "int8-weights"].cpu_s_per_ktoken


def test_padding_is_no_useful_token(family: list[Entry]) -> None:
    padded = changed(family[1], trials=tuple(
        msgspec.structs.replace(trial, computed_tokens=10 * trial.computed_tokens) for trial in family[1].report.trials))
    assert rows(one([family[0], padded]))["int8-weights"].cpu_s_per_ktoken == rows(one(family))[
        "int8-weights"].cpu_s_per_ktoken


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_cost_has_students_interval_over_its_repeats(family: list[Entry]) -> None:
    costs = [20.0, 23.0, 21.5, 24.0]
    found = rows(one([with_costs(family[0], costs)]))["base"].cpu_s_per_ktoken
    per_ktoken = np.array(costs) / 6
    expected = stats.t.interval(0.95, 3, loc=per_ktoken.mean(), scale=stats.sem(per_ktoken))
    assert found is not None
    assert found.value == pytest.approx(per_ktoken.mean())
    assert (found.low, found.high) == pytest.approx(expected)


def test_one_trial_has_a_cost_and_a_ratio_but_no_interval(family: list[Entry]) -> None:
    entries = [with_costs(family[0], [24.0]), with_costs(family[1], [36.0])]
    row = rows(one(entries))["int8-weights"]
    assert row.cpu_s_per_ktoken == Estimate(value=6.0, low=None, high=None)
    assert row.cost_ratio == Estimate(value=1.5, low=None, high=None)


def test_equal_repeats_have_no_interval_of_width_zero_on_the_ratio(family: list[Entry]) -> None:
    entries = [with_costs(family[0], [24.0, 24.0]), with_costs(family[1], [36.0, 36.0])]
    assert rows(one(entries))["int8-weights"].cost_ratio == Estimate(value=1.5, low=None, high=None)


def test_the_ratio_has_welchs_interval_on_the_logarithm(family: list[Entry]) -> None:
    mine, theirs = [30.0, 33.0, 31.0, 36.0], [20.0, 21.0, 20.5]
    found = rows(one([with_costs(family[0], theirs), with_costs(family[1], mine)]))["int8-weights"].cost_ratio
    a, b = np.log(mine), np.log(theirs)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(va + vb)
    assert found is not None
    assert found.value == pytest.approx(np.mean(mine) / np.mean(theirs))
    assert found.low == pytest.approx(math.exp(a.mean() - b.mean() - half))
    assert found.high == pytest.approx(math.exp(a.mean() - b.mean() + half))


def test_the_ratio_of_the_base_is_1_without_an_interval(family: list[Entry]) -> None:
    assert rows(one(family))["base"].cost_ratio == Estimate(value=1.0, low=None, high=None)


def test_a_void_trial_counts_for_nothing(family: list[Entry]) -> None:
    entries = [with_costs(family[0], [20.0, 900.0, 22.0], void=[1]), with_costs(family[1], [30.0, 31.0])]
    plain = [with_costs(family[0], [20.0, 22.0]), with_costs(family[1], [30.0, 31.0])]
    for name in ("base", "int8-weights"):
        assert rows(one(entries))[name].cpu_s_per_ktoken == rows(one(plain))[name].cpu_s_per_ktoken
        assert rows(one(entries))[name].cost_ratio == rows(one(plain))[name].cost_ratio


def test_quality_is_the_mean_of_the_corrected_accuracies_of_tasks_with_signal() -> None:
    """Bits per byte is shown, but it is no share of answers."""
    family = factory.family(n=100, specs=(BASE, INT8))
    row, base = rows(one(family))["int8-weights"], family[0].report
    assert [cell.score is not None for cell in row.tasks if cell.metric == "bits_per_byte"] == [True]
    signal = [result.task for result in base.tasks if result.above_chance and result.kind == "choice"]
    assert 1 < len(signal) < len(base.tasks)
    parts = [scores.chance_corrected(score, result.chance, result.primary_metric)
             for result in row.report.tasks if result.task in signal
             and (score := result.scores[result.primary_metric]) is not None]
    values = np.array(parts)[:, 0]
    # Wilson's interval of each task, as statsmodels has it; of a sum, the distances of the limits add up as squares (MOVER).
    limits = [(np.array(proportion.proportion_confint(score.value * score.n, score.n, method="wilson")) - score.value) / (1 - result.chance.value)
              for result in row.report.tasks if result.task in signal and (score := result.scores[result.primary_metric]) is not None]
    below, above = np.sqrt((np.array(limits) ** 2).sum(axis=0)) / len(values)
    assert row.quality is not None
    assert row.quality.value == pytest.approx(values.mean())
    assert (row.quality.low, row.quality.high) == pytest.approx((values.mean() - below, values.mean() + above))


def test_estimated_joules_carry_the_power_models_uncertainty(family: list[Entry]) -> None:
    row = rows(one(family))["base"]
    assert row.energy_is_estimate
    found = row.energy_j_per_ktoken
    assert found is not None
    mean = np.mean([trial.window.energy.estimate_j for trial in row.report.trials]) / 6
    assert (found.value, found.low, found.high) == pytest.approx((mean, mean / 2, 1.5 * mean))


def test_quality_per_kilojoule_spans_the_corners_of_quality_and_estimate(family: list[Entry]) -> None:
    row = rows(one(family))["base"]
    quality, energy, found = row.quality, row.energy_j_per_ktoken, row.quality_per_kilojoule
    assert quality is not None
    assert energy is not None
    assert found is not None
    corners = [1000 * q / e for q in (quality.low, quality.high) for e in (energy.low, energy.high) if q and e]
    assert (found.low, found.value, found.high) == pytest.approx(
        (min(corners), 1000 * quality.value / energy.value, max(corners)))


# --- signal -----------------------------------------------------------------------------------------------------------


def test_a_task_on_which_the_base_is_at_chance_is_named_and_does_not_count() -> None:
    entries = factory.family(n=N, specs=(BASE, DROP))
    board = one(entries)
    silent = {result.task for result in entries[0].report.tasks if not result.above_chance}
    assert set(board.no_signal) == silent != set()
    for row in board.ranked:
        assert {cell.task for cell in row.tasks if not cell.signal} == silent


def test_signal_is_decided_by_the_base_and_not_by_the_variant() -> None:
    broken = replace(DROP, accuracy=(0.5, 0.25, 0.25), bits_per_byte=9.0)
    entries = factory.family(n=N, specs=(BASE, broken))
    row = rows(one(entries))["drop-6-layers"]
    assert not any(result.above_chance for result in row.report.tasks)
    assert any(cell.signal for cell in row.tasks)
    assert row.quality is not None
    assert row.quality.value < 0
    assert row.rank is None
    assert row.unranked == "its own answers are not clearly above chance"
    assert row.verdict is not None
    assert row.verdict.kind == "trade-off"


def test_a_family_whose_base_is_at_chance_is_never_ranked() -> None:
    guess = {"accuracy": (0.5, 0.25, 0.25), "bits_per_byte": 4.6}
    entries = factory.family(n=N, specs=[replace(spec, **guess) for spec in (BASE, INT8)])
    board = one(entries)
    assert board.ranked == ()
    assert len(board.no_signal) == len(board.tasks) == 4
    assert {row.unranked for row in board.unranked} == {"no task on which the base is clearly above chance"}
    assert {row.quality for row in board.unranked} == {None}


# --- unranked ---------------------------------------------------------------------------------------------------------


def test_a_withheld_quality_is_never_ranked_however_cheap(family: list[Entry]) -> None:
    cheap = with_costs(family[3], [0.10, 0.11, 0.12])
    row = rows(one([family[0], cheap]))["nf4"]
    assert row.rank is None
    assert row.quality is None
    assert row.quality_per_kilojoule is None
    assert "base-grid" in (row.unranked or "")
    assert "base-grid" in row.badges
    assert {cell.score for cell in row.tasks} == {None}
    assert row.cpu_s_per_ktoken is not None
    assert row.cost_ratio is not None


def test_one_withheld_task_is_enough_to_stay_unranked(family: list[Entry]) -> None:
    report = family[1].report
    first = msgspec.structs.replace(report.tasks[0], withheld="other", above_chance=None,
                                    scores=dict.fromkeys(report.tasks[0].scores))
    row = rows(one([family[0], changed(family[1], tasks=(first, *report.tasks[1:]))]))["int8-weights"]
    assert row.unranked == "quality withheld (other)"


def test_a_failed_variant_is_shown_on_its_familys_board_with_its_reason(family: list[Entry]) -> None:
    """It has no items, so by them alone it would land on a board of its own."""
    name = f"aaa/{INT4.recipe}"
    entries = [family[0], family[1], Entry(name=name, report=factory.failed(INT4), items=())]
    board = one(entries)
    assert [row.entry for row in board.unranked] == [name]
    row = board.unranked[0]
    assert row.unranked == "failed in build (crash): the worker ended with signal 9"
    assert "failed" in row.badges
    assert (row.quality, row.cpu_s_per_ktoken, row.energy_j_per_ktoken, row.cost_ratio) == (None,) * 4
    assert board.tasks == tuple(result.task for result in family[0].report.tasks)
    assert board.key == one(family).key
    assert order(board) == ["base", "int8-weights"]


def test_a_failed_variant_of_another_model_stays_apart(family: list[Entry]) -> None:
    stranger = Entry(name="z", report=factory.failed(INT4, model="other-model"), items=())
    assert sorted(len(rows(board)) for board in rank.boards([family[0], stranger])) == [1, 1]


def test_a_variant_whose_energy_was_not_measured_yet_is_unranked_with_the_reason(family: list[Entry]) -> None:
    half = changed(family[1], status="quality-only", trials=(), probes=())
    row = rows(one([family[0], half]))["int8-weights"]
    assert "interrupted before its energy trials" in (row.unranked or "")
    assert (row.cpu_s_per_ktoken, row.energy_j_per_ktoken, row.cost_ratio, row.quality_per_kilojoule) == (None,) * 4
    assert row.quality is not None


def test_simulated_energy_is_never_ranked() -> None:
    entries = [changed(entry, method="simulated") for entry in factory.family(n=N, measured_w=200.0, specs=(BASE, INT8))]
    board = one(entries)
    assert board.ranked == ()
    assert board.is_simulated
    assert board.title.startswith("SIMULATED: ")
    for row in board.unranked:
        assert (row.unranked or "").startswith("SIMULATED: ")
        assert "simulated" in row.badges
        assert row.quality_per_kilojoule is None
        assert row.energy_j_per_ktoken is not None
        assert row.is_base or row.cost_ratio is None
        assert row.crossover is None


def test_simulated_entries_stand_apart_and_last() -> None:
    real = factory.family(n=N, measured_w=200.0, specs=(BASE, INT8))
    made = [changed(entry, method="simulated", name=f"sim/{entry.name}") for entry in real]
    boards = rank.boards([*made, *real, *factory.family(n=N)])
    assert [board.is_simulated for board in boards] == [False, False, True]
    assert len(boards[0].ranked) == 2


@pytest.mark.parametrize("costs", [[None, None, None], [24.0, None, 24.0]])
def test_an_unmeasured_cost_is_none_and_never_zero(costs: list[float | None], family: list[Entry]) -> None:
    row = rows(one([family[0], with_costs(family[1], costs)]))["int8-weights"]
    assert row.cpu_s_per_ktoken is None
    assert row.cost_ratio is None
    assert row.unranked == "no cost was measured"


def test_unmeasured_probes_are_left_out_and_a_true_zero_is_kept(family: list[Entry]) -> None:
    def probe_cpu(entry: Entry, cpu_s: float | None) -> Row:
        report = entry.report
        probes = tuple(msgspec.structs.replace(probe, window=msgspec.structs.replace(probe.window, cpu_s=cpu_s))
                       for probe in report.probes)
        return rows(one([changed(entry, probes=probes)]))["base"]

    missing, zero = probe_cpu(family[0], None), probe_cpu(family[0], 0.0)
    assert (missing.prefill_cpu_s_per_ktoken, missing.decode_cpu_s_per_ktoken) == ({}, {})
    assert set(missing.prefill_tokens_per_s) == {1, 4}
    assert zero.prefill_cpu_s_per_ktoken == {1: 0.0, 4: 0.0}
    assert zero.decode_cpu_s_per_ktoken == {1: 0.0, 8: 0.0}
    downloads.board_json(one([family[0]]))


def test_a_variant_is_compared_with_the_base_that_it_names(family: list[Entry]) -> None:
    """Two runs of one model on one machine with different bases: each ratio is within its own run."""
    dear = with_costs(changed(family[0], recipe="fp32", base="fp32", name="z/fp32"), [48.0, 48.2])
    mine = with_costs(changed(family[1], base="fp32", recipe="int8-fp32", name="z/int8"), [24.0, 24.2])
    board = one([family[0], with_costs(family[1], [24.0, 24.2]), dear, mine])
    found = rows(board)
    assert found["int8-fp32"].cost_ratio is not None
    assert found["int8-weights"].cost_ratio is not None
    assert found["int8-fp32"].cost_ratio.value == pytest.approx(24.1 / 48.1)
    base = found["base"].cpu_s_per_ktoken
    assert base is not None
    assert found["int8-weights"].cost_ratio.value == pytest.approx(24.1 / 6 / base.value)


def test_a_variant_is_compared_with_the_base_of_its_own_session(family: list[Entry]) -> None:
    """The same run on another day: twice as slow a machine gives the same ratio, within each session."""
    def later(entry: Entry, costs: list[float]) -> Entry:
        return with_costs(changed(entry, session=factory.sha("later"), name=f"later/{entry.name}"), costs)

    early = [with_costs(family[0], [20.0, 20.2]), with_costs(family[1], [30.0, 30.2])]
    late = [later(family[0], [40.0, 40.4]), later(family[1], [60.0, 60.4])]
    board = one([*early, *late])
    ratios = {row.entry: row.cost_ratio.value for row in board.ranked if row.cost_ratio}
    assert len(ratios) == 4
    assert ratios[early[1].name] == pytest.approx(30.1 / 20.1)
    assert ratios[late[1].name] == pytest.approx(60.2 / 40.2)


@pytest.mark.parametrize("change", [{"session": factory.sha("another")}, {"status": "failed"}, {"trials": ()}])
def test_a_variant_whose_base_was_not_measured_in_its_session_has_no_rank(
    change: dict[str, Any], family: list[Entry]
) -> None:
    base = changed(family[0], **change)
    elsewhere = changed(family[0], session=factory.sha("third"), name="third/base")
    row = rows(one([base, family[1], elsewhere]))["int8-weights"]
    assert row.unranked == "its base was not measured in the same session"
    assert row.cost_ratio is None
    assert row.quality is not None
    assert row.cpu_s_per_ktoken is not None


@pytest.mark.parametrize("change", [{"model_weights_sha256": factory.sha("other weights")}, {"model": "another-model"}])
def test_a_base_of_other_weights_is_no_base(change: dict[str, Any], family: list[Entry]) -> None:
    row = rows(one([changed(family[0], **change), family[1]]))["int8-weights"]
    assert "base is not on this board" in (row.unranked or "")
    assert row.cost_ratio is None
    assert {cell.signal for cell in row.tasks} == {None}


def test_without_a_base_nothing_is_known_of_signal(family: list[Entry]) -> None:
    board = one([family[1]])
    assert board.no_signal == ()
    assert {cell.signal for row in board.unranked for cell in row.tasks} == {None}


def test_with_two_models_a_task_is_silent_only_where_no_base_has_signal(family: list[Entry]) -> None:
    deaf = replace(BASE, accuracy=(0.5, 0.25, 0.25), bits_per_byte=9.0)
    other = [changed(entry, model="other", name=f"other/{entry.name}") for entry in factory.family(n=N, specs=(deaf, INT8))]
    board = one([*family[:2], *other])
    known = one(family[:2])
    assert board.no_signal == known.no_signal
    cells = {row.entry: {cell.task for cell in row.tasks if cell.signal} for row in (*board.ranked, *board.unranked)}
    assert cells[other[1].name] == set()
    assert cells[family[1].name] == set(board.tasks) - set(board.no_signal) != set()


def test_a_variant_whose_energy_was_not_measured_yet_stands_beside_its_base(family: list[Entry]) -> None:
    half = changed(family[1], status="quality-only", trials=(), probes=(), session=None, replay_sha256=None)
    board = one([family[0], half])
    assert board.key == one(family).key
    assert set(rows(board)) == {"base", "int8-weights"}
    fewer = changed(half, tasks=half.report.tasks[:1])
    assert len(rank.boards([family[0], fewer])) == 2


def test_an_interval_that_no_float_holds_is_none(family: list[Entry]) -> None:
    wild = rows(one([with_costs(family[0], [1e-300, 1e9]), with_costs(family[1], [1e9, 1e-300])]))["int8-weights"].cost_ratio
    assert wild is not None
    assert (wild.low, wild.high) == (None, None)


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> list[Entry]:
    """Base, int8 and drop-6 with the cells agent at batch 1 and 8, and replay, on a CPU."""
    return factory.serving_family(n=N)


def cells(boards: Sequence[Board]) -> list[tuple[str, int | None]]:
    return [(board.workload, board.batch) for board in boards]


def with_trials(entry: Entry, change: Callable[[Any], Any]) -> Entry:
    """Give the entry with every trial changed; None takes it away."""
    found = [change(trial) for trial in entry.report.trials]
    return changed(entry, trials=tuple(trial for trial in found if trial is not None))


def void_in(entry: Entry, batch: int | None, words: str = "throttled: 3 samples") -> Entry:
    return with_trials(entry, lambda trial: msgspec.structs.replace(trial, void=words) if trial.batch == batch else trial)


def gate(name: str, subject: str, status: str = "fail", **fields: Any) -> Gate:
    return Gate(**({"name": name, "subject": subject, "status": status, "value": 0.09, "limit": 0.25, "code": "no-verdict",
                    "reason": f"what {name} says"} | fields))


def test_an_entry_stands_on_a_board_for_each_of_its_cells_serving_first(served: list[Entry]) -> None:
    boards = rank.boards(served)
    assert cells(boards) == [("agent", 1), ("agent", 8), ("replay", None)]
    assert all(len(board.ranked) == 3 for board in boards)
    assert len({board.key for board in boards}) == 3
    assert [(board.prompt_tokens, board.output_tokens) for board in boards] == [(1500, 40), (1500, 40), (None, None)]
    for seed in range(3):
        entries = list(served)
        random.Random(seed).shuffle(entries)
        assert rank.boards(entries) == boards


def test_a_serving_board_is_ranked_by_the_cost_of_a_request(served: list[Entry]) -> None:
    for board, batch in zip(rank.boards(served), (1, 8), strict=False):
        for row in board.ranked:
            law = factory.LAWS[row.report.recipe]
            costs = [trial.window.cpu_s / trial.requests for trial in row.report.trials
                     if trial.batch == batch and trial.window.cpu_s is not None]
            assert row.cost_per_request is not None
            assert row.cost_per_request == row.cpu_s_per_request
            assert row.cost_per_request.value == pytest.approx(np.mean(costs)) == pytest.approx(
                law.request(1500, 40, batch), rel=0.01)
            assert row.quality is not None
            assert row.energy_j_per_request is not None
            assert row.quality_per_kilojoule is not None
            assert row.quality_per_kilojoule.value == pytest.approx(1000 * row.quality.value / row.energy_j_per_request.value)
        values = [(-(row.tier or 0), row.cost_per_request.value) for row in board.ranked if row.cost_per_request]
        assert values == sorted(values)


def test_a_request_of_measured_joules_decides_where_there_is_a_sensor() -> None:
    board = rank.boards(factory.serving_family(n=N, joules=True))[0]
    assert not board.is_cpu_time
    for row in board.ranked:
        assert row.cost_per_request == row.energy_j_per_request
        assert row.cost_per_request is not None
        assert row.cost_per_request.value == pytest.approx(factory.LAWS[row.report.recipe].request(1500, 40, 1), rel=0.01)
        assert row.cost_model is not None
        assert row.cost_model.cost == "joules"


def test_replay_has_no_cost_per_request(served: list[Entry]) -> None:
    for row in rank.boards(served)[-1].ranked:
        assert (row.cpu_s_per_request, row.energy_j_per_request, row.cost_per_request, row.crossover) == (None,) * 4
        assert row.headline_cost == row.cpu_s_per_ktoken is not None


def test_a_workload_declared_with_other_lengths_is_another_board(served: list[Entry]) -> None:
    longer = with_trials(served[1], lambda trial: trial if trial.batch is None else msgspec.structs.replace(
        trial, prompt_tokens=trial.prompt_tokens * 2))
    assert cells(rank.boards([served[0], longer])) == [("agent", 1), ("agent", 1), ("agent", 8), ("agent", 8), ("replay", None)]


def test_another_replay_does_not_part_serving_cells(served: list[Entry]) -> None:
    other = changed(served[1], replay_sha256=factory.sha("x"))
    assert [len(rows(board)) for board in rank.boards([served[0], other])] == [2, 2, 1, 1]


def test_a_failed_variant_stands_on_every_board_of_its_family(served: list[Entry]) -> None:
    boards = rank.boards([*served, Entry(name="x/failed", report=factory.failed(INT4), items=())])
    assert cells(boards) == [("agent", 1), ("agent", 8), ("replay", None)]
    for board in boards:
        assert [row.entry for row in board.unranked] == ["x/failed"]


def test_an_interrupted_variant_stands_on_every_board_of_its_base(served: list[Entry]) -> None:
    half = changed(served[1], status="quality-only", trials=(), probes=())
    boards = rank.boards([served[0], half])
    assert cells(boards) == [("agent", 1), ("agent", 8), ("replay", None)]
    assert all("interrupted" in (rows(board)["int8-weights"].unranked or "") for board in boards)


def test_a_planned_cell_without_a_trial_is_shown_where_the_base_has_it(served: list[Entry]) -> None:
    fewer = with_trials(served[1], lambda trial: None if trial.batch == 8 else trial)
    board = rank.boards([served[0], fewer])[1]
    row = rows(board)["int8-weights"]
    assert row.unranked == "no trial of this entry was measured in this cell"
    assert row.cost_per_request is None


def test_a_cell_whose_trials_are_all_void_says_which_gate_voided_them(served: list[Entry]) -> None:
    boards = rank.boards([served[0], void_in(served[1], 8), served[2]])
    row = rows(boards[1])["int8-weights"]
    assert row.unranked == "every trial of this entry is void (throttled: 3 samples)"
    assert (row.cost_per_request, row.cost_ratio, row.crossover) == (None, None, None)
    assert [rows(board)["int8-weights"].rank is not None for board in boards] == [True, False, True]


def test_a_variant_all_of_whose_base_trials_are_void_has_no_rank(served: list[Entry]) -> None:
    boards = rank.boards([void_in(served[0], 8), *served[1:]])
    row = rows(boards[1])["int8-weights"]
    assert row.unranked == "every trial of its base is void (throttled: 3 samples)"
    assert row.cost_ratio is None
    assert row.cost_per_request is not None
    assert boards[1].ranked == ()
    assert len(boards[0].ranked) == 3


def test_a_cell_that_measures_idling_keeps_its_cost_and_loses_its_rank(served: list[Entry]) -> None:
    idle = changed(served[1], gates=(gate("load", "agent-b1"),))
    boards = rank.boards([served[0], idle, served[2]])
    row = rows(boards[0])["int8-weights"]
    assert "measures idling" in (row.unranked or "")
    assert "what load says" in (row.unranked or "")
    assert "idling" in row.badges
    assert (row.cost_ratio, row.crossover) == (None, None)
    assert row.cost_per_request is not None
    assert rows(boards[1])["int8-weights"].rank is not None
    assert "idling" not in rows(boards[1])["int8-weights"].badges


@pytest.mark.parametrize(("name", "subject", "touched"), [
    ("drift", "agent-b1", [True, False, False]), ("canary", "canary", [False, False, False]),
    ("load", "agent-b8", [False, True, False]), ("realised", "variant", [True, True, True]),
    ("steady", "trial-100", [False, False, False]), ("outputs", "agent-b1", [False, False, False]),
])
def test_a_gate_that_fails_on_the_base_takes_its_session_with_it(
    name: str, subject: str, touched: list[bool], served: list[Entry]
) -> None:
    base = changed(served[0], gates=(gate(name, subject),))
    elsewhere = [changed(entry, session=factory.sha("later"), name=f"later/{entry.name}") for entry in served]
    for board, hit in zip(rank.boards([base, *served[1:], *elsewhere]), touched, strict=True):
        for row in (*board.ranked, *board.unranked):
            assert (row.rank is None) is (hit and not row.entry.startswith("later/"))
            if row.rank is None:
                assert f"fails the gate {name} (what {name} says)" in (row.unranked or "")


def test_a_cross_check_that_is_not_sure_is_marked_on_its_own_board(served: list[Entry]) -> None:
    trial = next(trial for trial in served[1].report.trials if trial.batch == 8)
    unsure = changed(served[1], gates=(gate("cross-check", trial.window.name, "unverified", code="integral-unsure"),))
    found = [rows(board)["int8-weights"] for board in rank.boards([served[0], unsure])]
    assert ["unverified" in row.badges for row in found] == [False, True, False]
    assert all(row.rank is not None for row in found)


def test_doubts_of_gates_make_an_entry_provisional_in_words(served: list[Entry]) -> None:
    doubtful = changed(served[1], provisional=None, gates=(gate("window-length", "agent-b1", code="too-short"),))
    row = rows(rank.boards([served[0], doubtful])[0])["int8-weights"]
    assert "provisional" in row.badges
    assert row.provisional == ("too-short (agent-b1): what window-length says",)
    assert row.rank is not None


def test_latencies_are_those_of_the_cell(served: list[Entry]) -> None:
    first, eighth, replay = (rows(board)["base"] for board in rank.boards(served))
    assert first.first_token is not None
    assert (first.first_token.median_s, first.first_token.samples) == (pytest.approx(0.305), 6)
    assert first.inter_token is not None
    steps = next(probe.step_s for probe in first.report.probes if (probe.kind, probe.batch) == ("decode", 1))
    assert first.inter_token.p95_s == pytest.approx(np.percentile(steps, 95))
    assert first.inter_token.median_s == pytest.approx(np.median(steps))
    assert eighth.inter_token is None
    assert (replay.first_token, replay.inter_token) == (None, None)


def test_the_crossover_is_of_the_requests_of_the_cell(served: list[Entry]) -> None:
    found = rows(rank.boards(served)[0])
    assert found["base"].crossover is None
    crossing = found["int8-weights"].crossover
    assert crossing is not None
    models = [costmodel.fit(entry.report.probes, "cpu_s") for entry in served[:2]]
    assert crossing == costmodel.crossover(*models, prompt=1500, output=40, batch=1)


def test_probes_of_several_lengths_and_void_ones_do_not_mix(served: list[Entry]) -> None:
    report = served[0].report
    probes = tuple(msgspec.structs.replace(probe, void="throttled: hot") if (probe.kind, probe.batch) == ("prefill", 4)
                   else probe for probe in report.probes)
    row = rows(rank.boards([changed(served[0], probes=probes)])[0])["base"]
    assert set(row.prefill_cpu_s_per_ktoken) == {1, 16, 64}
    middle = next(probe for probe in probes if (probe.kind, probe.batch, probe.prompt_tokens) == ("prefill", 16, 512))
    assert middle.window.cpu_s is not None
    assert row.prefill_cpu_s_per_ktoken[16] == pytest.approx(1000 * middle.window.cpu_s / (2 * 16 * 512))


def test_badges_are_reason_codes(family: list[Entry]) -> None:
    clean = changed(family[0], provisional=None, prior_quantisation=None)
    assert rows(one([clean]))["base"].badges == ("estimated-joules",)
    assert rows(one(family))["nf4"].badges == ("provisional", "demonstration-base", "estimated-joules", "base-grid")


def test_a_board_goes_into_json_and_csv_without_numbers_that_json_lacks(family: list[Entry]) -> None:
    entries = [*family, Entry(name="x/failed", report=factory.failed(INT4), items=())]
    for board in rank.boards(entries):
        assert "NaN" not in downloads.board_json(board)
        assert "nan" not in downloads.board_csv(board)


def test_the_reports_are_not_changed(family: list[Entry]) -> None:
    before = [msgspec.json.encode(entry.report) for entry in family]
    rank.boards(family)
    assert [msgspec.json.encode(entry.report) for entry in family] == before
    assert all(isinstance(entry.report, Report) for entry in family)


# --- what repeats, latencies and the base's drift bear ------------------------------------------------------------------


@pytest.mark.parametrize("values", [[4.0, 5.0], [5.1], [1.0, 1.2, 13.1], [0.0, 0.0, 0.0]])
def test_too_few_repeats_and_an_interval_below_zero_give_no_interval(values: list[float]) -> None:
    found = costs.mean(values)
    assert found is not None
    assert found.value == pytest.approx(sum(values) / len(values))
    assert (found.low, found.high) == (None, None)


def test_three_close_repeats_have_an_interval_and_two_have_no_ratio() -> None:
    found = costs.mean([4.9, 5.0, 5.1])
    assert found is not None
    assert found.low is not None
    assert 0 < found.low < 4.9
    three, two = intervals.cost_ratio([4.9, 5.0, 5.1], [2.0, 2.1, 2.2]), intervals.cost_ratio([4.9, 5.1], [2.0, 2.2])
    assert three is not None
    assert two is not None
    assert three.low is not None
    assert (two.low, two.high) == (None, None)


def test_a_95th_percentile_takes_twenty_samples() -> None:
    assert [found.p95_s is not None for count in (1, 19, 20) if (found := costs.latency([0.1] * count))] == [
        False, False, True]


def test_latency_is_that_of_the_probe_whose_context_is_nearest_to_the_cell(served: list[Entry]) -> None:
    law = factory.LAWS["base"]
    slow = [msgspec.structs.replace(probe, step_s=tuple(2 * one for one in probe.step_s)) if probe.prompt_tokens == 1400
            else probe for probe in factory.law_probes(law, contexts=(64, 1400))]
    row = rows(rank.boards([changed(served[0], probes=tuple(slow))])[0])["base"]
    steps = next(probe.step_s for probe in slow if (probe.kind, probe.batch, probe.prompt_tokens) == ("decode", 1, 1400))
    assert row.inter_token is not None
    assert (row.inter_token.context_tokens, row.inter_token.samples) == (1400, len(steps))
    assert row.inter_token.median_s == pytest.approx(np.median(steps))


def test_machines_that_differ_in_cores_alone_stand_apart_where_the_processor_computes(family: list[Entry]) -> None:
    def cores(entry: Entry, device: str) -> Entry:
        environment = msgspec.structs.replace(entry.report.environment, logical_cores=64)
        return changed(entry, environment=environment, engine=msgspec.structs.replace(entry.report.engine, device=device))

    assert len(rank.boards([family[0], cores(family[1], "cpu")])) == 2
    base = changed(family[0], engine=msgspec.structs.replace(family[0].report.engine, device="cuda:0"))
    assert len(rank.boards([base, cores(family[1], "cuda:0")])) == 1


def test_a_row_knows_how_far_its_base_moved_in_its_own_cell(served: list[Entry]) -> None:
    moved = msgspec.structs.replace(gate("drift", "agent-b1", "pass"), value=0.021)
    base = changed(served[0], gates=(moved, gate("drift", "agent-b8", "not-applicable", value=None)))
    found = [rows(board) for board in rank.boards([base, *served[1:]])]
    assert [board["int8-weights"].base_drift for board in found] == [0.021, None, None]
    assert found[0]["base"].base_drift is None
