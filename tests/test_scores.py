"""Scores, intervals and chance levels against numpy and scipy."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jouleboard import catalogue, scores
from jouleboard.declared import Model
from jouleboard.records import Chance, Item, Score
from tests import factory

# Few distinct values, so that ties are common.
likelihoods = st.integers(-6, 0).map(float) | st.floats(-500, 0)
rows = st.integers(1, 8).flatmap(lambda width: st.tuples(
    st.lists(likelihoods, min_size=width, max_size=width), st.lists(st.integers(1, 6), min_size=width, max_size=width),
    st.integers(0, width - 1)))


def choice(values: list[float], chars: list[int], gold: int) -> Item:
    return factory.item(gold=gold, loglikelihoods=tuple(values), choice_chars=tuple(chars))


@settings(max_examples=300, deadline=None)
@given(rows)
def test_accuracies_are_those_of_numpys_argmax(row: tuple[list[float], list[int], int]) -> None:
    values, chars, gold = row
    expected = {
        "acc": float(np.argmax(values) == gold),
        "acc_norm": float(np.argmax(np.array(values) / np.array(chars, dtype=float)) == gold),
    }
    assert scores.rescore(choice(values, chars, gold)) == expected


@pytest.mark.parametrize(("values", "chars", "expected"), [
    ([-4.0, -4.0], [2, 2], [1.0, 0.0]),
    ([-4.0, -4.0], [2, 4], [1.0, 0.0]),
    ([-2.0, -4.0], [2, 4], [1.0, 0.0]),
    ([-0.0, 0.0], [1, 1], [1.0, 0.0]),
])
def test_a_tie_goes_to_the_first_choice(values: list[float], chars: list[int], expected: list[float]) -> None:
    assert [scores.rescore(choice(values, chars, gold))["acc"] for gold in (0, 1)] == expected


def test_the_two_accuracies_can_disagree() -> None:
    assert scores.rescore(choice([-3.0, -4.0], [3, 8], 1)) == {"acc": 0.0, "acc_norm": 1.0}


def test_bits_per_byte_of_an_item_is_its_negative_log_likelihood_in_bits_over_its_bytes() -> None:
    item = factory.text_item(loglikelihoods=(-300 * math.log(2),), text_bytes=100)
    assert scores.rescore(item) == {"bits_per_byte": pytest.approx(3.0, rel=1e-15)}


@pytest.mark.parametrize("size", [None, 0])
def test_a_text_without_bytes_has_no_score(size: int | None) -> None:
    with pytest.raises(ValueError, match="bytes"):
        scores.rescore(factory.text_item(text_bytes=size, scores={}))


# --- aggregates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("n", [2, 57, 400])
def test_the_mean_and_its_standard_error_are_those_of_scipy(n: int, accuracy: float) -> None:
    made = factory.items(n, accuracy=accuracy)
    values = [item.scores["acc"] for item in made]
    found = scores.aggregate(made, "acc")
    assert found.value == pytest.approx(np.mean(values), abs=1e-15)
    assert found.stderr == pytest.approx(stats.sem(values), abs=1e-15)
    assert found.n == n


def test_one_item_has_a_mean_and_no_spread() -> None:
    assert scores.aggregate(factory.items(1, accuracy=1.0), "acc") == Score(value=1.0, stderr=0.0, n=1)


def test_bits_per_byte_of_a_task_is_the_ratio_of_sums_and_not_the_mean_of_ratios() -> None:
    sizes, bits = np.array([10, 1000, 300]), np.array([80.0, 1000.0, 450.0])
    made = [factory.text_item(index=index, loglikelihoods=(float(-b * math.log(2)),), text_bytes=int(s))
            for index, (b, s) in enumerate(zip(bits, sizes, strict=True))]
    found = scores.aggregate(made, "bits_per_byte")
    ratio = bits.sum() / sizes.sum()
    assert found.value == pytest.approx(ratio, rel=1e-12)
    assert found.value != pytest.approx(np.mean(bits / sizes), rel=1e-3)
    # Cochran 1977, 6.4: variance of the residuals about the ratio, over n times the squared mean size.
    stderr = np.sqrt(np.sum((bits - ratio * sizes) ** 2) / (3 * 2)) / sizes.mean()
    assert found.stderr == pytest.approx(stderr, rel=1e-12)


def test_the_ratio_estimators_standard_error_agrees_with_a_bootstrap() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(100, 1000, 400)
    bits = sizes * rng.normal(1.2, 0.2, 400)
    made = [factory.text_item(index=index, loglikelihoods=(float(-b * math.log(2)),), text_bytes=int(s))
            for index, (b, s) in enumerate(zip(bits, sizes, strict=True))]
    draws = rng.integers(0, 400, (3000, 400))
    bootstrap = np.std(bits[draws].sum(axis=1) / sizes[draws].sum(axis=1))
    assert scores.aggregate(made, "bits_per_byte").stderr == pytest.approx(bootstrap, rel=0.1)


# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 10), (3, 10), (50, 100), (62, 100), (299, 299)])
def test_wilsons_interval_is_that_of_scipy(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert scores.wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-10)


def test_accuracies_below_300_items_get_wilsons_interval_and_others_the_normal_one() -> None:
    few, many = Score(value=0.5, stderr=0.03, n=299), Score(value=0.5, stderr=0.03, n=300)
    half = stats.norm.ppf(0.975) * 0.03
    assert scores.interval(few, "acc") == scores.wilson(0.5, 299)
    assert scores.interval(many, "acc") == pytest.approx((0.5 - half, 0.5 + half), rel=1e-12)
    assert scores.interval(few, "bits_per_byte") == pytest.approx((0.5 - half, 0.5 + half), rel=1e-12)


# --- chance -----------------------------------------------------------------------------------------------------------


def test_chance_of_a_lopsided_task_is_its_best_constant_answer() -> None:
    """BoolQ: 62 % of the answers are yes."""
    found = scores.choice_chance([1] * 62 + [0] * 38, [2] * 100)
    assert found == Chance(value=0.62, source="best constant answer")


def test_chance_of_a_balanced_task_is_guessing() -> None:
    assert scores.choice_chance([0, 1, 2, 3], [4] * 4) == Chance(value=0.25, source="mean of 1/k")
    assert scores.choice_chance([0, 1, 2], [2, 3, 6]).value == pytest.approx((1 / 2 + 1 / 3 + 1 / 6) / 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1).filter(any))
def test_byte_entropy_is_that_of_scipy(texts: list[str]) -> None:
    counts = np.bincount(np.frombuffer("".join(texts).encode(), dtype=np.uint8))
    assert scores.byte_entropy(texts).value == pytest.approx(stats.entropy(counts, base=2), abs=1e-9)


@pytest.mark.parametrize(("right", "expected"), [(59, False), (60, True), (61, True), (40, False)])
def test_a_score_clears_chance_only_when_its_whole_interval_does(right: int, expected: bool) -> None:  # noqa: FBT001
    chance = Chance(value=0.5, source="")
    score = Score(value=right / 100, stderr=0.05, n=100)
    low = stats.binomtest(right, 100).proportion_ci(method="wilson").low
    assert bool(low > 0.5) is expected
    assert scores.clears_chance(score, chance, "acc") is expected


@pytest.mark.parametrize(("value", "expected"), [(4.0, True), (4.9, False), (5.0, False), (6.0, False)])
def test_fewer_bits_per_byte_are_better(value: float, expected: bool) -> None:  # noqa: FBT001
    score = Score(value=value, stderr=0.1, n=100)
    assert scores.clears_chance(score, Chance(value=5.0, source=""), "bits_per_byte") is expected


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 0.9), st.floats(0, 0.1))
def test_chance_corrected_accuracy_is_never_clipped(value: float, chance: float, stderr: float) -> None:
    found, error = scores.chance_corrected(Score(value=value, stderr=stderr, n=9), Chance(value=chance, source=""), "acc")
    assert found == pytest.approx((value - chance) / (1 - chance))
    assert error == pytest.approx(stderr / (1 - chance))
    assert (found < 0) == (value < chance)


def test_chance_corrected_bits_are_1_for_perfect_0_for_chance_and_negative_beyond() -> None:
    def corrected(value: float) -> float:
        return scores.chance_corrected(Score(value=value, stderr=0.4, n=9), Chance(value=4.0, source=""),
                                       "bits_per_byte")[0]

    assert [corrected(value) for value in (0.0, 1.0, 4.0, 6.0)] == [1.0, 0.75, 0.0, -0.5]


# --- withheld ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prior_bits", "weight_bits", "expected"), [
    (4, 4, "base-grid"), (4, 3, "base-grid"), (4, 8, None), (4, 5, None), (4, None, None), (8, 8, "base-grid"),
    (8, 4, "base-grid"), (None, 4, None), (None, None, None),
])
def test_quality_is_withheld_where_the_quantiser_is_no_finer_than_the_bases_own_grid(
    prior_bits: int | None, weight_bits: int | None, expected: str | None
) -> None:
    model = catalogue.model("smollm2-135m-instruct-q4wheel")
    prior = model.prior_quantisation
    assert prior is not None
    changed: Model = msgspec.structs.replace(
        model, prior_quantisation=None if prior_bits is None else msgspec.structs.replace(prior, bits=prior_bits))
    assert scores.withheld_reason(changed, weight_bits) == expected
