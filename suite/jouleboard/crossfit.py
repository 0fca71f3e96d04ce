"""Thresholds that are chosen on other items than those they are used on, and the draws that show what the choice is worth. Pure.

A task of a cascade as arrays; everything is a sum over the items of a fold that are first deferred at a threshold::

    task = CascadeItems(paired, small_report, large_report)
    once = task.chosen(loss=0.0)             the thresholds of each fold, and what they come to
    many, = task.redrawn(0.0)                the same over 400 draws of the items, the thresholds chosen anew in each
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy import sparse

from jouleboard.costs import LEAST_REPEATS
from jouleboard.declared import Noun
from jouleboard.declared_tasks import Metric
from jouleboard.pairs import PairedTask
from jouleboard.records import Item, Report

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
SEED = 20260101
FOLDS = 5
DRAWS = 400
MOST_WEIGHTS = 2_000_000
"""Weights that are held at once, so that memory does not grow with items times draws."""
THRESHOLDS: tuple[float, ...] = (*(step / 50 for step in range(50)), 0.99, 0.995, 0.999, 0.9999, 0.99999, math.inf)
"""Fixed before any item is seen. An item is deferred below it: 0 defers none, infinity all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a cascade comes to: means over items, for each draw (or threshold)."""

    used: Whole
    """Index of the threshold of each fold, shape [draws, folds]."""
    deferred: Floats
    score: Floats
    large_score: Floats
    small_tokens: Floats
    """That the small variant's engine feeds an item."""
    deferred_tokens: Floats
    """That the larger one's feeds, over all items, deferred or not."""
    large_tokens: Floats
    """That the larger one alone would feed an item."""


def confidence(item: Item, metric: Metric) -> float:
    """Return the margin between the two likeliest choices of an item that has several, 0 to 1; see `cascades`."""
    values = np.array(item.loglikelihoods)
    if metric == "acc_norm":
        # As if all choices were as long as they are on average: the metric compares log-likelihoods per character.
        values = values / np.array(item.choice_chars) * (sum(item.choice_chars) / len(item.choice_chars))
    shares = np.exp(values - values.max())
    second, first = np.sort(shares / shares.sum())[-2:]
    return float(first - second)


def sources(task: PairedTask) -> list[str]:
    """Return what is drawn, and falls into a fold, as a whole: an item's cluster, else its document."""
    return [item.doc_sha256 if item.cluster is None else item.cluster for item in task.base]


def fold(key: str) -> int:
    """Return the fold of a document, or of a cluster: the same in every run and for every pair of entries."""
    return int(hashlib.sha256(f"{SEED}/{key}".encode()).hexdigest()[:12], 16) % FOLDS


def fed_share(task: str, report: Report) -> float:
    """Return the tokens that an engine fed for a task over those of the task's requests: prefixes that are shared are fed once."""
    result = next(result for result in report.tasks if result.task == task)
    return result.fed_tokens / max(result.prompt_tokens + result.output_tokens, 1)


class Prices(Noun, frozen=True, kw_only=True):
    """Costs per 1,000 tokens of each valid trial."""

    small: tuple[float, ...]
    large: tuple[float, ...]

    @property
    def reason(self) -> str | None:
        """Say why no cascade can save anything; None where one can."""
        if not self.small or not self.large or min(*self.small, *self.large) <= 0:
            return "the cost of a replayed token is not known of both"
        return None if np.mean(self.small) < np.mean(self.large) else "the first costs no less a token than the second"

    def mean(self) -> tuple[float, float]:
        """Return the mean cost of one token of each."""
        return float(np.mean(self.small)) / 1000, float(np.mean(self.large)) / 1000

    def drawn(self) -> tuple[Floats, Floats] | None:
        """Draw both means as E + s / sqrt(R) t(R - 1); None where the repeats are too few to say how far they spread.

        A bootstrap of 3 to 5 repeats would be too narrow (its nominal 95 % cover 77 to 87 %).
        """
        if min(len(self.small), len(self.large)) < LEAST_REPEATS:
            return None
        generator = np.random.default_rng([SEED, 1])
        small, large = (np.mean(each) / 1000 + np.std(each, ddof=1) / 1000 / math.sqrt(len(each))
                        * generator.standard_t(len(each) - 1, DRAWS) for each in (self.small, self.large))
        return np.asarray(small), np.asarray(large)


class CascadeItems:
    """The items of one task as sums, by the unit that is drawn: a cluster, or an item by itself."""

    def __init__(self, task: PairedTask, small: Report, large: Report) -> None:
        """Place every item in its fold and at the first threshold that defers it.

        Args:
            task: with the larger variant as its base.
            small: entry of the variant that answers first.
            large: of the other one.
        """
        keys = sources(task)
        _, unit = np.unique(keys, return_inverse=True)
        margins = np.array([confidence(item, task.metric) for item in task.variant])
        self._fold, self._first = np.array([fold(key) for key in keys]), np.searchsorted(THRESHOLDS, margins, side="right")
        place = self._fold * len(THRESHOLDS) + self._first
        self.task, self.items, self.units = task, len(keys), int(unit.max()) + 1
        fed = [np.array([item.prompt_tokens + item.output_tokens for item in items]) * fed_share(task.task, report)
               for items, report in ((task.variant, small), (task.base, large))]
        columns = {"items": np.ones(self.items), "small": np.array(task.variant_scores), "large": np.array(task.base_scores),
                   "small_tokens": fed[0], "large_tokens": fed[1]}
        self._sums = {name: sparse.csr_matrix((values, (unit, place)), shape=(self.units, FOLDS * len(THRESHOLDS)))
                      for name, values in columns.items()}
        self._seed = [SEED, int(hashlib.sha256(task.task.encode()).hexdigest()[:8], 16)]

    def chosen(self, *, loss: float) -> Outcome:
        """Choose each fold's threshold on the others: the lowest that loses no more than `loss` to the larger variant there."""
        return _outcome(self._weighed(np.ones((1, self.units))), loss)

    def answers(self, outcome: Outcome) -> tuple[float, ...]:
        """Return each item's score in the cascade of one outcome."""
        asks = self._first <= outcome.used[0][self._fold]
        return tuple(np.where(asks, self.task.base_scores, self.task.variant_scores).tolist())

    def redrawn(self, *losses: float) -> list[Outcome]:
        """Draw the units again with replacement, and choose with each of the losses; the same draws for all.

        Copies of an item share its fold, so none is scored with a threshold that its own copy had a say in.
        """
        generator, left = np.random.default_rng(self._seed), DRAWS
        parts: list[list[Outcome]] = []
        while left:
            size = min(left, max(1, MOST_WEIGHTS // self.units))
            picked = generator.integers(0, self.units, (size, self.units)) + self.units * np.arange(size)[:, None]
            weights = np.bincount(picked.ravel(), minlength=size * self.units).reshape(size, self.units)
            sums = self._weighed(weights.astype(np.float64))
            parts.append([_outcome(sums, loss) for loss in losses])
            left -= size
        return [Outcome(**{one.name: np.concatenate([getattr(part, one.name) for part in same]) for one in fields(Outcome)})
                for same in zip(*parts, strict=True)]

    def swept(self) -> Outcome:
        """Use each threshold in turn on all items: [thresholds]."""
        sums = self._weighed(np.ones((1, self.units)))
        number = len(THRESHOLDS)
        used = np.repeat(np.arange(number)[:, None], FOLDS, axis=1)
        return _with_thresholds({name: np.repeat(values, number, axis=0) for name, values in sums.items()}, used)

    def _weighed(self, weights: Floats) -> dict[str, Floats]:
        """Sum with a weight for each unit: [draws, units] to [draws, folds, thresholds]."""
        return {name: np.asarray((sums.T @ weights.T).T).reshape(len(weights), FOLDS, len(THRESHOLDS))
                for name, sums in self._sums.items()}


def _outcome(sums: dict[str, Floats], loss: float) -> Outcome:
    # What every threshold would gain over the small variant alone, by fold; then on the other folds.
    gain = np.cumsum(sums["large"] - sums["small"], axis=2)
    others = gain.sum(axis=1, keepdims=True) - gain
    n, small, large = (_others(sums[name]) for name in ("items", "small", "large"))
    # Sums of equal scores in another order differ by rounding.
    enough = small[:, :, None] + others >= (large - loss * n - 1e-9)[:, :, None]
    # To defer all is always enough; argmax gives the first that is.
    return _with_thresholds(sums, np.argmax(enough, axis=2))


def _others(values: Floats) -> Floats:
    each = values.sum(axis=2)
    return np.asarray(each.sum(axis=1, keepdims=True) - each)


def _with_thresholds(sums: dict[str, Floats], used: Whole) -> Outcome:
    """Apply the thresholds of each fold to the fold itself."""
    def upto(values: Floats) -> Floats:
        return np.asarray(np.take_along_axis(np.cumsum(values, axis=2), used[:, :, None], axis=2).sum(axis=(1, 2)))

    def whole(name: str) -> Floats:
        return np.asarray(sums[name].sum(axis=(1, 2)))

    n = whole("items")
    return Outcome(
        used=used, deferred=upto(sums["items"]) / n, score=(whole("small") + upto(sums["large"] - sums["small"])) / n,
        large_score=whole("large") / n, small_tokens=whole("small_tokens") / n,
        deferred_tokens=upto(sums["large_tokens"]) / n, large_tokens=whole("large_tokens") / n)
