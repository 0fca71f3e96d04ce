"""Template filters: numbers and nouns into text for people. Nowhere else are numbers formatted.

    {{ 4.1068 | sig }}             4.11
    {{ estimate | shown }}         .value "4.107"  .low "4.025"  .high "4.189"   (decimals from the interval's width)
    {{ 269030016 | megabytes }}    269

`finalize` sees every string that a template prints.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from jouleboard.estimates import Estimate

MINUS = "\N{MINUS SIGN}"
_RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
ONE_LINE = 96
MEGA = 1e6
# Control characters, bidirectional overrides and isolates, zero-width characters, and lone surrogates: each can make a
# page say something else than the record does, or cannot be written as UTF-8 at all.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_REPO = re.compile(r"[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def visible(text: str) -> str:
    """Show invisible and direction-changing characters by their code point (`[U+202E]`)."""
    # Most of what a page prints is this, and each page prints thousands.
    if text.isascii() and text.isprintable():
        return text
    return INVISIBLE.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def finalize(value: Any) -> Any:
    """Make every string that a template prints visible; what templates made themselves passes."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


# A page in two languages prints each number twice, and many numbers stand on many pages.
@lru_cache(maxsize=8192)
def fixed(value: float, decimals: int) -> str:
    """Format with a fixed number of decimals (negative: rounded before the point), commas and a true minus."""
    if not math.isfinite(value):
        return "∞" if value > 0 else f"{MINUS}∞" if value < 0 else "undefined"
    rounded = round(value, decimals)
    text = f"{abs(rounded):,.{max(decimals, 0)}f}"
    return MINUS + text if rounded < 0 else text


@lru_cache(maxsize=8192)
def sig(value: float, digits: int = 3) -> str:
    """Format with so many significant digits."""
    if value == 0 or not math.isfinite(value):
        return fixed(value, 0)
    # The rounding can add a digit before the point (0.9996 -> 1.000), so the exponent is taken after it.
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return fixed(value, min(digits - 1 - exponent, 9))


_PLAIN = (1e-3, 1e5)


def scientific(value: float) -> str:
    """Format with three significant digits, with a power of ten where zeros would be counted."""
    if value == 0 or not math.isfinite(value) or _PLAIN[0] <= abs(value) < _PLAIN[1]:
        return sig(value)
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{digits.replace('-', MINUS)}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}10{str(int(power)).translate(_RAISED)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An estimate as text; the bounds are None where there is no interval."""

    value: str
    low: str | None
    high: str | None


def shown(estimate: Estimate) -> Shown:
    """Format an estimate so that half its interval has two significant digits."""
    if estimate.low is None or estimate.high is None:
        return Shown(value=sig(estimate.value), low=None, high=None)
    half = (estimate.high - estimate.low) / 2
    # A wide interval must not swallow the value, nor a narrow one print noise.
    decimals = 3 if half <= 0 or not math.isfinite(half) else min(1 - math.floor(math.log10(half)), 5)
    return Shown(
        value=fixed(estimate.value, decimals), low=fixed(estimate.low, decimals), high=fixed(estimate.high, decimals)
    )


def count(value: int) -> str:
    """Format a whole number with thousands set apart."""
    return f"{value:,}".replace("-", MINUS)


def megabytes(value: int) -> str:
    """Give megabytes (10^6 bytes)."""
    return fixed(value / MEGA, 0) if value >= 1000 * MEGA else sig(value / MEGA)


def percent(share: float) -> str:
    """Give a share as per cent, at most one decimal below 10 %."""
    value = share * 100
    # Below ten per cent a whole number would be off by more than a twentieth.
    return fixed(value, 1 if abs(share) < 0.1 and value != round(value) else 0)  # noqa: PLR2004 -- said above


def px(value: float) -> str:
    """Give a length inside an SVG drawing."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def short(digest: str, length: int = 12) -> str:
    """Give the first characters of a digest."""
    return digest[:length]


def as_json(value: object) -> str:
    """Give any value of a record as JSON for reading, on one line where it fits; it is escaped like any other text."""
    plain = msgspec.to_builtins(value)
    line = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False)
    if len(line) <= ONE_LINE:
        return line
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)


def source_link(source: Mapping[str, Any]) -> str | None:
    """Give the https page of a hub source, or None; nothing but the hub's own host can come out."""
    kind, text = source.get("kind"), {key: str(value) for key, value in source.items()}
    if kind == "hub" and _REPO.fullmatch(text.get("repo", "")) and ".." not in text["repo"]:
        revision = text.get("revision", "")
        tail = f"/tree/{revision}" if _COMMIT.fullmatch(revision) else ""
        return f"https://huggingface.co/{text['repo']}{tail}"
    return None


FILTERS: dict[str, Callable[..., object]] = {
    "as_json": as_json,
    "count": count,
    "fixed": fixed,
    "megabytes": megabytes,
    "percent": percent,
    "px": px,
    "scientific": scientific,
    "short": short,
    "shown": shown,
    "sig": sig,
    "source_link": source_link,
}
