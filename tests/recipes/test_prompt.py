"""Virtual tokens that are built into the attention compute what they would before the text, in every engine and with every cache."""

from __future__ import annotations

import msgspec
import pytest
import torch
from tests.recipes.tiny import CALIBRATION, UNSEEN, context, distance, student, to_the_end, write_corpus
from transformers import GPT2Config, GPT2LMHeadModel

from jouleboard import structure, workloads
from jouleboard.engines import fitness, inspect
from jouleboard.errors import RecipeError
from jouleboard.recipes import PromptTuning
from jouleboard.recipes.prompt import build_in, first_prompt

STEP = PromptTuning(corpus="tiny", steps=6, batch_size=2, sequence_tokens=24, learning_rate=5e-2, seed=3, tokens=5)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path)


@pytest.fixture
def prompt():
    return torch.randn(5, 32, generator=torch.Generator().manual_seed(2)) * 0.3


@pytest.fixture
def tuned(prompt):
    found = student()
    build_in(found, prompt)
    return found


def behind(prompt, ids):
    """The logits of the same model where the virtual tokens stand before the text, and are computed with it."""
    plain = student()
    with torch.inference_mode():
        embedded = torch.cat([prompt.expand(len(ids), -1, -1), plain.get_input_embeddings()(ids)], dim=1)
        return plain(inputs_embeds=embedded).logits[:, len(prompt):]


def test_a_text_is_computed_as_behind_its_virtual_tokens(tuned, prompt):
    with torch.inference_mode():
        found = tuned(UNSEEN).logits
        assert torch.allclose(found, behind(prompt, UNSEEN), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found, student()(UNSEEN).logits, atol=1e-2)


def test_padding_and_the_cache_make_no_difference(tuned, prompt):
    wanted = behind(prompt, UNSEEN)
    with torch.inference_mode():
        padded = torch.cat([torch.zeros(3, 4, dtype=torch.int64), UNSEEN], dim=1)
        mask = torch.cat([torch.zeros(3, 4, dtype=torch.int64), torch.ones_like(UNSEEN)], dim=1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        assert torch.allclose(tuned(padded, attention_mask=mask, position_ids=places).logits[:, 4:], wanted, atol=1e-4, rtol=1e-4)
        first = tuned(UNSEEN[:, :10], use_cache=True)
        cache = first.past_key_values
        assert cache.get_seq_length() == 10
        several = tuned(UNSEEN[:, 10:20], past_key_values=cache, use_cache=True).logits
        one = tuned(UNSEEN[:, 20:21], past_key_values=cache, use_cache=True).logits
        assert cache.get_seq_length() == 21
    found = torch.cat([first.logits, several, one], dim=1)
    assert torch.allclose(found, wanted[:, :21], atol=1e-4, rtol=1e-4)


def test_additive_masks_of_packed_batches_see_the_virtual_tokens(tuned, prompt):
    allowed = torch.ones(24, 24, dtype=torch.bool).tril()[None, None].expand(3, 1, 24, 24)
    mask = torch.zeros(3, 1, 24, 24).masked_fill(~allowed, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        assert torch.allclose(tuned(UNSEEN, attention_mask=mask).logits, behind(prompt, UNSEEN), atol=1e-4, rtol=1e-4)


def test_both_engines_may_compute_it_and_the_cache_holds_real_tokens_only(tuned):
    assert fitness.refusal(tuned) is None
    loop = list(workloads.serve(tuned, UNSEEN[:2, :8], 4))
    assert [step.shape for step in loop] == [(2, 1)] * 4
    with torch.inference_mode():
        greedy = tuned.generate(UNSEEN[:2, :8], max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(torch.cat(loop, dim=1), greedy[:, 8:])


def test_both_engines_score_alike(dense_model):
    from tests.test_shared_prefix import engine, requests, small
    from transformers import AutoTokenizer

    from jouleboard.engines.reference import ReferenceLM
    from jouleboard.engines.shared import SharedPrefixLM

    tokenizer, found = AutoTokenizer.from_pretrained(dense_model), small()
    plain = engine(ReferenceLM, found, tokenizer)._loglikelihood_tokens(requests())
    build_in(found, torch.randn(5, 64, generator=torch.Generator().manual_seed(2)))
    reference = engine(ReferenceLM, found, tokenizer)._loglikelihood_tokens(requests())
    shared = engine(SharedPrefixLM, found, tokenizer)._loglikelihood_tokens(requests())
    assert [answer for _, answer in shared] == [answer for _, answer in reference]
    assert [score for score, _ in shared] == pytest.approx([score for score, _ in reference], abs=1e-3)
    assert max(abs(left - right) for (left, _), (right, _) in zip(plain, reference, strict=True)) > 0.1


def test_the_student_comes_nearer_to_the_teacher_by_its_virtual_tokens_alone(corpus):
    found, plain, first = student(), student(), student()
    build_in(first, first_prompt(first, CALIBRATION, 5).detach())
    before = distance(first)
    facts = msgspec.structs.replace(STEP, steps=60).apply(found, context(corpus))
    assert distance(found) < before
    assert facts["last_loss"] < facts["first_loss"]
    own = dict(found.named_parameters())
    assert all(torch.equal(own.pop(name), weight) for name, weight in plain.named_parameters())
    assert {tuple(weight.shape) for weight in own.values()} == {(2, 5, 8)}
    assert facts["trained_parameters"] == 5 * 32
    assert inspect.realised(found, [{"step": "prompt-tuning"} | facts], 3).claims


def test_a_saved_model_is_loaded_with_its_virtual_tokens(tuned, tmp_path):
    tuned.save_pretrained(tmp_path / "saved")
    again = structure.load(str(tmp_path / "saved"), torch.float32)
    assert inspect.fingerprint(again) == inspect.fingerprint(tuned)
    with torch.inference_mode():
        assert torch.equal(again(UNSEEN).logits, tuned(UNSEEN).logits)


def test_a_training_that_was_stopped_gives_the_same_bits(corpus, tmp_path):
    whole = student(torch.bfloat16)
    facts = STEP.apply(whole, context(corpus, torch.bfloat16))
    pieces, again, _ = to_the_end(STEP, corpus, tmp_path / "state", [2, 1], lambda: student(torch.bfloat16))
    assert inspect.fingerprint(pieces) == inspect.fingerprint(whole)
    assert again == facts


def test_a_second_prefix_is_refused(tuned, prompt):
    with pytest.raises(RecipeError, match="has a prefix already"):
        build_in(tuned, prompt)


@pytest.mark.parametrize(("change", "why"), [
    (lambda found: setattr(found.config, "rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "depend on how long"),
    (lambda found: setattr(found.config, "layer_types", ["sliding_attention"] * 3), "another kind than full attention"),
    (lambda found: found.set_attn_implementation("eager"), "is computed by eager"),
])
def test_a_model_that_cannot_have_one_is_refused(corpus, change, why):
    found = student()
    change(found)
    with pytest.raises(RecipeError, match=why):
        STEP.apply(found, context(corpus))


def test_positions_that_are_no_rotations_are_refused(corpus):
    with pytest.raises(RecipeError, match="no rotations"):
        STEP.apply(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64)).eval(), context(corpus))
