"""What a verdict is drawn from, and what it says. No I/O here.

Example: 200 items of one task that base and variant both answered, and the CPU-seconds a request of five interleaved trials of each::

    Evidence(name="int8", tasks=(TaskPair(task="piqa", base=(1.0, 0.0, ...), variant=(1.0, 1.0, ...), clusters=None, chance=0.5),),
             base_costs=(1.61, 1.60, ...), costs=(1.22, 1.25, ...), barred=None)
"""

from __future__ import annotations

from typing import Literal

from jouleboard.declared import Noun
from jouleboard.estimates import Estimate

MARGIN = 0.01
"""Macro accuracy that a variant may lose and still count as not worse: one point."""
COST_MARGIN = 0.02
"""Share by which a variant may cost more and still count as not dearer."""
LEVEL = 0.05
"""Each side of a verdict is tested one-sided at this level, by Holm over the variants of a family."""

VerdictKind = Literal["dominates", "trade-off", "dominated", "undecided", "none"]


class TaskPair(Noun, frozen=True, kw_only=True):
    """The items of one task that counts (with signal), as both sides answered them, in the same order."""

    task: str
    base: tuple[float, ...]
    """Each item's score of the primary metric, 0 to 1; larger is better."""
    variant: tuple[float, ...]
    clusters: tuple[str, ...] | None
    """What each item shares with others; None: the items are independent."""
    chance: float


class Evidence(Noun, frozen=True, kw_only=True):
    """A variant beside its base: same items, same device, interleaved trials of one session."""

    name: str
    tasks: tuple[TaskPair, ...]
    base_costs: tuple[float, ...]
    """Cost per request (or per 1,000 tokens) of each valid trial: joules, or CPU-seconds on CPU-time boards."""
    costs: tuple[float, ...]
    barred: str | None
    """Why no verdict may be drawn (a failed gate, `base-grid`, not realised), in words; None where one may."""


class Verdict(Noun, frozen=True, kw_only=True):
    """How a variant stands to its base."""

    name: str
    kind: VerdictKind
    """`none` where no verdict may be drawn: see `reason`."""
    reason: str | None
    """Why there is none, in words; None otherwise."""
    quality: Estimate | None
    """Macro accuracy of the variant less that of the base, with its paired 95 % interval; None where nothing pairs."""
    cost_ratio: Estimate | None
    """Cost of the variant over that of the base, with its 95 % interval."""
    p_values: dict[str, float]
    """Holm-adjusted one-sided p-values: `not-worse` (quality not worse by more than the margin), `better`, `worse` (by more than the
    margin), `cheaper`, `not-dearer` (by more than the margin), `dearer` (by more than the margin). With `base-` before it
    (`base-not-worse`, `base-better`, `base-cheaper`, `base-not-dearer`) the same of the base against the variant. `dominates`,
    `dominated` and `trade-off`: of the claims, by which the verdict is drawn (see `verdicts`). Empty where there is no verdict."""
    needs_items: int | None = None
    """Of `undecided`: items of all tasks together, each in proportion, that would decide the quality side at the differences seen;
    None where it is decided, or where no number would."""
    needs_trials: int | None = None
    """Of `undecided`: valid trials of each side that would decide the cost side at the ratio and spread seen."""
