"""The items of an entry as arrays: what thousands of entries keep in memory to be compared item by item. Pure.

Example: `Answers(task="piqa", items=[0, 3, ...], scores=[1.0, 0.0, ...], clusters=None, ...)`; two entries whose reports name the same
data and the same prompts answered the same items, so their arrays pair by position (`pairable`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jouleboard.declared_tasks import Metric
from jouleboard.records import Item, Report, TaskResult

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One task of one entry, in order of item index."""

    task: str
    metric: Metric
    """The primary one: `scores` are of it."""
    items: Integers
    """Index of each item in the task's list, shape [n], rising."""
    scores: Floats
    """Shape [n]; NaN nowhere."""
    clusters: Integers | None
    """A number for each item, equal for items that share a source, shape [n]; None: the items are independent."""
    loglikelihoods: npt.NDArray[np.float32] | None
    """Of each choice, shape [n, most choices], minus infinity where an item has fewer; None for tasks without choices. Float32: it is
    for how far two models are apart, not for scoring again."""


class Entry(Protocol):
    """What is ranked: a name, a report and its answers by task."""

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class

    @property
    def report(self) -> Report: ...  # noqa: D102

    @property
    def answers(self) -> Mapping[str, Answers]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """An entry without its items: what follows from its report alone."""

    name: str
    report: Report
    answers: Mapping[str, Answers] = field(default_factory=dict)


def of_entry(report: Report, items: Sequence[Item]) -> Mapping[str, Answers]:
    """Return the answers of an entry by task; a task whose quality is withheld has none.

    Args:
        report: the entry's.
        items: as `store.read_items` gives them, in any order.
    """
    by_task = {task: list(mine) for task, mine in groupby(sorted(items, key=attrgetter("task", "item")), key=attrgetter("task"))}
    return {result.task: of_task(result, by_task[result.task]) for result in report.tasks
            if result.withheld is None and result.task in by_task}


def of_task(result: TaskResult, items: Sequence[Item]) -> Answers:
    """Return the answers to one task.

    Args:
        result: what the report says of the task.
        items: at least one, in order of item index.
    """
    metric = result.primary_metric
    clusters = None
    if any(item.cluster is not None for item in items):
        _, numbers = np.unique([item.cluster or f"item {item.item}" for item in items], return_inverse=True)
        clusters = numbers.astype(np.int64)
    return Answers(task=result.task, metric=metric, items=np.array([item.item for item in items], dtype=np.int64),
                   scores=np.array([item.scores[metric] for item in items], dtype=np.float64), clusters=clusters,
                   loglikelihoods=_choices(items) if result.kind == "choice" else None)


def _choices(items: Sequence[Item]) -> npt.NDArray[np.float32]:
    found = np.full((len(items), max(len(item.loglikelihoods) for item in items)), -np.inf, dtype=np.float32)
    for row, item in zip(found, items, strict=True):
        row[:len(item.loglikelihoods)] = item.loglikelihoods
    return found


def pairable(one: TaskResult, other: TaskResult) -> bool:
    """Whether two results are of the same items, asked in the same words, and scored by the same metric."""
    def key(result: TaskResult) -> tuple[object, ...]:
        return result.task, result.data_sha256, result.inputs_sha256, result.items_used, result.primary_metric

    return key(one) == key(other) and one.withheld is None and other.withheld is None
