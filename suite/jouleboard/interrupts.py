"""Ctrl-C, SIGTERM and SIGHUP: the first ends a command in good order, a second one during that ends it at once.

A handler of Python runs between any two steps of the main thread, so it only notes the signal and raises, or writes and
leaves; it takes no lock and prints through no buffer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
BOUNCE_S = 0.5
"""A closing terminal sends its hang-up twice, and what runs a command may pass on the Ctrl-C that it had too: repeats that
follow so soon are one."""
AT_ONCE = b"\njouleboard: ended at once; what was finished is kept\n"
SHELL = 128
"""A shell's exit code for a signal is this and the signal's number."""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__()
        self.number = number


class Listener:
    """Handles the signals of one command."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._first_s: float | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle one signal.

        Raises:
            Interrupted: it is the first.
        """
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
            raise Interrupted(number)
        if now_s - self._first_s >= BOUNCE_S:
            _leave(SHELL + number)


def _leave(code: int) -> NoReturn:
    # Workers and meter die with this process, and the fork server ends what they started.
    with contextlib.suppress(OSError):
        os.write(2, AT_ONCE)
    os._exit(code)


def listen() -> None:
    """Handle the signals from now on, save those that this process was started to ignore (nohup, background jobs)."""
    if threading.current_thread() is not threading.main_thread():
        return
    listener = Listener()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, listener)


def farewell(stop: KeyboardInterrupt) -> int:
    """Say that a command was interrupted, and return its exit code: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    try:
        print("\njouleboard: interrupted; what was finished is kept", file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        # The terminal has gone, and Python would complain again when it flushes at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
    return SHELL + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT)
