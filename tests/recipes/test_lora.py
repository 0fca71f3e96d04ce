"""Low-rank updates are trained beside the weights and merged: the model that is left computes the same, without them."""

from __future__ import annotations

import msgspec
import pytest
import torch
from tests.recipes.tiny import UNSEEN, context, distance, student, to_the_end, write_corpus
from transformers import AutoModelForCausalLM

from jouleboard.engines import inspect
from jouleboard.recipes import LoraRecovery
from jouleboard.recipes.lora import inject

STEP = LoraRecovery(corpus="tiny", steps=6, batch_size=2, sequence_tokens=24, learning_rate=5e-3, seed=3, rank=4)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path)


def test_merged_weights_compute_what_the_updates_beside_them_did():
    found = student()
    tuner = inject(found, rank=4, scale=2.0, seed=1)
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    with torch.inference_mode():
        beside = found(UNSEEN).logits.clone()
    tuner.merge_and_unload()
    with torch.inference_mode():
        merged = found(UNSEEN).logits
    assert torch.allclose(merged, beside, atol=1e-5, rtol=1e-5)


def test_before_the_training_nothing_is_changed():
    found = student()
    with torch.inference_mode():
        before = found(UNSEEN).logits.clone()
    inject(found, rank=4, scale=2.0, seed=1)
    with torch.inference_mode():
        assert torch.equal(found(UNSEEN).logits, before)


def test_the_student_comes_nearer_to_the_teacher_and_is_a_plain_model_again(corpus, tmp_path):
    found, plain = student(), student()
    before = distance(found)
    facts = msgspec.structs.replace(STEP, steps=40).apply(found, context(corpus))
    assert facts["last_loss"] < facts["first_loss"]
    assert distance(found) < before
    assert [name for name, _ in found.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert facts["merged_layers"] == 21
    assert facts["trained_parameters"] == sum(4 * (module.in_features + module.out_features) for name, module in found.named_modules()
                                              if isinstance(module, torch.nn.Linear) and name != "lm_head")
    assert all(weight.requires_grad for weight in found.parameters())
    found.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert inspect.fingerprint(again) == inspect.fingerprint(found)


def test_without_a_teacher_it_learns_the_text(corpus):
    step = msgspec.structs.replace(STEP, alpha=1.0, steps=20)
    facts = step.apply(student(), context(corpus))
    assert facts["last_loss"] < facts["first_loss"]
    assert facts["tokens"] == 20 * 2 * 24


@pytest.mark.parametrize("stop_after", [[2], [1, 3]])
def test_a_training_that_was_stopped_gives_the_same_bits(corpus, tmp_path, stop_after):
    whole = student(torch.bfloat16)
    facts = STEP.apply(whole, context(corpus, torch.bfloat16))
    pieces, again, _ = to_the_end(STEP, corpus, tmp_path / "state", stop_after, lambda: student(torch.bfloat16))
    assert inspect.fingerprint(pieces) == inspect.fingerprint(whole)
    assert again == facts


def test_what_is_random_elsewhere_stays_as_it_is():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    inject(student_without_reseeding(), rank=2, scale=1.0, seed=1)
    assert torch.equal(torch.rand(3), expected)


def student_without_reseeding():
    with torch.random.fork_rng(devices=[]):
        return student()


def test_without_the_package_it_says_which_extra_brings_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else name)
    assert STEP.missing("cpu") == "the package peft is not installed (pip install 'jouleboard[train]')"
