"""Several workers that compute one variant together, used like one: every request goes to all of them, one answer comes back.

Each rank is a `turns.Worker` of its own, asked by a thread of its own. A window opens when all are ready and closes when all
have answered; the answer of rank 0 counts, and the others must have come to the same::

    driver      Ready? Ready!   window opens, Go to all        all have answered: window closes
    rank 0      ------^                         [ loops .......]^
    rank 1      ----------^                     [ loops .......]  ^

Ranks wait for each other in every forward pass, so one that has failed leaves the others waiting: then all are ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar, get_args

import msgspec

from jouleboard import bills, protocol
from jouleboard.declared import Noun
from jouleboard.engines.place import RankPlace, rank_device
from jouleboard.errors import FailureCode, JouleboardError, StorageError, TooLargeError, UnitError
from jouleboard.meters.cpu import Clock, SummedClock
from jouleboard.meters.interface import Meter, OpenWindow
from jouleboard.turns import Measured, OnProgress, Worker, at_once, no_progress

GRACE_S = 2.0
"""How long the others may take to fail too, once one has: the cause may be another's, and is said better there."""
JOIN_S = 30.0
"""A thread ends with its worker; one whose worker hangs in the kernel, where no signal ends it, is left behind."""
OWN: dict[type, frozenset[str]] = {
    protocol.Worked: frozenset({"loop_ends_s", "first_token_s"}),
    protocol.Probed: frozenset({"first_token_s", "step_s"}),
}
"""Fields of replies that each rank has of its own: times. Of all others none may differ."""
SUMMED: dict[type, frozenset[str]] = {
    protocol.MemoryRead: frozenset({"peak_memory_bytes"}),
    protocol.Probed: frozenset({"peak_memory_bytes"}),
    protocol.CanaryDone: frozenset({"tokens"}),
}
"""Fields that are added over the ranks. The canary is the one request that each device answers for itself."""
R = TypeVar("R", bound=Noun)


def with_one_bill(replies: list[R]) -> list[R]:
    """Return replies in which each step of a recipe has the bill of all ranks: what a step took is each rank's own."""
    together = [reply.steps for reply in replies if isinstance(reply, protocol.Built)]
    if len({len(steps) for steps in together}) != 1:
        return replies
    billed = [bills.of_ranks([step["bill"] for step in step_of_each]) if all("bill" in step for step in step_of_each) else None
              for step_of_each in zip(*together, strict=True)]
    return [msgspec.structs.replace(reply, steps=tuple(step if bill is None else {**step, "bill": bill}
                                                       for step, bill in zip(reply.steps, billed, strict=True)))
            if isinstance(reply, protocol.Built) else reply for reply in replies]


class StoppedError(UnitError):
    """A rank was ready, and the others failed: it is not let go."""


class _Turn(Generic[R]):
    """One request that all ranks are at: who is ready, who has answered, who has failed."""

    def __init__(self, count: int) -> None:
        self.ready: set[int] = set()
        self.replies: dict[int, R] = {}
        self.errors: dict[int, BaseException] = {}
        self._count = count
        self._changed = threading.Condition()
        self._go: bool | None = None

    def arrive(self, rank: int) -> None:
        """Say that a rank is ready, and wait until it is let go."""
        with self._changed:
            self.ready.add(rank)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._go is not None)
        if not self._go:
            raise StoppedError("the other ranks failed before the window opened")

    def release(self, *, go: bool) -> None:
        """Let all ranks go that are ready, or send them home."""
        with self._changed:
            if self._go is None:
                self._go = go
                self._changed.notify_all()

    def finish(self, rank: int, *, reply: R | None = None, error: BaseException | None = None) -> None:
        """Keep what a rank came to."""
        with self._changed:
            if error is not None:
                self.errors[rank] = error
            elif reply is not None:
                self.replies[rank] = reply
            self._changed.notify_all()

    def await_ready(self) -> None:
        """Wait until every rank is ready or has answered, or one has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self.errors or len(self.ready | set(self.replies)) == self._count)

    def await_replies(self) -> None:
        """Wait until every rank has answered, or one has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self.errors or len(self.replies) == self._count)

    def await_others(self, limit_s: float) -> None:
        """Send those home that are ready, and wait a while for the rest."""
        self.release(go=False)
        with self._changed:
            self._changed.wait_for(lambda: len(self.errors) + len(self.replies) == self._count, limit_s)


class Ranks:
    """The workers of one variant, with what `turns.Worker` offers."""

    def __init__(self, name: str, workers: Sequence[Worker], rendezvous: Path) -> None:
        """Take over the workers.

        Args:
            name: for messages.
            workers: in the order of their ranks, at least two.
            rendezvous: file through which they find each other; it is not there yet.
        """
        self.name = name
        self.log = workers[0].log
        self.clock: Clock = SummedClock([worker.clock for worker in workers])
        self._workers = tuple(workers)
        self._rendezvous = rendezvous
        self._blamed = workers[0]
        self._gone: BaseException | None = None

    def ask(
        self, request: protocol.Request, expected: type[R], *, progress: OnProgress = no_progress, quiet_s: float = 0.0
    ) -> R:
        """Send a request to all and wait for their replies, without a measured window."""
        return self.measure(request, expected, meter=None, progress=progress, quiet_s=quiet_s).reply

    def measure(
        self, request: protocol.Request, expected: type[R], *, meter: Meter | None, name: str = "window",
        progress: OnProgress = no_progress, before: Callable[[], None] = at_once, opened: Callable[[], None] = at_once,
        quiet_s: float = 0.0,
    ) -> Measured[R]:
        """Send a request to all; when all are ready, open a window, let them go, and close it when all have answered.

        Args:
            request: what to do; each rank gets it with its own place and device.
            expected: class of the replies.
            meter: measures the window; None: no window.
            name: of the window.
            progress: told how much of rank 0's work is done.
            before: called when all are ready and before the window opens.
            opened: called right after the window was opened.
            quiet_s: how long they say nothing by design.

        Raises:
            UnitError: one died, failed, said nothing for too long, or came to something else than the others; all have ended.
            TooLargeError: the work does not fit into memory: all said so before they began, and they are as before.
            StorageError: one could not write a file; all have ended.
        """
        if self._gone is not None:
            raise self._gone
        turn: _Turn[R] = _Turn(len(self._workers))
        threads = [threading.Thread(target=self._ask_one, name=f"{self.name}-rank{rank}", daemon=True,
                                    args=(turn, rank, request, expected, progress, quiet_s))
                   for rank in range(len(self._workers))]
        try:
            for thread in threads:
                thread.start()
            return self._follow(turn, meter, name, before, opened)
        except BaseException as error:
            if not _refused_by_all(turn, len(self._workers)):
                # Also on Ctrl-C: the threads wait for the workers, so these must end first.
                self._gone = error if isinstance(error, JouleboardError) else _ended(self.name)
                self.close()
            raise
        finally:
            turn.release(go=False)
            for thread in threads:
                if thread.ident is not None:
                    thread.join(JOIN_S)

    def _ask_one(
        self, turn: _Turn[R], rank: int, request: protocol.Request, expected: type[R], progress: OnProgress, quiet_s: float
    ) -> None:
        try:
            done = self._workers[rank].measure(
                self._for_rank(request, rank), expected, meter=None, progress=no_progress if rank else progress,
                before=partial(turn.arrive, rank), quiet_s=quiet_s,
            )
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for this one
            turn.finish(rank, error=error)
        else:
            turn.finish(rank, reply=done.reply)

    def _follow(
        self, turn: _Turn[R], meter: Meter | None, name: str, before: Callable[[], None], opened: Callable[[], None]
    ) -> Measured[R]:
        turn.await_ready()
        if turn.errors:
            raise self._failure(turn)
        if not turn.ready:
            return Measured(reply=self._agreed(turn), window=None)
        if turn.replies:
            raise self._differ(min(turn.replies), min(turn.ready), "one has answered while the other waits for its window")
        before()
        window = None if meter is None else OpenWindow(meter, self.clock, name)
        try:
            opened()
            turn.release(go=True)
            turn.await_replies()
            if turn.errors:
                raise self._failure(turn)
            if window is None:
                return Measured(reply=self._agreed(turn), window=None)
            closed, samples = window.close()
            return Measured(reply=self._agreed(turn), window=closed, samples=samples)
        except BaseException:
            if window is not None:
                window.abandon()
            raise

    def _for_rank(self, request: protocol.Request, rank: int) -> protocol.Request:
        """Return a request as one rank gets it."""
        if isinstance(request, protocol.Build):
            place = RankPlace(rank=rank, world=len(self._workers), rendezvous=str(self._rendezvous))
            return msgspec.structs.replace(request, device=rank_device(request.device, rank), ranks=place)
        if isinstance(request, protocol.Canary):
            return msgspec.structs.replace(request, device=rank_device(request.device, rank))
        return request

    def _failure(self, turn: _Turn[R]) -> BaseException:
        """Return the failure that most likely is the cause of the others."""
        turn.await_others(GRACE_S)
        errors = {rank: error for rank, error in sorted(turn.errors.items()) if not isinstance(error, StoppedError)}
        rank, error = min(errors.items(), key=lambda item: (_weight(item[1]), item[0]))
        self._blamed = self._workers[rank]
        alike = len(errors) == len(self._workers) and len({str(one) for one in errors.values()}) == 1
        if alike or not isinstance(error, UnitError):
            return error
        if isinstance(error, TooLargeError):
            # Some began, and now wait for the one that did not.
            return UnitError(f"rank {rank} of {len(self._workers)} alone lacks memory: {error.problem}", field=self.name,
                             remedy=error.remedy, kind=error.kind)
        return UnitError(f"rank {rank} of {len(self._workers)}: {error.problem}", field=self.name, remedy=error.remedy,
                         kind=error.kind)

    def _agreed(self, turn: _Turn[R]) -> R:
        """Return the one answer of all ranks.

        Raises:
            UnitError: they differ.
        """
        replies = with_one_bill([turn.replies[rank] for rank in range(len(self._workers))])
        first = replies[0]
        kind = type(first)
        summed = SUMMED.get(kind, frozenset())
        for rank, other in enumerate(replies[1:], start=1):
            for name in other.__struct_fields__:
                if name not in summed | OWN.get(kind, frozenset()) and getattr(other, name) != getattr(first, name):
                    raise self._differ(0, rank, f"the field {name} of {kind.__name__} is not the same")
        added = {name: sum(getattr(reply, name) for reply in replies) for name in summed}
        return msgspec.structs.replace(first, **added) if added else first

    def _differ(self, one: int, other: int, how: str) -> UnitError:
        self._blamed = self._workers[other]
        return UnitError(f"ranks {one} and {other} of {len(self._workers)} came to different answers: {how}", field=self.name,
                         remedy=f"compute the variant on one device; see {self._workers[one].log} and {self._blamed.log}")

    def close(self) -> None:
        """End all processes and what is in their groups, and remove the file through which they met."""
        for worker in self._workers:
            worker.close()
        with contextlib.suppress(OSError):
            self._rendezvous.unlink()

    def log_tail(self) -> str:
        """Return the last lines of the log of the rank that failed, else of rank 0."""
        return self._blamed.log_tail()


def _weight(error: BaseException) -> int:
    """Rank a failure: the lower, the more likely it is the cause and not the consequence of another rank's."""
    if isinstance(error, UnitError):
        return 1 + get_args(FailureCode).index(error.kind)
    return 0 if isinstance(error, StorageError) or not isinstance(error, JouleboardError) else len(get_args(FailureCode)) + 1


def _refused_by_all(turn: _Turn[R], count: int) -> bool:
    return len(turn.errors) == count and all(isinstance(error, TooLargeError) for error in turn.errors.values())


def _ended(name: str) -> UnitError:
    return UnitError("its ranks were ended", field=name, remedy="run the same command again", kind="crash")
