"""The workers of a run: forked by a server that has imported for all of them, each the leader of a group of its own.

The driver stays light: it never imports torch, so what it does beside a measured window costs next to nothing.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from jouleboard import forking, lineage, turns
from jouleboard.children import Child, Pipes, Watch
from jouleboard.engines import place
from jouleboard.errors import StorageError, UnitError
from jouleboard.forking import ForkServer
from jouleboard.lineage import OomKills
from jouleboard.ranks import Ranks
from jouleboard.turns import NO_LIMITS, Limits, Measured, at_once

__all__ = ["NO_LIMITS", "Limits", "Measured", "Worker", "Workforce", "at_once"]

PROGRAM = (sys.executable, "-m", "jouleboard.worker")
Worker: TypeAlias = turns.Worker | Ranks
"""What computes a variant: one process, or several that are used like one."""


class Workforce:
    """Starts the workers of a run, from the main thread. All are ended with `close`."""

    def __init__(self, *, threads: int, limits: Limits = NO_LIMITS, modules: Sequence[str] | None = forking.MODULES,
                 program: Sequence[str] = PROGRAM) -> None:
        """Start nothing yet.

        Args:
            threads: threads of each worker's numerical libraries.
            limits: what each worker may take.
            modules: what a fork server imports for all; None: each worker has an interpreter of its own.
            program: what such an interpreter runs.
        """
        self._token = secrets.token_hex(8)
        more = {lineage.TOKEN_VARIABLE: self._token}
        if limits.memory_bytes is not None:
            more[forking.MEMORY_VARIABLE] = str(limits.memory_bytes)
        self._environment = forking.environment(threads, **more)
        self._limits = limits
        self._modules = modules if lineage.ON_LINUX else None
        self._program = tuple(program)
        self._server: ForkServer | None = None
        self._kills = OomKills()
        self._watch = Watch()
        self._workers: list[turns.Worker] = []
        self._groups: list[Ranks] = []
        self._begun = False

    def start(self, name: str, log: Path, *, ranks: int = 1) -> Worker:
        """Start a worker.

        Args:
            name: for messages.
            log: file that gets everything that the process prints; of several, those of rank 0.
            ranks: how many processes compute together, each on a device of its own.

        Raises:
            StorageError: the log cannot be written.
            UnitError: the system gives no process.
        """
        if ranks == 1:
            return self._one(name, log)
        group = Ranks(name, [self._one(name, one) for one in place.logs(log, ranks)], place.rendezvous(log.parent))
        self._groups.append(group)
        return group

    def _one(self, name: str, log: Path) -> turns.Worker:
        if not self._begun:
            self._begun = True
            lineage.orphanage().open()
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            sink = log.open("ab")
        except OSError as error:
            raise StorageError(f"the log cannot be written ({error.strerror})", file=log, field=name,
                               remedy="free space or make the folder writable, then run the same command again") from None
        with sink:
            worker = self._start(name, log, sink.fileno())
        self._workers.append(worker)
        return worker

    def _start(self, name: str, log: Path, sink: int) -> turns.Worker:
        theirs_in, requests = os.pipe()
        replies, theirs_out = os.pipe()
        try:
            child = self._child(theirs_in, theirs_out, sink, log.parent / "forkserver.log")
        except OSError as error:
            os.close(requests)
            os.close(replies)
            raise UnitError(f"no process can be had ({error.strerror})", field=name, kind="crash",
                            remedy="end other programs, or raise the limit of processes (`ulimit -u`)") from None
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._watch.add(child)
        return turns.Worker(name, log, child, Pipes(requests, replies, child), limits=self._limits, kills=self._kills)

    def _child(self, requests: int, replies: int, sink: int, log: Path) -> Child:
        """Fork a worker, with a new server where the last has died; or start it afresh where none may fork."""
        for _ in range(2):
            if self._modules is None:
                break
            try:
                if self._server is None:
                    self._server = ForkServer(log, self._environment, self._modules)
                return Child(self._server.fork(requests, replies, sink))
            except forking.GoneError:
                self._end_server()
            except forking.RefusedError:
                self._end_server()
                break
        # Whatever was wrong with the server is wrong with the next one too.
        self._modules = None
        return forking.fresh(requests, replies, sink, self._environment, self._program)

    def _end_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def close(self) -> None:
        """End every worker that is still there, the fork server, and whatever they started."""
        for group in self._groups:
            group.close()
        for worker in self._workers:
            worker.close()
        self._groups.clear()
        self._workers.clear()
        self._watch.close()
        self._end_server()
        if self._begun:
            lineage.end_carriers(self._token)
            lineage.orphanage().close()
            self._begun = False
