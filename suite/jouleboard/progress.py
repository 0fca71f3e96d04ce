"""Show what a run is doing: live bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from jouleboard import progressfile
from jouleboard.errors import JouleboardError, OutOfTimeError
from jouleboard.progressfile import Recorder

LINE_EVERY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """How long a phase of the run took."""

    name: str
    duration_s: float


@dataclass(slots=True)
class Bar:
    """One running piece of work."""

    label: str
    of: int
    started_s: float
    said_s: float
    task: TaskID | None = None


@dataclass(slots=True)
class Display:
    """Progress of a whole run; safe to call from several threads."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    phases: list[Phase] = field(default_factory=list)
    _bars: dict[str, Bar] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _live: Progress | None = None
    _recorder: Recorder | None = None

    def __post_init__(self) -> None:
        """Choose bars or lines once."""
        if self.stream.isatty():
            self._live = Progress(
                TextColumn("  {task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=Console(file=self.stream),
                transient=True,
            )

    @contextmanager
    def recording(self, recorder: Recorder) -> Iterator[None]:
        """Leave what is shown of one family in its `progress.json` too, and how it ended."""
        self._recorder = recorder
        try:
            yield
            recorder.end("finished")
        except OutOfTimeError as error:
            recorder.end("out-of-time", str(error))
            raise
        except JouleboardError as error:
            recorder.end("refused", str(error))
            raise
        except (KeyboardInterrupt, SystemExit):
            recorder.end("interrupted")
            raise
        except BaseException as error:
            recorder.end("error", f"{type(error).__name__}: {error}")
            raise
        finally:
            self._recorder = None

    def say(self, message: str) -> None:
        """Print one line."""
        with self._lock:
            if self._recorder is not None:
                self._recorder.line(message)
            if self._live is not None and self._live.live.is_started:
                self._live.console.print(message, markup=False, highlight=False)
            else:
                print(message, file=self.stream, flush=True)

    @contextmanager
    def phase(self, name: str, about: str) -> Iterator[None]:
        """Announce a phase, and keep how long it took, also when it fails."""
        self.say(f"{name}: {about}")
        with self._lock:
            if self._recorder is not None:
                self._recorder.phase(name, about)
        started_s = time.perf_counter()
        if self._live is not None:
            self._live.start()
        try:
            yield
        finally:
            if self._live is not None:
                self._live.stop()
                for bar in self._bars.values():
                    if bar.task is not None:
                        self._live.remove_task(bar.task)
            self._bars.clear()
            self.phases.append(Phase(name=name, duration_s=time.perf_counter() - started_s))

    def advance(self, label: str, done: int, of: int, unit: str = "") -> None:
        """Say how far one piece of work is."""
        now_s = time.perf_counter()
        with self._lock:
            bar = self._bars.get(label)
            if bar is None:
                task = self._live.add_task(label, total=of, rate="") if self._live is not None else None
                bar = self._bars[label] = Bar(label, of, now_s, now_s, task)
            elapsed_s = now_s - bar.started_s
            rate = done / elapsed_s if elapsed_s > 0 else 0.0
            if self._recorder is not None:
                self._recorder.bar(progressfile.Bar(label=label, done=done, of=of, unit=unit, per_s=rate or None))
            if self._live is not None and bar.task is not None:
                self._live.update(bar.task, completed=done, total=of, rate=f"{rate:.1f} {unit}/s")
            elif now_s - bar.said_s >= LINE_EVERY_S and done < of and rate > 0:
                bar.said_s = now_s
                print(f"  {label}: {done} of {of} {unit}, {rate:.1f}/s, {(of - done) / rate:.0f} s left",
                      file=self.stream, flush=True)

    def times(self) -> str:
        """Return the time of each phase and their sum, for the last lines of a run."""
        rows = [f"  {phase.name:<10} {phase.duration_s:7.1f} s" for phase in self.phases]
        total = sum(phase.duration_s for phase in self.phases)
        return "\n".join(["time of each phase:", *rows, f"  {'total':<10} {total:7.1f} s"])
