"""Entries in a notebook and as tables: typed, complete, with None where nothing was measured."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from jouleboard import cli, costs, export, reader, store
from jouleboard.errors import DataFileError
from jouleboard.tables import Record
from tests import factory, genuine


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Two published entries, and one that does not pass."""
    (tmp_path / "reports").mkdir()
    genuine.publish(tmp_path / "reports")
    return tmp_path / "reports"


def spoil(reports: Path) -> None:
    path = next(store.find_reports(reports))
    path.write_text(path.read_text().replace('"plan": "full"', '"plan": "fast"'))


def test_sound_entries_are_read_and_what_is_wrong_with_others_is_told(reports: Path) -> None:
    assert [entry.report.recipe for entry in reader.read(reports)] == [genuine.BASE, genuine.INT8]
    assert reader.problems(str(reports)) == []
    spoil(reports)
    assert [entry.report.recipe for entry in reader.read(str(reports))] == [genuine.INT8]
    assert {problem.code for problem in reader.problems(reports)} >= {"digest"}


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(DataFileError, match="does not exist"):
        reader.read("nowhere")


def test_a_row_is_one_entry_cell_and_task(reports: Path) -> None:
    rows = reader.records(reader.read(reports))
    assert [(row.recipe, row.workload, row.batch, row.task) for row in rows] == [
        (recipe, "chat", genuine.BATCH, task) for recipe in (genuine.BASE, genuine.INT8) for task in genuine.METRICS]
    entry = reader.read(reports)[0]
    trials = entry.report.trials
    assert rows[0].joules_per_request == pytest.approx(sum(costs.request_cost(one, cpu_time=False) or 0 for one in trials) / len(trials))
    assert (rows[0].trials, rows[0].trials_void, rows[0].estimate_j_per_ktoken, rows[0].trust) == (5, 0, None, "L1")
    score = entry.report.tasks[0].scores["acc_norm"]
    assert score is not None
    assert (rows[0].score, rows[0].score_stderr, rows[0].items) == (score.value, score.stderr, 24)


def test_what_was_withheld_or_not_measured_is_empty(tmp_path: Path) -> None:
    factory.family(tmp_path, n=20, specs=(factory.SPECS[0], factory.SPECS[3]))
    rows = reader.records(reader.read(tmp_path))
    withheld = [row for row in rows if row.recipe == "nf4"]
    assert {row.score for row in withheld} == {None}
    assert {row.withheld for row in withheld} == {"base-grid"}
    assert {row.joules_per_ktoken for row in rows} == {row.joules_per_request for row in rows} == {None}
    assert all(row.cpu_s_per_ktoken and row.estimate_j_per_ktoken for row in rows)


def test_tables_of_pandas_have_all_columns_even_without_rows(reports: Path) -> None:
    entries = reader.read(reports)
    table = reader.frame(entries)
    assert list(table.columns) == list(Record.__struct_fields__)
    assert len(table) == 6
    assert list(reader.frame([]).columns) == list(table.columns)
    items = reader.items(entries[0])
    assert len(items) == sum(genuine.LIMITS.values())
    assert items.loc[0, "scores"].keys() == {"acc", "acc_norm"}


def test_csv_json_and_parquet_hold_the_same_rows(reports: Path, tmp_path: Path) -> None:
    rows = reader.records(reader.read(reports))
    for kind in export.FORMATS:
        assert cli.main(["export", "--reports", str(reports), "--format", kind, "--out", str(tmp_path / f"t.{kind}")]) == 0
    read = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["score"] for row in read] == [repr(row.score) for row in rows]
    assert [row["estimate_j_per_ktoken"] for row in read] == [""] * 6
    assert [Record(**row) for row in json.loads((tmp_path / "t.json").read_bytes())] == rows
    table = pd.read_parquet(tmp_path / "t.parquet")
    assert list(table.columns) == list(Record.__struct_fields__)
    assert list(table["joules_per_request"]) == [row.joules_per_request for row in rows]
    assert str(table["estimate_j_per_ktoken"].dtype) == "float64"


def test_the_same_entries_give_the_same_bytes(reports: Path) -> None:
    rows = reader.records(reader.read(reports))
    for write in export.FORMATS.values():
        assert write(rows) == write(list(rows))


def test_an_entry_that_does_not_pass_is_left_out_and_told_of(reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(reports)
    assert cli.main(["export", "--reports", str(reports), "--out", str(tmp_path / "t.csv")]) == 1
    assert "left out" in capsys.readouterr().err
    assert {row["recipe"] for row in csv.DictReader((tmp_path / "t.csv").open())} == {genuine.INT8}


def test_a_binary_table_is_not_for_the_terminal(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--reports", str(reports), "--format", "parquet"]) == 2
    assert "--out" in capsys.readouterr().err
    assert cli.main(["export", "--reports", str(reports)]) == 0
    assert capsys.readouterr().out.count("\n") == 7


def test_no_text_is_a_formula_to_a_spreadsheet(reports: Path) -> None:
    rows = reader.records(reader.read(reports))
    evil = [Record(**{name: getattr(rows[0], name) for name in Record.__struct_fields__} | {"provisional": "=HYPERLINK(1)"})]
    (row,) = csv.DictReader(io.StringIO(export.as_csv(evil).decode()))
    assert row["provisional"] == "'=HYPERLINK(1)"
