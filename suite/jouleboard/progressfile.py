"""What a run says of itself in plain files, for `jouleboard status` and for whoever else looks into its folder.

Layout::

    OUT/.work/run.json                what is to be run: families, variants, tasks
    OUT/.work/<model>/progress.json   how far one family is, by the process that holds it

Both are a courtesy: nothing is computed from them, and where they cannot be written the run goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from jouleboard import processes
from jouleboard.declared import Count, Id, Noun
from jouleboard.plan import Family, session_order, wanted_probes
from jouleboard.processes import Process

RUN, PROGRESS = "run.json", "progress.json"
EVERY_S = 2.0
"""Between two writes while work goes on: a line of progress is not worth more of the disk."""

N = TypeVar("N", bound=Noun)
How = Literal["finished", "interrupted", "out-of-time", "refused", "error"]
"""How a family's run ended: all was done; Ctrl-C or a signal; its piece of time was over; it could not start or go on; a bug."""


class FamilyNote(Noun, frozen=True, kw_only=True):
    """What is to be run of one model."""

    model: Id
    recipes: tuple[Id, ...]
    """The base first."""
    tasks: tuple[Id, ...]
    trials: dict[str, Count]
    """Energy trials of each variant."""
    probes: Count
    """Probes of each variant."""


class RunNote(Noun, frozen=True, kw_only=True):
    """What is to be run."""

    plan: Id
    title: str
    hardware: Id
    families: tuple[FamilyNote, ...]


class Bar(Noun, frozen=True, kw_only=True):
    """How far one piece of work is."""

    label: str
    """`<recipe> <task>`, or what is counted."""
    done: Count
    of: Count
    unit: str
    per_s: float | None
    """Rate since it began; None before that can be told."""

    @property
    def left_s(self) -> float | None:
        """Time left at this rate."""
        return (self.of - self.done) / self.per_s if self.per_s else None


class End(Noun, frozen=True, kw_only=True):
    """How a process ended its work."""

    how: How
    message: str
    utc: str


class Progress(Noun, frozen=True, kw_only=True):
    """How far a family is."""

    model: Id
    process: Process
    job: str | None
    """The batch system's id."""
    began_utc: str
    said_utc: str
    phase: str
    about: str
    bars: tuple[Bar, ...] = ()
    line: str | None = None
    """The last line that was shown."""
    end: End | None = None


def run_note(families: Sequence[Family]) -> RunNote:
    """Describe what is to be run."""
    return RunNote(plan=families[0].plan.id, title=families[0].plan.title, hardware=families[0].hardware.id,
                   families=tuple(map(_family_note, families)))


def _family_note(family: Family) -> FamilyNote:
    names = [recipe.id for recipe in family.recipes]
    energy = family.plan.energy
    order = [slot.recipe for slot in session_order(energy.cells, names, energy.trials, family.plan.seed)]
    return FamilyNote(model=family.model.id, recipes=tuple(names), tasks=tuple(row.task.id for row in family.tasks),
                      trials={name: order.count(name) for name in names}, probes=len(list(wanted_probes(family.plan))))


def write_run(out: Path, note: RunNote) -> None:
    """Leave what is to be run in a run folder."""
    (out / ".work").mkdir(parents=True, exist_ok=True)
    write(out / ".work" / RUN, note)


def read_run(out: Path) -> RunNote | None:
    """Return what is to be run; None where the folder does not say."""
    return _read(out / ".work" / RUN, RunNote)


def read_progress(out: Path, model: str) -> Progress | None:
    """Return how far a family is; None where nobody has begun with it."""
    return _read(out / ".work" / model / PROGRESS, Progress)


def _read(path: Path, noun: type[N]) -> N | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=noun)
    except (OSError, msgspec.DecodeError):
        # Ours alone, and put in place whole: another version of this program wrote it.
        return None


def write(path: Path, noun: Noun) -> None:
    """Put a file in place whole, without waiting for the disk: after a power cut an older one, or none, is as good."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_bytes(msgspec.json.encode(noun))
    partial.replace(path)


class Recorder:
    """Writes one family's `progress.json`; begins with its first phase, when the folder is held."""

    def __init__(self, out: Path, note: RunNote, model: str, *, job: str | None = None) -> None:
        """Write nothing yet.

        Args:
            out: the run folder.
            note: all that is to be run there.
            model: which family this is.
            job: the batch system's id.
        """
        self._out = out
        self._note = note
        self._path = out / ".work" / model / PROGRESS
        self._now = Progress(model=model, process=processes.identity(), job=job, began_utc=processes.utc(), said_utc=processes.utc(), phase="",
                             about="")
        self._begun = False
        self._written_s = 0.0

    def phase(self, name: str, about: str) -> None:
        """A phase begins."""
        if not self._begun:
            self._begun = True
            with contextlib.suppress(OSError):
                there = read_run(self._out)
                # A job knows its own family only where it was started alone.
                if there is None or any(family not in there.families for family in self._note.families):
                    write_run(self._out, self._note)
        self._now = msgspec.structs.replace(self._now, phase=name, about=about, bars=())
        self._write()

    def bar(self, bar: Bar) -> None:
        """Some work goes on."""
        others = tuple(one for one in self._now.bars if one.label != bar.label)
        self._now = msgspec.structs.replace(self._now, bars=(*others, bar))
        if time.monotonic() - self._written_s >= EVERY_S or bar.done >= bar.of:
            self._write()

    def line(self, text: str) -> None:
        """Something was said; it is written with what comes next."""
        self._now = msgspec.structs.replace(self._now, line=text.strip())

    def end(self, how: How, message: str = "") -> None:
        """The family's run has ended."""
        there = read_progress(self._out, self._now.model)
        if self._begun and there is not None and there.process != self._now.process and there.end is None:
            # Another run took the folder over while this one slept: the file is its own now.
            return
        self._now = msgspec.structs.replace(self._now, end=End(how=how, message=message, utc=processes.utc()))
        self._write()

    def _write(self) -> None:
        if not self._begun:
            return
        self._written_s = time.monotonic()
        self._now = msgspec.structs.replace(self._now, said_utc=processes.utc())
        with contextlib.suppress(OSError):
            write(self._path, self._now)
