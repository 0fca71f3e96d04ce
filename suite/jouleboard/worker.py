"""A resident worker: holds one variant in memory, computes on request, and dies with its parent.

Started as `python -m jouleboard.worker`; requests come on standard input, replies go to what was standard output. Anything
that libraries print goes to standard error, which the driver keeps as the variant's log.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from jouleboard import protocol, store
from jouleboard.errors import JouleboardError, TooLargeError, UnitError

if TYPE_CHECKING:
    from jouleboard.variant import Variant

PR_SET_PDEATHSIG = 1
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


def main() -> None:
    """Serve requests until the driver goes away."""
    _die_with_parent()
    # The driver handles Ctrl-C: it ends workers itself, after it has written what is finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Imported before the first request, so that the workers of a family do it side by side.
    import jouleboard.variant  # noqa: F401, PLC0415 - not at the top: the driver imports this module's neighbours

    serve(Channel(sys.stdin.buffer, replies))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(channel: Channel) -> None:
    """Answer requests one by one; an error answers its request and leaves the worker alive."""
    variant: Variant | None = None
    while (request := channel.receive()) is not None:
        try:
            if isinstance(request, protocol.Convert | protocol.Fingerprint):
                channel.send(protocol.Converted(weights_sha256=_dense(request)))
            elif isinstance(request, protocol.Canary):
                channel.send(_sing(request, channel))
            elif isinstance(request, protocol.Build):
                variant = _build(request, channel)
            elif variant is None:
                raise UnitError("no variant has been built in this worker")
            else:
                _HANDLERS[type(request)](variant, request, channel)
        except TooLargeError as error:
            channel.send(protocol.TooLarge(reason=error.problem))
        except JouleboardError as error:
            traceback.print_exc()
            channel.send(protocol.Failed(reason=error.problem, remedy=error.remedy))
        except Exception as error:  # noqa: BLE001 - a failed unit is a result: the driver records it with this log
            traceback.print_exc()
            channel.send(protocol.Failed(reason=f"{type(error).__name__}: {error}", remedy=None))


def _dense(request: protocol.Convert | protocol.Fingerprint) -> str:
    from jouleboard.engines import convert  # noqa: PLC0415 - torch is imported on the first request

    if isinstance(request, protocol.Convert):
        return convert.to_dense(Path(request.source), Path(request.target), request.model)
    return convert.check_dense(Path(request.folder), request.model)


def _build(request: protocol.Build, channel: Channel) -> Variant:
    from jouleboard.variant import Variant  # noqa: PLC0415

    variant = Variant(request, before_build=channel.wait_for_go)
    channel.send(variant.built)
    return variant


def _evaluate(variant: Variant, request: protocol.Evaluate, channel: Channel) -> None:
    outcome, result = variant.evaluate(request, channel.wait_for_go, _silent if request.quiet else _progress(channel))
    store.write_atomic(Path(request.items), b"".join(store.canonical(item) + b"\n" for item in outcome.items))
    store.write_atomic(Path(request.batches), msgspec.json.encode(outcome.batches))
    channel.send(protocol.Evaluated(result=result))


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
