"""What a driver and its meter process say to each other: one JSON object a line, over two pipes.

The driver's first line is a `Spec`, answered by `Opened` or `Refused`; then each request gets one reply with its `turn`.

    {"type":"Begin","turn":4,"name":"trial-3"}
    {"type":"Begun","turn":4}
"""

from __future__ import annotations

from jouleboard.declared import Band, Boundary, Method, Noun, Sensor
from jouleboard.meters.interface import Reading
from jouleboard.windows import DeviceState

POLL_S = 0.1
TOKEN_VARIABLE = "JOULEBOARD_METER"  # noqa: S105 - names a process, opens nothing
"""Set for a meter process and inherited by what it starts, so that leftovers are told from strangers."""


class Spec(Noun, tag=True, frozen=True, kw_only=True):
    """Which meter to open."""

    turn: int
    method: Method
    boundary: Boundary
    sensor: Sensor
    count: int
    tick_s: float
    """How often the device's counter moves, as its profile declares."""
    root_pid: int
    """The driver: it and what descends from it are this run; every other process on the device is foreign."""
    power_limit_w: float | None = None
    """As the profile declares it of each device; likewise the next one."""
    start_temperature_c: Band | None = None


class Begin(Noun, tag=True, frozen=True, kw_only=True):
    """Begin a window; an open one is forgotten. Reply: `Begun`."""

    turn: int
    name: str


class End(Noun, tag=True, frozen=True, kw_only=True):
    """End the window. Reply: `Ended`."""

    turn: int
    duration_s: float
    cpu_s: float | None


class Ask(Noun, tag=True, frozen=True, kw_only=True):
    """Ask what the device says of itself. Reply: `Told`."""

    turn: int


class Opened(Noun, tag=True, frozen=True, kw_only=True):
    """The sensor is there."""

    turn: int


class Refused(Noun, tag=True, frozen=True, kw_only=True):
    """There is no such sensor, or it must not be trusted; the process ends."""

    turn: int
    problem: str
    field: str | None
    remedy: str | None


class Begun(Noun, tag=True, frozen=True, kw_only=True):
    """The window is open, or its end will say why not."""

    turn: int


class Ended(Noun, tag=True, frozen=True, kw_only=True):
    """The window is closed."""

    turn: int
    reading: Reading


class Told(Noun, tag=True, frozen=True, kw_only=True):
    """What the device says of itself, if anything."""

    turn: int
    state: DeviceState | None


Request = Spec | Begin | End | Ask
Reply = Opened | Refused | Begun | Ended | Told
