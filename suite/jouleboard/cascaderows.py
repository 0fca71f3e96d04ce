"""Rows that are derived from two entries and not measured: a cascade, small variant first (`cascades` derives them). No I/O here.

Example: int8 first and bf16 where it is unsure, 31 % of the items: `Cascade(small="m/int8", large="m/bf16", deferred=0.31, ...)`.
"""

from __future__ import annotations

from typing import Literal

from jouleboard.declared import Noun
from jouleboard.estimates import Estimate


class TaskCascade(Noun, frozen=True, kw_only=True):
    """One task of a cascade."""

    task: str
    items: int
    thresholds: tuple[float | None, ...]
    """The one that was used on each fold, chosen on the others; None: every item is deferred."""
    deferred: float
    accuracy: Estimate
    difference: Estimate
    """To the larger variant alone."""


class Cascade(Noun, frozen=True, kw_only=True):
    """A derived row: a cascade of two entries by one policy; figures are means over its tasks."""

    derived: Literal[True] = True
    name: str
    small: str
    """Entry that answers first."""
    large: str
    """Entry that is asked where the first is unsure."""
    policy: str
    rule: str
    """The policy in words."""
    unit: Literal["CPU-seconds", "joules"]
    tasks: tuple[TaskCascade, ...]
    deferred: Estimate
    """Share of items that the larger one answers."""
    accuracy: Estimate
    """Not chance-corrected; the interval covers the items and the choice of the thresholds."""
    difference: Estimate
    """Accuracy less that of the larger one alone, paired."""
    cost_per_item: Estimate
    """Of scoring, in `unit`; the interval covers items, the choice of the thresholds, and the repeats of both costs."""
    cost_ratio: Estimate
    """To the larger one alone."""
    small_accuracy: float
    large_accuracy: float
    large_cost_per_item: float


class CurvePoint(Noun, frozen=True, kw_only=True):
    """What one threshold for all tasks gives on all items: to be drawn, not to be chosen from."""

    threshold: float | None
    """None: every item is deferred."""
    deferred: float
    accuracy: float
    cost_per_item: float


class Derived(Noun, frozen=True, kw_only=True):
    """The cascades of two entries: a row for each policy."""

    rows: tuple[Cascade, ...]
    curve: tuple[CurvePoint, ...]


class NoCascade(Noun, frozen=True, kw_only=True):
    """Two entries of which no cascade is derived."""

    small: str
    large: str
    reason: str
