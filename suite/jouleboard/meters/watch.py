"""Follows the energy counters through a window, poll by poll: what two readings at its ends cannot show.

A counter that was reset and counts back past where it began gives a positive difference; one that froze near the end gives
a plausible one. Each poll is compared with the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

from jouleboard.meters.reasons import SensorError

STILL_TICKS = 5
"""A counter that stood still for more ticks than this at the end of a window is frozen."""
STILL_RATIO = 2.0
"""... unless the same counter has rested half as long before and gone on: then it ticks more slowly than the profile says."""


class Watch:
    """The counters of one window."""

    def __init__(self, tick_s: float) -> None:
        """Name the counters' declared tick."""
        self._tick_s = tick_s
        self._last_j: dict[int, float] = {}
        self._moved_s: dict[int, float] = {}
        self._longest_s: dict[int, float] = {}
        self._drawn_s = 0.0
        self.reset: str | None = None

    def see(self, elapsed_s: float, counters_j: Sequence[float | None], power_w: float | None) -> None:
        """Take in one poll.

        Args:
            elapsed_s: since the window began.
            counters_j: one of each device; None where it was not read.
            power_w: of all devices together; None where it was not read.
        """
        if power_w != 0:
            # A power that cannot be read speaks for a device that draws some, as every device does.
            self._drawn_s = elapsed_s
        for index, counter_j in enumerate(counters_j):
            if counter_j is None:
                continue
            before_j = self._last_j.get(index)
            self._last_j[index] = counter_j
            if before_j is None:
                self._moved_s[index] = elapsed_s
            elif counter_j < before_j:
                self.reset = self.reset or f"gpu{index}: {counter_j:.3f} J after {before_j:.3f} J"
            elif counter_j > before_j:
                self._longest_s[index] = max(self._longest_s.get(index, 0.0), elapsed_s - self._moved_s[index])
                self._moved_s[index] = elapsed_s

    def trouble(self, elapsed_s: float) -> SensorError | None:
        """Return what was wrong with a counter by the end of the window, if anything.

        Args:
            elapsed_s: the window's length.
        """
        if self.reset is not None:
            return SensorError("counter-reset", self.reset)
        for index, moved_s in sorted(self._moved_s.items()):
            limit_s = max(STILL_TICKS * self._tick_s, STILL_RATIO * self._longest_s.get(index, 0.0))
            if elapsed_s - moved_s > limit_s and self._drawn_s > moved_s:
                return SensorError("counter-frozen", f"gpu{index}: for the last {elapsed_s - moved_s:.1f} s")
        return None
