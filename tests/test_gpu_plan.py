"""The plan `gpu` runs unattended in pieces, here on the SIMULATED GPU with a tiny random model in the place of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jouleboard import check, store
from jouleboard.paths import data_folder
from tests.conftest import jouleboard

pytestmark = pytest.mark.slow
MORE_TO_DO = 3


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """The plan as it stands, with shorter windows, fewer trials and a smaller large batch."""
    plan = yaml.safe_load((data_folder("plans") / "gpu.yaml").read_text())
    plan["energy"] |= {"window_s": 0.5, "trials": 3, "first_warmup_s": 0.1, "warmup_s": 0.1, "jitter_s": 0.1, "idle_s": 2,
                       "canary_s": 0.5, "live_items": 4, "probe_window_s": 0.3, "replay_tokens": 500}
    plan["energy"]["cells"] = [{"workload": "agent", "batch": 1}, {"workload": "agent", "batch": 2}]
    plan["prefill"] = {"tokens": [128], "batches": [1, 2]}
    plan["decode"] = {"prompt_tokens": [128], "tokens": 8, "batches": [1, 2]}
    # One variant: what is tried here are the pieces.
    plan["recipes"] = ["bf16", "int8-weight-only"]
    path = tmp_path / "gpu-small.yaml"
    path.write_text(yaml.safe_dump(plan | {"id": "gpu-small", "threads": 1}))
    return path


def test_the_plan_goes_on_piece_by_piece_and_everything_says_simulated(
    plan_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    codes, texts = [], []
    # How many pieces it takes depends on the machine; `test_energy` cuts a session at every window.
    for _ in range(8):
        done = jouleboard("run", plan_file, "--hardware", "simulated-gpu", "--model", tiny_folder, "--limit", 6,
                          "--stop-after", 2, "--out", out)
        codes.append(done.returncode)
        texts.append(done.stdout + done.stderr)
        if done.returncode != MORE_TO_DO:
            break
    assert codes[-1] == 0, texts[-1]
    assert all("SIMULATED" in text for text in texts)
    found = check.check_paths([out])
    assert found.problems == []
    reports = [entry.report for entry in found.entries]
    assert {report.status for report in reports} == {"complete"}
    assert len({report.session for report in reports}) == 1
    for report in reports:
        assert report.method == "simulated"
        assert {(trial.workload, trial.batch) for trial in report.trials} == {("agent", 1), ("agent", 2)}
        assert all(trial.window.energy.measured_j for trial in report.trials if trial.void is None)
        assert "SIMULATED" in (out / report.model / report.recipe / store.REPORT).read_text()
    (tmp_path / "reports").mkdir()
    refused = jouleboard("submit", out, "--reports", tmp_path / "reports")
    assert refused.returncode == 2
    assert "SIMULATED" in refused.stderr
    assert not list((tmp_path / "reports").rglob("report.json"))
    site = jouleboard("build", "--reports", out, "--out", tmp_path / "site")
    assert site.returncode == 0, site.stderr
    # Every page that shows something of the device; the others speak of tasks, methods and claims, and of no simulated figure.
    pages = [path for path in (tmp_path / "site").rglob("index.html") if {"boards", "entries", "families", "hardware"} & set(path.parts)
             or path.parent.name in {"site", "zh"}]
    assert len(pages) > 2 * len(reports)
    assert all("SIMULATED" in path.read_text() for path in pages)
