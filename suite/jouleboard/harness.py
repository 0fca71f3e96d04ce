"""The lm-eval adapter: a task's documents in, per-item records out. lm-eval's prompt, filter, metric and normalisation are kept.

Of several filters the one that the definition lists first is used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lm_eval
import torch

from jouleboard import harness_dialogues, harness_items, harness_templates, replays, sampling, scores, store, textscores
from jouleboard.declared_tasks import Metric, Task
from jouleboard.engines import generation, templates
from jouleboard.engines.parallel import Keeps
from jouleboard.engines.reference import ReferenceLM, Tally
from jouleboard.errors import UnitError
from jouleboard.harness_items import Answered
from jouleboard.harness_tasks import Loaded, load, seed_everything
from jouleboard.records import Item, ReplayRow

__all__ = ["Loaded", "Outcome", "evaluate", "inputs_sha256", "load", "sample", "seed_everything", "strata"]

FIRST_IDS = 8
"""Token ids of the first request that are recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a quality pass over one task gave."""

    items: list[Item]
    inputs_sha256: str
    batches: list[list[ReplayRow]]
    prompt_tokens: int
    output_tokens: int
    fed_tokens: int
    computed_tokens: int
    resumed_batches: int
    """Batches that were computed before a stop and taken from the journal."""
    template: Literal["plain", "chat"]
    template_sha256: str | None
    first_ids: tuple[int, ...]
    prefill_tokens: int | None
    decode_tokens: int | None
    sandbox: tuple[str, ...]


def sample(documents: int, golds: Sequence[int] | None, limit: int | None, seed: int) -> list[int] | None:
    """Choose `limit` documents as `sampling.sample` does; None means all."""
    return None if limit is None or limit >= documents else sampling.sample(documents, golds, limit, seed)


def strata(loaded: Loaded) -> Sequence[int] | None:
    """Return what a sample has in the same shares as all documents: the right answer's position, or a dialogue's scenario."""
    return harness_dialogues.scenarios(loaded) if loaded.task.kind == "dialogue" else loaded.golds


@harness_templates.compiled_once()
def evaluate(
    lm: ReferenceLM, loaded: Loaded, indices: list[int] | None, journal: Keeps | None = None, *, chat: bool = False
) -> Outcome:
    """Score a task's items through `lm_eval.evaluate` and turn its samples into records.

    Args:
        lm: the engine.
        loaded: the task.
        indices: which documents; None for all.
        journal: gives the batches that an earlier try computed, and keeps those of this one; None: nothing is kept.
        chat: ask through the tokenizer's chat template; few-shot examples are earlier turns then.

    Raises:
        UnitError: our own aggregate disagrees with lm-eval's, or a log-likelihood is not finite.
        StorageError: the journal cannot be written.
    """
    task, name = loaded.task, loaded.task.lm_eval.task
    tally = lm.start_tally(journal)
    lm.chat_template_args = templates.words(lm.tokenizer) if chat else {}
    if task.kind == "dialogue":
        return _dialogues(lm, loaded, indices, chat=chat)
    with torch.inference_mode():
        result = lm_eval.evaluate(
            lm, task_dict={"tasks": {name: loaded.lm_eval_task}, "groups": {}, "group_map": {}},
            samples=None if indices is None else {name: _Chosen(indices)}, bootstrap_iters=0, log_samples=True,
            apply_chat_template=chat, fewshot_as_multiturn=chat, confirm_run_unsafe_code=task.code,
        )
    if result is None:
        raise UnitError("lm-eval gave no result", field=task.id)
    chosen = result["samples"][name][0]["filter"]
    rows = sorted((row for row in result["samples"][name] if row["filter"] == chosen), key=lambda row: row["doc_id"])
    items = _items(rows, loaded, tally, lm)
    _agree(items, task, result["results"][name], chosen)
    return _outcome(lm, tally, loaded, items, chat=chat, inputs=inputs_sha256(rows), first=rows[0]["arguments"][0])


class _Chosen(list[int]):
    """Indices of a sample. Of every document of the task lm-eval asks whether it is among them."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(indices)
        self._members = frozenset(indices)

    def __contains__(self, index: object) -> bool:
        return index in self._members


def _dialogues(lm: ReferenceLM, loaded: Loaded, indices: list[int] | None, *, chat: bool) -> Outcome:
    with torch.inference_mode():
        held = harness_dialogues.evaluate(lm, loaded, indices, chat=chat)
    first = (held.first_prompt, held.settings)
    return _outcome(lm, lm.tally, loaded, held.items, chat=chat, inputs=held.inputs_sha256, first=first)


def _outcome(
    lm: ReferenceLM, tally: Tally, loaded: Loaded, items: list[Item], *, chat: bool, inputs: str, first: Sequence[Any]
) -> Outcome:
    """Put items and counts together; `first` is the first request, as lm-eval asks it."""
    generated = loaded.task.kind in {"generation", "dialogue"}
    return Outcome(
        items=items,
        inputs_sha256=inputs,
        batches=tally.batches,
        prompt_tokens=sum(item.prompt_tokens for item in items),
        output_tokens=sum(item.output_tokens for item in items),
        fed_tokens=sum(map(replays.fed_tokens, tally.batches)),
        computed_tokens=tally.computed_tokens,
        resumed_batches=tally.resumed_batches,
        template="chat" if chat else "plain",
        template_sha256=templates.digest(lm.tokenizer) if chat else None,
        first_ids=_first_ids(lm, first),
        prefill_tokens=tally.prefill_tokens if generated else None,
        decode_tokens=tally.decode_tokens if generated else None,
        sandbox=() if loaded.programs is None else loaded.programs.guards or (),
    )


def inputs_sha256(rows: Sequence[dict[str, Any]]) -> str:
    """Return the digest of all that was asked, in order: prompts with their template, continuations, settings of generation."""
    inputs = hashlib.sha256()
    for row in rows:
        for argument in row["arguments"]:
            inputs.update(store.canonical([str(part) for part in argument]) + b"\n")
    return inputs.hexdigest()


def _first_ids(lm: ReferenceLM, argument: Sequence[Any]) -> tuple[int, ...]:
    """Return the first token ids of a request as the model is fed it."""
    text, *rest = argument
    if rest and not isinstance(rest[0], str):
        ids = generation.read(lm, [(text, rest[0])])[0].prompt
    elif rest and text:
        ids = tuple(lm._encode_pair(text, rest[0])[0])  # noqa: SLF001 - lm-eval's own way to split a request
    else:
        # Without a context the model is fed a token for the beginning of text.
        ids = (lm.prefix_token_id, *lm.tok_encode(rest[0] if rest else text, add_special_tokens=False))
    return tuple(ids[:FIRST_IDS])


def _items(rows: list[dict[str, Any]], loaded: Loaded, tally: Tally, lm: ReferenceLM) -> list[Item]:
    task, built = loaded.task, loaded.lm_eval_task
    expected = sum(len(row["arguments"]) for row in rows)
    asked = tally.request_tokens
    if task.kind != "perplexity" and len(asked) != expected:
        raise UnitError(f"lm-eval asked {len(asked)} requests for {expected} answers", field=task.id)
    items, start = [], 0
    for row in rows:
        place, width = start, len(row["arguments"])
        start += width
        index = int(row["doc_id"])
        if task.kind == "perplexity":
            # One prefix token is fed before the text; a text longer than the context is fed in windows.
            counts = [(1, len(lm.tok_encode(str(built.doc_to_target(row["doc"])))))]
        else:
            counts = asked[place:start]
        items.append(harness_items.item(task, built, Answered(
            row=row, counts=counts,
            gold=None if loaded.golds is None else loaded.golds[index],
            correct=() if loaded.correct is None else loaded.correct[index],
            written=tally.written[place] if task.kind == "generation" else None,
        )))
    return items


def _agree(items: Sequence[Item], task: Task, theirs: dict[str, Any], chosen: str) -> None:
    """Hold our own aggregates against lm-eval's: they must be the same numbers."""
    for metric in task.metrics:
        ours, found = scores.aggregate(items, metric).value, float(theirs[f"{harness_items.key(metric)},{chosen}"])
        found /= textscores.FULL if metric in textscores.CORPUS else 1.0
        if metric == "mc2" and math.isnan(found):
            # See `harness_items`: lm-eval divides zero by zero.
            continue
        if not abs(ours - found) <= AGREEMENT.get(metric, 1e-9):
            raise UnitError(f"our {metric} is {ours}, lm-eval's is {found}", field=task.id,
                            remedy="this is a bug in Jouleboard: please report it")


AGREEMENT: dict[Metric, float] = {"acc": 1e-12, "acc_norm": 1e-12}
"""Largest difference from lm-eval's aggregate; 1e-9 for others, which are sums in another order."""
