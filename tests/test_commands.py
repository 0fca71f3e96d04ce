"""A family that cannot be run does not take the others of a run with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import commands, outcome, run
from jouleboard.assemble import Progressed
from jouleboard.errors import (
    DataFileError,
    HardwareError,
    JouleboardError,
    MeterError,
    OutOfTimeError,
    PlanError,
    SourceError,
    StorageError,
    TooLargeError,
    UnitError,
)
from jouleboard.outcome import Exit
from jouleboard.plan import Family
from tests.fake_session import family_of

OPTIONS = commands.RunOptions(plan=None, model=None, recipes=(), tasks=(), limit=None, hardware=None, out=None, dry_run=False)


def families(*names: str) -> list[Family]:
    one = family_of()
    return [dataclasses.replace(one, model=msgspec.structs.replace(one.model, id=name)) for name in names]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, JouleboardError | None]:
    """Give the error that each family ends with; those that were begun are moved to the end."""
    errors: dict[str, JouleboardError | None] = {}

    def run_family(family: Family, *_more: Any, **_words: Any) -> list[Progressed]:
        error = errors.pop(family.model.id, None)
        errors[family.model.id] = error
        if error is not None:
            raise error
        return [Progressed(recipe=recipe, complete=True) for recipe in family.recipes]

    monkeypatch.setattr(run, "run_family", run_family)
    return errors


@pytest.mark.parametrize("error", [
    SourceError("the registry did not give it", remedy="connect"), DataFileError("cut short"), UnitError("it died", kind="crash"),
    TooLargeError("no memory"), MeterError("no reading"),
])
def test_the_families_after_one_that_could_not_be_run_are_run_and_it_is_named_at_the_end(
    error: JouleboardError, ran: dict[str, JouleboardError | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran["two"] = error
    assert commands._in_this_process(OPTIONS, families("one", "two", "three"), tmp_path) == Exit.FAILED
    assert list(ran) == ["one", "two", "three"]
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert f"unfinished: two: {error.problem}" in lines
    assert ("  remedy: connect" in lines) is (error.remedy is not None)
    assert f"6 of 9 variants are complete in {tmp_path}" in lines
    assert error.problem in said.err


def test_the_first_may_fail_too_and_an_earlier_complete_entry_is_no_success_of_this_run(
    ran: dict[str, JouleboardError | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran["one"] = SourceError("gone")
    monkeypatch.setattr(outcome, "stored", lambda model, recipes, _out: [
        outcome.Result(model=model, recipe=recipe, complete=True) for recipe in recipes])
    assert commands._in_this_process(OPTIONS, families("one", "two"), tmp_path) == Exit.FAILED


def test_where_no_family_could_be_run_the_exit_code_is_2(
    ran: dict[str, JouleboardError | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran.update(one=SourceError("gone"), two=UnitError("dead"))
    assert commands._in_this_process(OPTIONS, families("one", "two"), tmp_path) == Exit.MENDABLE
    said = capsys.readouterr().out
    assert "unfinished: one: gone" in said
    assert "unfinished: two: dead" in said


def test_of_a_single_family_the_error_is_the_runs(ran: dict[str, JouleboardError | None], tmp_path: Path) -> None:
    ran["one"] = SourceError("gone")
    with pytest.raises(SourceError):
        commands._in_this_process(OPTIONS, families("one"), tmp_path)


@pytest.mark.parametrize("error", [StorageError("full"), PlanError("another configuration"), HardwareError("another device")])
def test_what_holds_for_all_families_ends_the_run(
    error: JouleboardError, ran: dict[str, JouleboardError | None], tmp_path: Path
) -> None:
    ran["one"] = error
    with pytest.raises(type(error)):
        commands._in_this_process(OPTIONS, families("one", "two"), tmp_path)
    assert "two" not in ran


def test_a_deadline_ends_the_run_and_a_family_that_failed_before_is_still_named(
    ran: dict[str, JouleboardError | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran.update(one=SourceError("gone"), two=OutOfTimeError("over"))
    assert commands._in_this_process(OPTIONS, families("one", "two", "three"), tmp_path) == Exit.MORE_TO_DO
    assert "three" not in ran
    assert "unfinished: one: gone" in capsys.readouterr().out
