"""What the tests of engines outside of torch share: small models, and engines that hold them. An engine that is not installed is skipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest
from tests import test_worker as workers

from jouleboard import recipes

PACKAGES = {"ctranslate2": "ctranslate2", "onnx-genai": "onnxruntime_genai"}
PLAIN = {"ctranslate2": {"weights": "float32"}, "onnx-genai": {"weights": "float32"}}
"""Of each engine: how its step says that nothing is quantised."""


def step(name: str, **words: object):
    """An engine's step."""
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed: pip install 'jouleboard[{name}]'")
    return msgspec.convert({"step": name, **(words or PLAIN[name])}, recipes.TECHNIQUES[name])


def recipe(name: str, **words: object) -> recipes.Recipe:
    """A recipe of that step alone."""
    return recipes.Recipe(id=f"{name}-test", title="", description="", dtype="float32", steps=(step(name, **words),))


def take(folder: Path, name: str, *, threads: int = 1, change=lambda model: None, **words: object):
    """Hand the model in a folder to an engine; returns what took its place, and what was realised."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jouleboard.engines import edge

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        change(model)
    steps = recipes.apply(model, [step(name, **words)], recipes.Context(calibration_ids=torch.zeros(1, 1)))
    return edge.take(model, AutoTokenizer.from_pretrained(folder), steps, threads)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch) -> None:
    """Exports are written below a cache of the test's own."""
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path_factory.getbasetemp() / "exports-cache"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A folder with a three-layer Llama, random weights, and a tokenizer of one token a byte; it does not repeat itself."""
    return workers.make_model(tmp_path_factory.mktemp("tiny-edge"), tie_word_embeddings=False, initializer_range=0.3)


@pytest.fixture(scope="session")
def dense(folder):
    """The same model in torch."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def worded(tmp_path_factory, dense_model) -> Path:
    """A folder with a three-layer Llama, random weights, and the real tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where = tmp_path_factory.mktemp("worded-edge")
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=49152,
        max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.1, bos_token_id=1, eos_token_id=2,
    )).save_pretrained(where)
    AutoTokenizer.from_pretrained(dense_model).save_pretrained(where)
    return where
