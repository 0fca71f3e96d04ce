"""What two configurations differ in, as a person reads it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouleboard import differences

HELD: dict[str, Any] = {
    "energy": {"window_s": 60, "trials": 5},
    "packages": {"torch": "2.12.0", "numpy": "2.1.0"},
    "recipes": ["bf16", "int8", "nf4"],
    "tasks": [[{"id": "piqa", "metrics": ["acc"]}, None], [{"id": "books", "metrics": ["bits_per_byte"]}, 100]],
    "recipe": {"id": "int8", "steps": [{"step": "int8", "group": 32}]},
    "model": {"id": "m", "description": "A long text of words, one after the other." * 4},
    "hardware": {"id": "h", "boundary": None},
    "seed": 7,
}


def changed(**paths: Any) -> dict[str, Any]:
    """Give the configuration with fields set, by path; `__` for a dot."""
    made = copy.deepcopy(HELD)
    for path, value in paths.items():
        *places, last = path.split("__")
        where: Any = made
        for place in places:
            where = where[int(place) if place.isdigit() else place]
        where[int(last) if last.isdigit() else last] = value
    return made


def without(field: str, key: str) -> dict[str, Any]:
    return {**HELD, field: {name: value for name, value in HELD[field].items() if name != key}}


@pytest.mark.parametrize(("wanted", "lines"), [
    (HELD, []),
    (changed(energy__window_s=30), ["energy.window_s: 60 -> 30"]),
    (changed(tasks__1__1=20), ["tasks[1].limit: 100 -> 20"]),
    (changed(tasks__0__1=20), ["tasks[0].limit: null -> 20"]),
    (changed(packages__torch="2.13.0"), ["packages.torch: 2.12.0 -> 2.13.0"]),
    (without("packages", "torch"), ["packages.torch: 2.12.0 -> absent"]),
    (changed(packages__gguf="0.17"), ["packages.gguf: absent -> 0.17"]),
    (changed(recipes=["bf16", "int4", "int8"]), ["recipes: int4 added", "recipes: nf4 removed"]),
    (changed(recipes=["int8", "bf16", "nf4"]), ["recipes: their order differs"]),
    (changed(tasks=HELD["tasks"][1:]), ["tasks: piqa removed"]),
    (changed(tasks=HELD["tasks"][::-1]), ["tasks: their order differs"]),
    (changed(tasks=[[{"id": "piqa", "metrics": ["acc", "acc_norm"]}, None], HELD["tasks"][1]]),
     ["tasks[0].metrics: acc_norm added"]),
    (changed(recipe__steps__0__group=64), ["recipe.steps[0].group: 32 -> 64"]),
    (changed(recipe__steps=[]), ['recipe.steps[0]: {"group": 32, "step": "int8"} -> absent']),
    (changed(hardware__boundary="gpu", seed=8), ["hardware.boundary: null -> gpu", "seed: 7 -> 8"]),
    (changed(seed=7.5), ["seed: 7 -> 7.5"]),
    (changed(seed="7"), ['seed: 7 -> "7"']),
    (changed(hardware="none"), ['hardware: {"boundary": null, "id": "h"} -> none']),
])
def test_golden(wanted, lines):
    assert differences.lines(HELD, wanted) == lines


def test_a_changed_recipe_and_limit_are_named_where_they_stand():
    wanted = changed(energy__window_s=30, tasks__1__1=20, packages__torch="2.13.0", recipes=["bf16", "int8"])
    assert differences.lines(HELD, wanted) == [
        "energy.window_s: 60 -> 30", "packages.torch: 2.12.0 -> 2.13.0", "recipes: nf4 removed", "tasks[1].limit: 100 -> 20"]
    assert differences.fields(HELD, wanted) == ["energy", "packages", "recipes", "tasks"]


def test_long_values_are_shortened_and_show_where_they_part():
    (line,) = differences.lines(HELD, changed(model__description=HELD["model"]["description"] + " And more."))
    assert len(line) < 140
    assert line.endswith("And more.")
    assert line.startswith("model.description: ...")
    (line,) = differences.lines(HELD, changed(model__description="short"))
    assert line == "model.description: A long text of words, one after the other.A l... -> short"


def test_many_are_cut_after_fifteen():
    wanted = changed(packages={f"p{number:02}": "1" for number in range(30)})
    found = differences.lines(HELD, wanted)
    assert len(found) == 16
    assert found[-1] == "and 17 more"
    assert len(differences.lines(HELD, wanted, most=32)) == 32


def test_an_empty_or_strange_note_is_no_crash():
    assert differences.fields({}, HELD) == sorted(HELD)
    assert differences.lines({}, {"tasks": 3}) == ["tasks: absent -> 3"]
    assert differences.lines({"tasks": [[1, 2]]}, {"tasks": []}) == ["tasks[0]: [1, 2] -> absent"]


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                      max_leaves=12)


def test_names_that_would_break_the_line_are_escaped():
    held, wanted = {"a": {}, "recipes": ["\n"]}, {"a": {"\n": None}, "recipes": ["\u2028\u00e9\x7f"]}
    assert differences.lines(held, wanted) == [
        'a."\\n": absent -> null', 'recipes: "\\u2028\\u00e9\\u007f" added', 'recipes: "\\n" removed']


@given(held=st.dictionaries(st.sampled_from(["tasks", "recipes", "a", "b"]), VALUES),
       wanted=st.dictionaries(st.sampled_from(["tasks", "recipes", "a", "b"]), VALUES))
def test_whatever_differs_gets_a_line_and_nothing_else_does(held, wanted):
    found = differences.lines(held, wanted)
    if differences.fields(held, wanted):
        assert found
    assert all(line.isprintable() for line in found)
    assert differences.lines(wanted, wanted) == []


def test_another_node_is_told_with_the_option_that_asks_for_one_kind() -> None:
    held = {**HELD, "processor": "One CPU"}
    found = differences.fields(held, {**held, "processor": "Another CPU"})
    assert "`constraint` in the site file" in differences.remedy(found)
    assert "another kind of node" in differences.remedy(found)
    for others in (["processor", "seed"], ["seed"]):
        assert differences.remedy(others) == "name another folder with --out, or delete this one to measure anew"
