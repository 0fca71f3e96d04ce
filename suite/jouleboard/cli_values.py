"""Values on the command line, with errors that say what is wanted."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> int:
    """Read a whole number from 1 to 999999999."""
    # No data set has 10^9 items, and canonical JSON holds no integer of 2^53.
    value = int(text) if text.isdecimal() and len(text) < 10 else 0  # noqa: PLR2004
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to 999999999")
    return value


def minutes(text: str) -> float:
    """Read a number of minutes above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 100_000:  # noqa: PLR2004 - ten weeks
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of minutes above 0")
    return value


def gigabytes(text: str) -> float:
    """Read a number of gigabytes above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.001 <= value <= 1_000_000:  # noqa: PLR2004 - a petabyte
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of gigabytes from 0.001")
    return value


def finite(text: str) -> float:
    """Read a number of seconds, of either sign."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Ten years: more is no clock that is off.
    if not abs(value) < 3.2e8:  # noqa: PLR2004 - said above
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of seconds")
    return value
