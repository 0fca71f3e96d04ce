"""Items against the frozen manifest of their task: which document, which answer, how long the choices; and which items a seed draws.

Example: an item whose `gold` was changed to the choice that the model liked best has another answer than its document, and is named.
Where no manifest is frozen, or it is of other data, that is said and nothing is refused: the entry's own figures are recomputed all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jouleboard import manifests, sampling
from jouleboard.manifests import Frozen
from jouleboard.problems import Make, Problem
from jouleboard.records import Item, TaskResult

_AGAIN = "measure again with the declared data"


def check_manifest(result: TaskResult, manifest: manifests.Manifest, items: Sequence[Item], where: str, at: Make) -> Iterator[Problem]:
    """Hold a task's items against its manifest.

    Args:
        result: the task.
        manifest: of its data.
        items: of the task, in the order of the file.
        where: the task's place in the report.
        at: makes problems of the items' file.
    """
    if result.items_available != len(manifest.items):
        yield at(f"{where}.items_available", "manifest", f"{result.items_available}, the manifest has {len(manifest.items)}", _AGAIN)
    for item in items:
        if item.item >= len(manifest.items):
            yield at(f"{item.task} item {item.item}", "manifest", f"the manifest has {len(manifest.items)} items", _AGAIN)
            continue
        wanted, found = manifest.items[item.item], manifests.frozen(item)
        if found != wanted:
            yield at(f"{item.task} item {item.item}", "manifest", _difference(found, wanted), _AGAIN)
    chosen = [item.item for item in items]
    if result.sample_seed is not None and result.kind in {"choice", "perplexity", "generation"}:
        drawn = sampling.sample(len(manifest.items), _strata(manifest.items), len(items), result.sample_seed)
        if drawn != sorted(chosen):
            missing = sorted(set(drawn) - set(chosen))
            yield at(f"{where}.sample_seed", "manifest-sample", f"the seed {result.sample_seed} draws other items: {missing[:5]} are missing", _AGAIN)


def _difference(found: Frozen, wanted: Frozen) -> str:
    name = next(name for name in Frozen.__struct_fields__ if getattr(found, name) != getattr(wanted, name))
    return f"{name} is {getattr(found, name)!r}, the manifest has {getattr(wanted, name)!r}"


def _strata(items: Sequence[Frozen]) -> list[int] | None:
    """Return what a sample has in equal shares: the place of the right choice, the first of several; None where there are no choices."""
    return [item.right[0] for item in items] if all(item.right for item in items) else None
