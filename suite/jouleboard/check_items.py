"""Items and what is made of them: every item is scored again, every aggregate recomputed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jouleboard import itemline, manifests, scores, store, strictjson
from jouleboard.check_manifest import check_manifest
from jouleboard.declared_tasks import Kind, Metric
from jouleboard.errors import DataFileError
from jouleboard.problems import Make, Problem, close
from jouleboard.problems import at as at_file
from jouleboard.records import Item, Report, Score, TaskResult

MOST_NATS = 1e9
"""No text is less likely than this; sums and squares of such numbers stay finite."""
_CLUSTER = re.compile(r"[0-9a-f]{16}")
_AGAIN = "the aggregates were changed, or items are missing: measure again"
_RESTORE = "restore the line as it was measured, or measure again"


def check_items(path: Path, report: Report, items: Sequence[Item], lines: Sequence[bytes] | None = None) -> Iterator[Problem]:
    """Re-score every item and recompute every aggregate.

    Args:
        path: of the items' file.
        report: the report beside it.
        items: as they were read.
        lines: that they were read from, to hold them against their canonical form; None: that is not looked at.
    """
    at = at_file(path)
    wanted = {result.task: tuple(result.scores) for result in report.tasks}
    by_task: dict[str, list[Item]] = {}
    seen: set[tuple[str, int]] = set()
    sound = True
    for number, item in enumerate(items):
        for problem in _check_item(item, wanted.get(item.task, ()), None if lines is None else lines[number], at):
            sound = sound and problem.code == "item-canonical"
            yield problem
        if (item.task, item.item) in seen:
            yield at(_name(item), "item-once", "occurs twice", "measure again")
        seen.add((item.task, item.item))
        by_task.setdefault(item.task, []).append(item)
    for stray in sorted(set(by_task) - set(wanted)):
        yield at(stray, "aggregate", "items of a task that the report does not name", "measure again")
    if not sound:
        return
    in_report = at_file(path.parent / store.REPORT)
    for index, result in enumerate(report.tasks):
        mine = by_task.get(result.task, [])
        yield from _check_task(result, mine, f"tasks[{index}]", in_report)
        manifest = manifests.of(result)
        if manifest is not None:
            yield from check_manifest(result, manifest, mine, f"tasks[{index}]", at)


def _name(item: Item) -> str:
    return f"{item.task} item {item.item}"


def _kind(item: Item) -> Kind:
    """Tell by its fields what kind of task an item belongs to; a dialogue's looks like an answer in text."""
    if item.gold is not None or item.correct:
        return "choice"
    return "perplexity" if item.response_sha256 is None else "generation"


def _check_item(item: Item, wanted: Sequence[Metric], line: bytes | None, at: Make) -> Iterator[Problem]:
    wrong = _shape(item)
    if wrong is not None:
        yield at(f"{_name(item)}: {wrong.field}", "item-shape", wrong.problem, _RESTORE)
        return
    known = scores.rescore(item) if item.loglikelihoods else {}
    for metric in sorted({*wanted, *item.scores}):
        stored = item.scores.get(metric)
        expected = known[metric] if metric in known else scores.recompute(item, metric)
        if stored is not None and expected is None and metric in wanted and _kind(item) == "generation":
            # It does not follow from what is published: all that can be said is where it must lie.
            if not 0 <= stored <= 1:
                yield at(f"{_name(item)}: scores.{metric}", "item-score", f"stored {stored}, it lies in 0 to 1", _RESTORE)
        elif expected is None or stored is None or not close(stored, expected):
            yield at(f"{_name(item)}: scores.{metric}", "item-score", f"stored {stored}, recomputed {expected}", _RESTORE)
    blank = itemline.canonical(item, digest="")
    digest = hashlib.sha256(blank).hexdigest()[:16]
    if item.digest != digest:
        yield at(f"{_name(item)}: digest", "item-digest", f"stored {item.digest[:40]}, recomputed {digest}", _RESTORE)
    elif line is not None and line != blank.replace(b'"digest":""', b'"digest":"' + digest.encode() + b'"', 1):
        yield at(_name(item), *_not_canonical(line), _RESTORE)


def _not_canonical(line: bytes) -> tuple[str, str]:
    """Return rule and finding of a line that is another one than its item's: where it is no strict JSON, that."""
    try:
        strictjson.loads(line, Path(store.ITEMS))
    except DataFileError as error:
        return error.code, error.problem
    return "item-canonical", "is not written as canonical JSON"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wrong:
    field: str
    problem: str


def _shape(item: Item) -> _Wrong | None:
    """Say what of an item does not fit together; None: nothing."""
    if item.cluster is not None and _CLUSTER.fullmatch(item.cluster) is None:
        return _Wrong(field="cluster", problem=f"{item.cluster[:40]!a} is no short digest")
    beyond = [value for value in item.loglikelihoods if abs(value) > MOST_NATS]
    if beyond:
        return _Wrong(field="loglikelihoods", problem=f"{beyond[0]}, beyond all measure")
    kind = _kind(item)
    if kind == "generation":
        return _text_shape(item)
    if item.response is not None or item.extracted is not None or item.targets or item.stopped is not None:
        return _Wrong(field="response", problem="an answer in text beside log-likelihoods")
    if kind == "perplexity" and (len(item.loglikelihoods) != 1 or not item.text_bytes):
        return _Wrong(field="text_bytes", problem="a perplexity item needs one log-likelihood and bytes")
    if kind == "choice":
        count = len(item.loglikelihoods)
        right = item.correct if item.gold is None else (item.gold,)
        if count != len(item.choice_chars) or min(item.choice_chars, default=0) < 1 or any(
                not 0 <= place < count for place in right) or len(set(right)) != len(right) or (item.correct and item.gold is not None):
            return _Wrong(field="loglikelihoods", problem=f"{count} log-likelihoods, {len(item.choice_chars)} choices, answer "
                                                          f"{item.gold if item.gold is not None else list(item.correct)}")
    return None


def _text_shape(item: Item) -> _Wrong | None:
    if item.loglikelihoods or item.choice_chars or item.text_bytes is not None:
        return _Wrong(field="loglikelihoods", problem="log-likelihoods beside an answer in text")
    if item.response is None:
        if item.extracted is not None or item.targets:
            return _Wrong(field="extracted", problem="texts beside an answer that is kept back")
        return None
    found = hashlib.sha256(item.response.encode()).hexdigest()
    if found != item.response_sha256:
        return _Wrong(field="response_sha256", problem=f"stored {item.response_sha256}, the response gives {found}")
    return None


def _check_task(result: TaskResult, items: Sequence[Item], where: str, at: Make) -> Iterator[Problem]:
    counts = {
        "items_used": len(items),
        "prompt_tokens": sum(item.prompt_tokens for item in items),
        "output_tokens": sum(item.output_tokens for item in items),
    }
    for name, value in counts.items():
        if getattr(result, name) != value:
            yield at(f"{where}.{name}", "aggregate", f"stored {getattr(result, name)}, the items give {value}", _AGAIN)
    if not items:
        return
    kinds = {_kind(item) for item in items}
    if kinds != {"generation" if result.kind == "dialogue" else result.kind}:
        yield at(f"{where}.kind", "aggregate", f"stored {result.kind}, the items are of {', '.join(sorted(kinds))}", _AGAIN)
        return
    for metric, stored in result.scores.items():
        yield from _check_score(result, stored, _expected(items, metric, stored), f"{where}.scores.{metric}", at)
    parts = (result.prefill_tokens, result.decode_tokens)
    if parts != (None, None) and sum(part or 0 for part in parts) != result.computed_tokens:
        yield at(f"{where}.prefill_tokens", "aggregate", f"{parts[0]} and {parts[1]} are not {result.computed_tokens}", _AGAIN)
    if result.kind != "perplexity" and not 0 <= result.chance.value <= 1:
        yield at(f"{where}.chance.value", "aggregate", f"{result.chance.value}, a share of answers lies in 0 to 1", _AGAIN)
    yield from _check_chance(result, items, where, at)


def _check_chance(result: TaskResult, items: Sequence[Item], where: str, at: Make) -> Iterator[Problem]:
    if result.primary_metric not in result.scores:
        yield at(f"{where}.scores.{result.primary_metric}", "aggregate", "the primary metric is missing", _AGAIN)
        return
    # From the items and not from the stored score, which may be no score at all.
    primary = _expected(items, result.primary_metric, result.scores[result.primary_metric])
    shown = result.scores[result.primary_metric] is not None
    clears = scores.clears_chance(primary, result.chance, result.primary_metric) if shown else None
    if result.above_chance != clears:
        yield at(f"{where}.above_chance", "aggregate", f"stored {result.above_chance}, recomputed {clears}", _AGAIN)


def _expected(items: Sequence[Item], metric: Metric, stored: Score | None) -> Score:
    """Recompute an aggregate; the value of BLEU and chrF only where sacrebleu and the texts are there, else it is believed."""
    found = scores.aggregate(items, metric)
    if stored is None or scores.is_exact(items, metric):
        return found
    return msgspec.structs.replace(found, value=stored.value)


def _check_score(
    result: TaskResult, stored: Score | None, expected: Score, where: str, at: Make
) -> Iterator[Problem]:
    if (stored is None) != (result.withheld is not None):
        yield at(where, "withheld", f"{'null' if stored is None else stored.value} with withheld {result.withheld!r}",
                 "a withheld quality is null and says why")
    if stored is None:
        return
    for name in ("value", "stderr", "n", "clusters"):
        mine, theirs = getattr(expected, name), getattr(stored, name)
        if (mine is None) != (theirs is None) or (mine is not None and not close(theirs, mine)):
            yield at(f"{where}.{name}", "aggregate", f"stored {theirs}, the items give {mine}",
                     "the aggregate was changed: measure again")
