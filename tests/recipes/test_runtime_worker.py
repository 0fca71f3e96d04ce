"""Variants that are run in another way, through a worker: built, served, probed, scored and replayed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from tests.test_worker import GO, build, converse, make_model, probe, serve

from jouleboard import catalogue, protocol, recipes, tasks
from jouleboard.records import ReplayRow

WORKS = (protocol.Work(batch=1, prompt_tokens=40, output_tokens=24, of_text=True),
         protocol.Work(batch=2, prompt_tokens=30, output_tokens=5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), initializer_range=0.2)


def recipe_of(name: str, **changed) -> recipes.Recipe:
    """A recipe of the catalogue in float32, with other parameters in its last step."""
    recipe = recipes.load(name)
    steps = (*recipe.steps[:-1], msgspec.structs.replace(recipe.steps[-1], **changed)) if recipe.steps else ()
    return msgspec.structs.replace(recipe, dtype="float32", steps=steps)


def talk(folder: Path, recipe: recipes.Recipe, *requests: protocol.Request, engine: str = "reference", batch: int = 4):
    """What a worker answers to a build and some requests; `Ready` left out."""
    first = msgspec.structs.replace(build(folder, recipe), work=WORKS, engine=engine, batch_size=batch)
    replies = converse(first, GO, *requests)
    found = [reply for reply in replies if not isinstance(reply, protocol.Ready | protocol.Progress)]
    assert isinstance(found[0], protocol.Built), found
    return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> protocol.Evaluate:
    """A request for a few items."""
    where = tmp_path_factory.mktemp("scored")
    task = catalogue.task("home_agent_easy")
    prepared = tasks.prepare(task)
    return protocol.Evaluate(
        task=task, documents=str(prepared.path), data_sha256=prepared.data_sha256, unparsed=len(prepared.unparsed), limit=3,
        seed=7, withheld=None, items=str(where / "items.jsonl"), batches=str(where / "batches.json"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> protocol.Replay:
    """A recorded batch of two answers in text, both from the first pass on: a cache that takes no rows in schedules them so."""
    return recorded(tmp_path_factory.mktemp("recorded"), joins=(0, 0))


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory) -> protocol.Replay:
    """The same answers, one behind the other, as batch 1 writes them."""
    return recorded(tmp_path_factory.mktemp("recorded"), joins=(0, 9))


def recorded(where: Path, joins: tuple[int, int]) -> protocol.Replay:
    file = where / "generated.json"
    rows = [ReplayRow(tokens=tuple(range(first, first + 20)), requests=1, prompt_tokens=20, output_tokens=9, decode_steps=9, joins=after)
            for first, after in zip((3, 40), joins, strict=True)]
    file.write_bytes(msgspec.json.encode([rows]))
    return protocol.Replay(batches=str(file), warmup_s=0, window_s=0)


@pytest.fixture(scope="module")
def requests(generated, asked) -> tuple[protocol.Request, ...]:
    return (serve(), GO, probe("prefill"), GO, probe("decode"), GO, generated, GO, asked, GO)


@pytest.fixture(scope="module")
def plain(folder, requests, asked):
    return [*talk(folder, recipes.load("fp32"), *requests, engine="shared-prefix"), likelihoods(asked)]


def likelihoods(asked: protocol.Evaluate) -> list[float]:
    lines = Path(asked.items).read_text(encoding="utf-8").splitlines()
    return [value for line in lines for value in json.loads(line)["loglikelihoods"]]


@pytest.mark.parametrize(("name", "changed", "same"), [
    ("bf16-static-cache", {}, True), ("kv-int8", {"group_size": 16, "recent": 100}, True),
    ("kv-int4", {"bits": 2, "group_size": 16, "recent": 4}, False), ("sliding-window-256", {"window": 10}, False),
])
def test_variants_are_served_probed_scored_and_replayed(folder, requests, plain, asked, name, changed, same):
    built, served, prefill, decode, replayed, scored = talk(
        folder, recipe_of(name, **changed), *requests, engine="shared-prefix")
    assert built.realised.claims
    assert built.realised.weights_sha256 == plain[0].realised.weights_sha256
    assert (served.output_sha256 == plain[1].output_sha256) == same
    assert (replayed.output_sha256 == plain[4].output_sha256) == same
    assert served.loops_changed == served.cached_tokens == replayed.cached_tokens == 0
    assert prefill.first_token_s > 0
    assert len(decode.step_s) == 5
    if name == "sliding-window-256":
        assert built.fallback == "its attention has a sliding window of 10 tokens"
        assert likelihoods(asked) != pytest.approx(plain[-1], abs=1e-3)
    else:
        assert built.fallback is None
        # Given texts are scored without a cache of their own.
        assert likelihoods(asked) == plain[-1]
    assert scored.result.items_used == 3


@pytest.mark.parametrize("name", ["prompt-lookup", "assisted-drop-10"])
def test_drafts_change_no_token_and_are_for_one_sequence_at_a_time(folder, one_by_one, name):
    changed = {"drop": 1} if name.startswith("assisted") else {}
    alone = serve(batch=1, output_tokens=24)
    plain = talk(folder, recipes.load("fp32"), alone, GO, one_by_one, GO, batch=1)
    built, served, replayed, several, decode, prefill = talk(
        folder, recipe_of(name, **changed), alone, GO, one_by_one, GO, serve(batch=3), probe("decode", batch=1), probe("prefill"), GO,
        batch=1)
    (judged,) = built.steps[0]["judged"]
    assert (judged["prompt_tokens"], judged["output_tokens"], judged["same_tokens"]) == (40, 24, 24)
    assert 0 < judged["drafted"] >= judged["accepted"]
    assert "of plain greedy decoding" in built.realised.claims[0]
    assert served.output_sha256 == plain[1].output_sha256
    assert replayed.output_sha256 == plain[2].output_sha256
    assert several == protocol.TooLarge(reason="workload: drafts are made for one sequence at a time, not for 3")
    assert isinstance(decode, protocol.TooLarge)
    assert "depends on the text" in decode.reason
    assert isinstance(prefill, protocol.Probed)


def test_decode_steps_are_compiled_in_the_build_and_in_no_window(tmp_path, one_by_one):
    folder = make_model(tmp_path / "one-layer", num_hidden_layers=1, initializer_range=0.2)
    alone = serve(batch=1, output_tokens=24)
    plain = talk(folder, recipes.load("fp32"), alone, GO, one_by_one, GO, batch=1)
    request = msgspec.structs.replace(build(folder, recipe_of("bf16-compiled")), work=WORKS[:1], batch_size=1)
    built, served, replayed, decode, longer = [reply for reply in converse(
        request, GO, alone, GO, one_by_one, GO, probe("decode", batch=1), GO, serve(batch=1, prompt_tokens=77), GO,
    ) if not isinstance(reply, protocol.Ready)]
    assert built.steps[1]["graphs"] == 1
    assert built.steps[1]["compile_s"] > 0
    assert built.realised.claims == (
        "compiled graphs: 1; passes that ran in them without compiling again: 1",
        "the key-value cache has a fixed length, 256 bytes a token")
    assert served.output_sha256 == plain[1].output_sha256
    assert replayed.output_sha256 == plain[2].output_sha256
    assert served.cached_tokens == replayed.cached_tokens == longer.cached_tokens == 0
    assert len(decode.step_s) == 5


def test_a_shape_that_nobody_announced_is_compiled_in_the_warm_up_and_not_in_the_window(tmp_path, monkeypatch):
    import torch

    from jouleboard.engines import running

    graphs: list[str] = []

    def noted(graph, _inputs):
        graphs.append("compiled")
        return graph.forward

    monkeypatch.setattr(running, "_compile", lambda some, _how: torch.compile(
        some.forward, dynamic=True, fullgraph=True, backend=noted))
    torch.compiler.reset()
    folder = make_model(tmp_path / "one-layer", num_hidden_layers=1, initializer_range=0.2)
    request = msgspec.structs.replace(build(folder, recipe_of("bf16-compiled")), work=WORKS[:1])
    sealed = running.Running.sealed

    def opened(self):
        graphs.append("sealed")
        return sealed(self)

    monkeypatch.setattr(running.Running, "sealed", opened)
    replies = converse(request, GO, serve(batch=3), GO)
    assert isinstance(replies[-1], protocol.Worked), replies
    assert graphs == ["compiled", "sealed", "compiled", "sealed"]


def test_a_batch_size_of_the_recipe_is_the_builds(folder):
    recipe = recipes.load("bf16-batch-1")
    assert recipe.batch_size == 1
    (built,) = talk(folder, recipe, batch=1)
    assert built.engine.batch_size == 1
