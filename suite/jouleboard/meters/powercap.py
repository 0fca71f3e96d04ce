"""The kernel's energy counters below `/sys/class/powercap`, and what they add up to between two moments.

Example::

    intel-rapl:0/name                  package-0
    intel-rapl:0/energy_uj             261934123456      begins again at 0 behind max_energy_range_uj
    intel-rapl:0/max_energy_range_uj   262143328850
    intel-rapl:0:0/name                dram              a part of package-0, as are core and uncore
    intel-rapl:1/name                  psys              the whole platform: holds package-0, so never added to it

AMD's processors stand under the same names. `intel-rapl-mmio:0` is another way to the counter of package-0 and is left out.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from jouleboard.errors import MeterError
from jouleboard.traces import Sample

VARIABLE = "JOULEBOARD_POWERCAP"
POWERCAP = Path("/sys/class/powercap")
PSYS = "psys"
MAX_POWER_W = 1000.0
"""More than any package, or the memory beside it, can draw: what moves faster than this is no energy."""
SLACK_S = 1.0
"""Added to the time between two readings before power is judged: the moment of a reading is not exact."""
_LEAST_GAP_S = 0.1
"""The counter ticks every millisecond or so: power over a shorter time would be mostly error."""
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)*\Z")
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ENODATA})
_READINGS = 5
_MAX_DIGITS = 20
_HIDDEN = "virtual machines and containers hide it: measure on the machine itself, or use a profile of method `model`"
_ALLOW = "only root may read it: `sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj` allows it until the next boot"


class UnreadableError(Exception):
    """A counter gave no value; its text is a reason code, a colon, and words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One counter."""

    domain: str
    """`package-0`, `dram-0`, `psys`: the kernel's name, with the package's number behind it for its parts."""
    folder: Path
    range_uj: int
    """The counter holds at most this much, then begins again at 0."""

    @property
    def counted(self) -> bool:
        """Whether its joules are part of the machine's sum: packages and memory; the platform's counter holds them too."""
        return not self.domain.startswith(PSYS)


def root_folder() -> Path:
    """Return where the kernel's zones are, or what the environment names instead (for tests and containers)."""
    return Path(os.environ.get(VARIABLE) or POWERCAP)


def zones(root: Path | None = None) -> tuple[Zone, ...]:
    """Return the packages, their memory, and the platform, each once.

    A DRAM counter that stands at exactly 0 is left out: some processors list one that never counts.

    Args:
        root: folder of the zones; None: `root_folder()`.

    Raises:
        MeterError: no package is listed, or a counter cannot be read.
    """
    root = root_folder() if root is None else root
    found: dict[str, Zone] = {}
    try:
        folders = _folders(root)
        names = {ident: (folder / "name").read_text("utf-8", "replace").strip() for ident, folder in folders.items()}
        for ident, folder in folders.items():
            domain = _domain(names[ident], names.get(ident.rpartition(":")[0], ""))
            if domain is None or domain in found or not (folder / "energy_uj").exists():
                continue
            zone = Zone(domain=domain, folder=folder, range_uj=read_uj(folder / "max_energy_range_uj"))
            if read_uj(folder / "energy_uj") > 0 or not domain.startswith("dram"):
                found[domain] = zone
    except OSError as error:
        raise MeterError(_failure(error, Path(error.filename or root)), file=root, remedy=_ALLOW) from None
    except UnreadableError as error:
        raise MeterError(str(error), file=root, remedy=_ALLOW if "denied" in str(error) else _HIDDEN) from None
    if not any(domain.startswith("package") for domain in found):
        raise MeterError("the kernel shows no RAPL zone of a processor package", file=root, remedy=_HIDDEN)
    return tuple(found.values())


def total_j(domains_j: dict[str, float]) -> float | None:
    """Return the joules of all packages and their memory, or None without any; `psys` holds them already."""
    counted = [joules for domain, joules in domains_j.items() if not domain.startswith(PSYS)]
    return sum(counted) if counted else None


def _folders(root: Path) -> dict[str, Path]:
    """Return the folders of all zones by the kernel's own name, whether they lie side by side, nested, or linked."""
    found: dict[str, Path] = {}
    pending = [root, root / "intel-rapl"]
    while pending:
        folder = pending.pop(0)
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if _ZONE.match(entry.name) and entry.name not in found and entry.is_dir():
                found[entry.name] = entry
                pending.append(entry)
    return found


def _domain(name: str, parent: str) -> str | None:
    """Name a zone's domain; None for the parts of a package that its own counter holds (core, uncore)."""
    if name.startswith(("package", PSYS)):
        return name
    return f"dram{parent.removeprefix('package')}" if name == "dram" and not parent.startswith(PSYS) else None


def read_uj(path: Path) -> int:
    """Read a whole number of microjoules. One without its line's end may be half written: it counts once it stays."""
    text, before = b"", b""
    for _ in range(_READINGS):
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UnreadableError(_failure(error, path)) from None
        digits = text.strip()
        if digits.isdigit() and len(digits) <= _MAX_DIGITS and (text.endswith(b"\n") or text == before):
            return int(digits)
        before = text
        time.sleep(0.002)
    raise UnreadableError(f"rapl-unreadable: {path.parent.name}/{path.name} holds {text[:40]!r}, no number")


def _failure(error: OSError, path: Path) -> str:
    where = f"{path.parent.name}/{path.name}"
    if isinstance(error, PermissionError):
        return f"rapl-denied: {where} may not be read by this user"
    if error.errno in _GONE:
        return f"rapl-gone: {where} is not there"
    return f"rapl-unreadable: {where} cannot be read ({error.strerror})"


@dataclass(slots=True, kw_only=True)
class Track:
    """What one counter has added since a window began."""

    zone: Zone
    max_power_w: float
    at_s: float | None = None
    counter_uj: int = 0
    total_uj: int = 0
    void: str | None = None

    def poll(self, now_s: float) -> None:
        """Read the counter once more; after a failure nothing counts any longer."""
        if self.void is not None:
            return
        try:
            counter_uj = read_uj(self.zone.folder / "energy_uj")
        except UnreadableError as error:
            self.void = str(error)
            return
        if counter_uj > self.zone.range_uj:
            self.void = f"rapl-unreadable: {self.zone.domain} shows {counter_uj} uJ, above its range"
        elif self.at_s is not None:
            self._advance(counter_uj, now_s - self.at_s)
        self.at_s, self.counter_uj = now_s, counter_uj

    def _advance(self, counter_uj: int, gap_s: float) -> None:
        domain, range_uj = self.zone.domain, self.zone.range_uj
        if gap_s * self.max_power_w * 1e6 > range_uj:
            self.void = (f"rapl-wrap-unsure: {domain} was not read for {gap_s:.1f} s, in which {self.max_power_w:.0f} W "
                         f"wrap its {range_uj / 1e6:.0f} J more than once")
            return
        moved_uj = counter_uj - self.counter_uj
        if moved_uj < 0:
            moved_uj += range_uj
        if moved_uj > (gap_s + SLACK_S) * self.max_power_w * 1e6:
            self.void = (f"rapl-reset: {domain} went from {self.counter_uj} to {counter_uj} uJ in {gap_s:.3f} s, "
                         f"more than {self.max_power_w:.0f} W can explain")
            return
        self.total_uj += moved_uj


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All counters at one moment."""

    at_s: float
    counter_uj: int
    """Of all counted zones together, wraps undone."""


@dataclass(slots=True, kw_only=True)
class Interval:
    """What all counters have added since a moment."""

    tracks: tuple[Track, ...]
    start_s: float
    rows: list[Row] = field(default_factory=list)

    def poll(self) -> None:
        """Read every counter, and keep a row while all that are counted can be read."""
        now_s = clock_s()
        for track in self.tracks:
            track.poll(now_s)
        counted = [track for track in self.tracks if track.zone.counted]
        if self.rows:
            counter_uj = self.rows[0].counter_uj + sum(track.total_uj for track in counted)
        else:
            counter_uj = sum(track.counter_uj for track in counted)
        if all(track.void is None for track in counted):
            self.rows.append(Row(at_s=now_s, counter_uj=counter_uj))

    def void(self) -> str | None:
        """Return why the sum is not known, or None."""
        for track in self.tracks:
            if track.zone.counted and track.void is not None:
                return track.void
        for track in self.tracks:
            if track.zone.counted and track.total_uj <= 0:
                return f"rapl-frozen: {track.zone.domain} did not move in {self.rows[-1].at_s - self.start_s:.3f} s"
        return None

    def joules(self, *, counted: bool) -> dict[str, float]:
        """Return the joules of the counters that are in the sum, or of those that are not, and are known."""
        return {track.zone.domain: track.total_uj / 1e6 for track in self.tracks
                if track.zone.counted == counted and track.void is None and track.total_uj > 0}

    def samples(self, name: str) -> Iterator[Sample]:
        """Yield the rows as a trace: the counters' sum, and the mean power until the next row, which a sample holds for."""
        for row, after in zip_longest(self.rows, self.rows[1:]):
            power_w = None
            if after is not None and after.at_s - row.at_s >= _LEAST_GAP_S:
                power_w = (after.counter_uj - row.counter_uj) / 1e6 / (after.at_s - row.at_s)
            yield Sample(window=name, elapsed_s=row.at_s - self.start_s, power_w=power_w, counter_j=row.counter_uj / 1e6)


def clock_s() -> float:
    """Return seconds by a clock that is never set and that counts a suspended machine's time too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
