"""A worker's answers, asked through its own channel in this process: a random model with a tokenizer of single bytes."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from jouleboard import catalogue, paths, protocol, recipes, tasks, worker
from jouleboard.records import ReplayRow

TEXT = str(paths.data_folder("tasks") / "data/calibration.txt")
REPLIES = msgspec.json.Decoder(protocol.Reply)
GO = protocol.Go()
VOCABULARY = 257


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a three-layer Llama, random weights, and a tokenizer of one token a byte."""
    return make_model(tmp_path_factory.mktemp("tiny"))


def make_model(where: Path, **changed: int) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate([*letters, "<end>"])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    named = dict.fromkeys(("bos_token", "eos_token"), "<end>")
    PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(where)
    torch.manual_seed(0)
    config = LlamaConfig(**{
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "eos_token_id": VOCABULARY - 1, "bos_token_id": VOCABULARY - 1, **changed,
    })
    LlamaForCausalLM(config).save_pretrained(where)
    return where


def build(folder: Path, recipe: recipes.Recipe | None = None) -> protocol.Build:
    declared = msgspec.structs.replace(catalogue.model("smollm2-135m-instruct-q4wheel"), context_length=2048)
    return protocol.Build(model=declared, folder=str(folder),
                          recipe=msgspec.to_builtins(recipe or recipes.load("fp32")), calibration=TEXT, threads=1, batch_size=4,
                          device="cpu")


def converse(*requests: protocol.Request) -> list[protocol.Reply]:
    """Let a worker serve these requests, with every `Go` among them, and return all that it says."""
    said = io.BytesIO()
    worker.serve(worker.Channel(io.BytesIO(b"".join(msgspec.json.encode(request) + b"\n" for request in requests)), said))
    return [REPLIES.decode(line) for line in said.getvalue().splitlines()]


def after_build(folder: Path, *requests: protocol.Request, recipe: recipes.Recipe | None = None) -> list[protocol.Reply]:
    """What a worker says after `Built`."""
    replies = converse(build(folder, recipe), GO, *requests)
    assert [type(reply) for reply in replies[:2]] == [protocol.Ready, protocol.Built], replies
    return replies[2:]


def serve(**changed) -> protocol.Serve:
    return msgspec.structs.replace(
        protocol.Serve(prompt_tokens=40, output_tokens=8, batch=3, text=TEXT, warmup_s=0.0, window_s=0.0), **changed
    )


def probe(kind: str, **changed) -> protocol.Probe:
    return msgspec.structs.replace(
        protocol.Probe(kind=kind, batch=2, prompt_tokens=30, output_tokens=5 if kind == "decode" else 0, warmup_s=0.0,
                       window_s=0.0), **changed
    )


@pytest.fixture
def clock(monkeypatch) -> None:
    """A clock that is 10 ms later each time it is read, so that how many loops are done depends on no machine's speed."""
    from jouleboard import workloads

    now_s = (tick / 100 for tick in range(10**6))
    monkeypatch.setattr(workloads, "time", SimpleNamespace(perf_counter=lambda: next(now_s)))


@pytest.fixture
def recorded(tmp_path) -> Path:
    file = tmp_path / "batches.json"
    rows = [[ReplayRow(tokens=tuple(range(start, start + length)), requests=1, prompt_tokens=length, output_tokens=1)
             for start, length in batch] for batch in ([(3, 20), (9, 12)], [(40, 30)])]
    file.write_bytes(msgspec.json.encode(rows))
    return file


def test_serving_gives_the_tokens_of_generate_on_prompts_cut_from_the_text(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ready, worked = after_build(folder, serve(), GO)
    assert isinstance(ready, protocol.Ready)
    text = AutoTokenizer.from_pretrained(folder)(Path(TEXT).read_text(encoding="utf-8"))["input_ids"]
    prompts = torch.tensor([(text * 2)[index * len(text) // 3:][:40] for index in range(3)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=8,
                            min_new_tokens=8, eos_token_id=None, pad_token_id=0)[:, 40:]
    assert worked.output_sha256 == hashlib.sha256(tokens.to(torch.int32).contiguous().numpy().tobytes()).hexdigest()
    assert (worked.loops, len(worked.loop_ends_s), len(worked.first_token_s)) == (1, 1, 1)
    assert worked.loops_changed == worked.cached_tokens == 0
    assert worked.first_token_s[0] < worked.loop_ends_s[0]


@pytest.mark.parametrize("name", ["bf16", "int8-weight-only", "nf4", "drop-6-layers"])
def test_every_kind_of_variant_serves_and_is_probed(folder, name, clock):
    recipe = recipes.load(name)
    if name == "drop-6-layers":
        # Six of three cannot be dropped.
        recipe = msgspec.structs.replace(recipe, steps=(msgspec.structs.replace(recipe.steps[0], count=2),))
    *_, worked, _, prefill, _, decode = after_build(
        folder, serve(window_s=0.2), GO, probe("prefill"), GO, probe("decode", window_s=0.1), GO, recipe=recipe
    )
    assert worked.loops == len(worked.loop_ends_s) == len(worked.first_token_s) > 1
    assert worked.loop_ends_s[-1] >= 0.2 > max(worked.loop_ends_s[:-1])
    assert worked.loops_changed == worked.cached_tokens == 0
    assert (prefill.loops, prefill.step_s) == (1, ())
    assert prefill.first_token_s > 0
    assert (decode.first_token_s, len(decode.step_s)) == (None, 5)
    assert decode.loops > 1
    assert min(decode.step_s) > 0
    assert prefill.peak_memory_bytes > 2**20


def test_a_replay_gives_its_digest_again_and_again(folder, recorded, clock):
    request = protocol.Replay(batches=str(recorded), warmup_s=0.05, window_s=0.1)
    _, first, _, second = after_build(folder, request, GO, msgspec.structs.replace(request, warmup_s=0, window_s=0), GO)
    assert first.loops > 1
    assert second.loops == 1
    assert first.output_sha256 == second.output_sha256
    assert first.loops_changed == first.cached_tokens == second.cached_tokens == 0
    assert first.first_token_s == ()


def test_a_replay_whose_engine_keeps_a_cache_says_how_many_tokens_it_held(folder, recorded, clock, monkeypatch):
    from jouleboard.engines.reference import ReferenceLM

    def kept(self, rows):
        self.prefix = self.model(rows, use_cache=True).past_key_values
        return rows

    monkeypatch.setattr(ReferenceLM, "score_batch", kept)
    _, worked = after_build(folder, protocol.Replay(batches=str(recorded), warmup_s=0, window_s=0.1), GO)
    assert worked.loops > 1
    assert worked.cached_tokens == 30


def test_more_tokens_than_the_context_are_refused_and_the_worker_lives(folder):
    failed, longest, large, ready, worked = after_build(
        folder, serve(prompt_tokens=500, output_tokens=13), probe("decode", prompt_tokens=500, output_tokens=13),
        probe("prefill", prompt_tokens=513), serve(), GO,
    )
    assert isinstance(failed, protocol.TooLarge)
    assert failed.reason == "workload: 500 prompt and 13 output tokens are more than the model's context of 512"
    assert longest.reason == "500 prompt and 13 output tokens are more than the model's context of 512"
    assert isinstance(large, protocol.TooLarge)
    assert isinstance(ready, protocol.Ready)
    assert isinstance(worked, protocol.Worked)


def test_a_prompt_and_an_output_that_just_fit_the_context_are_served(folder):
    _, worked = after_build(folder, serve(prompt_tokens=500, output_tokens=12, batch=1), GO)
    assert isinstance(worked, protocol.Worked)


def test_a_probe_that_does_not_fit_is_told_with_figures_and_the_worker_lives(folder, monkeypatch):
    from jouleboard.engines import memory

    _, before = after_build(folder, probe("decode"), GO)
    available = iter([1000, 1000, 10**12])
    monkeypatch.setattr(memory, "available_bytes", lambda _device: next(available))
    decode, prefill, ready, after = after_build(folder, probe("decode"), probe("prefill"), probe("decode"), GO)
    # 2 x 3 layers x 2 heads x 16 x 4 bytes x 2 sequences x 35 tokens.
    assert f"key-value cache {2 * 3 * 2 * 16 * 4 * 2 * 35}," in decode.reason
    assert "available on cpu are 1000" in decode.reason
    assert isinstance(prefill, protocol.TooLarge)
    assert isinstance(ready, protocol.Ready)
    assert (after.loops, len(after.step_s)) == (before.loops, len(before.step_s))


def test_serving_that_does_not_fit_into_memory_is_told_before_it_begins(folder, monkeypatch):
    from jouleboard.engines import memory

    monkeypatch.setattr(memory, "available_bytes", lambda _device: 1000)
    (failed,) = after_build(folder, serve())
    assert isinstance(failed, protocol.TooLarge)
    assert failed.reason.startswith("workload: needs about")


@pytest.mark.parametrize(("kind", "passes", "in_window"), [
    ("prefill", 0, False), ("prefill", 1, False), ("prefill", 3, True), ("decode", 0, False), ("decode", 4, False),
    ("decode", 8, True),
])
def test_memory_that_runs_out_all_the_same_is_told_and_given_back(folder, monkeypatch, kind, passes, in_window):
    import torch
    from transformers import Cache

    from jouleboard import workloads

    advance, count = workloads.advance, iter(range(100))

    def out_of_memory(*words):
        if next(count) == passes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words")
        return advance(*words)

    monkeypatch.setattr(workloads, "advance", out_of_memory)
    replies = after_build(folder, probe(kind), *[GO] * in_window, probe("prefill"), GO)
    assert [type(reply).__name__ for reply in replies] == ["Ready"] * in_window + ["TooLarge", "Ready", "Probed"]
    assert replies[in_window].reason == "ran out of memory: CUDA out of memory. Tried to allocate 2.00 GiB."
    gc.collect()
    assert not [found for found in gc.get_objects() if issubclass(type(found), Cache)]
    assert gc.get_freeze_count() == 0


def test_other_errors_of_a_probe_are_failures(folder):
    (failed,) = after_build(folder, probe("prefill", prompt_tokens=30, batch=-1))
    assert isinstance(failed, protocol.Failed)


def test_the_peak_of_a_probe_does_not_hide_an_earlier_one(folder):
    small, large = probe("prefill", batch=1, prompt_tokens=8), probe("prefill", batch=64, prompt_tokens=512)
    memory = protocol.Memory(begin_anew=False)
    _, high, _, low, overall, _ = after_build(
        folder, large, GO, small, GO, memory, protocol.Memory(begin_anew=True)
    )
    # Activations of 64 x 512 tokens alone take more than this.
    assert high.peak_memory_bytes > low.peak_memory_bytes + 10 * 2**20
    assert overall.peak_memory_bytes >= high.peak_memory_bytes


def test_the_canary_sings_in_a_worker_without_a_variant(clock):
    from jouleboard import workloads

    request = protocol.Canary(device="cpu", threads=1, warmup_s=0.0, window_s=0.0)
    ready, one, _, more = converse(request, GO, msgspec.structs.replace(request, window_s=0.3), GO)
    assert isinstance(ready, protocol.Ready)
    assert one.model == "canary-1"
    assert one.tokens == workloads.CANARY.output_tokens
    assert more.tokens % one.tokens == 0 < more.tokens - one.tokens
    assert more.output_sha256 == one.output_sha256


def test_everything_but_the_canary_needs_a_variant(recorded):
    replies = converse(serve(), probe("decode"), protocol.Replay(batches=str(recorded), warmup_s=0, window_s=0))
    assert [reply.reason for reply in replies] == ["no variant has been built in this worker"] * 3


def test_nothing_is_said_between_go_and_the_reply(folder, recorded, clock):
    replies = after_build(
        folder, serve(warmup_s=0.05, window_s=0.1), GO, probe("decode", window_s=0.1), GO,
        protocol.Replay(batches=str(recorded), warmup_s=0.05, window_s=0.1), GO,
    )
    assert [type(reply).__name__ for reply in replies] == ["Ready", "Worked", "Ready", "Probed", "Ready", "Worked"]


@pytest.fixture
def ask(tmp_path):
    """A request for some items of our own generated task."""
    task = catalogue.task("home_agent_easy")
    prepared = tasks.prepare(task)

    def make(name: str, limit: int, *, quiet: bool = False) -> protocol.Evaluate:
        return protocol.Evaluate(
            task=task, documents=str(prepared.path), data_sha256=prepared.data_sha256, unparsed=len(prepared.unparsed),
            limit=limit, seed=7, withheld=None, items=str(tmp_path / f"{name}.jsonl"),
            batches=str(tmp_path / f"{name}.json"), quiet=quiet,
        )

    return make


def test_a_second_evaluation_changes_nothing_and_finds_the_same(folder, ask, tmp_path, recorded):
    replay = protocol.Replay(batches=str(recorded), warmup_s=0, window_s=0)
    replies = after_build(
        folder, ask("first", 12), GO, replay, GO, ask("live", 4, quiet=True), GO, ask("again", 12), GO, replay, GO,
    )
    worked = [reply for reply in replies if isinstance(reply, protocol.Worked)]
    first, live, again = [reply.result for reply in replies if isinstance(reply, protocol.Evaluated)]
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert first == again
    assert worked[0].output_sha256 == worked[1].output_sha256
    assert live.items_used == 4 < first.items_used
    assert live.computed_tokens < first.computed_tokens
    known = items(tmp_path / "first.jsonl")
    seen = items(tmp_path / "live.jsonl")
    both = set(known) & set(seen)
    assert both
    for index in both:
        # Other batches: sums of products are rounded in another order.
        assert seen[index]["loglikelihoods"] == pytest.approx(known[index]["loglikelihoods"], abs=1e-4)
        assert seen[index]["scores"] == known[index]["scores"]


def items(file: Path) -> dict[int, dict]:
    return {row["item"]: row for row in map(json.loads, file.read_text().splitlines())}


def test_a_live_evaluation_says_nothing_in_its_window(folder, ask):
    quiet = after_build(folder, ask("live", 4, quiet=True), GO)
    assert [type(reply).__name__ for reply in quiet] == ["Ready", "Evaluated"]
    told = after_build(folder, ask("live", 4), GO)
    assert any(isinstance(reply, protocol.Progress) for reply in told)


def test_a_worker_process_answers_over_its_pipes(folder):
    requests = [build(folder), GO, serve(), GO]
    done = subprocess.run(
        [sys.executable, "-m", "jouleboard.worker"], capture_output=True, check=True, timeout=300,
        input=b"".join(msgspec.json.encode(request) + b"\n" for request in requests), env=dict(os.environ),
    )
    replies = [REPLIES.decode(line) for line in done.stdout.splitlines()]
    assert [type(reply).__name__ for reply in replies] == ["Ready", "Built", "Ready", "Worked"]


@pytest.mark.parametrize(("error", "code", "storage"), [
    (MemoryError("no more"), "out-of-memory", False),
    (RuntimeError('"rms_norm" not implemented for \'Float8\''), "unsupported", False),
    (OSError(28, "No space left on device", "/full/items.jsonl"), "error", True),
    (ValueError("a bug"), "error", False),
])
def test_an_error_answers_with_its_kind_and_the_worker_lives(folder, monkeypatch, error, code, storage):
    from jouleboard.variant import Variant

    real = Variant.serve
    left = [error]
    monkeypatch.setattr(Variant, "serve", lambda *words: _raise(left.pop()) if left else real(*words))
    failed, ready, worked = after_build(folder, serve(), serve(), GO)
    assert (failed.code, failed.storage) == (code, storage)
    assert str(error) in failed.reason
    assert bool(failed.remedy) == (code != "error" or storage)
    assert failed.file == ("/full/items.jsonl" if storage else None)
    assert [type(reply).__name__ for reply in (ready, worked)] == ["Ready", "Worked"]


def _raise(error: Exception) -> None:
    raise error


def test_what_a_failed_request_held_is_given_back_before_the_next(folder, monkeypatch):
    import weakref

    import torch

    from jouleboard.variant import Variant

    alive: list[weakref.ref] = []

    def hold(*_words):
        large = torch.zeros(10)
        alive.append(weakref.ref(large))
        # Held by its own traceback, as by a library that keeps what it catches: only the collector ends that.
        error = MemoryError()
        raise error

    monkeypatch.setattr(Variant, "serve", hold)
    monkeypatch.setattr(Variant, "probe", lambda *_words: _raise(ValueError(f"alive: {alive[0]() is not None}")))
    _, after = after_build(folder, serve(), probe("decode"))
    assert "alive: False" in after.reason
