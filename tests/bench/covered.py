"""Simulations of every interval: how often each holds the truth in which setting. `coverage.py` prints them, tests judge them.

Example: `Cell("paired 0/1 (Tango)", "n=300 alike", 0.951, ...)`: of pairs of sides that differ on few of 300 items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jouleboard import costs, scores
from jouleboard.estimates import Estimate
from jouleboard.statistics import intervals, paired, power, ranking
from jouleboard.statistics.evidence import TaskPair
from jouleboard.statistics.measured import Measured

ITEMS, TRIALS, SPREADS = (50, 300, 1000, 5000), (3, 5, 10), (0.01, 0.05)
CLUSTER = 5
"""Items that share a source, on average; they number one to nine."""
BASE, LOSS, ALIKE = 0.7, 0.02, 0.06
"""Accuracy of the base, what the variant loses of it, and the share of items on which alike sides differ."""
Values = NDArray[np.float64]


class Cell(NamedTuple):
    """How often one interval held the truth in one setting."""

    interval: str
    setting: str
    covered: float
    unbounded: float
    """Share of draws without bounds, which are not counted among the others."""
    width: float
    """Median width of those with bounds."""


def cell(interval: str, setting: str, truth: float | Sequence[float], found: Sequence[Estimate | paired.Limits | None]) -> Cell:
    """Count how often the truth, one for all draws or one each, was held; without an upper bound all above the lower one is."""
    truths = [truth] * len(found) if isinstance(truth, float) else truth
    bounded = [(one.low, true, math.inf if one.high is None else one.high)
               for one, true in zip(found, truths, strict=True) if one is not None and one.low is not None]
    held = [low <= true <= high for low, true, high in bounded]
    widths = [high - low for low, _, high in bounded] or [math.nan]
    return Cell(interval, setting, float(np.mean(held)) if held else math.nan, 1 - len(bounded) / len(found), float(np.median(widths)))


# --- items ------------------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """Base and variant of many draws, shape [draws, items], and what the items share."""

    base: Values
    variant: Values
    clusters: tuple[str, ...] | None

    def pairs(self, task: str = "task") -> Iterator[TaskPair]:
        """Give one pair of sides a draw."""
        for base, variant in zip(self.base, self.variant, strict=True):
            yield TaskPair(task=task, base=tuple(base.tolist()), variant=tuple(variant.tolist()), clusters=self.clusters, chance=0.5)


def sources(rng: np.random.Generator, n: int) -> tuple[str, ...]:
    """Deal n items out to sources of one to nine items."""
    sizes = rng.integers(1, 2 * CLUSTER, n)
    return tuple(np.repeat(np.arange(n), sizes)[:n].astype(str).tolist())


def uniform(rng: np.random.Generator, draws: int, clusters: tuple[str, ...] | None, n: int) -> Values:
    """Draw uniform numbers, shape [draws, n]; in half of the cases an item has that of its source."""
    own = rng.random((draws, n))
    if clusters is None:
        return own
    codes = intervals.codes_of(clusters)
    shared = rng.random((draws, int(codes.max()) + 1))[:, codes]
    return np.where(rng.random((draws, n)) < 0.5, shared, own)


def right_or_wrong(
    rng: np.random.Generator, draws: int, n: int, *, alike: bool, clustered: bool = False, loss: float = LOSS, base: float = BASE
) -> Drawn:
    """Draw items that are right or wrong; alike sides differ on few items, others are independent."""
    clusters = sources(rng, n) if clustered else None
    first = uniform(rng, draws, clusters, n)
    if not alike:
        second = uniform(rng, draws, clusters, n)
        return Drawn((first < base).astype(float), (second < base - loss).astype(float), clusters)
    lost = (ALIKE + loss) / 2
    # Both right, lost, gained, both wrong.
    ends = np.cumsum([base - lost, lost, ALIKE - lost])
    kinds = np.searchsorted(ends, first, side="right")
    return Drawn((kinds <= 1).astype(float), ((kinds == 0) | (kinds == 2)).astype(float), clusters)


def numbers(rng: np.random.Generator, draws: int, n: int, *, clustered: bool) -> Drawn:
    """Draw scores between 0 and 1, as of texts: the variant's is the base's less a loss that varies."""
    clusters = sources(rng, n) if clustered else None
    base = 0.3 + 0.7 * uniform(rng, draws, clusters, n)
    # A skewed loss of two points on average.
    return Drawn(base, base - 0.3 * uniform(rng, draws, clusters, n) ** 14, clusters)


def of_pairs(rng: np.random.Generator, draws: int, items: Sequence[int] = ITEMS) -> Iterator[Cell]:
    """Simulate the paired difference of one task."""
    for n in items:
        for alike in (True, False):
            name = "alike" if alike else "independent"
            for clustered in (False, True):
                drawn = right_or_wrong(rng, draws, n, alike=alike, clustered=clustered)
                found = [paired.macro([pair]).limits() for pair in drawn.pairs()]
                yield cell("paired 0/1, clusters" if clustered else "paired 0/1 (Tango)", f"n={n} {name}", -LOSS, found)
                if not clustered:
                    yield cell("paired 0/1 (Newcombe)", f"n={n} {name}", -LOSS, _newcombe(drawn))
        for clustered in (False, True):
            drawn = numbers(rng, draws, n, clustered=clustered)
            yield cell("paired numbers, clusters" if clustered else "paired numbers", f"n={n}", -0.02,
                       [paired.macro([pair]).limits() for pair in drawn.pairs()])


def _newcombe(drawn: Drawn) -> list[paired.Limits]:
    base, variant = drawn.base.astype(bool), drawn.variant.astype(bool)
    cells = [(base & variant).sum(1), (base & ~variant).sum(1), (~base & variant).sum(1), (~base & ~variant).sum(1)]
    return [paired.newcombe(both=int(a), lost=int(b), gained=int(c), neither=int(d)) for a, b, c, d in zip(*cells, strict=True)]


def of_macro(rng: np.random.Generator, draws: int, items: Sequence[int] = ITEMS[:3]) -> Iterator[Cell]:
    """Simulate the macro mean of four tasks: three of items that are right or wrong, one of numbers or in clusters."""
    for n in items:
        for clustered in (False, True):
            tasks = [right_or_wrong(rng, draws, n, alike=True, base=base).pairs() for base in (0.95, 0.7, 0.5)]
            tasks.append((right_or_wrong(rng, draws, n, alike=True, clustered=True) if clustered
                          else numbers(rng, draws, n, clustered=False)).pairs())
            yield cell("paired macro (MOVER)", f"4 tasks of n={n}, one {'in clusters' if clustered else 'of numbers'}", -0.02,
                       [paired.macro(pairs).limits() for pairs in zip(*tasks, strict=True)])


def of_shares(rng: np.random.Generator, draws: int, items: Sequence[int] = ITEMS) -> Iterator[Cell]:
    """Simulate shares of right items, and means of numbers."""
    for n in items:
        for clustered in (False, True):
            where = "clusters" if clustered else "alone"
            for base in (BASE, 0.95):
                drawn = right_or_wrong(rng, draws, n, alike=False, clustered=clustered, base=base)
                yield cell("share (Wilson)", f"n={n} p={base} {where}", base,
                           [intervals.share(row.tolist(), drawn.clusters) for row in drawn.base])
            drawn = numbers(rng, draws, n, clustered=clustered)
            yield cell("mean of items (t)", f"n={n} {where}", 0.65,
                       [intervals.clustered_mean(row, drawn.clusters).limits() for row in drawn.base])


# --- costs ------------------------------------------------------------------------------------------------------------


def trials(rng: np.random.Generator, draws: int, repeats: int, *, mean: float, spread: float) -> list[list[float]]:
    """Draw the costs of trials, normal with a relative spread."""
    return rng.normal(mean, spread * mean, (draws, repeats)).tolist()


def of_costs(rng: np.random.Generator, draws: int, repeats: Sequence[int] = TRIALS) -> Iterator[Cell]:
    """Simulate mean costs, their ratio, and what pays a bill back."""
    for spread in SPREADS:
        for r in repeats:
            setting = f"R={r} spread {100 * spread:.0f} %"
            base, mine = (trials(rng, draws, r, mean=mean, spread=spread) for mean in (1.6, 1.2))
            yield cell("mean cost (t)", setting, 1.6, [costs.mean(one) for one in base])
            yield cell("cost ratio (log, Welch)", setting, 0.75, [
                intervals.cost_ratio(a, b) for a, b in zip(mine, base, strict=True)])
            wide = trials(rng, draws, r, mean=1.2, spread=3 * spread)
            yield cell("cost ratio (log, Welch)", f"{setting}, three times on one side", 0.75, [
                intervals.cost_ratio(a, b) for a, b in zip(wide, base, strict=True)])
            bill = Measured(value=400.0, stderr=0.0, dof=math.inf)
            yield cell("break-even requests", setting, 1000.0, [
                power.breakeven(bill=bill, base=intervals.costs_mean(b), variant=intervals.costs_mean(a))
                for a, b in zip(mine, base, strict=True)])


def of_ratios(
    rng: np.random.Generator, draws: int, items: Sequence[int] = ITEMS, repeats: Sequence[int] = TRIALS
) -> Iterator[Cell]:
    """Simulate quality per cost: chance-corrected accuracy of items over the mean cost of trials."""
    for n in items:
        for r in repeats:
            for spread in SPREADS:
                setting = f"n={n} R={r} spread {100 * spread:.0f} %"
                spent = [intervals.costs_mean(one) for one in trials(rng, draws, r, mean=1.2, spread=spread)]
                yield from _per_cost(rng, n, setting, spent)


def _per_cost(rng: np.random.Generator, n: int, setting: str, spent: Sequence[Measured]) -> Iterator[Cell]:
    counts = rng.binomial(n, BASE, len(spent))
    rows = [(int(k), 2 * k / n - 1, 2 * math.sqrt(k / n * (1 - k / n) / (n - 1))) for k in counts]
    corrected = [Measured(value=value, stderr=stderr, dof=n - 1) for _, value, stderr in rows]
    truth = (2 * BASE - 1) / 1.2
    for name, method in (("log-delta", intervals.per_cost), ("Fieller", intervals.fieller)):
        yield cell(f"quality per cost ({name})", setting, truth, [method(q, e) for q, e in zip(corrected, spent, strict=True)])
    # Shares of few items hold more and less often than 95 % in turn, as the share grows: a range of truths is what a board has.
    shares = rng.uniform(0.5, 0.56, len(spent))
    near, truths = rng.binomial(n, shares).tolist(), ((2 * shares - 1) / 1.2).tolist()
    if n < scores.WILSON_BELOW:
        yield cell("quality per cost (MOVER, Wilson)", setting, BASE / 1.2, _by_wilson([k for k, _, _ in rows], n, spent, chance=0.0))
        yield cell("the same near zero (MOVER, Wilson)", setting, truths, _by_wilson(near, n, spent, chance=0.5))
    else:
        corrected = [Measured(value=2 * k / n - 1, stderr=2 * math.sqrt(k / n * (1 - k / n) / (n - 1)), dof=n - 1) for k in near]
        yield cell("the same near zero (MOVER, t)", setting, truths, [
            intervals.per_cost(q, e) for q, e in zip(corrected, spent, strict=True)])


def _by_wilson(counts: Sequence[int], n: int, spent: Sequence[Measured], *, chance: float) -> list[Estimate | None]:
    """Chance-corrected shares of few items per cost, by Wilson's bounds."""
    found = []
    for k, cost in zip(counts, spent, strict=True):
        low, high = ((end - chance) / (1 - chance) for end in scores.wilson(k / n, n))
        quality = Measured(value=(k / n - chance) / (1 - chance), stderr=(high - low) / 4, dof=n - 1)
        found.append(intervals.per_cost(quality, cost, bounds=Estimate(value=quality.value, low=low, high=high)))
    return found


def of_ranks(rng: np.random.Generator, draws: int, repeats: Sequence[int] = TRIALS) -> Iterator[Cell]:
    """Simulate whether the rank intervals of ten entries, some of them close together, all hold."""
    truth = np.array([0.0, 0.0, 0.01, 0.02, 0.1, 0.11, 0.3, 0.3, 0.31, 0.9])
    least, most = 1 + (truth < truth[:, None]).sum(1), (truth <= truth[:, None]).sum(1)
    for r in repeats:
        drawn = truth[:, None] + rng.normal(0.0, 0.02, (draws, len(truth), r))
        held, widths = [], []
        for entries in drawn:
            found = ranking.rank_intervals([intervals.costs_mean(row) for row in entries.tolist()])
            assert found is not None
            # Entries that are truly equal share their ranks.
            held.append(all(one.best <= low and one.worst >= high for one, low, high in zip(found, least, most, strict=True)))
            widths.append(np.mean([one.worst - one.best for one in found]))
        yield Cell("ranks of ten, all at once", f"R={r}", float(np.mean(held)), 0.0, float(np.median(widths)))
