"""Values on the command line, with errors that say what is wanted."""

from __future__ import annotations

import argparse
import math
import urllib.parse


def positive(text: str) -> int:
    """Read a whole number from 1 to 999999999."""
    # No data set has 10^9 items, and canonical JSON holds no integer of 2^53.
    value = int(text) if text.isdecimal() and len(text) < 10 else 0  # noqa: PLR2004
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to 999999999")
    return value


def minutes(text: str) -> float:
    """Read a number of minutes above 0, up to ten weeks."""
    return _between(text, math.ulp(0.0), 100_000, "not a number of minutes above 0")


def gigabytes(text: str) -> float:
    """Read a number of gigabytes, up to a petabyte."""
    return _between(text, 0.001, 1_000_000, "not a number of gigabytes from 0.001")


def finite(text: str) -> float:
    """Read a number of seconds, of either sign, up to ten years: more is no clock that is off."""
    return _between(text, -3.2e8, 3.2e8, "no number of seconds")


def port(text: str) -> int:
    """Read the number of a port; 0: any that is free."""
    return int(_between(text if text.isdecimal() else "", 0, 65535, "not a port from 0 to 65535"))


def address(text: str) -> str:
    """Read the address of a site, and end it with a slash."""
    found = urllib.parse.urlsplit(text)
    if found.scheme != "https" or not found.hostname or found.query or found.fragment or not text.isascii() or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not an address such as https://example.org/board/")
    return text if text.endswith("/") else f"{text}/"


def _between(text: str, least: float, most: float, otherwise: str) -> float:
    """Read a number between two others."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is {otherwise}")
    return value
