"""The driver's side of a worker process: start it in a process group of its own, ask, time, and end it.

The driver stays light: it never imports torch, so what it does beside a measured window costs next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar, cast

import msgspec

from jouleboard import protocol, simulated
from jouleboard.errors import TooLargeError, UnitError
from jouleboard.meters.cpu import ProcessClock
from jouleboard.meters.interface import Meter, OpenWindow
from jouleboard.records import Window
from jouleboard.traces import Sample

LOG_TAIL_BYTES = 4000
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


class Worker:
    """One worker process. Start workers from the main thread: they die with the thread that started them."""

    def __init__(self, name: str, log: Path, *, threads: int) -> None:
        """Start the process.

        Args:
            name: for messages.
            log: file that gets everything that the process prints.
            threads: threads of its numerical libraries.
        """
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jouleboard.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=sink, env=_environment(os.environ, threads), start_new_session=True,
            )
        self.clock = ProcessClock(self._process.pid)

    def ask(self, request: protocol.Request, expected: type[R], *, progress: OnProgress = no_progress) -> R:
        """Send a request and wait for its reply, without a measured window."""
        return self.measure(request, expected, meter=None, progress=progress).reply

    def measure(
        self, request: protocol.Request, expected: type[R], *, meter: Meter | None, name: str = "window",
        progress: OnProgress = no_progress, before: Callable[[], None] = at_once, opened: Callable[[], None] = at_once,
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

        Raises:
            UnitError: the worker died, or answered that it failed.
            TooLargeError: the work does not fit into memory.
        """
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

    def _refused(self, reply: protocol.Reply, expected: type[object]) -> UnitError:
        if isinstance(reply, protocol.TooLarge):
            return TooLargeError(reply.reason, field=self.name, remedy="use a smaller batch, shorter requests, or a larger device")
        if isinstance(reply, protocol.Failed):
            return UnitError(reply.reason, field=self.name, remedy=reply.remedy or f"see {self.log}")
        return UnitError(f"expected {expected.__name__}, got {type(reply).__name__}", field=self.name)

    def close(self) -> None:
        """End the process and everything in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # Closed last: a thread that waits for a reply holds the stream until the process has ended.
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        data = self.log.read_bytes()[-LOG_TAIL_BYTES:] if self.log.is_file() else b""
        return data.decode("utf-8", errors="replace")

    def _send(self, request: protocol.Request) -> None:
        try:
            stream = cast("BinaryIO", self._process.stdin)
            stream.write(msgspec.json.encode(request) + b"\n")
            stream.flush()
        except (OSError, ValueError):
            raise self._died() from None

    def _receive(self) -> protocol.Reply:
        try:
            line = cast("BinaryIO", self._process.stdout).readline()
        except ValueError:
            raise self._died() from None
        if not line:
            raise self._died()
        return REPLIES.decode(line)

    def _died(self) -> UnitError:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            why = "it was killed (signal 9): the machine was out of memory, or somebody ended it"
        elif code < 0:
            why = f"signal {-code}"
        else:
            why = f"exit code {code}"
        return UnitError(f"the worker process died: {why}", field=self.name, remedy=f"see {self.log}")


def _environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    """Let every numerical library use the declared number of threads, and let nothing reach for the network."""
    count = str(threads)
    return {
        **inherited, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        # The meter counts GPUs in PCI order; torch's own default is the fastest first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TQDM_MININTERVAL": "10", "PYTHONUNBUFFERED": "1",
    }
