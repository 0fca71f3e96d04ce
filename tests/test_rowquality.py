"""How often the interval of a macro quality holds the truth, and what counts in it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from jouleboard import rowquality, scores
from jouleboard.records import Score
from jouleboard.rowquality import _macro, _Part
from tests import factory

TRUTH, CHANCE = (0.92, 0.55, 0.35), (0.5, 0.25, 0.25)
DRAWS = 2000


def covered(n: int, *, clusters: bool) -> float:
    """Return how many of all draws of three tasks have an interval that holds the true macro quality."""
    generator = np.random.default_rng(n)
    truth = float(np.mean([(p - c) / (1 - c) for p, c in zip(TRUTH, CHANCE, strict=True)]))
    held = 0
    owner = np.arange(n) // 5
    for _ in range(DRAWS):
        parts = []
        for share, chance in zip(TRUTH, CHANCE, strict=True):
            luck = np.where(generator.random(n) < 0.5, generator.random(n), generator.random(n // 5 + 1)[owner]) if clusters else (
                generator.random(n))
            right = (luck < share).astype(float)
            value, residual = right.mean(), right - right.mean()
            sums = np.bincount(owner, residual) if clusters else residual
            stderr = float(np.sqrt((sums**2).sum() / (n * n if clusters else n * (n - 1))))
            score = Score(value=float(value), stderr=stderr, n=n, clusters=len(sums) if clusters else None)
            parts.append(_Part(score=score, limits=scores.interval(score, "acc"), chance=chance))
        limits = _macro(parts).limits
        assert limits.low is not None
        assert limits.high is not None
        held += limits.low <= truth <= limits.high
    return held / DRAWS


@pytest.mark.parametrize("n", [50, 300, 1000])
def test_the_interval_of_a_macro_quality_holds_the_truth_in_about_95_of_100(n: int) -> None:
    assert 0.93 <= covered(n, clusters=False) <= 0.97


@pytest.mark.parametrize("n", [300, 1000])
def test_the_same_for_items_in_clusters(n: int) -> None:
    assert 0.93 <= covered(n, clusters=True) <= 0.97


def test_answers_in_text_count_and_bits_per_byte_do_not() -> None:
    report = factory.report()
    signal = {result.task: True for result in report.tasks}
    before = rowquality.counted(report.tasks, signal)
    text = msgspec.structs.replace(report.tasks[0], task="gsm", kind="generation", primary_metric="exact_match",
                                   scores={"exact_match": Score(value=0.4, stderr=0.03, n=200)}, chance=factory.Chance(value=0.0, source="none"))
    after = rowquality.counted([*report.tasks, text], signal | {"gsm": True})
    assert before is not None
    assert after is not None
    assert after.quality.mean.value == pytest.approx((3 * before.quality.mean.value + 0.4) / 4)
    assert rowquality.counted([result for result in report.tasks if result.kind == "perplexity"], signal) is None


def test_one_withheld_score_leaves_no_macro_quality() -> None:
    report = factory.report()
    signal = {result.task: True for result in report.tasks}
    held = msgspec.structs.replace(report.tasks[0], scores=dict.fromkeys(report.tasks[0].scores), withheld="base-grid")
    assert rowquality.counted([held, *report.tasks[1:]], signal) is None
