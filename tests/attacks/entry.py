"""An entry as an attacker has it: plain values to change, and two ways to write them.

    with entry.changed(folder) as found: found.raw["trials"][0]["window"]["energy"]["measured_j"] = 1.0
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jouleboard import gates, merkle, scores, store, traces
from jouleboard.records import Item, Report
from jouleboard.traces import Sample
from tests import genuine


@dataclass(slots=True, kw_only=True)
class Records:
    """All that an entry says, as plain values."""

    folder: Path
    raw: dict[str, Any]
    items: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    def window(self, name: str) -> dict[str, Any]:
        """Return a window of the report by its name."""
        held = [*self.raw["trials"], *self.raw["probes"], *self.raw["idle"], *self.raw["canary"]]
        return next(one["window"] for one in held if one["window"]["name"] == name)

    def of(self, task: str) -> list[dict[str, Any]]:
        """Return the items of a task."""
        return [item for item in self.items if item["task"] == task]

    def result(self, task: str) -> dict[str, Any]:
        """Return what the report says of a task."""
        return next(one for one in self.raw["tasks"] if one["task"] == task)

    def score_again(self, task: str) -> None:
        """Let every score and aggregate of a task follow from its items, as an attacker would."""
        made = []
        for item in self.of(task):
            noun = msgspec.convert(item, Item)
            item["scores"] = {metric: scores.recompute(noun, metric) for metric in genuine.METRICS[task]}
            made.append(msgspec.convert(item, Item))
        new = msgspec.to_builtins(genuine.result(task, made))
        old = self.result(task)
        kept = ("duration_s", "cpu_s", "sample_seed", "items_available", "chance")
        old.update({name: value for name, value in new.items() if name not in kept})

    def scale(self, name: str, factor: float) -> None:
        """Scale the joules of a window and all that goes with them: domains, integral, counter and rows."""
        window, energy = self.window(name), self.window(name)["energy"]
        for field in ("measured_j", "integral_j"):
            energy[field] *= factor
        energy["domains_j"] = {"gpu0": energy["measured_j"]}
        first_j = window["start"]["counter_j"]
        window["end"]["counter_j"] = first_j + energy["measured_j"]
        for row in self.rows:
            if row["window"] == name:
                row["power_w"] *= factor
                row["counter_j"] = first_j + (row["counter_j"] - first_j) * factor


Change = Callable[[Records], None]


def read(folder: Path) -> Records:
    """Read an entry into plain values."""
    return Records(folder=folder, raw=json.loads((folder / store.REPORT).read_bytes()),
                   items=[json.loads(line) for line in store.read_lines(folder / store.ITEMS)],
                   rows=[msgspec.to_builtins(row) for row in traces.decode(store.read_lines(folder / store.TRACE))])


def write(records: Records) -> Path:
    """Write changed values and no digest: what somebody does who edits a file."""
    folder = records.folder
    (folder / store.REPORT).write_text(json.dumps(records.raw, indent=1, sort_keys=True))
    store.write_lines(folder / store.ITEMS, [store.canonical(item) for item in records.items])
    store.write_lines(folder / store.TRACE, [traces.HEADER, *(traces.encode(msgspec.convert(row, Sample)) for row in records.rows)])
    return folder


def seal(records: Records, *, judge: bool = True, move: bool = True) -> Path:
    """Write changed values with every digest right again: what somebody does who knows the code.

    Args:
        records: the values.
        judge: whether gates and voids are computed again too.
        move: whether the folder gets the name that the new digest gives.
    """
    folder, raw = records.folder, copy.deepcopy(records.raw)
    lines = []
    for item in records.items:
        digest = store.digest(item | {"digest": ""})[:16]
        lines.append(store.canonical(item | {"digest": digest}))
    samples = [msgspec.convert(row, Sample) for row in records.rows]
    trace = [traces.HEADER, *map(traces.encode, samples)]
    raw["files"] = {store.ITEMS: msgspec.to_builtins(store.write_lines(folder / store.ITEMS, lines)),
                    store.TRACE: msgspec.to_builtins(store.write_lines(folder / store.TRACE, trace))}
    try:
        report = msgspec.convert(raw, Report)
        report = gates.apply(report, samples) if judge else report
        raw = msgspec.to_builtins(msgspec.structs.replace(report, merkle_root=merkle.of_entry(report, lines, trace)))
    except msgspec.ValidationError:
        # It is no report any more; its digest is right all the same.
        pass
    raw["digest"] = store.digest(raw | {"digest": "0" * 64})
    (folder / store.REPORT).write_text(json.dumps(raw, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8", errors="surrogatepass")
    return _moved(folder, raw) if move else folder


def _moved(folder: Path, raw: dict[str, Any]) -> Path:
    """Give the folder its proper name, where what it says of itself makes one."""
    made = str(raw.get("created_utc")).translate({ord("-"): None, ord(":"): None}).lower()
    target = folder.with_name(f"{made}-{raw['digest'][:8]}")
    if "/" in made or not made.isascii() or len(made) > 40 or target == folder:
        return folder
    shutil.move(folder, target)
    return target
