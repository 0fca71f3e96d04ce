"""Variants that an engine outside of torch computes, asked through a worker: scored, replayed, served and probed like every other."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from tests.edge.conftest import PACKAGES, recipe, step, take
from tests.test_worker import GO, after_build, build, converse, probe, serve

from jouleboard import catalogue, protocol, recipes, replays, tasks
from jouleboard.engines import generation
from jouleboard.engines.edge.lm import EdgeLM
from jouleboard.engines.reference import ReferenceLM
from jouleboard.records import ReplayRow

ENGINES = sorted(PACKAGES)
NAMES = {"ctranslate2": "ctranslate2", "llama-cpp": "llama.cpp", "onnx-genai": "onnxruntime", "openvino": "openvino"}


@pytest.fixture
def recorded(tmp_path) -> Path:
    """A scored batch, and one of generation whose third row joined later."""
    file = tmp_path / "batches.json"
    scored = [ReplayRow(tokens=tuple(range(start, start + length)), requests=1, prompt_tokens=length, output_tokens=1)
              for start, length in ((3, 20), (9, 12))]
    wrote = [ReplayRow(tokens=tuple(range(start, start + length)), requests=1, prompt_tokens=length, output_tokens=steps,
                       decode_steps=steps, joins=joins) for start, length, steps, joins in ((30, 18, 6, 0), (60, 11, 2, 0), (90, 9, 4, 3))]
    file.write_bytes(msgspec.json.encode([scored, wrote]))
    return file


@pytest.fixture
def asked(tmp_path):
    """A request for some items of our own generated task."""
    task = catalogue.task("home_agent_easy")
    prepared = tasks.prepare(task)

    def make(name: str) -> protocol.Evaluate:
        return protocol.Evaluate(
            task=task, documents=str(prepared.path), data_sha256=prepared.data_sha256, unparsed=len(prepared.unparsed), limit=6, seed=7,
            withheld=None, items=str(tmp_path / f"{name}.jsonl"), batches=str(tmp_path / f"{name}.json"))

    return make


def scored(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_scores_replays_and_serves_as_torch_does_with_the_same_weights(folder, name, asked, recorded, tmp_path):
    replay = protocol.Replay(batches=str(recorded), warmup_s=0, window_s=0)
    requests = (serve(), GO, replay, GO)
    found = {}
    for engine, how in (("torch", recipes.load("fp32")), (name, recipe(name))):
        *_, evaluated, _, served, _, replayed = after_build(folder, asked(engine), GO, *requests, recipe=how)
        found[engine] = (evaluated.result, served, replayed)
    (torch_result, torch_served, _), (result, served, replayed) = found["torch"], found[name]
    assert served.output_sha256 == torch_served.output_sha256
    assert served.loops_changed == served.cached_tokens == replayed.loops_changed == replayed.cached_tokens == 0
    assert 0 < served.first_token_s[0] < served.loop_ends_s[0]
    for field in ("items_used", "prompt_tokens", "output_tokens", "fed_tokens", "computed_tokens", "inputs_sha256", "scores"):
        assert getattr(result, field) == getattr(torch_result, field), field
    for mine, other in zip(scored(tmp_path / f"{name}.jsonl"), scored(tmp_path / "torch.jsonl"), strict=True):
        assert mine["loglikelihoods"] == pytest.approx(other["loglikelihoods"], abs=1e-2)
        assert mine["scores"] == other["scores"]
    assert (tmp_path / f"{name}.json").read_bytes() == (tmp_path / "torch.json").read_bytes()


@pytest.mark.parametrize(("name", "words"), [
    ("ctranslate2", {"weights": "int8"}), ("llama-cpp", {"weights": "q8_0"}), ("onnx-genai", {"weights": "int4"}),
    ("openvino", {"weights": "int8"}),
])
def test_a_quantised_engine_is_probed_and_says_what_it_is(folder, name, words):
    ready, built, _, prefill, _, decode, _, worked = converse(
        build(folder, recipe(name, **words)), GO, probe("prefill"), GO, probe("decode", prompt_tokens=300, output_tokens=9), GO,
        serve(warmup_s=0.01, window_s=0.05), GO)
    assert isinstance(ready, protocol.Ready)
    engine = built.engine
    assert (engine.name, engine.device, engine.threads, engine.batch_size, engine.dtype) == (NAMES[name], "cpu", 1, 4, "float32")
    assert engine.beside == ("transformers", __import__("transformers").__version__)
    assert engine.version[0].isdigit()
    assert built.realised.quantised_tensors >= 16
    (told,) = built.steps
    assert told.items() >= msgspec.to_builtins(step(name, **words)).items()
    # Exporting and loading is on the step's bill.
    assert told["bill"]["duration_s"] > 0
    assert built.realised.claims[-1].endswith(f"were given to {engine.name}")
    assert built.fallback is None
    assert (prefill.loops, prefill.step_s) == (1, ())
    assert prefill.first_token_s > 0
    assert (decode.first_token_s, len(decode.step_s)) == (None, 9)
    assert min(decode.step_s) > 0
    assert prefill.peak_memory_bytes > 2**20
    assert worked.loops == len(worked.loop_ends_s)
    assert worked.loops_changed == worked.cached_tokens == 0


@pytest.mark.parametrize("name", ENGINES)
def test_where_the_plan_has_the_shared_prefix_engine_the_reference_path_runs_and_says_why(folder, name, asked):
    request = msgspec.structs.replace(build(folder, recipe(name)), engine="shared-prefix")
    _, built, _, *_, evaluated = converse(request, GO, asked("shared"), GO)
    assert built.fallback == evaluated.result.fallback == f"the recipe hands the model to {NAMES[name]}, which takes no packed batches"
    assert built.engine.beside[0] == "shared-prefix"
    assert evaluated.result.items_used == 6


def test_an_engine_takes_a_model_whose_layers_were_dropped(folder):
    steps = (recipes.DropLayers(count=1), step("ctranslate2"))
    _, built, _, worked = converse(build(folder, recipes.Recipe(id="two", title="", description="", dtype="float32", steps=steps)), GO,
                                   serve(), GO)
    assert built.realised.layers == 2
    assert built.realised.claims[0] == "2 layers are left"
    assert worked.loops == 1


def test_more_threads_are_more_threads(folder):
    runs = [take(folder, "onnx-genai", threads=count)[0].runs for count in (1, 3)]
    assert [one._session.get_session_options().intra_op_num_threads for one in runs] == [1, 3]


def test_several_devices_are_refused(folder):
    from jouleboard import computing
    from jouleboard.engines.running import Running
    from jouleboard.errors import RecipeError

    class Two:
        world = 2

        def gather(self, mine: str) -> list[str]:
            return [mine, "cuda:1"]

    with pytest.raises(RecipeError, match="computes on one device"):
        computing.choose(build(folder), recipe("ctranslate2"), Two(), model=None, tokenizer=None, steps=[{"step": "ctranslate2"}],
                         running=Running())


ASKED = ("ab c", "a long prompt of many letters, the longest", "middling, twenty two", "x", "yes, yes")
STOPS = list("0BJZbhjqz~")
"""Some answers of the random model end with one of these."""


@pytest.fixture
def lms(folder, dense, request):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return (ReferenceLM(dense, tokenizer, batch_size=2, max_length=128),
            EdgeLM(take(folder, request.param)[0], tokenizer, batch_size=2, max_length=128))


def watch(monkeypatch, passes: list[int]) -> None:
    """Keep how many tokens go through an engine in each pass, padding included."""
    from jouleboard.engines.edge import llama, onnx, openvino

    def watching(place, name: str, count) -> None:
        computes = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *words: (passes.append(count(*words)), computes(*words))[1])

    watching(onnx.OnnxRows, "_pass", lambda _rows, ids, _counts: ids.size)
    watching(openvino, "run", lambda _request, ids, *_words: ids.size)
    watching(llama.Context, "compute", lambda _context, tokens, *_words: len(tokens))


def arguments() -> list[tuple[str, dict]]:
    return [(text, {"until": STOPS, "max_gen_toks": 14, "do_sample": False}) for text in ASKED]


@pytest.mark.parametrize("lms", ENGINES, indirect=True)
def test_answers_in_text_are_those_of_torch_and_every_token_is_counted(lms, monkeypatch):
    reference, engine = lms
    passes: list[int] = []
    watch(monkeypatch, passes)
    theirs = generation.generate(reference, arguments(), None, lambda _rows: None)
    ours = generation.generate(engine, arguments(), None, lambda _rows: None)
    assert ours == theirs
    assert {one.stopped for one in ours} == {"stop", "length"}
    tally = engine.tally
    steps = sum(len(one.tokens) for one in ours)
    assert tally.decode_tokens == steps - len(ours)
    assert tally.computed_tokens == tally.prefill_tokens + tally.decode_tokens
    prompts = sum(prompt for prompt, _ in tally.request_tokens)
    assert (tally.prefill_tokens > prompts) == (engine.engine_name not in replays.UNPADDED)
    assert tally.prefill_tokens >= prompts
    # CTranslate2 computes where nobody can look.
    assert tally.computed_tokens == sum(passes) or engine.engine_name == "ctranslate2"


@pytest.mark.parametrize("lms", ENGINES, indirect=True)
def test_a_replay_takes_the_recorded_steps_of_batches_that_another_engine_recorded(lms):
    from jouleboard.engines import recorded as module

    reference, engine = lms
    theirs = generation.generate(reference, arguments(), None, lambda _rows: None)
    ready = module.prepare(engine, reference.tally.batches)
    assert [len(rows) for rows in ready] == [2, 2, 1]
    tokens = torch.cat([newest.flatten() for newest in module.replay(engine, ready)])
    assert len(tokens) == sum(len(one.tokens) for one in theirs)
    assert sorted(tokens.tolist()) == sorted(token for one in theirs for token in one.tokens)


def row(tokens: int, steps: int, joins: int = 0) -> ReplayRow:
    return ReplayRow(tokens=tuple(range(tokens)), requests=1, prompt_tokens=tokens, output_tokens=steps, decode_steps=steps, joins=joins)


def test_rows_that_joined_others_are_batches_of_their_own_where_an_engine_takes_none_in():
    rows = [row(9, 3), row(7, 2), row(5, 4, joins=2), row(4, 1, joins=3), row(2, 2, joins=7)]
    alone = [msgspec.structs.replace(one, joins=0) for one in rows]
    assert replays.apart([rows, [row(5, 0)]]) == [alone[:2], alone[2:4], alone[4:], [row(5, 0)]]


def test_an_engine_that_pads_nothing_computes_what_it_is_fed_of_generation_and_the_padding_of_what_is_scored():
    rows = [row(9, 3), row(7, 2)]
    assert replays.computed_tokens(rows, "onnxruntime") == 9 + 9 + 2 + 1
    assert replays.computed_tokens(rows, "ctranslate2") == 9 + 7 + 2 + 1
    assert replays.computed_tokens([row(9, 0), row(7, 0)], "ctranslate2") == 18
