"""The meter's own process: `python -m jouleboard.meters.server`, started by `process.ProcessMeter`.

One loop answers the driver and, while a window is open, polls the device ten times a second. What a library
prints goes to standard error. It dies with its driver: the kernel kills it (PR_SET_PDEATHSIG), and it ends when its input
does.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import BinaryIO, Protocol, runtime_checkable

import msgspec

from jouleboard.errors import MeterError
from jouleboard.meters import reap, wire
from jouleboard.meters.gpu import GpuMeter, Hurried
from jouleboard.meters.interface import Meter
from jouleboard.meters.wanted import Wanted

PR_SET_PDEATHSIG = 1
CHUNK_BYTES = 65536
SIMULATED = "SIMULATED"
REQUESTS: msgspec.json.Decoder[wire.Request] = msgspec.json.Decoder(wire.Request)


@runtime_checkable
class Polled(Protocol):
    """A meter that wants to be polled while its window is open."""

    def poll(self, hurried: Hurried) -> None:
        """Take a sample; what is slow in it stops when `hurried()`."""


def make(spec: wire.Spec) -> Meter:
    """Open the meter that a driver asks for.

    Raises:
        MeterError: there is no such sensor here, or it must not be trusted.
    """
    if spec.method == "rapl":
        from jouleboard.meters.rapl import RaplMeter  # noqa: PLC0415 - one sensor of several

        return RaplMeter()
    if spec.method == "soc":
        from jouleboard.meters.soc import open_soc  # noqa: PLC0415

        return open_soc(spec.sensor, spec.boundary)
    return _gpu(spec)


def _gpu(spec: wire.Spec) -> Meter:
    from jouleboard.meters import zeus  # noqa: PLC0415 - one sensor of several
    from jouleboard.meters.nvml import NvmlDevices  # noqa: PLC0415
    from jouleboard.meters.rapl import HostReader  # noqa: PLC0415

    indices = tuple(range(spec.count))
    gpus = zeus.open_gpus(indices, spec.sensor)
    wanted = Wanted(limit_w=spec.power_limit_w, band=spec.start_temperature_c)
    devices: NvmlDevices | zeus.ZeusDevices
    if spec.sensor == "nvml":
        devices = NvmlDevices(gpus, root_pid=spec.root_pid, wanted=wanted)
        devices.refuse_mig()
        _require_real(spec, devices.names)
    else:
        devices = zeus.ZeusDevices(gpus, wanted=wanted)
    counter = None if spec.method == "gpu_integral" else zeus.open_monitor(indices, gpus)
    return GpuMeter(devices, counter, method=spec.method, boundary=spec.boundary, tick_s=spec.tick_s, host=HostReader())


def _require_real(spec: wire.Spec, names: tuple[str, ...]) -> None:
    """Refuse a simulated device for a real profile, and a real one for the simulated profile."""
    for name in names:
        if name.startswith(SIMULATED) != (spec.method == "simulated"):
            raise MeterError(f"the method {spec.method} does not fit the device {name!r}", field="method",
                             remedy="a simulated GPU is measured with the method `simulated`, a real one never")


def _no_poll(hurried: Hurried) -> None:
    """Poll nothing."""


class Server:
    """Answers one driver."""

    def __init__(self, requests: int, replies: BinaryIO) -> None:
        """Keep both ends.

        Args:
            requests: file descriptor that lines come from.
            replies: where answers go.
        """
        self._requests = requests
        self._replies = replies
        self._buffer = b""
        self._meter: Meter | None = None
        self._poll: Callable[[Hurried], None] = _no_poll
        self._poll_at_s: float | None = None
        self._dice = random.Random()  # noqa: S311 - spreads samples, hides nothing

    def serve(self) -> None:
        """Answer until the driver closes its end."""
        while (line := self._line()) is not None:
            request = REQUESTS.decode(line)
            if isinstance(request, wire.Spec):
                self._open(request)
            elif self._meter is not None:
                self._answer(self._meter, request)

    def _open(self, spec: wire.Spec) -> None:
        reap.mark(os.environ.get(wire.TOKEN_VARIABLE, ""), spec.root_pid)
        try:
            self._meter = make(spec)
        except MeterError as error:
            self._send(wire.Refused(turn=spec.turn, problem=error.problem, field=error.field, remedy=error.remedy))
        else:
            self._send(wire.Opened(turn=spec.turn))

    def _answer(self, meter: Meter, request: wire.Begin | wire.End | wire.Ask) -> None:
        if isinstance(request, wire.Begin):
            meter.begin(request.name)
            if isinstance(meter, Polled):
                self._poll, self._poll_at_s = meter.poll, time.monotonic() + wire.POLL_S
            self._send(wire.Begun(turn=request.turn))
        elif isinstance(request, wire.End):
            self._poll_at_s = None
            reading = meter.end(duration_s=request.duration_s, cpu_s=request.cpu_s)
            self._send(wire.Ended(turn=request.turn, reading=reading))
        else:
            self._send(wire.Told(turn=request.turn, state=meter.state()))

    def _send(self, reply: wire.Reply) -> None:
        self._replies.write(msgspec.json.encode(reply) + b"\n")
        self._replies.flush()

    def _line(self) -> bytes | None:
        """Wait for a line and poll meanwhile; None at the end of the input."""
        while b"\n" not in self._buffer:
            if self._wait():
                chunk = os.read(self._requests, CHUNK_BYTES)
                if not chunk:
                    return None
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _wait(self) -> bool:
        """Return whether there is input; polls are made on the way."""
        if self._poll_at_s is None:
            return bool(select.select([self._requests], [], [])[0])
        # A request comes before a poll that is due: the longer the end of a window waits, the more energy it covers.
        if self._asked(max(0.0, self._poll_at_s - time.monotonic())):
            return True
        self._poll(self._asked)
        self._poll_at_s = next_poll_s(self._poll_at_s, time.monotonic(), self._dice.random())
        return False

    def _asked(self, wait_s: float = 0.0) -> bool:
        """Return whether there is input, or comes within a time."""
        return bool(select.select([self._requests], [], [], wait_s)[0])


def next_poll_s(deadline_s: float, now_s: float, chance: float) -> float:
    """Return the deadline behind one that has come: 50 to 150 ms later, ten a second on average.

    Equal distances would lock in with work that repeats: a load of 10 Hz would look constant. Distances that do not depend
    on each other show every phase of it alike, each with the same weight in an integral that holds the last value.

    Args:
        deadline_s: the one that has come.
        now_s: deadlines that have passed already are skipped, not made up for.
        chance: evenly drawn from 0 to 1.
    """
    following_s = deadline_s + wire.POLL_S * (0.5 + chance)
    return following_s if following_s > now_s else now_s + wire.POLL_S * (0.5 + chance)


def main() -> None:
    """Serve one driver, and die with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "wb")
    # Whatever libraries print must not be taken for a reply.
    os.dup2(2, 1)
    try:
        Server(0, replies).serve()
    except BrokenPipeError:
        # The driver died while it was being answered.
        pass
    finally:
        reap.unmark(os.environ.get(wire.TOKEN_VARIABLE, ""))


if __name__ == "__main__":
    main()
