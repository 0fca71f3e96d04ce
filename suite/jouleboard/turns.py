"""The driver's side of one worker process: ask, time, lose patience, and say how it died."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from jouleboard import faults, protocol, simulated
from jouleboard.children import Child, Pipes
from jouleboard.errors import FailureCode, JouleboardError, StorageError, TooLargeError, UnitError
from jouleboard.faults import MEMORY_REMEDY
from jouleboard.lineage import OomKills
from jouleboard.meters.cpu import ProcessClock
from jouleboard.meters.interface import Meter, OpenWindow
from jouleboard.traces import Sample
from jouleboard.windows import Window

LOG_TAIL_BYTES = 4000
LAST_WORDS_S = 2.0
"""How long a process that has closed its pipes may take to end by itself."""
SIGNAL_WORDS = {
    "SIGKILL": "somebody ended it", "SIGILL": "unsupported instruction", "SIGSEGV": "a fault in native code",
    "SIGABRT": "native code gave up", "SIGBUS": "a file was cut short while it was mapped, or the memory is bad",
}
REPLIES: msgspec.json.Decoder[protocol.Reply] = msgspec.json.Decoder(protocol.Reply)
R = TypeVar("R")
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Generic[R]):
    """A reply, and the window that was open while its work was done."""

    reply: R
    window: Window | None
    """None where no meter was given, or the work was refused before it began."""
    samples: tuple[Sample, ...] = ()
    """The device's trace of that window."""

    def there(self) -> Window:
        """Return the window.

        Raises:
            UnitError: there is none.
        """
        if self.window is None:
            raise UnitError("a window is missing", field="window", remedy="this is a bug in Jouleboard: please report it")
        return self.window


def no_progress(_done: int, _of: int) -> None:
    """Show nothing: the default listener."""


def at_once() -> None:
    """Do not wait, tell nobody: the default around a window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a worker may take."""

    patience_s: float = 900.0
    """A worker that is asked something and says nothing for longer is ended."""
    memory_bytes: int | None = None
    """Memory that each worker may take beyond its libraries: allocated on a CPU, on each device on a GPU. None: no cap."""


NO_LIMITS = Limits()


class Worker:
    """One worker process, started by a `units.Workforce`."""

    def __init__(
        self, name: str, log: Path, child: Child, pipes: Pipes, *, limits: Limits = NO_LIMITS, kills: OomKills | None = None
    ) -> None:
        """Take over a process.

        Args:
            name: for messages.
            log: file that gets everything that the process prints.
            child: the process.
            pipes: to its standard input and output.
            limits: what it may take.
            kills: tells whether the kernel killed it for memory.
        """
        self.name = name
        self.log = log
        self._log_begins = log.stat().st_size if log.is_file() else 0
        self._child = child
        self._pipes = pipes
        self._limits = limits
        self._kills = kills or OomKills()
        self._gone: UnitError | None = None
        self._quiet_s = 0.0
        self.clock = ProcessClock(child.pid)

    @property
    def pid(self) -> int:
        """Its process id, and its group's."""
        return self._child.pid

    def ask(
        self, request: protocol.Request, expected: type[R], *, progress: OnProgress = no_progress, quiet_s: float = 0.0
    ) -> R:
        """Send a request and wait for its reply, without a measured window."""
        return self.measure(request, expected, meter=None, progress=progress, quiet_s=quiet_s).reply

    def measure(
        self, request: protocol.Request, expected: type[R], *, meter: Meter | None, name: str = "window",
        progress: OnProgress = no_progress, before: Callable[[], None] = at_once, opened: Callable[[], None] = at_once,
        quiet_s: float = 0.0,
    ) -> Measured[R]:
        """Send a request; when the worker is ready, open a window, let it go, and close the window at its reply.

        Args:
            request: what to do.
            expected: class of the reply.
            meter: measures the window; None: no window.
            name: of the window.
            progress: told how much is done.
            before: called when the worker is ready and before the window opens.
            opened: called right after the window was opened.
            quiet_s: how long it says nothing by design, beyond the request's own warm-up and window: a whole loop that
                begins at a window's end is computed to its end.

        Raises:
            UnitError: the worker died, said nothing for too long, or answered that it failed.
            TooLargeError: the work does not fit into memory.
            StorageError: it could not write a file.
        """
        self._quiet_s = quiet_s + getattr(request, "warmup_s", 0.0) + getattr(request, "window_s", 0.0)
        # A simulated GPU draws power while a worker computes; elsewhere nothing happens here.
        with simulated.load().busy():
            return self._measure(request, expected, meter, name, progress, before, opened)

    def _measure(
        self, request: protocol.Request, expected: type[R], meter: Meter | None, name: str, progress: OnProgress,
        before: Callable[[], None], opened: Callable[[], None],
    ) -> Measured[R]:
        self._send(request)
        if isinstance(reply := self._answer(progress), expected):
            return Measured(reply=reply, window=None)
        if not isinstance(reply, protocol.Ready):
            raise self._refused(reply, expected)
        before()
        window = None if meter is None else OpenWindow(meter, self.clock, name)
        try:
            opened()
            self._send(protocol.Go())
            reply = self._answer(progress)
            if not isinstance(reply, expected):
                raise self._refused(reply, expected)
            if window is None:
                return Measured(reply=reply, window=None)
            closed, samples = window.close()
            return Measured(reply=reply, window=closed, samples=samples)
        except BaseException:
            if window is not None:
                window.abandon()
            raise

    def _answer(self, progress: OnProgress) -> protocol.Reply:
        """Return the next reply that is no progress."""
        while isinstance(reply := self._receive(), protocol.Progress):
            progress(reply.done, reply.of)
        return reply

    def _refused(self, reply: protocol.Reply, expected: type[object]) -> JouleboardError:
        if isinstance(reply, protocol.TooLarge):
            return TooLargeError(reply.reason, field=self.name, remedy="use a smaller batch, shorter requests, or a larger device")
        if not isinstance(reply, protocol.Failed):
            return self._lost(f"the worker process answered {type(reply).__name__} in the place of {expected.__name__}")
        if reply.storage:
            return StorageError(reply.reason, file=reply.file, field=self.name, remedy=reply.remedy)
        return UnitError(reply.reason, field=self.name, remedy=reply.remedy or f"see {self.log}", kind=reply.code)

    def close(self) -> None:
        """End the process and everything in its group."""
        if self._child.end() is not None:
            # Closed last: a thread that waits for a reply holds the pipes until the process has ended.
            self._pipes.close()

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                data = log.read(LOG_TAIL_BYTES)
        except OSError:
            return ""
        return data.decode("utf-8", errors="replace")

    def _send(self, request: protocol.Request) -> None:
        if self._gone is not None:
            raise self._gone
        with self._faults("does not take a request"):
            self._pipes.send(msgspec.json.encode(request) + b"\n", self._until_s())

    def _receive(self) -> protocol.Reply:
        with self._faults("has said nothing"):
            return REPLIES.decode(self._pipes.receive(self._until_s()))

    def _until_s(self) -> float:
        return time.monotonic() + self._limits.patience_s + self._quiet_s

    @contextlib.contextmanager
    def _faults(self, silence: str) -> Iterator[None]:
        """End a worker that hangs, has died or talks nonsense, and say which it was."""
        try:
            yield
        except TimeoutError:
            limit_s = self._limits.patience_s + self._quiet_s
            raise self._lost(f"the worker process {silence} for {limit_s:.0f} s and was ended", kind="time-out",
                             remedy=f"see {self.log}; give it longer with --patience MINUTES if the device is only slow") from None
        except EOFError:
            raise self._died() from None
        # msgspec's DecodeError is one too.
        except ValueError as error:
            raise self._lost(f"the worker process answered nonsense: {error}") from None

    def _lost(self, problem: str, *, kind: FailureCode = "crash", remedy: str | None = None) -> UnitError:
        """End a worker that is of no use any more; whatever it is asked later gives the same error."""
        self._child.end()
        self._gone = UnitError(problem, field=self.name, remedy=remedy or f"see {self.log}", kind=kind)
        return self._gone

    def _died(self) -> UnitError:
        # Its pipes are closed a moment before it has ended, and its own exit code says more than our signal would.
        if not self._child.await_end(LAST_WORDS_S):
            return self._lost("the worker process closed its output")
        code = self._child.end() or 0
        if code == -signal.SIGKILL and self._kills.explains():
            return self._lost("the kernel killed the worker process: the machine was out of memory", kind="out-of-memory",
                              remedy=f"{MEMORY_REMEDY}; see {self.log}")
        if code == -signal.SIGABRT and faults.native_memory(self._said()):
            return self._lost(f"the worker process died: {_how(code)} for want of memory", kind="out-of-memory",
                              remedy=f"{MEMORY_REMEDY}; see {self.log}")
        return self._lost(f"the worker process died: {_how(code)}")

    def _said(self) -> str:
        """Return the end of what this very process has printed: earlier ones wrote into the same log."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(self._log_begins, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return log.read(LOG_TAIL_BYTES).decode("utf-8", errors="replace")
        return ""


def _how(code: int) -> str:
    """Say how a process ended, by its exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
    why = SIGNAL_WORDS.get(name)
    return f"{name} (signal {-code})" + (f": {why}" if why else "")
