"""A declared task as lm-eval's task object over our documents, held against all that the task's file says.

Verified against lm-eval 0.4.13: `TaskManager()` with its defaults reads 14,000 files, so only the folder needed is named.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import msgspec
import numpy as np
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from jouleboard import (
    code_eval,
    definitions,
    fewshot,
    harness_items,
    harness_templates,
    paths,
    rendering,
    scores,
    textscores,
)
from jouleboard.code_eval import CodeEval
from jouleboard.declared_tasks import Task
from jouleboard.errors import DataFileError
from jouleboard.records import Chance

ROUNDING = 0.005
"""A declared chance level may be rounded to two decimals."""
ITEMS = "jouleboard_items"
"""What lm-eval is told that the scored split is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A task of lm-eval over our documents, with what must be known before anything is computed."""

    task: Task
    lm_eval_task: Any
    golds: list[int] | None
    """Right choice of every document, the first of several; None where there are no choices."""
    correct: list[tuple[int, ...]] | None
    """Right choices of every document where several are right."""
    widths: list[int] | None
    """Number of choices of every document; None where there are no choices."""
    chance: Chance
    version: str
    programs: CodeEval | None
    """What runs the model's programs; None where answers are no programs."""


@harness_templates.compiled_once()
def load(task: Task, documents: Path, *, seed: int = 0) -> Loaded:
    """Build lm-eval's task object over documents that are already on this machine.

    Args:
        task: the declared task.
        documents: JSON lines with the fields of lm-eval's definition.
        seed: of the plan: few-shot examples are drawn by it.

    Raises:
        DataFileError: lm-eval has no such definition, or it does not fit the documents or what the task's file says.
    """
    rows = [msgspec.json.decode(line) for line in documents.read_bytes().splitlines()]
    built, programs = _build(task, rows, seed)
    docs = list(built.task_docs)
    # By itself lm-eval reads and processes all documents anew each time that it asks for them.
    built.test_docs = lambda: docs
    if task.lm_eval.version is not None and task.lm_eval.version != str(built.VERSION):
        raise _wrong(task, "lm_eval.version", f"{task.lm_eval.version} is declared, lm-eval {lm_eval.__version__} has {built.VERSION}",
                     "declare the version that is installed, as another task, or install the lm-eval that has the declared one")
    if task.cluster is not None and any(task.cluster not in doc for doc in docs):
        raise _wrong(task, "cluster", f"a document has no field {task.cluster!r}", f"one of: {', '.join(sorted(docs[0]))}")
    _require_recomputable(task)
    golds, correct, widths, chance = None, None, None, None
    if task.kind == "choice":
        choices = [built.doc_to_choice(doc) for doc in docs]
        correct = _correct(task, built, docs, choices)
        golds = [right[0] for right in correct]
        widths = list(map(len, choices))
        chance = _choice_chance(task, correct, widths)
        correct = correct if "mc2" in task.metrics or any(len(right) > 1 for right in correct) else None
    elif task.kind == "perplexity":
        chance = scores.byte_entropy([str(built.doc_to_target(doc)) for doc in docs])
    return Loaded(task=task, lm_eval_task=built, golds=golds, correct=correct, widths=widths, version=str(built.VERSION),
                  chance=_declared_chance(task, chance), programs=programs)


def _wrong(task: Task, field: str, problem: str, remedy: str) -> DataFileError:
    return DataFileError(problem, file=paths.data_folder("tasks") / f"{task.id}.yaml", field=field, remedy=remedy)


def _require_recomputable(task: Task) -> None:
    """Refuse metrics that a checker could not compute again from what is published."""
    metrics = set(task.metrics)
    of_texts = sorted(metrics & (textscores.CORPUS | scores.BY_INSTRUCTION))
    if of_texts and not task.publish_items:
        raise _wrong(task, "metrics", f"{of_texts[0]} is computed from all texts, which publish_items: false keeps back",
                     "leave this metric out, or use items that may be published")
    if metrics & textscores.CORPUS and "exact_match" in metrics:
        raise _wrong(task, "metrics", "exact_match normalises the texts that BLEU and chrF are computed from",
                     "make two tasks of it")
    if task.primary_metric == "likelihood_diff":
        raise _wrong(task, "primary_metric", "likelihood_diff has no chance level", "make pct_stereotype the primary metric")


def _correct(
    task: Task, built: Any, docs: Sequence[dict[str, Any]], choices: Sequence[Sequence[str]]
) -> list[tuple[int, ...]]:
    """Return the right choices of every document, of those that it has."""
    found = []
    for doc, offered in zip(docs, choices, strict=True):
        try:
            right = _right(task, built, doc, offered)
        except (ValueError, KeyError, TypeError):
            right = ()
        if not right or any(not 0 <= place < len(offered) for place in right):
            raise _wrong(task, "source", "a document's answer is none of its choices", "mend the data or the parser")
        found.append(right)
    return found


def _right(task: Task, built: Any, doc: dict[str, Any], choices: Sequence[str]) -> tuple[int, ...]:
    if "mc2" in task.metrics:
        return tuple(place for place, label in enumerate(doc["mc2_targets"]["labels"]) if label == 1)
    # Where prompts differ and the continuation is the same (winogrande), lm-eval keeps the answer in the prompt's place.
    target = built.doc_to_text(doc) if built.multiple_input else built.doc_to_target(doc)
    if isinstance(target, list):
        return tuple(sorted({int(place) for place in target}))
    if isinstance(target, str):
        return (choices.index(target) if target in choices else int(target),)
    return (int(target),)


def _choice_chance(task: Task, correct: Sequence[tuple[int, ...]], widths: Sequence[int]) -> Chance:
    if task.primary_metric == "pct_stereotype":
        return Chance(value=0.5, source="no preference")
    if any(len(right) > 1 for right in correct):
        return scores.chosen_chance(correct, widths)
    return scores.choice_chance([right[0] for right in correct], widths)


def _declared_chance(task: Task, computed: Chance | None) -> Chance:
    """Hold the declared chance level against the computed one; of an answer in text only the declared one is known."""
    if computed is None:
        if task.chance is None and task.primary_metric in scores.LOWER_IS_BETTER:
            raise _wrong(task, "chance", f"a lower {task.primary_metric} is better, so its chance level is not 0",
                         "declare what a model without knowledge scores")
        return Chance(value=task.chance or 0.0, source="an answer in text is not guessed" if task.chance is None else "declared")
    if task.chance is not None and (task.kind == "perplexity" or abs(task.chance - computed.value) > ROUNDING):
        raise _wrong(task, "chance", f"{task.chance} is declared, the items give {computed.value:.4f} ({computed.source})",
                     "leave `chance` out of a perplexity task" if task.kind == "perplexity" else f"declare {computed.value:.4f}")
    return computed


def _build(task: Task, rows: list[dict[str, Any]], seed: int) -> tuple[Any, CodeEval | None]:
    divided = fewshot.divide(rows)
    override = {
        "task": task.lm_eval.task, "training_split": None, "validation_split": None, "test_split": ITEMS,
        **fewshot.override(task, divided.shots),
        # Both as they are: no other data set is ever loaded.
        "custom_dataset": lambda **_kwargs: {
            ITEMS: datasets.Dataset.from_list(divided.items),
            **({fewshot.SPLIT: datasets.Dataset.from_list(divided.shots)} if divided.shots else {}),
        },
    }
    seed_everything(seed)
    with code_eval.replaced() if task.code else contextlib.nullcontext() as programs:
        built = _own(task, override) if task.lm_eval.definition else _theirs(task, override)
    built.set_fewshot_seed(seed)
    if task.shots:
        fewshot.pin(built, seed)
    _require_fits(task, built)
    if task.max_output_tokens is not None:
        # A definition of a choice task has no such settings, and asks for none.
        built.set_config(key="generation_kwargs", value={"max_gen_toks": task.max_output_tokens}, update=True)
    return built, programs


def _own(task: Task, override: dict[str, Any]) -> Any:
    """Build a definition of our own: lm-eval gets functions in the place of templates, and no file to load."""
    definitions.require(task)
    file = paths.data_folder("tasks") / (task.lm_eval.definition or "")
    return ConfigurableTask(config={**rendering.config(definitions.read(file), file), **override})


def _theirs(task: Task, override: dict[str, Any]) -> Any:
    where = Path(lm_eval.__file__).parent / "tasks" / (task.lm_eval.folder or "")
    manager = TaskManager(include_defaults=False, include_path=[str(where)])
    if task.lm_eval.task not in manager.all_tasks:
        raise _wrong(task, "lm_eval.task", f"lm-eval {lm_eval.__version__} has no task {task.lm_eval.task!r} in {where.name}",
                     "see the folders of lm_eval/tasks for the names")
    loaded: dict[str, Any] = manager.load([{"group": "jouleboard", "task": [override]}])["tasks"]
    return loaded[task.lm_eval.task]


def _require_fits(task: Task, built: Any) -> None:
    """Make sure that a definition is of the declared kind, asks once, and has the declared metrics."""
    kinds = {"multiple_choice": "choice", "generate_until": "generation", "loglikelihood_rolling": "perplexity"}
    # Of a dialogue lm-eval gives the opening; the end state is no metric of its own.
    if kinds.get(built.OUTPUT_TYPE) != ("generation" if task.kind == "dialogue" else task.kind):
        raise _wrong(task, "kind", f"{task.kind} is declared, lm-eval's {task.lm_eval.task} is {built.OUTPUT_TYPE}",
                     f"declare kind: {kinds.get(built.OUTPUT_TYPE, 'choice')}, or name another definition")
    if (built.config.repeats or 1) != 1:
        raise _wrong(task, "lm_eval.task", f"it asks for {built.config.repeats} answers to each item",
                     "name a definition with one answer: greedy decoding gives the same one each time")
    if getattr(built, "UNSAFE_CODE", False) and not task.code:
        raise _wrong(task, "code", "lm-eval's definition executes what the model writes", "declare code: true")
    known = set(built.aggregation()) | ({"pass@1"} if "pass_at_k" in built.aggregation() else set())
    missing = {metric for metric in task.metrics if harness_items.key(metric) not in known and metric != "end_state"}
    if missing:
        raise _wrong(task, "metrics", f"lm-eval's {task.lm_eval.task} has no metric {min(missing)!r}", f"one of: {', '.join(sorted(known))}")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch: lm-eval draws few-shot examples when a task is loaded."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - this is the generator that lm-eval uses
    torch.manual_seed(seed)
