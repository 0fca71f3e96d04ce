"""The nouns of measurement: windows, trials, probes, and the gates that judge them. No I/O here.

Units stand in the names, as in `records`; `None` means not measured.

Example: a trial of two loops, 16 s long, in which a GPU used 5.4 kJ::

    Trial(order=3, workload="chat", batch=1, loops=2, loop_ends_s=(8.1, 16.0), window=Window(name="trial-3", ...), ...)
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from jouleboard.declared import Boundary, Count, Finite, Fraction, Id, Method, Noun, Positive, Seconds, Sha256, Watts

MAX_INTEGER = 2**53 - 1
"""The largest integer that canonical JSON (RFC 8785) holds; a larger one has no digest."""
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,59}\Z")]
ShortDigest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


class Energy(Noun, frozen=True, kw_only=True):
    """What is known of the energy of a window. Measured and estimated joules never mix."""

    method: Method
    boundary: Boundary
    measured_j: Finite | None
    """Joules a sensor gave, summed over `domains_j`; None where there is no sensor, or its reading failed."""
    domains_j: dict[str, Finite]
    estimate_j: Finite | None
    """Joules from the declared power model, only for method `model`."""
    estimate_relative_uncertainty: Fraction | None
    integral_j: Finite | None = None
    """Our own integral of the trace's instant power, to hold against the counter; None where no power was sampled."""


class DeviceState(Noun, frozen=True, kw_only=True):
    """What a device says of itself at one end of a window; None where it does not say."""

    device: ShortDigest | None = None
    """First 16 hexadecimal digits of the SHA-256 of its UUID: tells devices apart and names none."""
    boot: ShortDigest | None = None
    """Likewise of the kernel's boot id."""
    counter_j: Finite | None = None
    temperature_c: Finite | None = None
    power_limit_w: Watts | None = None
    """The limit in force."""
    power_violation_s: Seconds | None = None
    """Time below the wanted clocks because of the power limit, since the driver was loaded."""
    thermal_violation_s: Seconds | None = None
    foreign_processes: Count | None = None
    """Compute processes on it that are not of this run."""
    uncorrected_errors: Count | None = None
    mig: bool | None = None


class Window(Noun, frozen=True, kw_only=True):
    """One measured stretch of time."""

    name: Name
    """Unique in a report, and the key of its rows in the trace: `trial-3`, `probe-2`, `idle-0`, `canary-1`, `live`, `build`."""
    started_utc: str
    duration_s: Annotated[float, msgspec.Meta(ge=1e-6, le=1e9)]
    """By a clock that is never set."""
    wall_s: Finite | None = None
    """The same stretch by the wall clock, which may be set meanwhile."""
    cpu_s: Seconds | None
    """CPU time of the worker's process tree inside the window."""
    energy: Energy
    host_j: dict[str, Finite] = {}  # noqa: RUF012 - msgspec copies it
    """Joules of the host's processor package and memory where they are readable and outside the boundary; never added."""
    start: DeviceState | None = None
    end: DeviceState | None = None
    void: str | None = None
    """Why its energy could not be read (a reason code, a colon, words), or None."""


class Trial(Noun, frozen=True, kw_only=True):
    """One window over a known amount of work, in whole loops. Counts are those of all its loops together."""

    order: Count
    """Position in the session's sequence of trials, all variants together."""
    piece: Count = 0
    """A session that was interrupted goes on in another piece; windows themselves are never resumed."""
    workload: Id
    """`replay`, `live`, or a declared serving workload."""
    batch: Positive | None = None
    loops: Positive = 1
    loop_ends_s: tuple[Seconds, ...] = ()
    """When each loop was done, since the window opened, by the worker's clock."""
    window: Window
    requests: Positive
    prompt_tokens: Count
    """Summed over requests, as in `TaskResult`; likewise the next three."""
    output_tokens: Count
    fed_tokens: Count
    computed_tokens: Count
    output_sha256: Sha256
    """Digest of what the first loop gave: the most likely token at every scored position, or the output tokens."""
    loops_changed: Count = 0
    """Later loops that gave something else."""
    first_token_s: tuple[Seconds, ...] = ()
    """Time to the first token of each loop's batch; empty for `replay` and `live`."""
    cached_tokens: Count | None = None
    """Tokens that a cache held when a loop began, the most over the loops; anything but 0 was computed outside the window."""
    void: str | None = None
    """Why this trial does not count (a reason code, a colon, words), or None."""


class Probe(Noun, frozen=True, kw_only=True):
    """Prefill or decode alone, at one batch size, in whole loops."""

    kind: Literal["prefill", "decode"]
    batch: Positive
    prompt_tokens: Positive
    """Per sequence."""
    output_tokens: Count
    """Per sequence; 0 for prefill."""
    loops: Positive = 1
    window: Window
    """A decode window holds decode steps only: each loop begins again behind the same prompt, cut from the filled cache."""
    first_token_s: Seconds | None = None
    """Prefill: from the prompt to its first token, measured apart from the window."""
    step_s: tuple[Seconds, ...] = ()
    """Decode: the time of each step, measured apart from the window: there each step waits for its token."""
    peak_memory_bytes: Count | None = None
    void: str | None = None


class SkippedProbe(Noun, frozen=True, kw_only=True):
    """A probe of the plan that was not run."""

    kind: Literal["prefill", "decode"]
    batch: Positive
    prompt_tokens: Positive
    output_tokens: Count
    reason: str


class Idle(Noun, frozen=True, kw_only=True):
    """The machine doing nothing."""

    when: Literal["before", "after"]
    context: bool
    """Whether the variants were resident on the device."""
    window: Window


class Canary(Noun, frozen=True, kw_only=True):
    """The same small fixed model on every run of a device: its drift is the device's."""

    when: Literal["before", "after"]
    model: Name
    """Names architecture, weights and work: another one is another canary."""
    tokens: Positive
    """Decode steps times sequences over all loops."""
    output_sha256: Sha256
    window: Window


class Gate(Noun, frozen=True, kw_only=True):
    """One rule of measurement, evaluated over the record."""

    name: Name
    subject: Name
    """What it speaks of: `trial-3`, a cell such as `chat-b1`, `session`, `variant`."""
    status: Literal["pass", "fail", "unverified", "not-applicable"]
    """`unverified`: neither within the limit nor clearly beyond it."""
    value: Finite | str | None
    limit: Finite | str | None
    code: Name
    """Reason code: `pass`, `too-short`, `throttled`, `no-sensor`, ..."""
    reason: str
    """The same in words, with the figures."""
