"""Show how a run is, in the terminal: once, as JSON, or until it has finished."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Self

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jouleboard import status
from jouleboard.status import FamilyStatus, RunStatus, VariantStatus, span

REFRESH_S = 5.0


def show(out: Path, *, as_json: bool, watch: bool) -> int:
    """Show how a run is; exit code 0 where nothing is wrong, 1 where a variant failed or work was left undone.

    Args:
        out: the run folder.
        as_json: print JSON, for programs.
        watch: show it anew until it has finished.
    """
    if watch:
        return _watch(out, as_json=as_json)
    found = status.gather(out)
    print(_json(found) if as_json else "\n".join(lines(found)))
    return 0 if found.sound else 1


def _watch(out: Path, *, as_json: bool) -> int:
    view, known = View(), status.Known()
    with view:
        while True:
            found = status.gather(out, known=known)
            if as_json:
                print(_json(found), flush=True)
            else:
                view.show(found)
            if found.finished:
                return 0 if found.sound else 1
            time.sleep(REFRESH_S)


class View:
    """Shows a run anew in place on a terminal; elsewhere only lines that have changed."""

    def __init__(self) -> None:
        """Choose once."""
        self._live = Live(console=Console(file=sys.stderr), auto_refresh=False, transient=False) if sys.stderr.isatty() else None
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Begin."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; what was shown last stays."""
        if self._live is not None:
            self._live.stop()

    def show(self, found: RunStatus) -> None:
        """Show it as it is now."""
        if self._live is not None:
            self._live.update(Text("\n".join(lines(found))), refresh=True)
            return
        for family in found.families:
            states = ", ".join(f"{variant.recipe} {variant.state}" for variant in family.variants)
            key = f"{family.state} {family.phase} {family.job_state} {family.note} {states}"
            if self._said.get(family.model) != key:
                self._said[family.model] = key
                print(f"{_head(family, ago=False)}: {states}", file=sys.stderr, flush=True)


def _json(found: RunStatus) -> str:
    return json.dumps({**msgspec.to_builtins(found), "finished": found.finished, "sound": found.sound}, indent=1)


def lines(found: RunStatus) -> list[str]:
    """Return a run's state as lines for people."""
    many = f"{len(found.families)} famil{'y' if len(found.families) == 1 else 'ies'}"
    rows = [f"{found.plan} on {found.hardware}: {many} in {found.out}"]
    for family in found.families:
        rows.append(_head(family, ago=True))
        width = max(len(variant.recipe) for variant in family.variants)
        rows += [f"  {variant.recipe:<{width}}  {_words(variant)}" for variant in family.variants]
        if family.log is not None and family.state in {"gone", "stopped"}:
            rows.append(f"  log: {family.log}")
    return rows


def _head(family: FamilyStatus, *, ago: bool) -> str:
    doing = f" {family.phase}" if family.phase else ""
    where = f" on {family.host}" if family.host and family.state == "running" else ""
    job = f", job {family.job}{f' ({family.job_state})' if family.job_state else ''}" if family.job else ""
    said = f", last heard of {span(family.silent_s)} ago" if ago and family.state == "running" and family.silent_s is not None else ""
    note = f": {family.note}" if family.note else ""
    return f"{family.model}  {family.state}{doing}{where}{job}{said}{note}"


def _words(variant: VariantStatus) -> str:
    counts = [f"{done} of {of} {what}" for done, of, what in (
        (variant.tasks_done, variant.tasks, "tasks"), (variant.trials_done, variant.trials, "trials"),
        (variant.probes_done, variant.probes, "probes")) if done and variant.state != "complete"]
    if variant.state == "failed":
        return f"failed ({variant.code}): {variant.reason}"
    bar = variant.bar
    if bar is not None:
        rate = f", {bar.per_s:.1f} a second" if bar.per_s else ""
        left = f", {span(bar.left_s)} left" if bar.left_s is not None else ""
        return f"scoring {bar.label.partition(' ')[2]}: {bar.done} of {bar.of}{rate}{left}" + "".join(f"; {one}" for one in counts)
    return variant.state + (f": {', '.join(counts)}" if counts else "")
