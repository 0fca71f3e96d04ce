"""Whether bytes are a report of ours, and of which version: strict JSON, no duplicate keys, no NaN, a known format.

Example: `{"format": "jouleboard-report", "format_version": 2, ...}`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jouleboard import strictjson
from jouleboard.errors import DataFileError
from jouleboard.records import FORMAT, FORMAT_VERSION
from jouleboard.upgrade import UPGRADES

AGAIN = "write it again with `jouleboard run`, or take it out of the folder"


def require(data: bytes, path: Path) -> dict[str, Any]:
    """Return the plain JSON values; say plainly when a file is empty, cut short, not JSON, not ours, or of no known version.

    Args:
        data: of the file.
        path: of the file, for messages.

    Raises:
        DataFileError: naming what is wrong with it.
    """
    if not data.strip():
        raise DataFileError("the file is empty", file=path, remedy=AGAIN, code="json")
    value = strictjson.loads(data, path, remedy=AGAIN)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise DataFileError(
            "not a Jouleboard report", file=path, field="format", remedy=f'reports begin with "format": "{FORMAT}"',
            code="format",
        )
    version = value.get("format_version")
    # True == 1 and 1.0 == 1 in Python, and neither is a version.
    if type(version) is not int or (version != FORMAT_VERSION and version not in UPGRADES):
        newer = type(version) is int and version > FORMAT_VERSION
        raise DataFileError(
            f"version {version!r}, this Jouleboard reads versions {min(UPGRADES)} to {FORMAT_VERSION}", file=path,
            field="format_version",
            remedy="install a newer Jouleboard" if newer else AGAIN, code="version",
        )
    return value

