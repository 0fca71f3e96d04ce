"""RAPL by plain files: a powercap tree whose energy counters follow known power traces, with wraps and permissions.

    tree = SimulatedRapl(tmp_path, PACKAGE, DRAM)          # standing still; tree.set(now_s=3.0) moves its time
    with tree.running():                                   # or: follows this machine's clock, a write each 5 ms
        subprocess.run([...], env={**os.environ, **tree.environment()})
    tree.zones[0].energy_j(0.0, 3.0)                       # what that zone truly used

The layout is the kernel's (Documentation/power/powercap): `intel-rapl/intel-rapl:0/intel-rapl:0:0/energy_uj`, and a link
to each zone beside `intel-rapl`, as in `/sys/class/powercap`. The simulated root is named by JOULEBOARD_POWERCAP.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.simulated_gpu import Gpu, Segment, to_ns

VARIABLE = "JOULEBOARD_POWERCAP"
RANGE_UJ = 262_143_328_850
"""What 32 bits hold in units of 2^-14 J: the range of the usual desktop and server package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One zone: `path` is its place in the tree (`0`, `0:0`), `name` what the kernel calls it (`package-0`, `dram`, `psys`)."""

    path: str
    name: str
    trace: tuple[Segment, ...] = (Segment(1.0, 50.0),)
    repeat: bool = True
    start_uj: int = 0
    range_uj: int = RANGE_UJ
    mode: int = 0o444
    """0: as the root-only file of current kernels, for a user who is not root."""

    def counter_uj(self, now_s: float) -> int:
        """Return what the counter shows: the exact integral since time 0, wrapped; it never shows `range_uj` itself."""
        used = Gpu(trace=self.trace, repeat=self.repeat).energy_pj(0, to_ns(now_s))
        return (self.start_uj + math.floor(used / 10**6)) % self.range_uj

    def energy_j(self, from_s: float, until_s: float) -> float:
        """Return what the zone truly uses between two times."""
        return Gpu(trace=self.trace, repeat=self.repeat).energy_j(from_s, until_s)


PACKAGE = Zone(path="0", name="package-0")
DRAM = Zone(path="0:0", name="dram", trace=(Segment(1.0, 8.0),))
PSYS = Zone(path="1", name="psys", trace=(Segment(1.0, 90.0),))


class SimulatedRapl:
    """A powercap tree below a folder."""

    def __init__(self, folder: Path, *zones: Zone, now_s: float = 0.0) -> None:
        """Write the tree as it is at a time."""
        self.root = folder / "powercap"
        self.zones = zones
        self.start_ns = time.monotonic_ns()
        self._now_s: float | None = now_s
        (self.root / "intel-rapl").mkdir(parents=True)
        for zone in zones:
            place = self.place(zone)
            place.mkdir(parents=True, exist_ok=True)
            (place / "name").write_text(f"{zone.name}\n", encoding="ascii")
            (place / "max_energy_range_uj").write_text(f"{zone.range_uj}\n", encoding="ascii")
            (self.root / place.name).symlink_to(place.relative_to(self.root))
        self.set(now_s=now_s)

    def place(self, zone: Zone) -> Path:
        """Return a zone's folder; `0:0` lies inside `0`."""
        parts = zone.path.split(":")
        return self.root.joinpath("intel-rapl", *(f"intel-rapl:{':'.join(parts[:end + 1])}" for end in range(len(parts))))

    def now_s(self) -> float:
        """Return the present time of the tree."""
        return (time.monotonic_ns() - self.start_ns) / 1e9 if self._now_s is None else self._now_s

    def set(self, *, now_s: float) -> None:
        """Move the tree to a time; a file is replaced whole, so that nobody reads half a number."""
        if self._now_s is not None:
            self._now_s = now_s
        for zone in self.zones:
            target = self.place(zone) / "energy_uj"
            partial = target.with_name(".energy_uj")
            partial.unlink(missing_ok=True)
            partial.write_text(f"{zone.counter_uj(now_s)}\n", encoding="ascii")
            partial.chmod(zone.mode)
            partial.replace(target)

    @contextlib.contextmanager
    def running(self, *, period_s: float = 0.005) -> Iterator[None]:
        """Follow the clock from time 0 on: a thread writes the counters every `period_s`."""
        over = threading.Event()
        self._now_s, self.start_ns = None, time.monotonic_ns()

        def follow() -> None:
            while not over.wait(period_s):
                self.set(now_s=self.now_s())

        writer = threading.Thread(target=follow, name="simulated-rapl", daemon=True)
        writer.start()
        try:
            yield
        finally:
            over.set()
            writer.join()
            self._now_s = (time.monotonic_ns() - self.start_ns) / 1e9

    def environment(self) -> dict[str, str]:
        """Return what a process needs in its environment to read this tree."""
        return {VARIABLE: os.fspath(self.root)}
