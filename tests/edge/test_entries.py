"""Entries whose recipe brought its own engine: they stand beside their base, say so truthfully, and are what they claim."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests import factory
from tests.edge.conftest import recipe

from jouleboard import gates, placing, residency, store
from jouleboard.check_grid import check_engine
from jouleboard.problems import at
from jouleboard.records import Engine, Report

BESIDE = ("transformers", "5.13.1")
STEP = {"step": "ctranslate2", "weights": "int8"}


@pytest.fixture
def reports() -> list[Report]:
    """A base, and a variant of the same family that CTranslate2 computed."""
    base, variant, *_ = [entry.report for entry in factory.family(n=10)]
    engine = msgspec.structs.replace(variant.engine, name="ctranslate2", version="4.8.5", dtype="float32", beside=BESIDE)
    return [base, msgspec.structs.replace(variant, engine=engine, build=msgspec.structs.replace(variant.build, steps=(STEP,)))]


def boards(report: Report) -> set[str]:
    return {place.key for place in placing.places([report])[0]}


def test_it_stands_on_the_boards_of_the_plans_engine_and_so_do_others(reports):
    """The engine is a column of a board: what a request costs on a machine is asked of all of them."""
    base, variant = reports
    assert boards(variant) == boards(base)
    assert placing.family(variant) == placing.family(base)
    for beside in (None, ("transformers", "5.12.0")):
        other = msgspec.structs.replace(variant, engine=msgspec.structs.replace(variant.engine, beside=beside))
        assert boards(other) == boards(base)


def problems(report: Report) -> list[str]:
    return [problem.field for problem in check_engine(report, at(Path("report.json")))]


def test_it_brought_its_engine_by_a_step_or_else_stands_alone(reports):
    base, variant = reports
    assert problems(base) == problems(variant) == []
    pretends = msgspec.structs.replace(base, engine=msgspec.structs.replace(base.engine, beside=BESIDE))
    conceals = msgspec.structs.replace(variant, engine=msgspec.structs.replace(variant.engine, beside=None))
    assert problems(pretends) == problems(conceals) == ["engine.beside"]


def test_the_engines_of_other_entries_are_written_as_before(reports):
    base, variant = reports
    assert b"beside" not in store.canonical(base.engine)
    assert msgspec.json.decode(store.canonical(variant.engine), type=Engine) == variant.engine


@pytest.mark.parametrize(("dtypes", "bytes_", "status"), [
    ({"float32": 1_000_000, "int8": 134_515_008}, 135_515_008, "pass"), ({"float32": 538_060_032}, 538_060_032, "fail"),
])
def test_int8_weights_that_an_engine_stored_as_float32_are_found(reports, dtypes, bytes_, status):
    _, variant = reports
    realised = factory.realised(dtypes=dtypes, weight_bytes=bytes_, quantised_tensors=210 if status == "pass" else 0)
    built = msgspec.structs.replace(variant, realised=realised)
    (gate,) = [gate for gate in gates.evaluate(built, []) if gate.name == "realised"]
    assert gate.status == status


def test_an_export_needs_room_for_two_models():
    need = residency.need(recipe("ctranslate2", weights="int8"), 10**9)
    assert need == residency.Need(building_bytes=8 * 10**9, resident_bytes=10**9)
