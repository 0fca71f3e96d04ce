"""How far an entry may be trusted, by what its record itself shows. Pure.

`L0` its record is well formed; `L1` its figures follow from raw records (the build checks that of every entry that it shows); `L2`
another entry says that it ran the same plan again. Whether the two agree is for the reader of both, so the site says "run again".
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from jouleboard.records import Report

Trust = Literal["L0", "L1", "L2"]


def trust(report: Report, reproduced: Collection[str]) -> Trust:
    """Say the level of an entry.

    Args:
        report: of the entry.
        reproduced: digests of entries that others ran again.
    """
    if report.digest in reproduced:
        return "L2"
    return "L1" if report.files else "L0"
