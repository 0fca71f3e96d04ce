"""What a profile declares of each GPU, and which of several GPUs strays furthest from it. Pure.

Example: limits of 700 and 650 W where 700 W are declared are kept as 650 W; of 700 and 750 W, as 750 W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jouleboard.declared import Band


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a profile declares of each GPU; of several, what strays furthest from it is what a sample holds."""

    limit_w: float | None = None
    """The power limit that is to be in force; None: the lowest is kept."""
    band: Band | None = None
    """Temperatures at which a window may open; None: the highest is kept."""

    def limit(self, limits_w: Sequence[float]) -> float | None:
        """Return the limit that is furthest from the declared one, in watts; None where none was read."""
        return _furthest(limits_w, self.limit_w) if self.limit_w is not None else min(limits_w, default=None)

    def temperature(self, temperatures_c: Sequence[float]) -> float | None:
        """Return the temperature that is furthest from the band's middle: outside the band if any of them is."""
        middle_c = None if self.band is None else (self.band.low + self.band.high) / 2
        return _furthest(temperatures_c, middle_c) if middle_c is not None else max(temperatures_c, default=None)


def _furthest(values: Sequence[float], wanted: float) -> float | None:
    return max(values, key=lambda value: (abs(value - wanted), value), default=None)
