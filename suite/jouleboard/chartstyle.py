"""Colours, texts and look of the charts that Altair describes. Every hue keeps 4.5:1 on its page, light and dark."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any
from xml.sax.saxutils import escape

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of one scheme (Okabe-Ito hues, darkened or lightened for 4.5:1 on the page)."""

    ink: str
    muted: str
    grid: str
    base: str
    variant: str
    withheld: str
    surface: str


LIGHT = Theme(
    ink="#1d1c1a", muted="#5f5b54", grid="#e7e2d9", base="#1d1c1a", variant="#0065a4", withheld="#a34a00",
    surface="#ffffff",
)  # fmt: skip
DARK = Theme(
    ink="#f0eee9", muted="#aaa59b", grid="#33373f", base="#f0eee9", variant="#6ec1ff", withheld="#ffae66",
    surface="#1b1e24",
)  # fmt: skip


def darkened(svg: str) -> str:
    """Give a light drawing in the colours of the dark scheme."""
    colours = {getattr(LIGHT, one.name): getattr(DARK, one.name) for one in fields(Theme)}
    return re.sub("|".join(map(re.escape, colours)), lambda found: str(colours[found[0]]), svg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The texts of the chart, from a template."""

    quality: str
    cost: str
    cost_short: str
    chance: str
    cost_only: str


def translated(svg: str, said: Words, words: Words) -> str:
    """Give a drawing with other words; a text of it is whole inside its element."""
    known = {f">{escape(getattr(said, one.name))}<": f">{escape(getattr(words, one.name))}<" for one in fields(Words)}
    return re.sub("|".join(map(re.escape, known)), lambda found: known[found[0]], svg)


def config(theme: Theme) -> dict[str, Any]:
    """Return the look of a chart, as Vega-Lite takes it."""
    text = {"labelColor": theme.muted, "titleColor": theme.ink, "labelFontSize": 12, "titleFontSize": 13}
    return {
        "background": theme.surface,
        "font": FONT,
        "aria": False,
        "padding": 4,
        "axis": {**text, "gridColor": theme.grid, "domainColor": theme.muted, "tickColor": theme.muted,
                 "titleFontWeight": 600, "titlePadding": 10, "labelPadding": 6},
        "view": {"stroke": None},
        "title": {"anchor": "start", "fontSize": 13, "fontWeight": 600},
    }  # fmt: skip
