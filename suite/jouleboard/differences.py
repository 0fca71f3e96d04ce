"""Say in words in what two configurations differ, field by field. Pure: plain JSON values in, lines out.

Example::

    energy.window_s: 60 -> 30
    packages.torch: 2.12.0 -> 2.13.0
    recipes: nf4 added
    tasks[1].limit: 100 -> 20
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_LINES = 15
MOST_CHARACTERS = 48
_ABSENT = "absent"


def fields(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the names of the top-level fields that differ, in sorted order."""
    return sorted(key for key in held.keys() | wanted.keys()
                  if key not in held or key not in wanted or held[key] != wanted[key])


def remedy(changed: Sequence[str]) -> str:
    """Return what to do where a run cannot go on in a folder.

    Args:
        changed: the top-level fields that differ.
    """
    if list(changed) == ["processor"]:
        return ("this is another kind of node than the one that the run began on: name one kind with `constraint` in the site file "
                "(`--site`), or start the same command on a machine of the first kind; it goes on from what is finished")
    return "name another folder with --out, or delete this one to measure anew"


def lines(held: Mapping[str, Any], wanted: Mapping[str, Any], *, most: int = MOST_LINES) -> list[str]:
    """Return one line for each value that differs.

    Args:
        held: the stored configuration, from JSON.
        wanted: the one that is asked for, from JSON.
        most: lines at most; a last one tells how many are left out.
    """
    found = list(_compare("", _readable(held), _readable(wanted)))
    return found if len(found) <= most else [*found[:most], f"and {len(found) - most} more"]


def _readable(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with its tasks as they stand in a plan: the limit is a field of the task."""
    rows = configuration.get("tasks")
    if not isinstance(rows, list) or not all(_is_task(row) for row in rows):
        return dict(configuration)
    return {**configuration, "tasks": [{**task, "limit": limit} for task, limit in rows]}


def _is_task(row: object) -> bool:
    return isinstance(row, list) and len(row) == 2 and isinstance(row[0], dict)  # noqa: PLR2004 - a task and its limit


def _compare(path: str, held: object, wanted: object) -> Iterator[str]:
    if held == wanted and type(held) is type(wanted):
        return
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in sorted(held.keys() | wanted.keys()):
            place = f"{path}.{_text(key)}" if path else _text(key)
            if key not in held or key not in wanted:
                yield _line(place, _text(held[key]) if key in held else _ABSENT,
                            _text(wanted[key]) if key in wanted else _ABSENT)
            else:
                yield from _compare(place, held[key], wanted[key])
    elif isinstance(held, list) and isinstance(wanted, list):
        yield from _compare_lists(path, held, wanted)
    else:
        text = _json if _text(held) == _text(wanted) else _text
        yield _line(path, text(held), text(wanted))


def _compare_lists(path: str, held: list[Any], wanted: list[Any]) -> Iterator[str]:
    names = _names(held), _names(wanted)
    if names[0] is None or names[1] is None:
        for place in range(max(len(held), len(wanted))):
            if place >= len(held) or place >= len(wanted):
                yield _line(f"{path}[{place}]", _text(held[place]) if place < len(held) else _ABSENT,
                            _text(wanted[place]) if place < len(wanted) else _ABSENT)
            else:
                yield from _compare(f"{path}[{place}]", held[place], wanted[place])
        return
    before, after = names[0], names[1]
    yield from (f"{path}: {_text(name)} added" for name in after if name not in before)
    yield from (f"{path}: {_text(name)} removed" for name in before if name not in after)
    if [name for name in before if name in after] != [name for name in after if name in before]:
        yield f"{path}: their order differs"
    for place, name in enumerate(after):
        if name in before:
            yield from _compare(f"{path}[{place}]", held[before.index(name)], wanted[place])


def _names(values: Sequence[Any]) -> list[str] | None:
    """Return what tells the members of a list apart: themselves, or their ids; None where nothing does."""
    found = [value.get("id") if isinstance(value, dict) else value for value in values]
    names = [name for name in found if isinstance(name, str)]
    return names if len(names) == len(values) == len(set(names)) else None


def _line(path: str, held: str, wanted: str) -> str:
    if max(len(held), len(wanted)) > MOST_CHARACTERS and _short(held) == _short(wanted):
        # Both begin alike: what is shown begins shortly before they part.
        same = next((place for place, (one, other) in enumerate(zip(held, wanted, strict=False)) if one != other),
                    min(len(held), len(wanted)))
        begin = max(same - 12, 0)
        held, wanted = f"...{held[begin:]}", f"...{wanted[begin:]}"
    return f"{path}: {_short(held)} -> {_short(wanted)}"


def _text(value: object) -> str:
    # A plain word needs no quotation marks.
    return value if isinstance(value, str) and value.strip() == value and value.isprintable() and value else _json(value)


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    # What moves the cursor or breaks the line stands as an escape.
    return text if text.isprintable() else json.dumps(value, sort_keys=True).replace("\x7f", "\\u007f")


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."
