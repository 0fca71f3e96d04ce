"""What a check can find wrong: a problem names file, field, value, rule and remedy. No I/O here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from jouleboard.declared import Noun

TOLERANCE = 1e-9
RULES = {
    "unreadable": "the file is whole, UTF-8 JSON of this format's version, with no unknown field",
    "digest": "a digest covers every other field, and is the one stored",
    "item-digest": "an item's digest covers every other field of its line",
    "item-score": "an item's scores follow from its log-likelihoods by lm-eval's rules",
    "item-shape": "a choice item has as many log-likelihoods as choices and an answer among them",
    "item-once": "each item of a task occurs once",
    "aggregate": "a task's aggregates are recomputed from its items",
    "withheld": "a withheld quality is null, and only a withheld one is; base-grid is withheld where it holds, and only there",
    "files": "the raw files beside a report are the ones it names",
    "energy": "measured joules are positive and come from a sensor; estimates follow from the declared power model",
    "integral": "the integral beside a counter is that of the power in the trace",
    "trace": "a trace is whole, and its rows are of the report's own windows",
    "window": "each window of a report has a name of its own",
    "profile": "the hardware profile in a report is the one whose digest, method, boundary and power model it names",
    "gates": "gates follow from the record and its trace, and are all there",
    "void": "a trial or probe is void where a hard gate fails, or its reading did",
    "simulated": "simulated joules are not published",
    "status": "a complete report has trials of one work a loop and cell, above zero tokens, a failed one says why",
    "loops": "a trial is whole loops of the same work, one after the other, inside its window",
    "session": "trials belong to one session, and compute batches that the report names",
}


class Problem(Noun, frozen=True, kw_only=True):
    """One thing that is wrong."""

    file: str
    field: str
    code: str
    """Reason code, a key of `RULES`."""
    found: str
    remedy: str


Make = Callable[[str, str, str, str], Problem]
"""From field, code, what was found and the remedy to a problem of one file."""


def at(path: Path) -> Make:
    """Return a maker of problems of one file."""

    def make(where: str, code: str, found: str, remedy: str) -> Problem:
        return Problem(file=str(path), field=where, code=code, found=found, remedy=remedy)

    return make


def close(left: float, right: float) -> bool:
    """Whether two numbers are equal but for rounding."""
    return math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=1e-12)
