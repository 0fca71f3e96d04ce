"""A value with its interval: what every statistic of a board comes to. No I/O here.

Example: `Estimate(value=0.78, low=0.74, high=0.83)` is a cost ratio with its 95 % interval.
"""

from __future__ import annotations

from jouleboard.declared import Noun


class Estimate(Noun, frozen=True, kw_only=True):
    """A value with its 95 % interval (of an estimate: the declared uncertainty); the bounds are None where none can be had."""

    value: float
    low: float | None
    high: float | None
