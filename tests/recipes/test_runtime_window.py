"""Sliding windows against attention under an explicit mask, which transformers takes from whoever calls it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests import small

from jouleboard import recipes, workloads
from jouleboard.engines import fitness, inspect, kvcache, readback, running, windowed
from jouleboard.engines.caches import held_tokens
from jouleboard.engines.decoding import Rows
from jouleboard.errors import RecipeError
from jouleboard.recipes import Context, SlidingWindow
from jouleboard.runtime import Runtime, Window

CONTEXT = Context(calibration_ids=torch.arange(64)[None])


@pytest.fixture
def model():
    return small.llama()


def windowed_model(model, window: int, sinks: int):
    """The same weights run with a window, and how they are run."""
    other = copy.deepcopy(model)
    return other, running.install(other, Runtime(window=Window(tokens=window, sinks=sinks)))


def ids_of(model, rows: int, tokens: int) -> torch.Tensor:
    return workloads.probe_ids(model, rows, tokens)


def masked_logits(model, ids: torch.Tensor, window: int, sinks: int) -> torch.Tensor:
    """Logits under a mask that is written down pair by pair."""
    tokens = ids.shape[1]
    seen = np.zeros((tokens, tokens), dtype=bool)
    for query in range(tokens):
        for key in range(query + 1):
            seen[query, key] = query - key < window or key < sinks
    mask = torch.zeros(tokens, tokens).masked_fill(torch.from_numpy(~seen), torch.finfo(torch.float32).min)
    with torch.inference_mode():
        return model(ids, attention_mask=mask[None, None].expand(len(ids), -1, -1, -1)).logits


@pytest.mark.parametrize(("window", "sinks"), [(7, 0), (7, 3), (40, 4), (2, 1)])
@pytest.mark.parametrize("tokens", [30, 150])
def test_logits_are_those_of_attention_under_an_explicit_mask(model, window, sinks, tokens):
    ids = ids_of(model, 2, tokens)
    other, _ = windowed_model(model, window, sinks)
    with torch.inference_mode():
        found, whole = other(ids).logits, model(ids).logits
    assert torch.allclose(found, masked_logits(model, ids, window, sinks), atol=2e-5)
    assert torch.allclose(found, whole, atol=2e-5) == (window >= tokens)


def test_a_prompt_that_is_no_longer_than_the_window_is_computed_as_before(model):
    ids = ids_of(model, 2, 40)
    other, _ = windowed_model(model, 40, 2)
    with torch.inference_mode():
        assert torch.equal(other(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("window", "sinks", "prompt"), [(9, 0, 25), (9, 4, 25), (9, 4, 5), (33, 2, 200)])
def test_decoding_behind_a_cache_sees_what_a_single_pass_would(model, window, sinks, prompt):
    ids = ids_of(model, 2, prompt)
    other, how = windowed_model(model, window, sinks)
    with torch.inference_mode():
        steps = list(workloads.serve(other, ids, 12, how))
    for taken, step in enumerate(steps):
        before = torch.cat([ids, *steps[:taken]], dim=1)
        expected = masked_logits(model, before, window, sinks)[:, -1].argmax(-1, keepdim=True)
        assert torch.equal(step, expected), taken


def test_a_second_piece_of_a_prompt_goes_on_behind_the_first(model):
    ids = ids_of(model, 2, 180)
    other, how = windowed_model(model, 9, 3)
    with torch.inference_mode():
        cache = how.new_cache(other)
        how.logits(other, ids[:, :50], cache)
        found = how.logits(other, ids[:, 50:], cache)
    assert torch.allclose(found, masked_logits(model, ids, 9, 3)[:, 50:], atol=2e-5)


def test_the_cache_keeps_the_first_tokens_and_the_last_and_no_others(model):
    other, how = windowed_model(model, 9, 3)
    cache = how.new_cache(other)
    with torch.inference_mode():
        how.logits(other, ids_of(model, 2, 50), cache)
    assert held_tokens(cache) == 50
    assert {layer.keys.shape[-2] for layer in cache.layers} == {11}
    # 2 x 3 layers x 2 rows x 2 heads x 11 tokens x 16 x 4 bytes, and nothing that a view would hold on to.
    assert kvcache.held_bytes(cache) == 2 * 3 * 2 * 2 * 11 * 16 * 4
    config = other.config
    assert kvcache.need_bytes(config, torch.float32, how.runtime, batch=2, tokens=50) == kvcache.held_bytes(cache)
    assert kvcache.need_bytes(config, torch.float32, how.runtime, batch=2, tokens=10) == 2 * 3 * 2 * 2 * 10 * 16 * 4


def test_a_long_prefill_multiplies_blocks_of_queries_with_the_keys_that_they_see(model, monkeypatch):
    other, _ = windowed_model(model, 20, 4)
    sizes: list[tuple[int, int]] = []
    real = windowed.sdpa_attention_forward

    def counted(module, query, key, *words, **named):
        sizes.append((query.shape[2], key.shape[2]))
        return real(module, query, key, *words, **named)

    monkeypatch.setattr(windowed, "sdpa_attention_forward", counted)
    with torch.inference_mode():
        other(ids_of(model, 1, 300))
    assert sum(queries for queries, _ in sizes) == 3 * 300
    assert max(keys for _, keys in sizes) == 64 + 20 - 1 + 4
    assert sum(queries * keys for queries, keys in sizes) < 3 * 300 * 300 / 3


@pytest.mark.parametrize("sinks", [0, 3])
def test_rows_that_are_padded_on_their_left_are_written_as_each_alone(model, sinks):
    other, how = windowed_model(model, 8, sinks)
    prompts = [ids_of(model, 1, tokens)[0].tolist() for tokens in (5, 30, 17)]

    def written(some: list[list[int]]) -> list[list[int]]:
        rows = Rows(other, pad=0, running=how)
        with torch.inference_mode():
            rows.join(some)
            found = [rows.tokens]
            for _ in range(10):
                rows.step()
                found.append(rows.tokens)
        return torch.cat(found, dim=1).tolist()

    assert written(prompts) == [written([prompt])[0] for prompt in prompts]


def test_decode_loops_begin_again_behind_the_prompt(model):
    other, how = windowed_model(model, 8, 2)
    decode = workloads.Decode(other, ids_of(model, 2, 30), 6, how)
    with torch.inference_mode():
        first, second = (torch.cat(list(decode.loop()), dim=1) for _ in range(2))
        served = torch.cat(list(workloads.serve(other, ids_of(model, 2, 30), 7, how)), dim=1)
    assert torch.equal(first, second)
    assert torch.equal(first, served[:, 1:])


def test_the_step_says_what_it_is_and_is_read_back(model):
    step = SlidingWindow(window=8, sinks=2)
    recipe = recipes.Recipe(id="w", title="w", description="w", dtype="float32", steps=(step,))
    steps = recipes.apply(model, recipe.steps, CONTEXT)
    how = running.install(model, recipes.runtime(recipe, steps))
    assert "sliding_window is 8" in inspect.realised(model, steps, 3).claims
    found = readback.read(model, how, CONTEXT.calibration_ids[0], [])
    assert found["window"].facts == {"kept_tokens": 9}
    assert found["window"].claims == ["3 layers keep 9 of 73 tokens"]
    assert fitness.refusal(model, running=how) == "its attention has a sliding window of 8 tokens"


def test_a_cache_that_forgets_nothing_fails_the_claim(model, monkeypatch):
    other, how = windowed_model(model, 8, 2)
    monkeypatch.setattr(windowed.WindowLayer, "_kept", lambda _self, held: held)
    with pytest.raises(RecipeError, match="tokens that the cache keeps"):
        readback.read(other, how, CONTEXT.calibration_ids[0], [])


def test_a_window_as_long_as_the_context_is_refused(model):
    other, how = windowed_model(model, 512, 0)
    with pytest.raises(RecipeError, match="changes nothing in a context of 512"):
        readback.read(other, how, CONTEXT.calibration_ids[0], [])


def test_a_model_that_has_windows_already_is_refused():
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100, sliding_window=8,
    ))
    with pytest.raises(RecipeError, match="not of full attention"):
        running.install(model, Runtime(window=Window(tokens=4, sinks=0)))
