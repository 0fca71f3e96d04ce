"""Items and what is made of them: every item is scored again, every aggregate recomputed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jouleboard import scores, store
from jouleboard.problems import Make, Problem, close
from jouleboard.problems import at as at_file
from jouleboard.records import Item, Report, Score, TaskResult

MOST_NATS = 1e9
"""No text is less likely than this; sums and squares of such numbers stay finite."""


def check_items(path: Path, report: Report, items: Sequence[Item]) -> Iterator[Problem]:
    """Re-score every item and recompute every aggregate."""
    at = at_file(path)
    sound = True
    for item in items:
        for problem in _check_item(item, report, at):
            sound = False
            yield problem
    seen: set[tuple[str, int]] = set()
    for item in items:
        if (item.task, item.item) in seen:
            yield at(_name(item), "item-once", "occurs twice", "measure again")
        seen.add((item.task, item.item))
    known = {result.task for result in report.tasks}
    for stray in sorted({item.task for item in items} - known):
        yield at(stray, "aggregate", "items of a task that the report does not name", "measure again")
    if sound:
        in_report = at_file(path.parent / store.REPORT)
        for index, result in enumerate(report.tasks):
            mine = [item for item in items if item.task == result.task]
            yield from _check_task(result, mine, f"tasks[{index}]", in_report)


def _name(item: Item) -> str:
    return f"{item.task} item {item.item}"


def _check_item(item: Item, report: Report, at: Make) -> Iterator[Problem]:
    remedy = "restore the line as it was measured, or measure again"
    choice = item.gold is not None
    beyond = [value for value in item.loglikelihoods if abs(value) > MOST_NATS]
    if beyond:
        yield at(f"{_name(item)}: loglikelihoods", "item-shape", f"{beyond[0]}, beyond all measure", remedy)
        return
    if choice and (len(item.loglikelihoods) != len(item.choice_chars) or not 0 <= (item.gold or 0) < len(
            item.loglikelihoods) or min(item.choice_chars, default=0) < 1):
        yield at(f"{_name(item)}: loglikelihoods", "item-shape",
                 f"{len(item.loglikelihoods)} log-likelihoods, {len(item.choice_chars)} choices, answer {item.gold}",
                 remedy)
        return
    if not choice and (len(item.loglikelihoods) != 1 or not item.text_bytes):
        yield at(f"{_name(item)}: text_bytes", "item-shape", "a perplexity item needs one log-likelihood and bytes",
                 remedy)
        return
    expected = scores.rescore(item)
    wanted = next((tuple(result.scores) for result in report.tasks if result.task == item.task), ())
    for metric in sorted({*wanted, *item.scores}):
        stored = item.scores.get(metric)
        if metric not in expected or stored is None or not close(stored, expected[metric]):
            yield at(f"{_name(item)}: scores.{metric}", "item-score",
                     f"stored {stored}, recomputed {expected.get(metric)}", remedy)
    if item.digest != store.item_digest(item):
        yield at(f"{_name(item)}: digest", "item-digest",
                 f"stored {item.digest}, recomputed {store.item_digest(item)}", remedy)


def _check_task(result: TaskResult, items: Sequence[Item], where: str, at: Make) -> Iterator[Problem]:
    remedy = "the aggregates were changed, or items are missing: measure again"
    counts = {
        "items_used": len(items),
        "prompt_tokens": sum(item.prompt_tokens for item in items),
        "output_tokens": sum(item.output_tokens for item in items),
    }
    for name, value in counts.items():
        if getattr(result, name) != value:
            yield at(f"{where}.{name}", "aggregate", f"stored {getattr(result, name)}, the items give {value}", remedy)
    if not items:
        return
    kind = "choice" if items[0].gold is not None else "perplexity"
    if result.kind != kind:
        yield at(f"{where}.kind", "aggregate", f"stored {result.kind}, the items are of {kind}", remedy)
    for metric, stored in result.scores.items():
        yield from _check_score(result, stored, scores.aggregate(items, metric), f"{where}.scores.{metric}", at)
    if kind == "choice" and not 0 <= result.chance.value <= 1:
        yield at(f"{where}.chance.value", "aggregate", f"{result.chance.value}, a share of answers lies in 0 to 1", remedy)
    if result.primary_metric not in result.scores:
        yield at(f"{where}.scores.{result.primary_metric}", "aggregate", "the primary metric is missing", remedy)
        return
    # From the items and not from the stored score, which may be no score at all.
    primary = scores.aggregate(items, result.primary_metric)
    shown = result.scores[result.primary_metric] is not None
    clears = scores.clears_chance(primary, result.chance, result.primary_metric) if shown else None
    if result.above_chance != clears:
        yield at(f"{where}.above_chance", "aggregate", f"stored {result.above_chance}, recomputed {clears}", remedy)


def _check_score(
    result: TaskResult, stored: Score | None, expected: Score, where: str, at: Make
) -> Iterator[Problem]:
    if (stored is None) != (result.withheld is not None):
        yield at(where, "withheld", f"{'null' if stored is None else stored.value} with withheld {result.withheld!r}",
                 "a withheld quality is null and says why")
    if stored is None:
        return
    for name in ("value", "stderr", "n"):
        mine, theirs = getattr(expected, name), getattr(stored, name)
        if not close(theirs, mine):
            yield at(f"{where}.{name}", "aggregate", f"stored {theirs}, the items give {mine}",
                     "the aggregate was changed: measure again")
