"""The canonical JSON (RFC 8785) of an item, written directly: a checker of millions of lines has no time for more. No I/O here.

Example: `{"choice_chars":[30,22],"digest":"0123456789abcdef","doc_sha256":"...","gold":1,...}`; `tests/test_itemline.py` holds it
against the library `rfc8785` for arbitrary items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import msgspec
import rfc8785

from jouleboard.records import Item

_text = json.JSONEncoder(ensure_ascii=False).encode
_SAFE_INTEGER = 2**53 - 1
_DEFAULTS = dict(zip(Item.__struct_fields__[-len(Item.__struct_defaults__):], Item.__struct_defaults__, strict=True))


def number(value: float) -> str:
    """Return a number as RFC 8785 writes it.

    Raises:
        rfc8785.CanonicalizationError: it is not finite, or an integer beyond 2^53 - 1.
    """
    if isinstance(value, int):
        return str(value) if -_SAFE_INTEGER <= value <= _SAFE_INTEGER else rfc8785.dumps(value).decode()
    if value == 0:
        return "0"
    found = repr(value)
    # Python and ECMAScript agree on the digits; where there is an exponent, or none to lose, they write it differently.
    if "e" in found or "n" in found:
        return rfc8785.dumps(value).decode()
    return found.removesuffix(".0")


def _numbers(values: Iterable[float]) -> str:
    return "[" + ",".join([number(value) for value in values]) + "]"


def _maybe(value: float | str | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        # Most texts are digests and ids, of which nothing is escaped.
        return f'"{value}"' if value.isalnum() and value.isascii() else _text(value)
    return number(value)


def _scores(values: dict[str, float]) -> str:
    return "{" + ",".join(f"{_text(name)}:{number(values[name])}" for name in sorted(values)) + "}"


_WRITERS: dict[str, Callable[..., str]] = {
    "choice_chars": _numbers, "correct": _numbers, "loglikelihoods": _numbers, "scores": _scores,
    "targets": lambda values: "[" + ",".join(map(_text, values)) + "]",
}
_FIELDS = tuple((Item.__struct_fields__.index(name), f'"{name}":', _WRITERS.get(name, _maybe), _DEFAULTS.get(name, msgspec.UNSET))
                for name in sorted(Item.__struct_fields__))
_DIGEST = Item.__struct_fields__.index("digest")


def canonical(item: Item, *, digest: str | None = None) -> bytes:
    """Return an item's line, without the line's end.

    Args:
        item: any item.
        digest: written in the place of the item's own; None: its own.

    Raises:
        rfc8785.CanonicalizationError: a number has no canonical form.
    """
    values = msgspec.structs.astuple(item)
    parts = []
    for place, key, write, default in _FIELDS:
        value = values[place] if digest is None or place != _DIGEST else digest
        # Defaults are None and the empty tuple, of which there is one each.
        if value is not default:
            parts.append(key + write(value))
    return ("{" + ",".join(parts) + "}").encode()
