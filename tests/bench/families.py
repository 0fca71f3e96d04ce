"""Simulations of verdicts: how often a family has a false "dominates", and how often what is true is found.

Example: `Rate('false "dominates"', "equal energies, equal quality; five of them (n=3000, R=5)", 0.012)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tests.bench.covered import ALIKE, Values

from jouleboard.statistics import paired, power
from jouleboard.statistics.evidence import Evidence, TaskPair
from jouleboard.statistics.verdicts import of_family


class Truth(NamedTuple):
    """What is true of one variant."""

    loss: float
    ratio: float


class Rate(NamedTuple):
    """How often a verdict was drawn."""

    claim: str
    setting: str
    share: float


def family(
    rng: np.random.Generator, truths: Sequence[Truth], *, n: int, r: int, spread: float = 0.02, differ: float = ALIKE
) -> list[Evidence]:
    """Draw variants with one base: two tasks of n items together, r trials of each side."""
    tasks = [(rng.random(n // 2) < base).astype(float) for base in (0.6, 0.8)]
    spent = tuple(rng.normal(1.0, spread, r))
    return [Evidence(
        name=f"variant-{number}", barred=None, base_costs=spent, costs=tuple(rng.normal(truth.ratio, spread * truth.ratio, r)),
        tasks=tuple(_changed(rng, f"task-{place}", base, truth.loss, differ) for place, base in enumerate(tasks)),
    ) for number, truth in enumerate(truths)]


def _changed(rng: np.random.Generator, task: str, base: Values, loss: float, differ: float) -> TaskPair:
    """Change answers of the base so that the mean falls by the loss and a share of the items differs."""
    right = 0.6 if task == "task-0" else 0.8
    lost, gained = (differ + loss) / 2 / right, (differ - loss) / 2 / (1 - right)
    flips = rng.random(len(base)) < np.where(base == 1, lost, gained)
    variant = np.where(flips, 1 - base, base)
    return TaskPair(task=task, base=tuple(base.tolist()), variant=tuple(variant.tolist()), clusters=None, chance=0.5)


LOSS_OF_3, AT_MARGIN, EQUAL = Truth(0.03, 0.7), Truth(0.01, 0.7), Truth(0.0, 1.0)
FALSE: tuple[tuple[str, Sequence[Truth]], ...] = (
    ("a loss of 3 points, 30 % cheaper", [LOSS_OF_3]),
    ("a loss of 3 points, 30 % cheaper; five of them", [LOSS_OF_3] * 5),
    ("a loss of 1 point (the margin), 30 % cheaper", [AT_MARGIN]),
    ("a loss of 1 point (the margin), 30 % cheaper; five of them", [AT_MARGIN] * 5),
    ("equal energies, equal quality", [EQUAL]),
    ("equal energies, equal quality; five of them", [EQUAL] * 5),
    ("equal energies, a loss of 3 points", [Truth(0.03, 1.0)]),
    ("3 points better, 2 % dearer (the margin)", [Truth(-0.03, 1.02)]),
    ("five that differ: one of each", [LOSS_OF_3, AT_MARGIN, EQUAL, Truth(0.03, 1.0), Truth(-0.03, 1.02)]),
)


def false_dominance(
    rng: np.random.Generator, draws: int, *, n: int = 3000, r: int = 5, settings: Sequence[tuple[str, Sequence[Truth]]] = FALSE
) -> Iterator[Rate]:
    """Count families in which a variant is said to dominate, and none does."""
    for name, truths in settings:
        kinds = [{one.kind for one in of_family(family(rng, truths, n=n, r=r))} for _ in range(draws)]
        yield Rate('false "dominates"', f"{name} (n={n}, R={r})", float(np.mean(["dominates" in kind for kind in kinds])))


def powers(rng: np.random.Generator, draws: int) -> Iterator[Rate]:
    """Count how often what is true is found with the items and trials that the formulas name (80 % each)."""
    n = power.items_for(0.0, discordance=ALIKE, margin=0.01)
    assert n is not None
    r = power.trials_for(-math.log(0.97), spread=0.02, alpha=0.025)
    assert r is not None
    found = [of_family(family(rng, [Truth(0.0, 0.97)], n=2 * (n // 2), r=r))[0] for _ in range(draws)]
    for name, level in (("not-worse", 0.05), ("cheaper", 0.025), ("dominates", 0.05)):
        share = float(np.mean([one.p_values[name] <= level for one in found]))
        yield Rate(f"{name} at {level}", f"no loss, 3 % cheaper, n={n}, R={r}: 0.80 by the formula"
                   + (", 0.64 for both" if name == "dominates" else ""), share)
    gain = power.items_for(0.03, discordance=ALIKE)
    assert gain is not None
    better = [paired.macro(one.tasks).tails(0.0).above for _ in range(draws)
              for one in family(rng, [Truth(-0.03, 1.0)], n=2 * (gain // 2), r=3)]
    yield Rate("better at 0.05", f"3 points better, n={gain}: 0.80 by the formula", float(np.mean(np.array(better) <= 0.05)))
