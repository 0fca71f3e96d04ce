"""Where the names of a chart's points go, so that they cover nothing: greedy, in pixels, and the same each time.

A name is tried above and below its point, on either side, ever farther away, until no point, interval, line or other
name is under it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from jouleboard.formats import visible

CHAR_PX, LINE_PX = 8.2, 15.0
"""Size of one character of a name at 13 px bold, as wide as in DejaVu Sans: on the safe side."""
_OFFSETS = [(side * dy, dx) for dy in (15.0, 30.0, 45.0, 60.0, 75.0, 90.0) for side in (-1, 1) for dx in (8.0, -8.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The plot area: its size in pixels and the ends of its axes."""

    width: int
    height: int
    cost_high: float
    quality_low: float
    quality_high: float

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return value / self.cost_high * self.width

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return (self.quality_high - value) / (self.quality_high - self.quality_low) * self.height

    def cost_at(self, x: float) -> float:
        """Cost at so many pixels from the left."""
        return x / self.width * self.cost_high

    def quality_at(self, y: float) -> float:
        """Quality at so many pixels from the top."""
        return self.quality_high - y / self.height * (self.quality_high - self.quality_low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle in pixels that a label must not cover."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether two rectangles overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a name starts or ends (`y`: its middle), and the rectangle that it covers."""

    align: Literal["left", "right"]
    x: float
    y: float
    box: Box


def spot(x: float, y: float, *, length: float, frame: Frame, taken: Sequence[Box], lines: int = 1) -> Spot:
    """Return the first free place for a name of a point, else the first one inside the frame, else the first."""
    height, more = lines * LINE_PX, (lines - 1) * LINE_PX / 2
    offsets = [(dy + (more if dy > 0 else -more), dx) for dy, dx in _OFFSETS]
    beside = [_at(x + dx, y + dy, (length, height), rightwards=dx > 0) for dy, dx in offsets]
    # Where a name is too long for either side, it may also stand across, pushed inside the frame.
    across = [
        _at(max(0.0, min(x, frame.width - length)), y + dy, (length, height), rightwards=True) for dy, _ in offsets
    ]
    inside = [
        one
        for one in (*beside, *across)
        if one.box.left >= 0 and one.box.right <= frame.width and one.box.top >= 0 and one.box.bottom <= frame.height
    ]
    free = (one for one in inside if not any(one.box.meets(other) for other in taken))
    return next(free, inside[0] if inside else beside[0])


def line_offsets(lines: int) -> list[float]:
    """Return how far the middle of each line is below the middle of a name."""
    return [(line - (lines - 1) / 2) * LINE_PX for line in range(lines)]


def _at(x: float, y: float, size: tuple[float, float], *, rightwards: bool) -> Spot:
    length, height = size
    left = x if rightwards else x - length
    box = Box(left=left, top=y - height / 2, right=left + length, bottom=y + height / 2)
    return Spot(align="left" if rightwards else "right", x=x, y=y, box=box)


def name_lines(title: str, longest: int, *, model: str | None = None) -> tuple[str, ...]:
    """Return a name in one line, or in two where it is long; the model, where it must be said, stands above it."""
    if model is not None:
        return (*name_lines(model, longest), *name_lines(title, longest))
    text = " ".join(visible(title).split())
    if len(text) <= longest:
        return (text,)
    # Two lines of about the same length look like one name, where a full line and a rest do not.
    first, *rest = textwrap.wrap(text, min(longest, len(text) // 2 + 6))
    return first, _cut(" ".join(rest), longest)


def length_px(lines: Sequence[str]) -> float:
    """Return the width of the longest line, on the safe side."""
    return max(len(line) for line in lines) * CHAR_PX


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def path_boxes(corners: Iterable[tuple[float, float]]) -> list[Box]:
    """Turn a step line (across first, then up) into thin rectangles."""
    boxes = []
    for (x1, y1), (x2, y2) in pairwise(corners):
        boxes.append(Box(left=x1, top=y1 - 1, right=x2, bottom=y1 + 1))
        boxes.append(Box(left=x2 - 1, top=min(y1, y2), right=x2 + 1, bottom=max(y1, y2)))
    return boxes
