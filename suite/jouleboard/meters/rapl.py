"""Method `rapl`: joules of processor packages and their memory, from their own counters (see `powercap`).

    meter = RaplMeter()
    meter.begin("trial-3")
    meter.end(duration_s=60.0, cpu_s=None).energy.domains_j    # {"package-0": 7512.4, "dram-0": 611.0}

Not through Zeus (0.16): its reader counts wraps in a process of its own that looks once a second, so a wrap that the
process has not seen yet is missing (-41 J for 9,959 J), one before it has started is lost for good, and a counter that was
reset counts as a wrap; its folder is fixed in the code, and counters that it may not read give `cpu_energy=None` in silence.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from jouleboard.declared import Boundary, Method
from jouleboard.errors import MeterError
from jouleboard.meters.integral import integrate_j
from jouleboard.meters.interface import Reading
from jouleboard.meters.kernel import boot_digest
from jouleboard.meters.powercap import (
    MAX_POWER_W,
    Interval,
    Track,
    UnreadableError,
    Zone,
    clock_s,
    read_uj,
    total_j,
    zones,
)
from jouleboard.traces import Sample
from jouleboard.windows import DeviceState, Energy

POLL_S = 1.0


class _Poller:
    """Reads all counters once a second, in a thread, for as long as a window is open."""

    def __init__(self, found: tuple[Zone, ...], *, poll_s: float, max_power_w: float) -> None:
        self._zones = found
        self._poll_s = poll_s
        self._max_power_w = max_power_w
        self._window: Interval | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Open a window; one that an interrupted trial left open is forgotten."""
        self.close()
        tracks = tuple(Track(zone=zone, max_power_w=self._max_power_w) for zone in self._zones)
        window = Interval(tracks=tracks, start_s=clock_s())
        window.poll()
        # An event of its own: a thread that were still to end would not take the new window's for its own.
        stop = threading.Event()
        self._window, self._stop = window, stop
        self._thread = threading.Thread(target=self._run, args=(window, stop), name="rapl", daemon=True)
        self._thread.start()

    def _run(self, window: Interval, stop: threading.Event) -> None:
        while not stop.wait(self._poll_s):
            window.poll()

    def end(self) -> Interval | None:
        """Close the window; None when none was open."""
        window = self._window
        self.close()
        if window is not None:
            window.poll()
        return window

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = self._window = None


class HostReader:
    """Joules of the host's processors and memory beside another device. Never raises: what cannot be read is left out."""

    def __init__(self, root: Path | None = None, *, poll_s: float = POLL_S, max_power_w: float = MAX_POWER_W) -> None:
        """Look for counters.

        Args:
            root: folder of the zones; None: `root_folder()`.
            poll_s: time between two looks, against wraps.
            max_power_w: what one counter can hold at most for a second.
        """
        self.reason: str | None = None
        """Why nothing is read, or None."""
        found: tuple[Zone, ...] = ()
        try:
            found = zones(root)
        except MeterError as error:
            self.reason = error.problem
        self._poller = _Poller(found, poll_s=poll_s, max_power_w=max_power_w) if found else None

    def begin(self) -> None:
        """Open a window."""
        if self._poller is not None:
            self._poller.begin()

    def end(self) -> dict[str, float]:
        """Close it and return joules by domain (`package-0`, `dram-0`, `psys`).

        Empty where a package or its memory is not known for the whole window: a part would be taken for the sum. Sum with
        `total_j`: `psys` holds the packages.
        """
        window = None if self._poller is None else self._poller.end()
        if window is None:
            return {}
        self.reason = window.void()
        return {} if self.reason else {**window.joules(counted=True), **window.joules(counted=False)}

    def close(self) -> None:
        """End the thread."""
        if self._poller is not None:
            self._poller.close()


class RaplMeter:
    """Joules of the processor packages and their memory, from their own counters."""

    method: Method = "rapl"
    boundary: Boundary = "package"

    def __init__(self, root: Path | None = None, *, poll_s: float = POLL_S, max_power_w: float = MAX_POWER_W) -> None:
        """Find the counters.

        Args:
            root: folder of the zones; None: `root_folder()`.
            poll_s: time between two looks, and between two rows of the trace.
            max_power_w: what one counter can hold at most for a second.

        Raises:
            MeterError: there is no counter of a package, or one cannot be read.
        """
        self._zones = zones(root)
        self._poller = _Poller(self._zones, poll_s=poll_s, max_power_w=max_power_w)
        self._name = ""

    def begin(self, name: str) -> None:
        """Open a window; a counter that fails makes its reading void."""
        self._name = name
        self._poller.begin()

    def end(self, *, duration_s: float, cpu_s: float | None) -> Reading:  # noqa: ARG002 - no CPU time needed
        """Close the window. Its states and its trace show the counters' sum with wraps undone."""
        window = self._poller.end()
        void = "rapl-unreadable: no window was open" if window is None else window.void()
        known = {} if window is None or void else window.joules(counted=True)
        rows = () if window is None else tuple(window.samples(self._name))
        energy = Energy(method=self.method, boundary=self.boundary, measured_j=total_j(known), domains_j=known,
                        estimate_j=None, estimate_relative_uncertainty=None, integral_j=_integral_j(rows, duration_s))
        return Reading(
            energy=energy, host_j={} if window is None else window.joules(counted=False), samples=rows, void=void,
            start=DeviceState(boot=boot_digest(), counter_j=rows[0].counter_j) if rows else None,
            end=DeviceState(boot=boot_digest(), counter_j=rows[-1].counter_j) if rows and not void else None,
        )

    def state(self) -> DeviceState | None:
        """Return the counters' sum and which boot it belongs to; None when one cannot be read."""
        try:
            counter_uj = sum(read_uj(zone.folder / "energy_uj") for zone in self._zones if zone.counted)
        except UnreadableError:
            return None
        return DeviceState(boot=boot_digest(), counter_j=counter_uj / 1e6)

    def close(self) -> None:
        """End the thread."""
        self._poller.close()


def _integral_j(rows: Sequence[Sample], duration_s: float) -> float | None:
    """Integrate the trace: the counters once more, and no second opinion on them."""
    seen = [(row.elapsed_s, row.power_w) for row in rows if row.power_w is not None]
    return integrate_j([at_s for at_s, _ in seen], [power_w for _, power_w in seen], 0.0, duration_s) if seen else None
