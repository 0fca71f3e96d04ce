"""A child process that leads a group of its own, and the pipes to it: waited for with a limit, ended with all of its group.

Waiting sleeps in the kernel: what the driver does beside a measured window costs next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time

KILL_S = 5.0
"""A killed process that has not ended after this long hangs in a call of the kernel, which no signal ends."""
NAP_S = 0.02
"""Between two looks at a process where the kernel cannot be asked to wake us."""
CHUNK_BYTES = 2**18
LONGEST_LINE_BYTES = 2**28
"""Far above any reply: what is longer comes from a worker that has gone mad."""


class Child:
    """One child process, the leader of its group. It is reaped by `end` only, so its id names nobody else until then."""

    def __init__(self, pid: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        """Keep it.

        Args:
            pid: its id.
            popen: what started it, if anything in this process did.
        """
        self.pid = pid
        self._popen = popen
        self._lock = threading.Lock()
        self._code: int | None = None
        self.pidfd: int | None = open_pidfd(pid)
        """Readable as soon as it has ended; None where the kernel has no such thing, and after `forget`."""

    def kill(self) -> None:
        """Kill it and its group, unless it was reaped before."""
        with self._lock:
            if self._code is None:
                # A fork leads no group yet in its first moment.
                for ended in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        ended(self.pid, signal.SIGKILL)

    def await_end(self, limit_s: float) -> bool:
        """Return whether it ends within a time; it is not reaped."""
        until_s = time.monotonic() + limit_s
        while not self._has_ended():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            pidfd = self.pidfd
            if pidfd is None:
                time.sleep(min(NAP_S, left_s))
            else:
                _poll([(pidfd, select.POLLIN)], left_s)
        return True

    def _has_ended(self) -> bool:
        with self._lock:
            if self._code is not None:
                return True
            try:
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                return True

    def end(self) -> int | None:
        """Kill it with its group, wait, and leave no zombie of the group.

        Returns:
            Its exit code, negative for a signal; None where it does not end.
        """
        self.kill()
        if not self.await_end(KILL_S):
            return None
        with self._lock:
            if self._code is None:
                try:
                    self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                except ChildProcessError:
                    # Somebody waits for every child of this process; how it ended went there.
                    self._code = -signal.SIGKILL
                if self._popen is not None:
                    self._popen.returncode = self._code
        self._bury()
        return self._code

    def _bury(self) -> None:
        """Reap the killed rest of the group, which the kernel gave to this process where it adopts orphans."""
        until_s = time.monotonic() + KILL_S
        while time.monotonic() < until_s:
            try:
                if os.waitpid(-self.pid, os.WNOHANG)[0] == 0:
                    time.sleep(NAP_S)
            except ChildProcessError:
                return

    def forget(self) -> None:
        """Close what was open for it. Nobody may wait for it then."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable as soon as a process has ended; None where the kernel gives none."""
    opener = getattr(os, "pidfd_open", None)
    if opener is None:
        return None
    try:
        return int(opener(pid))
    except OSError:
        return None


class Pipes:
    """The driver's ends of a child's standard input and output. Lines go in and come out whole, or not at all."""

    def __init__(self, requests: int, replies: int, child: Child) -> None:
        """Take over both ends."""
        self._requests, self._replies, self._child = requests, replies, child
        os.set_blocking(requests, False)
        os.set_blocking(replies, False)
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._closed = False

    def send(self, line: bytes, until_s: float) -> None:
        """Write a line.

        Raises:
            EOFError: the child has gone.
            TimeoutError: it does not read.
        """
        with self._lock:
            rest = memoryview(line)
            while rest:
                self._require_open()
                try:
                    rest = rest[os.write(self._requests, rest):]
                except BlockingIOError:
                    self._sleep(self._requests, select.POLLOUT, until_s)
                except OSError:
                    raise EOFError from None

    def receive(self, until_s: float) -> bytes:
        """Wait for a line.

        Raises:
            EOFError: the child has gone, and what it said was no whole line.
            TimeoutError: none came in time; what has come is kept.
            ValueError: it is longer than any reply.
        """
        with self._lock:
            looked = 0
            while (end := self._buffer.find(b"\n", looked)) < 0:
                looked = len(self._buffer)
                if looked > LONGEST_LINE_BYTES:
                    raise ValueError(f"a line of more than {LONGEST_LINE_BYTES} bytes")
                self._require_open()
                if not self._read() and self._sleep(self._replies, select.POLLIN, until_s) and not self._read():
                    raise EOFError
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            return line

    def _read(self) -> bool:
        """Take what is there; False when there is nothing."""
        try:
            chunk = os.read(self._replies, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            raise EOFError
        self._buffer += chunk
        return True

    def _sleep(self, descriptor: int, events: int, until_s: float) -> bool:
        """Sleep until a pipe is ready; True when the child has ended, whoever may still hold its ends."""
        ended, pidfd = False, self._child.pidfd
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        waited = [(descriptor, events)] if pidfd is None else [(descriptor, events), (pidfd, select.POLLIN)]
        ended = pidfd in _poll(waited, left_s)
        if ended and events == select.POLLOUT:
            raise EOFError
        return ended

    def _require_open(self) -> None:
        if self._closed:
            raise EOFError

    def close(self) -> None:
        """Close both ends and let go of the child, once nobody waits there any more: the child must have ended."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._requests)
                os.close(self._replies)
                self._child.forget()


def _poll(waited: list[tuple[int, int]], limit_s: float) -> set[int]:
    poll = select.poll()
    for descriptor, events in waited:
        poll.register(descriptor, events)
    # Rounded up: a wait of less than a millisecond must not become a busy loop.
    return {descriptor for descriptor, _ in poll.poll(min(int(limit_s * 1000) + 1, 2**31 - 1))}


class Watch:
    """A thread that sleeps until a child ends, and then ends what is left of its group, whoever killed it."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._lock = threading.Lock()
        self._watched: dict[int, Child] = {}
        self._wake: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    def add(self, child: Child) -> None:
        """Watch a child too. Where the kernel has no descriptors of processes this does nothing."""
        descriptor = open_pidfd(child.pid)
        if descriptor is None:
            return
        with self._lock:
            self._watched[descriptor] = child
            if self._wake is None:
                self._wake = os.pipe()
                self._thread = threading.Thread(target=self._run, args=(self._wake[0],), name="watch", daemon=True)
                self._thread.start()
            os.write(self._wake[1], b".")

    def _run(self, wake: int) -> None:
        while True:
            with self._lock:
                waited = [(wake, select.POLLIN), *((descriptor, select.POLLIN) for descriptor in self._watched)]
            # No limit but the call's own: nothing is done until something happens.
            ready = _poll(waited, 2**20)
            if wake in ready and os.read(wake, 1) == b"":
                return
            for descriptor in ready - {wake}:
                with self._lock:
                    child = self._watched.pop(descriptor)
                os.close(descriptor)
                child.kill()

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            wake, self._wake = self._wake, None
            thread, self._thread = self._thread, None
        if wake is None or thread is None:
            return
        os.close(wake[1])
        thread.join()
        os.close(wake[0])
        for descriptor in self._watched:
            os.close(descriptor)
        self._watched.clear()
