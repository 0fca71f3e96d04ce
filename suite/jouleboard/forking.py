"""The driver's side of the fork server: start it once, and let it fork workers, so that many of them cost one import.

A worker that it forked is a child of the driver, not of the server (see `forkserver`): the server may die, and they live on.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jouleboard.children import Child

PROGRAM = "jouleboard.forkserver"
MODULES = ("torch", "transformers", "lm_eval", "datasets", "jouleboard.variant")
"""What a worker needs before it is asked anything; the last imports what else computes."""
MEMORY_VARIABLE = "JOULEBOARD_WORKER_MEMORY_BYTES"
"""Tells a worker how much memory it may take beyond its libraries."""
OPEN_S = 600.0
"""Importing torch and its friends takes seconds, and minutes from a cold network disk."""
FORK_S = 60.0
MESSAGE_BYTES = 65536


class GoneError(Exception):
    """The server died or hangs; another may be started."""


class RefusedError(Exception):
    """The server must not fork: it says why."""


class ForkServer:
    """One fork server. Start it from the main thread: while it imports it dies with the thread that started it."""

    def __init__(self, log: Path, environment: Mapping[str, str], modules: Sequence[str] = MODULES) -> None:
        """Start it, and wait until it has imported.

        Args:
            log: gets what it prints.
            environment: its own and that of all workers, in force before anything is imported.
            modules: what to import.

        Raises:
            GoneError: it died meanwhile, or took too long.
            RefusedError: it must not fork.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        with theirs, log.open("ab") as sink:
            popen = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, str(theirs.fileno()), *modules], stdin=subprocess.DEVNULL, stdout=sink,
                stderr=sink, env=dict(environment), start_new_session=True, pass_fds=(theirs.fileno(),),
            )
        self.child = Child(popen.pid, popen)
        try:
            self._answer(OPEN_S)
        except BaseException:
            self.close()
            raise

    def fork(self, requests: int, replies: int, log: int) -> int:
        """Fork a worker.

        Args:
            requests: becomes its standard input.
            replies: becomes its standard output.
            log: becomes its standard error.

        Returns:
            Its process id: it is a child of this process.

        Raises:
            GoneError: the server died or hangs.
            RefusedError: the system gives no process.
        """
        try:
            socket.send_fds(self._socket, [b"fork"], [requests, replies, log])
        except OSError:
            raise GoneError("it does not listen") from None
        return int(self._answer(FORK_S)["pid"])

    def _answer(self, limit_s: float) -> dict[str, Any]:
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        if not waiting.poll(limit_s * 1000):
            raise GoneError(f"no answer within {limit_s:g} s")
        try:
            data = self._socket.recv(MESSAGE_BYTES)
        except OSError:
            data = b""
        if not data:
            raise GoneError("it died")
        answer: dict[str, Any] = json.loads(data)
        if answer.get("problem"):
            raise RefusedError(answer["problem"])
        return answer

    def close(self) -> None:
        """End it; what it forked lives on."""
        self.child.end()
        self._socket.close()
        self.child.forget()


def fresh(requests: int, replies: int, log: int, environment: Mapping[str, str], program: Sequence[str]) -> Child:
    """Start a worker in an interpreter of its own, in a session and process group of its own.

    Args:
        requests: becomes its standard input.
        replies: becomes its standard output.
        log: becomes its standard error.
        environment: its environment.
        program: what to start.
    """
    popen = subprocess.Popen(list(program), stdin=requests, stdout=replies, stderr=log, env=dict(environment),
                             start_new_session=True)
    return Child(popen.pid, popen)


def environment(threads: int, **more: str) -> dict[str, str]:
    """Let every numerical library use the declared number of threads, and let nothing reach for the network.

    Args:
        threads: how many.
        more: further variables.
    """
    count = str(threads)
    return {
        **os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        # The meter counts GPUs in PCI order; torch's own default is the fastest first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TQDM_MININTERVAL": "10", "PYTHONUNBUFFERED": "1", **more,
    }
