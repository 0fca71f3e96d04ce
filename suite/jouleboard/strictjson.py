"""JSON as strangers may write it: UTF-8, no duplicate keys, no NaN, bounded depth and digits; refused before it costs anything.

Example: `{"a": 1, "a": 2}` is refused with the code `duplicate-key`, ten thousand `[` with `depth`, before either is parsed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jouleboard.errors import DataFileError

MAX_DEPTH = 32
MAX_DIGITS = 40
"""A float has at most 17 digits that count, and 25 before an exponent; longer ones only cost time."""
MAX_NESTS = 200_000
_OPENS, _QUOTE = b"[{", ord('"')
_NUMBER = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))
# A string without an end reaches to the end of the text, so that it is not tried again from every quote in it.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_BOM = b"\xef\xbb\xbf"


class _RefusedError(ValueError):
    """Something that plain JSON would let pass."""

    def __init__(self, code: str, problem: str) -> None:
        super().__init__(problem)
        self.code = code


def loads(data: bytes, path: Path, *, field: str | None = None, remedy: str | None = None) -> Any:
    """Return the plain values of a JSON text.

    Args:
        data: of the file, or of one of its lines.
        path: of the file, for messages.
        field: where in the file the text stands.
        remedy: what to do about a file that is refused.

    Raises:
        DataFileError: naming what is wrong with it, with its code.
    """
    try:
        _screen(data)
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
    except _RefusedError as error:
        raise DataFileError(str(error), file=path, field=field, remedy=remedy, code=error.code) from None
    except RecursionError:
        raise DataFileError("nested too deeply", file=path, field=field, remedy=remedy, code="depth") from None
    except UnicodeDecodeError as error:
        raise DataFileError(f"not UTF-8 ({error.reason} at byte {error.start})", file=path, field=field, remedy=remedy,
                            code="encoding") from None
    except ValueError as error:
        raise DataFileError(f"not valid JSON: {error}", file=path, field=field, remedy=remedy, code="json") from None


def _screen(data: bytes) -> None:
    """Refuse by looking at the bytes what a parser would spend itself on."""
    if data.startswith(_BOM):
        raise _RefusedError("encoding", "begins with a byte order mark")
    if data.count(b"[") + data.count(b"{") > MAX_NESTS:
        raise _RefusedError("size", f"more than {MAX_NESTS} objects and lists")
    depth = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        if first in _OPENS:
            depth += 1
            if depth > MAX_DEPTH:
                raise _RefusedError("depth", f"nested too deeply (more than {MAX_DEPTH} levels)")
        elif first != _QUOTE:
            depth -= 1
    if _NUMBER.search(data) and _NUMBER.search(_TOKEN.sub(b" ", data)):
        raise _RefusedError("number", f"a number of more than {MAX_DIGITS} digits")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RefusedError("duplicate-key", f"the key {twice[:60]!r} occurs twice in one object")
    return found


def _no_constant(name: str) -> float:
    raise _RefusedError("number", f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:  # infinity, to which 1e999 is rounded
        raise _RefusedError("number", f"{text[:40]} is beyond every float")
    return value
