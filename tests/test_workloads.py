"""Whole loops, exact token counts, fresh caches: the measured work itself, on a random model."""

from __future__ import annotations

import hashlib
import mmap
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jouleboard import hostmemory, workloads
from jouleboard.engines import caches, canary, memory

CPU = torch.device("cpu")
CANARY_1 = "96b565c4a92fd3d48ddf14d8502cd4bd3257bc672f3861997a8147024e7974ef"


@pytest.fixture
def model(tiny_model):
    """Float32: batched and stepwise passes then agree in their tokens."""
    return tiny_model.float()


@pytest.fixture
def prompts(model):
    return workloads.probe_ids(model, 3, 20)


def pieces_of(loop) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(loop)


def run(loop, *, window_s: float = 0.0, stepwise: bool = True) -> workloads.Looped:
    return workloads.run(loop, CPU, go=lambda: None, window_s=window_s, stepwise=stepwise)


def digest(tokens: torch.Tensor) -> str:
    return hashlib.sha256(tokens.to(torch.int32).contiguous().numpy().tobytes()).hexdigest()


def generated(model, prompts: torch.Tensor, tokens: int) -> torch.Tensor:
    """Greedy tokens by transformers' own `generate`, shape [batch, tokens]."""
    whole = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens,
        eos_token_id=None, pad_token_id=0,
    )
    return whole[:, prompts.shape[1]:]


def ticking(monkeypatch, step_s: float) -> None:
    """Let each reading of the clock be later by `step_s`."""
    now_s = iter(np.arange(0, 1e6, step_s).tolist())
    monkeypatch.setattr(workloads, "time", SimpleNamespace(perf_counter=lambda: next(now_s)))


def test_serving_gives_exactly_the_greedy_tokens_of_transformers_generate(model, prompts):
    served = torch.cat(pieces_of(workloads.serve(model, prompts, 12)), dim=1)
    assert served.shape == (3, 12)
    assert torch.equal(served, generated(model, prompts, 12))
    assert len(set(served.flatten().tolist())) > 3


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_a_prefill_and_one_step_less_than_the_output_are_computed(model, prompts, tokens):
    fed: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _module, args, _kwargs: fed.append(tuple(args[0].shape)), with_kwargs=True)
    assert len(pieces_of(workloads.serve(model, prompts, tokens))) == tokens
    assert fed == [(3, 20)] + [(3, 1)] * (tokens - 1)


def test_stop_tokens_are_not_heeded(model, prompts):
    first = pieces_of(workloads.serve(model, prompts, 1))[0]
    model.config.eos_token_id = model.generation_config.eos_token_id = int(first[0, 0])
    assert len(pieces_of(workloads.serve(model, prompts, 9))) == 9


def test_the_digest_covers_the_output_tokens_sequence_by_sequence(model, prompts):
    found = run(lambda: workloads.serve(model, prompts, 6))
    assert found.output_sha256 == digest(generated(model, prompts, 6))
    again = run(lambda: workloads.serve(model, prompts, 6))
    assert again.output_sha256 == found.output_sha256
    other = workloads.probe_ids(model, 3, 21)
    assert run(lambda: workloads.serve(model, other, 6)).output_sha256 != found.output_sha256


@pytest.mark.parametrize("window_s", [0.0, 10.0, 31.0])
def test_loops_go_on_until_the_window_is_long_enough_and_end_whole(monkeypatch, window_s):
    ticking(monkeypatch, 1.0)
    done = []

    def loop():
        yield torch.ones(1, 1)
        yield torch.ones(1, 1)
        done.append(1)

    found = run(loop, window_s=window_s)
    assert len(done) == len(found.loop_ends_s) == len(found.first_token_s) >= 1
    assert found.loop_ends_s[-1] >= window_s
    assert all(end < window_s for end in found.loop_ends_s[:-1])
    assert list(found.loop_ends_s) == sorted(set(found.loop_ends_s))


def test_nothing_is_computed_before_go_and_the_clock_begins_there(monkeypatch):
    ticking(monkeypatch, 1.0)
    order = []

    def go():
        order.append("go")
        for _ in range(50):
            workloads.time.perf_counter()

    def loop():
        order.append("work")
        yield torch.ones(1, 1)

    found = workloads.run(loop, CPU, go=go, window_s=0.0, stepwise=True)
    assert order == ["go", "work"]
    assert found.loop_ends_s[0] < 10


def test_loops_that_give_something_else_are_counted(monkeypatch):
    ticking(monkeypatch, 1.0)
    outputs = iter([1, 2, 1, 2, 2, *[1] * 100])
    found = run(lambda: iter([torch.tensor([[next(outputs)]])]), window_s=30.0)
    assert len(found.loop_ends_s) > 5
    assert found.loops_changed == 3
    assert found.output_sha256 == digest(torch.tensor([[1]]))


def test_work_that_makes_its_cache_anew_holds_no_tokens_at_a_loops_start(monkeypatch, model, prompts):
    ticking(monkeypatch, 1.0)
    assert run(lambda: workloads.serve(model, prompts, 4), window_s=8.0).cached_tokens == 0
    assert run(lambda: workloads.prefill(model, prompts), window_s=8.0).cached_tokens == 0


def test_a_cache_that_is_kept_over_loops_is_found(monkeypatch, model, prompts):
    ticking(monkeypatch, 1.0)
    kept = []

    def naive():
        if not kept:
            kept.append(model(prompts, use_cache=True).past_key_values)
        yield model(prompts[:, -1:], past_key_values=kept[0], use_cache=True).logits.argmax(-1)

    found = run(naive, window_s=8.0)
    assert len(found.loop_ends_s) > 1
    # 20 of the prompt, and one more after each loop.
    assert found.cached_tokens == 20 + len(found.loop_ends_s) - 1


def test_a_cache_filled_before_the_window_is_found_in_the_first_loop(model, prompts):
    cache = workloads.new_cache(model)
    with torch.inference_mode():
        workloads.advance(model, prompts, cache)
    found = run(lambda: iter([workloads_row(model, prompts, cache)]))
    assert found.cached_tokens == 20


def workloads_row(model, prompts, cache):
    return workloads.advance(model, prompts[:, -1:], cache)


def test_a_cache_that_was_empty_before_the_window_and_is_filled_in_it_is_found(monkeypatch, model, prompts):
    ticking(monkeypatch, 1.0)
    cache = workloads.new_cache(model)

    def naive():
        yield workloads.advance(model, prompts, cache)

    assert run(naive, window_s=8.0).cached_tokens >= 20


def test_a_dead_cache_in_a_cycle_is_not_counted(model, prompts):
    with caches.CacheWatch() as watch:
        cache = workloads.new_cache(model)
        with torch.inference_mode():
            workloads.advance(model, prompts, cache)
        assert watch.held_tokens() == 20
        cache.myself = cache
        del cache
        assert watch.held_tokens() == 0


def test_each_decode_loop_gives_the_same_tokens_and_computes_steps_only(model, prompts):
    expected = generated(model, prompts, 9)[:, 1:]
    decode = workloads.Decode(model, prompts, 8)
    fed: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _module, args, _kwargs: fed.append(tuple(args[0].shape)), with_kwargs=True)
    loops = [torch.cat(pieces_of(decode.loop()), dim=1) for _ in range(3)]
    assert fed == [(3, 1)] * 24
    for tokens in loops:
        assert torch.equal(tokens, expected)


def test_a_decode_loop_that_was_broken_off_leaves_nothing_behind(model, prompts):
    decode = workloads.Decode(model, prompts, 8)
    whole = torch.cat(pieces_of(decode.loop()), dim=1)
    with torch.inference_mode():
        broken = decode.loop()
        for _ in range(3):
            next(broken)
    assert torch.equal(torch.cat(pieces_of(decode.loop()), dim=1), whole)


def test_decoding_without_cutting_the_cache_back_would_give_other_tokens(model, prompts):
    decode = workloads.Decode(model, prompts, 8)
    whole = torch.cat(pieces_of(decode.loop()), dim=1)
    decode._cut_back = lambda: None
    assert not torch.equal(torch.cat(pieces_of(decode.loop()), dim=1), whole)


def test_decode_loops_behind_a_prompt_that_is_longer_than_the_models_own_window_are_alike():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100, sliding_window=8,
    )).eval()
    prompts = workloads.probe_ids(model, 2, 20)
    decode = workloads.Decode(model, prompts, 4)
    expected = torch.cat(pieces_of(workloads.serve(model, prompts, 5)), dim=1)[:, 1:]
    for _ in range(2):
        assert torch.equal(torch.cat(pieces_of(decode.loop()), dim=1), expected)


def test_warm_up_of_no_time_does_nothing_unless_a_whole_loop_is_asked_for():
    steps = []

    def loop():
        for index in range(5):
            steps.append(index)
            yield torch.ones(1, 1)

    workloads.warm_up(loop, CPU, seconds=0.0, whole=False)
    assert steps == []
    workloads.warm_up(loop, CPU, seconds=0.0, whole=True)
    assert steps == [0, 1, 2, 3, 4]


def test_warm_up_stops_at_the_nearest_step_and_begins_again_when_a_loop_is_short(monkeypatch):
    ticking(monkeypatch, 1.0)
    steps = []

    def loop():
        for index in range(4):
            steps.append(index)
            yield torch.ones(1, 1)

    workloads.warm_up(loop, CPU, seconds=6.5, whole=False)
    assert steps == [0, 1, 2, 3, 0]


def test_prompts_have_exactly_the_wanted_length_and_begin_at_different_places():
    text = torch.arange(10)
    assert workloads.cut_prompts(text, 2, 4).tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    long = workloads.cut_prompts(text, 3, 25)
    assert long.shape == (3, 25)
    assert long[0].tolist() == [*range(10), *range(10), 0, 1, 2, 3, 4]
    assert len({tuple(row.tolist()) for row in workloads.cut_prompts(torch.arange(900), 64, 512)}) == 64


def test_latencies_are_one_for_each_step_and_a_median_of_three(monkeypatch, model, prompts):
    passes = []

    def loop():
        passes.append(1)
        yield torch.ones(1, 1)

    times_s = iter([0, 0.1, 1, 1.9, 2, 2.4])
    monkeypatch.setattr(workloads, "time", SimpleNamespace(perf_counter=lambda: next(times_s)))
    assert workloads.first_token_s(loop, CPU) == pytest.approx(0.4)
    assert len(passes) == 3
    ticking(monkeypatch, 0.5)
    assert workloads.step_s(workloads.Decode(model, prompts, 6).loop, CPU) == (0.5,) * 6


def test_a_long_prefill_is_timed_once(monkeypatch):
    ticking(monkeypatch, 100.0)
    assert workloads.first_token_s(lambda: iter([torch.ones(1, 1)]), CPU) == 100
    assert workloads.time.perf_counter() == 200


def test_the_canary_is_the_same_whatever_was_drawn_before():
    torch.manual_seed(1)
    first = canary.build(workloads.CANARY, "cpu")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = canary.build(workloads.CANARY, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in first.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, second.get_parameter(name)), name


def test_the_weights_of_canary_1_are_those_it_was_published_with():
    """Whoever changes them, even by another order of draws, has to give the canary another name."""
    from jouleboard.engines.inspect import fingerprint

    assert workloads.CANARY.name == "canary-1"
    assert fingerprint(canary.build(workloads.CANARY, "cpu")) == CANARY_1


def test_the_canary_sings_varied_tokens_in_whole_loops():
    found = workloads.sing("cpu", go=lambda: None, warmup_s=0.0, window_s=0.0)
    assert len(found.loop_ends_s) == 1
    assert found.cached_tokens == 0
    model, prompt = canary.build(workloads.CANARY, "cpu"), canary.prompt(workloads.CANARY, "cpu")
    tokens = generated(model, prompt, workloads.CANARY.output_tokens)
    assert found.output_sha256 == digest(tokens)
    assert len(set(tokens.flatten().tolist())) > workloads.CANARY.output_tokens // 4


def test_the_estimate_of_the_cache_is_what_a_cache_really_takes(tiny_model):
    prompts = workloads.probe_ids(tiny_model, 5, 30)
    wanted = memory.need(tiny_model, torch.bfloat16, batch=5, prompt_tokens=30, output_tokens=7)
    cache = workloads.new_cache(tiny_model)
    with torch.inference_mode():
        row = workloads.advance(tiny_model, prompts, cache)
        for _ in range(7):
            row = workloads.advance(tiny_model, row, cache)
    assert wanted.cache_bytes == sum(
        tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in (layer.keys, layer.values)
    )


def test_eager_attention_needs_its_scores_too(tiny_model):
    lean = memory.need(tiny_model, torch.bfloat16, batch=2, prompt_tokens=100, output_tokens=0)
    tiny_model.set_attn_implementation("eager")
    eager = memory.need(tiny_model, torch.bfloat16, batch=2, prompt_tokens=100, output_tokens=0)
    assert eager.total_bytes - lean.total_bytes == memory.CPU_SLACK * 2 * 4 * 100 * 100 * (2 + 4)


def test_a_fifth_of_the_available_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 1000)
    fits = memory.Need(cache_bytes=700, logits_bytes=50, activation_bytes=40, scratch_bytes=10)
    assert memory.refusal(fits, CPU) is None
    more = memory.Need(cache_bytes=701, logits_bytes=50, activation_bytes=40, scratch_bytes=10)
    assert "needs about 801 bytes (key-value cache 701" in (memory.refusal(more, CPU) or "")
    assert "available on cpu are 1000" in (memory.refusal(more, CPU) or "")


@pytest.mark.parametrize(("membership", "folder", "names"), [
    ("0::/a/b\n", "a/b", ("memory.max", "memory.current", "inactive_file")),
    ("4:memory:/a/b\n0::/\n", "memory/a/b", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
])
def test_the_limit_of_a_control_group_or_of_one_above_it_counts(tmp_path, membership, folder, names):
    def group(where, limit: str, used: int) -> None:
        where.mkdir(parents=True, exist_ok=True)
        (where / names[0]).write_text(f"{limit}\n")
        (where / names[1]).write_text(f"{used}\n")
        (where / "memory.stat").write_text(f"anon 1\n{names[2]} 5\n")

    (tmp_path / "cgroup").write_text(membership)
    root = tmp_path / "fs"
    group(root / folder, "1000", 400)
    group((root / folder).parent, "500", 450)
    assert sorted(hostmemory.control_groups(tmp_path / "cgroup", root)) == [55, 605]
    group(root / folder, "max", 400)
    if names[0] == "memory.max":
        assert sorted(hostmemory.control_groups(tmp_path / "cgroup", root)) == [55]
    assert list(hostmemory.control_groups(tmp_path / "none", root)) == []


def test_a_peak_is_kept_over_stretches_until_it_is_forgotten():
    peak = memory.Peak(CPU)
    peak.begin_anew()
    low = peak.overall_bytes()
    # Fresh pages: an array might be given memory that was freed before, and is resident already.
    block = mmap.mmap(-1, 64 * 2**20)
    block.write(b"1" * (64 * 2**20))
    high = peak.overall_bytes()
    assert high >= low + 60 * 2**20
    block.close()
    peak.begin()
    assert peak.stretch_bytes() < high - 50 * 2**20
    # The kernel counts a process's pages in batches, so two looks may differ by some of them.
    assert peak.overall_bytes() == pytest.approx(high, rel=2e-3)
    peak.begin_anew()
    assert peak.overall_bytes() < high - 50 * 2**20


def test_errors_of_allocation_are_told_from_others():
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)
    assert not memory.is_out_of_memory(RuntimeError("shapes do not match"))
