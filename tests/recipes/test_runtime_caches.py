"""Caches of fixed length and in few bits: the same tokens, or tokens within the grid, and the bytes that are claimed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import small
from transformers.cache_utils import StaticLayer

from jouleboard import workloads
from jouleboard.engines import fitness, kvcache, memory, quantised, readback, running
from jouleboard.engines.caches import held_tokens
from jouleboard.engines.decoding import Rows
from jouleboard.engines.quantised import dequantise, quantise
from jouleboard.engines.running import Running
from jouleboard.errors import RecipeError, UnitError
from jouleboard.runtime import Fixed, Quantised, Runtime

FIXED = Running(runtime=Runtime(cache=Fixed()))
TEXT = torch.arange(64)


@pytest.fixture
def model():
    return small.llama()


def few_bits(bits: int, recent: int = 8, group_size: int = 16) -> Running:
    return Running(runtime=Runtime(cache=Quantised(bits=bits, group_size=group_size, recent=recent)))


def served(model, how: Running, *, rows: int = 3, prompt: int = 20, tokens: int = 12) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(list(workloads.serve(model, workloads.probe_ids(model, rows, prompt), tokens, how)), dim=1)


def written(model, how: Running, lengths: list[int], steps: int = 10) -> list[list[int]]:
    """What rows of some lengths are answered, decoded together."""
    prompts = [workloads.probe_ids(model, 1, length)[0].tolist() for length in lengths]
    rows = Rows(model, pad=0, running=how, most=steps)
    with torch.inference_mode():
        rows.join(prompts)
        found = [rows.tokens]
        for _ in range(steps - 1):
            rows.step()
            found.append(rows.tokens)
    return torch.cat(found, dim=1).tolist()


def test_a_cache_of_fixed_length_gives_the_tokens_of_a_growing_one(model):
    assert torch.equal(served(model, FIXED), served(model, Running()))
    assert len(set(served(model, FIXED).flatten().tolist())) > 3


def test_rows_in_a_cache_of_fixed_length_are_written_as_in_a_growing_one(model):
    assert written(model, FIXED, [5, 30, 17]) == written(model, Running(), [5, 30, 17])


def test_rows_that_leave_a_cache_of_fixed_length_leave_the_others_as_they_are(model):
    prompts = [workloads.probe_ids(model, 1, length)[0].tolist() for length in (5, 30, 17)]
    rows = Rows(model, pad=0, running=FIXED, most=10)
    with torch.inference_mode():
        rows.join(prompts)
        assert not rows.can_grow()
        rows.step()
        rows.keep([2])
        found = [rows.tokens]
        for _ in range(4):
            rows.step()
            found.append(rows.tokens)
    assert torch.cat(found, dim=1).tolist()[0] == written(model, Running(), [17])[0][1:6]


@pytest.mark.parametrize("how", [FIXED, few_bits(4)])
def test_decode_loops_begin_again_behind_the_prompt(model, how):
    decode = workloads.Decode(model, workloads.probe_ids(model, 3, 20), 11, how)
    with torch.inference_mode():
        first, second = (torch.cat(list(decode.loop()), dim=1) for _ in range(2))
        broken = decode.loop()
        next(broken)
        third = torch.cat(list(decode.loop()), dim=1)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert torch.equal(first, served(model, how)[:, 1:])


def test_decoding_from_a_cache_in_few_bits_without_going_back_would_give_other_tokens(model):
    decode = workloads.Decode(model, workloads.probe_ids(model, 3, 20), 11, few_bits(4))
    with torch.inference_mode():
        first = torch.cat(list(decode.loop()), dim=1)
        decode._cut_back = lambda: None
        assert not torch.equal(torch.cat(list(decode.loop()), dim=1), first)


def test_a_cache_that_cannot_be_cut_back_is_refused_in_words(model):
    cache = workloads.new_cache(model)
    with torch.inference_mode():
        workloads.advance(model, workloads.probe_ids(model, 1, 8), cache)
        mark = kvcache.Mark(cache)
        workloads.advance(model, workloads.probe_ids(model, 1, 2), cache)

    def no(_tokens: int) -> None:
        raise RuntimeError("it forgets")

    cache.layers[1].crop = no
    mark._layers = [no]
    with pytest.raises(UnitError, match="cannot be cut back to the prompt: it forgets"):
        mark.restore()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_to_the_nearest_value_of_each_groups_own_grid(bits):
    values = torch.randn(2, 3, 5, 32) * torch.logspace(-3, 3, 5)[:, None]
    codes = quantise(values, bits=bits, group_size=8)
    groups = values.numpy().reshape(2, 3, 5, 4, 8)
    least, step = groups.min(-1, keepdims=True), np.ptp(groups, axis=-1)[..., None] / (2**bits - 1)
    expected = (np.round((groups - least) / step) * step + least).reshape(2, 3, 5, 32)
    assert codes.packed.shape == (2, 3, 5, 32 * bits // 8)
    found = dequantise(codes, bits=bits, group_size=8).numpy()
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert (np.abs(found - values.numpy()).reshape(groups.shape) <= step * 0.5001 + 1e-6).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_come_back_as_they_were_packed(bits):
    codes = torch.randint(0, 2**bits, (1, 2, 3, 16), dtype=torch.uint8)
    assert torch.equal(quantised._unpack(quantised._pack(codes, bits), bits), codes)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_values_that_are_all_alike_come_back_exactly(value):
    values = torch.full((1, 1, 2, 16), value, dtype=torch.bfloat16)
    assert torch.equal(dequantise(quantise(values, bits=2, group_size=16), bits=2, group_size=16), values)


def test_bfloat16_scales_lose_at_most_one_step():
    values = torch.randn(1, 2, 50, 64).to(torch.bfloat16)
    for bits in (2, 4, 8):
        found = dequantise(quantise(values, bits=bits, group_size=32), bits=bits, group_size=32)
        groups = values.float().reshape(1, 2, 50, 2, 32)
        step = (groups.amax(-1) - groups.amin(-1))[..., None] / (2**bits - 1)
        assert ((found.float().reshape(groups.shape) - groups).abs() <= step + groups.abs() / 128).all()


def test_the_newest_tokens_stay_as_they_are_and_older_ones_are_rounded():
    layer = quantised.QuantisedLayer(bits=4, group_size=8, recent=5)
    keys, values = torch.randn(2, 2, 12, 16), torch.randn(2, 2, 12, 16)
    seen, _ = layer.update(keys[:, :, :9], values[:, :, :9])
    # A prefill sees its own tokens as they are.
    assert torch.equal(seen, keys[:, :, :9])
    for place in range(9, 12):
        seen, seen_values = layer.update(keys[:, :, place : place + 1], values[:, :, place : place + 1])
        old = place - 5
        for found, real in ((seen, keys), (seen_values, values)):
            assert torch.equal(found[:, :, old:], real[:, :, old : place + 1])
            expected = dequantise(quantise(real[:, :, :old], bits=4, group_size=8), bits=4, group_size=8)
            assert torch.equal(found[:, :, :old], expected)
        assert layer.get_seq_length() == place + 1


def test_eight_bits_and_recent_tokens_longer_than_the_text_give_the_tokens_of_a_plain_cache(model):
    plain = served(model, Running())
    assert torch.equal(served(model, few_bits(2, recent=40)), plain)
    # Rounding is fine enough for nearly all of them.
    assert float((served(model, few_bits(8)) == plain).float().mean()) > 0.9
    assert not torch.equal(served(model, few_bits(2, recent=0)), plain)


def test_rows_decoded_together_in_few_bits_are_written_as_each_alone(model):
    how = few_bits(8)
    assert written(model, how, [5, 30, 17]) == [written(model, how, [length])[0] for length in (5, 30, 17)]


@pytest.mark.parametrize(("how", "prompt", "output"), [(FIXED, 30, 7), (few_bits(4), 30, 7), (few_bits(8, recent=0), 30, 7), (few_bits(2), 3, 2)])
def test_the_estimate_of_the_cache_is_what_a_cache_really_takes(model, how, prompt, output):
    cache = workloads.new_cache(model, how, tokens=prompt + output)
    with torch.inference_mode():
        row = workloads.advance(model, workloads.probe_ids(model, 5, prompt), cache, how)
        for _ in range(output):
            row = workloads.advance(model, row, cache, how)
    wanted = memory.need(model, torch.float32, batch=5, prompt_tokens=prompt, output_tokens=output, runtime=how.runtime)
    unpacked = 5 * kvcache.bytes_a_token(model.config, torch.float32) * (prompt + output) // 3
    scratch = unpacked if isinstance(how.runtime.cache, Quantised) else 0
    assert wanted.cache_bytes == kvcache.held_bytes(cache) + scratch


def test_four_bits_with_groups_of_16_take_six_of_32(model):
    # Codes of 4 bits; a scale and a least value of 32 bits for 16 values.
    assert kvcache.bytes_a_token(model.config, torch.float32) == 2 * 3 * 2 * 16 * 4
    assert kvcache.bytes_a_token(model.config, torch.float32, few_bits(4).runtime) == 2 * 3 * 2 * (16 // 2 + 2 * 4)


def test_what_a_cache_takes_is_read_back(model):
    found = readback.read(model, few_bits(4), TEXT, [])["cache"]
    assert found.facts["cache_bytes_a_token"] == 192
    assert found.facts["dense_cache_bytes_a_token"] == 768
    assert found.claims == ["a token takes 192 bytes in the key-value cache instead of 768, all but the newest 8"]
    assert readback.read(model, FIXED, TEXT, [])["cache"].claims == ["the key-value cache has a fixed length, 768 bytes a token"]
    assert readback.read(model, Running(), TEXT, []) == {}


def test_a_cache_that_rounds_nothing_fails_the_claim(model, monkeypatch):
    monkeypatch.setattr(quantised, "quantise", lambda values, **_words: quantised.Codes(
        packed=values, scale=torch.ones_like(values[..., :1]), least=torch.zeros_like(values[..., :1])))
    monkeypatch.setattr(quantised, "dequantise", lambda codes, **_words: codes.packed)
    with pytest.raises(RecipeError, match="bytes of a token in the cache: 192 claimed"):
        readback.read(model, few_bits(4), TEXT, [])


def test_a_cache_that_grows_fails_the_claim_of_a_fixed_length(model, monkeypatch):
    monkeypatch.setattr(kvcache, "new", lambda some, *_words, **_named: workloads.kvcache.DynamicCache(config=some.config))
    with pytest.raises(RecipeError, match="StaticLayer claimed, DynamicLayer found"):
        readback.read(model, FIXED, TEXT, [])


def test_a_fixed_cache_holds_no_tokens_before_it_is_filled(model):
    cache = workloads.new_cache(model, FIXED, tokens=30)
    assert held_tokens(cache) == 0
    assert all(type(layer) is StaticLayer for layer in cache.layers)


def test_groups_that_do_not_divide_a_head_are_refused(model):
    with pytest.raises(RecipeError, match="heads of 16 do not divide into groups of 12"):
        running.install(model, few_bits(4, group_size=12).runtime)


def test_models_that_keep_more_than_keys_and_values_are_refused():
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100, sliding_window=8,
    ))
    for how in (FIXED, few_bits(4, group_size=8)):
        with pytest.raises(RecipeError, match="DynamicSlidingWindowLayer"):
            running.install(model, how.runtime)


def test_scoring_does_not_go_through_these_caches(model):
    assert fitness.refusal(model, running=FIXED) is None
    assert fitness.refusal(model, running=few_bits(2)) is None
