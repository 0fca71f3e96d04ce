"""How far an entry may be believed, derived from what is published and never declared. Pure functions, no I/O.

    L0  its records fit the format
    L1  every score and aggregate follows from its own raw records
    L2  somebody else measured it again: intervals of quality overlap, and so do those of the ratio of cost to the base
    L3  a maintainer did

Joules below L2 are self-reported: `selfreported` lists what nobody can see in an entry alone.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from jouleboard import costs, scores
from jouleboard.declared import Cell
from jouleboard.estimates import Estimate
from jouleboard.placing import cell_trials, subject
from jouleboard.records import Item, Report
from jouleboard.statistics import intervals


class Level(enum.IntEnum):
    """How far an entry may be believed."""

    FORMAT = 0
    RECORDS = 1
    REPRODUCED = 2
    MAINTAINER = 3

    @property
    def code(self) -> str:
        """As pages and tables name it: `L2`."""
        return f"L{self.value}"


WORDS = {
    Level.FORMAT: "its records fit the format; some answers could not be scored again",
    Level.RECORDS: "every score follows from its own records; joules are self-reported",
    Level.REPRODUCED: "measured again by somebody else, with the same outcome",
    Level.MAINTAINER: "measured again by a maintainer, with the same outcome",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One figure of an entry and of the one that reproduces it."""

    name: str
    """A task, or a cell such as `chat-b1`."""
    first: Estimate
    second: Estimate

    @property
    def overlap(self) -> bool:
        """Whether the two intervals have a value in common; a figure without an interval has none."""
        bounds = (self.first.low, self.first.high, self.second.low, self.second.high)
        if None in bounds:
            return False
        low, high, other_low, other_high = (float(one or 0.0) for one in bounds)
        return low <= other_high and other_low <= high


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Whether a reproduction has the outcome of what it reproduces."""

    quality: tuple[Pair, ...]
    ratios: tuple[Pair, ...]
    """Cost over the base's, in each cell; none for the base itself, of which every ratio is 1."""
    problem: str | None
    """Why they cannot be compared at all; None: they can."""

    @property
    def agrees(self) -> bool:
        """Whether every figure of both overlaps."""
        return self.problem is None and all(pair.overlap for pair in (*self.quality, *self.ratios))


def recomputed(report: Report, items: Sequence[Item]) -> bool:
    """Whether the primary score of every item follows from what is published of it."""
    primary = {result.task: result.primary_metric for result in report.tasks}
    # Scores from log-likelihoods always do.
    return all(scores.recompute(item, primary[item.task]) is not None for item in items if not item.loglikelihoods and item.task in primary)


def agreement(first: Report, first_base: Report | None, second: Report, second_base: Report | None) -> Agreement:
    """Compare an entry with one that reproduces it.

    Args:
        first: the entry.
        first_base: the base of its session.
        second: the one that names it.
        second_base: the base of that one's session.
    """
    problem = _incomparable(first, first_base, second, second_base)
    if problem is not None or first_base is None or second_base is None:
        return Agreement(quality=(), ratios=(), problem=problem)
    theirs = {result.task: result for result in second.tasks}
    quality = []
    for result in first.tasks:
        mine, other = result.scores[result.primary_metric], theirs[result.task].scores[result.primary_metric]
        if mine is not None and other is not None:
            pair = [Estimate(value=one.value, low=low, high=high) for one in (mine, other)
                    for low, high in [scores.interval(one, result.primary_metric)]]
            quality.append(Pair(name=result.task, first=pair[0], second=pair[1]))
    ratios = [] if first.is_base else list(_ratios(first, first_base, second, second_base))
    if not quality or (not first.is_base and not ratios):
        return Agreement(quality=tuple(quality), ratios=tuple(ratios), problem="no score, or no cost of the base and the variant, is in both")
    return Agreement(quality=tuple(quality), ratios=tuple(ratios), problem=None)


def _incomparable(first: Report, first_base: Report | None, second: Report, second_base: Report | None) -> str | None:
    if first_base is None or second_base is None:
        return f"the base of {'the entry' if first_base is None else 'its reproduction'} in the same session is missing"
    for words, one, other in (("recipes", first.recipe_sha256, second.recipe_sha256), ("models", first.model, second.model),
                              ("weights", first.model_weights_sha256, second.model_weights_sha256),
                              ("methods", first.method, second.method), ("boundaries", first.boundary, second.boundary),
                              ("hardware profiles", first.hardware, second.hardware)):
        if one != other:
            return f"they are of different {words}"
    asked = [{result.task: (result.inputs_sha256, result.items_used) for result in one.tasks} for one in (first, second)]
    return None if asked[0] == asked[1] else "they were asked different items"


def _ratios(first: Report, first_base: Report, second: Report, second_base: Report) -> Iterable[Pair]:
    cells = dict.fromkeys(Cell(workload=trial.workload, batch=trial.batch) for trial in first.trials)
    for cell in cells:
        found = [_ratio(one, base, cell) for one, base in ((first, first_base), (second, second_base))]
        if found[0] is not None and found[1] is not None:
            yield Pair(name=subject(cell), first=found[0], second=found[1])


def _ratio(report: Report, base: Report, cell: Cell) -> Estimate | None:
    spent = [[costs.headline_cost(trial, cpu_time=report.method == "model") for trial in cell_trials(one, cell) if trial.void is None]
             for one in (report, base)]
    return intervals.cost_ratio(spent[0], spent[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What of an entry decides how far it may be believed."""

    report: Report
    recomputed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """How far one entry may be believed, and by whose work."""

    level: Level
    reproduced_by: tuple[str, ...] = ()
    """Digests of the entries that reproduce it."""

    @property
    def code(self) -> str:
        """As a page names it: `L2`."""
        return self.level.code

    @property
    def words(self) -> str:
        """What that means, in a sentence."""
        return WORDS[self.level]


def levels(entries: Sequence[Published], maintainers: Collection[str]) -> dict[str, Trust]:
    """Return the level of each entry by its digest.

    Args:
        entries: every published one without a problem; one that was withdrawn or corrected reproduces nothing.
        maintainers: accounts whose reproductions give L3.
    """
    reports = {one.report.digest: one.report for one in entries}
    bases = {(report.session, report.model, report.base): report for report in reports.values() if report.is_base}

    def base(report: Report) -> Report | None:
        return report if report.is_base else bases.get((report.session, report.model, report.base))

    found = {one.report.digest: Trust(level=Level.RECORDS if one.recomputed else Level.FORMAT) for one in entries}
    for second in reports.values():
        first = None if second.reproduces is None else reports.get(second.reproduces)
        if first is None or first.submitter in {None, second.submitter} or second.submitter is None:
            continue
        before = found[first.digest]
        # Whatever could not be scored again is not made sure by somebody who could not either.
        if before.level < Level.RECORDS or not agreement(first, base(first), second, base(second)).agrees:
            continue
        level = Level.MAINTAINER if second.submitter in maintainers else Level.REPRODUCED
        found[first.digest] = Trust(level=max(level, before.level), reproduced_by=(*before.reproduced_by, second.digest))
    return found
