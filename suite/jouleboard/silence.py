"""How long a worker may say nothing by design: whole loops, a live evaluation, and weights that are read, tell of no progress.

The bounds are generous, since a worker that is ended in good work costs more than one that hangs and is found out late.
The rates are guesses on the safe side; where this variant's own loops or scores were timed, these count instead.

Example: a variant that scored 100 computed tokens a second, and a loop of 90 000 computed tokens: 4 x 900 s.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jouleboard.recipes import Recipe
from jouleboard.session import Session

SAFETY = 4.0
"""By how much an estimate may be exceeded."""
LEAST_BYTES_PER_S = 20e6
"""Weights read from a shared disk, and worked on."""
DENSER = 8
"""Dense weights of four bytes take up to so many times the bytes of a quantised file."""
LEAST_TOKENS_PER_S = 5.0
"""Of a variant whose scoring was not timed."""
LONGEST_STEP_S = 2.0
"""One decode step of a whole batch: all weights are read once."""
COMPILE_S = 3600.0
"""Compiling six graphs of a large model on a slow core; two of 30 layers take two to four minutes on one."""
LONGEST_ITEM_S = 60.0
"""Scoring one item, where that was not timed."""


def weights_s(where: Path, *, times: int = 1) -> float:
    """Bound the silence while weights are read.

    Args:
        where: a file of weights, or a folder of safetensors; 0 seconds where there is nothing.
        times: how many times their bytes are read and written.
    """
    files = [where] if where.is_file() else where.glob("*.safetensors")
    return times * sum(file.stat().st_size for file in files) / LEAST_BYTES_PER_S


def compile_s(recipe: Recipe) -> float:
    """Bound the silence while a variant's passes are compiled; 0 where none are."""
    return COMPILE_S * sum(step.about.sets == "compiled" for step in recipe.steps)


def loop_s(session: Session, recipe: str, *, computed_tokens: int, steps: int, seen_s: Iterable[float] = ()) -> float:
    """Bound the silence of one loop beyond the window that it began in.

    Args:
        session: the run.
        recipe: of the variant.
        computed_tokens: that a loop computes, padding included.
        steps: decode steps among that.
        seen_s: how long loops of this very work took.
    """
    longest_s = max(seen_s, default=None)
    if longest_s is not None:
        return SAFETY * longest_s
    timed = [(one.computed_tokens, one.duration_s) for one in session.state[recipe].results if one.duration_s]
    rate = sum(tokens for tokens, _ in timed) / sum(duration_s for _, duration_s in timed) if timed else LEAST_TOKENS_PER_S
    return SAFETY * computed_tokens / max(rate, 1e-3) + LONGEST_STEP_S * steps


def live_s(session: Session, recipe: str, items: int) -> float:
    """Bound the silence of a live evaluation.

    Args:
        session: the run.
        recipe: of the variant.
        items: of the first task that are scored.
    """
    task = session.family.tasks[0].task.id
    for one in session.state[recipe].results:
        if one.task == task and one.duration_s:
            return SAFETY * items * one.duration_s / one.items_used
    return LONGEST_ITEM_S * items
