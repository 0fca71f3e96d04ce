"""Any one field of a genuine entry, changed and sealed again, is refused, or is listed as what a checker cannot know."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jouleboard import check, selfreported, store
from jouleboard.check import Options
from jouleboard.records import Report
from tests.attacks import entry

FRESH = Options(fresh=True)
COMPUTED = {"digest", "merkle_root", "files", "gates", "format", "format_version"}
"""What sealing writes anew, whatever stood there; attacks of their own are on these."""

OF_THE_METHOD = {"method", "boundary", "power_model", "profile", "trials", "idle", "build", "hardware", "hardware_sha256"}


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def words(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def changed(value: Any) -> list[Any]:
    """Give other values of the same kind: one near, one far."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 3 * value + 7]
    if isinstance(value, float):
        return [value * 1.01 + 1e-3, value * 0.5, value * (1 + 1e-7)]
    if isinstance(value, str):
        digits = re.fullmatch(r"[0-9a-f]{16,64}", value)
        if digits:
            return [("0" if value[0] != "0" else "1") + value[1:], value[:-1] + ("0" if value[-1] != "0" else "1")]
        return ["length"] if value == "stop" else [value + "x", "x" if value != "x" else "y"]
    return [1, "x"] if value is None else ["x"]


def put(held: Any, path: tuple[str | int, ...], value: Any) -> None:
    for part in path[:-1]:
        held = held[part]
    held[path[-1]] = value


def patterns(records: entry.Records, *, kind: str) -> list[tuple[str, tuple[str | int, ...], Any]]:
    """One place for each field: of lists the second thing, else the first. Of the second entry only what differs from the first."""
    found: dict[str, tuple[tuple[str | int, ...], Any]] = {}
    everything = records.raw | {"items": records.items}
    for path, value in leaves(everything):
        if kind == "cpu" and path[0] not in OF_THE_METHOD:
            continue
        if path[0] not in COMPUTED and (path[0], path[-1]) != ("items", "digest"):
            task = records.items[path[1]]["task"] if path[0] == "items" else ""
            plain = re.sub(r"\[[0-9]+\]", "[]", words(path)) + task
            if plain not in found or (isinstance(path[1] if len(path) > 1 else None, int) and path[1] == 1):
                found[plain] = (path, value)
    return [(name, path, value) for name, (path, value) in found.items()]


def refused(records: entry.Records, path: tuple[str | int, ...], value: Any) -> set[str]:
    """Change one field, seal, and return the codes of what is wrong."""
    made = entry.Records(folder=records.folder, raw=copy.deepcopy(records.raw), items=list(records.items), rows=records.rows)
    if path[0] == "items":
        made.items[path[1]] = copy.deepcopy(made.items[path[1]])
        put({"items": made.items}, path, value)
    else:
        put(made.raw, path, value)
    made.folder = entry.seal(made)
    found = {problem.code for problem in check.check_paths([made.folder.parents[3]], FRESH).problems}
    records.folder = made.folder
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one changed field."""

    place: str
    change: str
    codes: frozenset[str]


@pytest.fixture(scope="module")
def outcomes(originals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Every field of both genuine entries, changed alone."""
    found = []
    for kind, source in originals.items():
        target = tmp_path_factory.mktemp(kind) / "reports" / source.relative_to(source.parents[3])
        shutil.copytree(source, target)
        records = entry.read(target)
        found += [Outcome(place=words(path), change=f"{kind}: {value!r} -> {other!r}", codes=frozenset(refused(records, path, other)))
                  for _, path, value in patterns(records, kind=kind) for other in changed(value)]
    return found


def test_every_field_that_is_changed_alone_is_refused_or_listed(outcomes: list[Outcome]) -> None:
    assert [one for one in outcomes if not one.codes and selfreported.of(one.place) is None] == []


def test_no_field_is_listed_in_vain(outcomes: list[Outcome]) -> None:
    """What is listed and always refused would make readers doubt what they may trust."""
    believed = {selfreported.of(one.place) for one in outcomes if not one.codes}
    assert [one.pattern for one in selfreported.FIELDS if one not in believed] == []


def test_most_fields_are_refused_and_by_more_than_one_rule(outcomes: list[Outcome]) -> None:
    places = {one.place for one in outcomes}
    never_believed = places - {one.place for one in outcomes if not one.codes}
    assert len(places) > 200
    assert len(never_believed) > len(places) / 2
    assert len({code for one in outcomes for code in one.codes}) > 25


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_report_written_read_and_written_again_is_the_same_bytes(originals, tmp_path: Path, data: st.DataObject) -> None:
    raw = json.loads((originals[data.draw(st.sampled_from(["gpu", "cpu"]))] / store.REPORT).read_bytes())
    text = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
    raw["model_title"], raw["environment"]["packages"] = data.draw(text), data.draw(st.dictionaries(text, text, max_size=4))
    raw["trials"][0]["window"]["duration_s"] = data.draw(st.floats(1e-6, 1e9))
    raw["peak_memory_bytes"] = data.draw(st.none() | st.integers(0, 2**53 - 1))
    raw["build"]["steps"] = [data.draw(st.dictionaries(text, st.integers(-2**53 + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False) | text, max_size=3))]
    first = store.write_report(tmp_path, msgspec.convert(raw, Report))
    written = (tmp_path / store.REPORT).read_bytes()
    assert store.write_report(tmp_path, store.read_report(tmp_path / store.REPORT)) == first
    assert (tmp_path / store.REPORT).read_bytes() == written
