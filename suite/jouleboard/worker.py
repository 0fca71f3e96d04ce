"""A resident worker: holds one variant in memory, computes on request, and dies with its parent.

Started as `python -m jouleboard.worker`, or forked by `forkserver`; requests come on standard input, replies go to what was standard output. Anything
that libraries print goes to standard error, which the driver keeps as the variant's log.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from jouleboard import faults, forking, lineage, protocol, store
from jouleboard.errors import TooLargeError, UnitError

if TYPE_CHECKING:
    from jouleboard.variant import Variant

REQUESTS: msgspec.json.Decoder[protocol.Request] = msgspec.json.Decoder(protocol.Request)


class Channel:
    """Reads requests and writes replies."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO) -> None:
        """Keep both ends."""
        self._requests = requests
        self._replies = replies

    def receive(self) -> protocol.Request | None:
        """Wait for a request; None when the driver has gone."""
        line = self._requests.readline()
        return REQUESTS.decode(line) if line else None

    def send(self, reply: protocol.Reply) -> None:
        """Send one reply."""
        self._replies.write(msgspec.json.encode(reply) + b"\n")
        self._replies.flush()

    def wait_for_go(self) -> None:
        """Say `Ready` and wait until the driver's window is open."""
        self.send(protocol.Ready())
        if not isinstance(self.receive(), protocol.Go):
            raise UnitError("the driver sent something else than Go")


class Cap:
    """Limits the memory that a worker takes beyond its libraries, once it is known where it computes."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        """Keep the limit; None: there is none."""
        self._limit_bytes = limit_bytes

    def apply(self, device: str) -> None:
        """Set the limit, once.

        Args:
            device: torch's name of it. A GPU's limit holds for each GPU; a CPU's for what is allocated, used or not.
        """
        limit_bytes, self._limit_bytes = self._limit_bytes, None
        if limit_bytes is None:
            return
        if device.startswith("cuda"):
            import torch  # noqa: PLC0415

            for index in range(torch.cuda.device_count()):
                total_bytes = torch.cuda.get_device_properties(index).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total_bytes), index)
        elif lineage.ON_LINUX:
            # Not RLIMIT_AS: address space is reserved by far more than is ever used.
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            limit_bytes += _data_bytes()
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes if hard < 0 else min(hard, limit_bytes), hard))


def _data_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def main() -> None:
    """Serve requests until the driver goes away, in an interpreter of its own."""
    lineage.die_with_parent()
    # The driver handles Ctrl-C: it ends workers itself, after it has written what is finished.
    # Nor does it end with every process of a job: a batch system signals all of them.
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)
    work()


def work() -> None:
    """Serve requests on this process's standard streams."""
    lineage.first_to_go()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Imported before the first request, so that the workers of a family do it side by side; a fork has it already.
    import jouleboard.variant  # noqa: F401, PLC0415 - not at the top: the driver imports this module's neighbours

    limit = os.environ.get(forking.MEMORY_VARIABLE)
    serve(Channel(os.fdopen(0, "rb"), replies), Cap(int(limit) if limit else None))


def serve(channel: Channel, cap: Cap | None = None) -> None:
    """Answer requests one by one; an error answers its request and leaves the worker alive.

    Args:
        channel: where they come from.
        cap: limit of its memory.
    """
    held = Held(cap or Cap())
    while (request := channel.receive()) is not None:
        try:
            _answer(held, request, channel)
        except TooLargeError as error:
            channel.send(protocol.TooLarge(reason=error.problem))
        except Exception as error:  # noqa: BLE001 - a failed unit is a result: the driver records it with this log
            # The log may lie on a disk that is full: the reply must go out all the same.
            with contextlib.suppress(OSError, ValueError):
                traceback.print_exc()
            reply = faults.failed(error)
            # What the error holds on to is given back before the driver may ask for more.
            error.__traceback__ = None
            _give_back()
            channel.send(reply)


def _give_back() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        # The other workers of the family share this GPU.
        torch.cuda.empty_cache()


class Held:
    """What a worker holds from one request to the next."""

    def __init__(self, cap: Cap) -> None:
        """Hold no variant yet."""
        self.cap = cap
        self.variant: Variant | None = None


def _answer(held: Held, request: protocol.Request, channel: Channel) -> None:
    if isinstance(request, protocol.Convert | protocol.Fingerprint):
        held.cap.apply("cpu")
        channel.send(protocol.Converted(weights_sha256=_dense(request)))
    elif isinstance(request, protocol.Canary):
        held.cap.apply(request.device)
        channel.send(_sing(request, channel))
    elif isinstance(request, protocol.Prepare):
        held.cap.apply(request.device)
        channel.send(_prepare(request, channel))
    elif isinstance(request, protocol.Build):
        held.cap.apply(request.device)
        held.variant = _build(request, channel)
    elif held.variant is None:
        raise UnitError("no variant has been built in this worker")
    else:
        _HANDLERS[type(request)](held.variant, request, channel)


def _dense(request: protocol.Convert | protocol.Fingerprint) -> str:
    from jouleboard.engines import convert  # noqa: PLC0415 - torch is imported on the first request

    if isinstance(request, protocol.Convert):
        return convert.to_dense(Path(request.source), Path(request.target), request.model)
    return convert.check_dense(Path(request.folder), request.model)


def _prepare(request: protocol.Prepare, channel: Channel) -> protocol.Prepared:
    from jouleboard import preparing  # noqa: PLC0415

    return preparing.prepare(request, channel.wait_for_go, _progress(channel))


def _build(request: protocol.Build, channel: Channel) -> Variant:
    from jouleboard.variant import Variant  # noqa: PLC0415

    variant = Variant(request, before_build=channel.wait_for_go)
    channel.send(variant.built)
    return variant


def _evaluate(variant: Variant, request: protocol.Evaluate, channel: Channel) -> None:
    outcome, result = variant.evaluate(request, channel.wait_for_go, _silent if request.quiet else _progress(channel))
    if variant.writes:
        store.write_atomic(Path(request.items), b"".join(store.canonical(item) + b"\n" for item in outcome.items))
        store.write_atomic(Path(request.batches), msgspec.json.encode(outcome.batches))
    channel.send(protocol.Evaluated(result=result, resumed_batches=outcome.resumed_batches))


def _silent(_done: int, _of: int) -> None:
    """Say nothing inside the window of a trial."""


def _progress(channel: Channel) -> Callable[[int, int], None]:
    def tell(done: int, of: int) -> None:
        channel.send(protocol.Progress(done=done, of=of))

    return tell


def _replay(variant: Variant, request: protocol.Replay, channel: Channel) -> None:
    channel.send(variant.replay(request, channel.wait_for_go))


def _serve(variant: Variant, request: protocol.Serve, channel: Channel) -> None:
    channel.send(variant.serve(request, channel.wait_for_go))


def _probe(variant: Variant, request: protocol.Probe, channel: Channel) -> None:
    channel.send(variant.probe(request, channel.wait_for_go))


def _sing(request: protocol.Canary, channel: Channel) -> protocol.CanaryDone:
    import torch  # noqa: PLC0415

    from jouleboard import workloads  # noqa: PLC0415

    torch.set_num_threads(request.threads)
    done = workloads.sing(request.device, go=channel.wait_for_go, warmup_s=request.warmup_s, window_s=request.window_s)
    return protocol.CanaryDone(model=workloads.CANARY.name, output_sha256=done.output_sha256,
                               tokens=len(done.loop_ends_s) * workloads.CANARY.output_tokens)


def _memory(variant: Variant, request: protocol.Memory, channel: Channel) -> None:
    peak_bytes = variant.peak.overall_bytes()
    if request.begin_anew:
        # So that building and scoring are not counted as serving.
        variant.peak.begin_anew()
    channel.send(protocol.MemoryRead(peak_memory_bytes=peak_bytes))


_HANDLERS: dict[type, Callable[[Variant, Any, Channel], None]] = {
    protocol.Evaluate: _evaluate,
    protocol.Replay: _replay,
    protocol.Serve: _serve,
    protocol.Probe: _probe,
    protocol.Memory: _memory,
}

if __name__ == "__main__":
    main()
