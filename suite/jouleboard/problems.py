"""What a check can find wrong: a problem names file, field, value, rule and remedy. No I/O here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from jouleboard.declared import Noun

TOLERANCE = 1e-9
RULES = {
    # --- files, before anything is parsed
    "missing": "every file of an entry is there and can be read",
    "size": "a file is no larger than its cap, and holds no more objects and lists",
    "gzip": "a raw file is one whole gzip file",
    "bomb": "a raw file stays below the cap on its unpacked size, and shrinks by compression no more than records do",
    "lines": "a raw file has no more lines, and no longer ones, than records have",
    "encoding": "text is UTF-8 without a byte order mark",
    "json": "a report, an item and a withdrawal are JSON, whole and nothing else",
    "depth": "JSON is nested no deeper than records are",
    "number": "numbers are finite and of bounded digits, and have a canonical form (RFC 8785)",
    "duplicate-key": "no key occurs twice in one object",
    "format": "a report says that it is one",
    "version": "a report is of a format version that this Jouleboard reads",
    "schema": "fields are those of the format, of their types and inside their ranges",
    "unreadable": "a file is what its kind is declared to be",
    # --- places and names
    "symlink": "published files and folders are no links",
    "file-kind": "published files are plain files, and nobody may execute them",
    "stray-file": "a folder of published entries holds entries, withdrawals and its README, and no other file",
    "name": "names in it match ^[a-z0-9][a-z0-9._-]{0,79}$ and hold no `..`",
    "case-twin": "no two names in one folder differ in case alone",
    "place": "an entry lies in reports/HARDWARE/MODEL/RECIPE/UTC-DIGEST, as it names itself",
    "count": "there are no more files, and no deeper folders, than a board of entries has",
    # --- digests
    "digest": "a digest covers every other field, and is the one stored",
    "merkle": "the Merkle root is that of the items, trials, trace and gates",
    "files": "the raw files beside a report are the ones it names",
    "item-digest": "an item's digest covers every other field of its line",
    "item-canonical": "each line of the items is canonical JSON (RFC 8785)",
    # --- items and aggregates
    "item-score": "an item's scores follow from its log-likelihoods by lm-eval's rules",
    "item-shape": "a choice item has as many log-likelihoods as choices and an answer among them",
    "item-once": "each item of a task occurs once",
    "item-range": "an item's index lies below the number of documents of its task",
    "likelihood": "no log-likelihood is above zero",
    "sample": "a task that used some of its items names the seed, and used no more than there are",
    "aggregate": "a task's aggregates are recomputed from its items",
    "tokens": "counts of tokens fit each other: fed ones are computed, least ones are no more than those",
    "withheld": "a withheld quality is null, and only a withheld one is; base-grid is withheld where it holds, and only there",
    "manifest": "items have the document, the answer and the lengths of choices of the task's frozen manifest",
    "manifest-sample": "the items of a sample are those that its seed draws",
    # --- energy
    "energy": "measured joules are positive and come from a sensor; estimates follow from the declared power model",
    "integral": "the integral beside a counter is that of the power in the trace",
    "counter": "the joules of a counter are the difference of its readings at both ends of the window",
    "trace": "a trace is whole, and its rows are of the report's own windows",
    "trace-short": "the trace covers the windows of all trials whose sensor was read",
    "trace-flat": "no sensor gives the same power fifty times in a row under load",
    "cpu-trace": "the CPU time of a window is that of its trace",
    "cpu-cores": "CPU time is no more than all cores could give",
    "window": "each window of a report has a name of its own",
    "profile": "the hardware profile in a report is the one whose digest, method, boundary and power model it names",
    "gates": "gates follow from the record and its trace, and are all there",
    "void": "a trial or probe is void where a hard gate fails, or its reading did",
    "simulated": "simulated joules are not published",
    "status": "a complete report has trials of one work a loop and cell, above zero tokens, a failed one says why",
    "loops": "a trial is whole loops of the same work, one after the other, inside its window",
    "order": "each trial has a place of its own in the session",
    "session": "trials belong to one session, and compute batches that the report names",
    "engine": "an entry stands on another engine's boards only where a step hands the model to that engine",
    "base": "the base is the variant that others are compared with, and names itself",
    "realised": "the bytes of the dtypes are those of the weights",
    "memory": "peak memory is no less than a hundredth of the weights and no more than the machine has",
    # --- time
    "time": "times are UTC, written 2030-01-01T00:00:00Z",
    "future": "nothing was made in the future, nor before Jouleboard was",
    "time-order": "an entry is made after its windows; later places in the session are later in time",
    "overlap": "no two windows of an entry share time",
    # --- plausibility; bounds use the tokens that were computed
    "above-limit": "joules are no more than power limit x time",
    "roofline-time": "no more tokens a second than the device's peak arithmetic allows",
    "roofline-memory": "no more decode steps a second than the device's memory bandwidth allows",
    "roofline-energy": "joules are no less than idle power over the least time that the work takes",
    "identical-repeats": "repeats of a measurement differ",
    "copied": "windows are no other entry's",
    "twin": "each entry is published once",
    # --- text
    "text-control": "text has no control, invisible or direction-changing characters",
    "text-long": "text is no longer than its cap",
    "text-markup": "text is plain: no tags",
    "link": "links are https",
    "private": "nothing names a path, a host, an address or a person of the machine",
    # --- what an entry says of others, and of what is declared
    "replaces": "a correction names a published entry of the same model, recipe and hardware",
    "reproduces": "a reproduction names a published entry of the same model and recipe, by another submitter",
    "withdrawal": "a withdrawal names the entry it stands beside, and why",
    "submitter": "a published entry names who proposes it",
    "source": "the model comes from a pinned public source",
    "rules": "a new entry keeps the rules of today; none keeps rules that are not made yet",
    "declared-hardware": "the profile of a new entry is the declared one",
    "declared-model": "a new entry of a declared model has its source, licence and weights",
    "declared-recipe": "the recipe of a new entry is declared, and its steps are what was built",
    "declared-task": "the tasks of a new entry are the declared ones: data, definition, metrics and chance level",
    "declared-workload": "the cells of a new entry are declared workloads, and its trials computed them",
    # --- a branch
    "append-only": "published entries are never changed or removed",
    "mixed": "a branch that adds entries changes nothing else",
    "branch-size": "one branch adds no more entries than a person can look at",
}
"""Every reason code and its rule. A code never changes its meaning; one that is given up is not used again."""

SINCE = dict.fromkeys((
    "place", "merkle", "item-range", "likelihood", "sample", "tokens", "counter", "trace-short", "trace-flat", "cpu-trace", "cpu-cores", "order",
    "base", "realised", "memory", "time", "future", "time-order", "overlap", "above-limit", "roofline-time", "roofline-memory", "roofline-energy",
    "identical-repeats", "text-markup", "private", "submitter", "source", "manifest", "manifest-sample", "reproduces", "item-canonical", "copied", "twin",
), 3)
"""Rules that came after the first ones: entries of earlier rules are not held against them (`Report.rules_version`)."""


class Problem(Noun, frozen=True, kw_only=True):
    """One thing that is wrong."""

    file: str
    field: str
    code: str
    """Reason code, a key of `RULES`."""
    found: str
    remedy: str


def applies(code: str, rules_version: int) -> bool:
    """Whether a rule was among those that an entry was made under."""
    return SINCE.get(code, 1) <= rules_version


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
