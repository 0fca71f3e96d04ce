"""Compiled passes: the tokens of plain ones, in graphs that are made in the build and hold for every shape."""

from __future__ import annotations

import pytest
import torch
from tests import small

from jouleboard import recipes, workloads
from jouleboard.engines import fitness, readback, running
from jouleboard.engines.decoding import Rows
from jouleboard.engines.running import Running
from jouleboard.errors import RecipeError
from jouleboard.protocol import Work
from jouleboard.recipes import Compile, PromptLookup, Recipe, StaticCache, compiled
from jouleboard.runtime import Compiled, Fixed, Runtime

TEXT = torch.arange(64)
WORKS = [Work(batch=2, prompt_tokens=40, output_tokens=8), Work(batch=1, prompt_tokens=20, output_tokens=4)]


@pytest.fixture(scope="module")
def model():
    return small.llama(num_hidden_layers=1)


@pytest.fixture(scope="module")
def run(model):
    """All passes traced to graphs with all their guards; these are run as they are, and not made into C++, which takes a minute."""
    torch.compiler.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "_compile", lambda some, _how: torch.compile(some.forward, dynamic=True, fullgraph=True, backend="eager"))
        return running.install(model, Runtime(cache=Fixed(), compiled=Compiled(passes="all", mode="default")))


@pytest.fixture(scope="module")
def found(model, run):
    return readback.read(model, run, TEXT, WORKS)["compiled"]


def served(model, how: Running, rows: int, prompt: int, tokens: int) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(list(workloads.serve(model, workloads.probe_ids(model, rows, prompt), tokens, how)), dim=1)


def test_graphs_are_made_once_for_one_row_and_once_for_several(found):
    # Decode steps, prefills and scoring.
    assert found.facts["graphs"] == 6
    assert found.facts["compile_s"] > 0
    assert found.claims == ["compiled graphs: 6; passes that ran in them without compiling again: 6"]


@pytest.mark.parametrize(("rows", "prompt", "tokens"), [(1, 20, 4), (2, 40, 8), (3, 33, 9), (7, 5, 30), (1, 90, 12)])
@pytest.mark.usefixtures("found")
def test_any_shape_is_served_in_them_with_the_same_tokens(model, run, rows, prompt, tokens):
    calls = run.compiled.calls
    with run.sealed():
        assert torch.equal(served(model, run, rows, prompt, tokens), served(model, Running(), rows, prompt, tokens))
    assert run.compiled.calls - calls == tokens


@pytest.mark.usefixtures("found")
def test_padded_rows_are_written_in_them_with_the_same_tokens(model, run):
    prompts = [workloads.probe_ids(model, 1, length)[0].tolist() for length in (5, 30, 17)]

    def written(how: Running) -> list[list[int]]:
        rows, steps = Rows(model, pad=0, running=how, most=8), []
        with torch.inference_mode():
            rows.join(prompts)
            for staying in ([0, 1, 2], [0, 2], [1]):
                rows.keep(staying)
                rows.step()
                steps.append(rows.tokens[:, 0].tolist())
        return steps

    with run.sealed():
        assert written(run) == written(Running())


@pytest.mark.usefixtures("found")
def test_given_texts_are_scored_in_them(model, run):
    ids = workloads.probe_ids(model, 3, 25)
    with run.sealed():
        scored = run.scored(ids)
    with torch.inference_mode():
        assert torch.allclose(scored, model(ids).logits, atol=1e-4)
    assert "compiled for plain batches" in (fitness.refusal(model, running=run) or "")


@pytest.mark.usefixtures("found")
def test_what_would_be_compiled_in_a_window_is_an_error(model, run):
    with run.sealed(), torch.inference_mode(), pytest.raises(RuntimeError, match="recompile"):
        run.compiled(workloads.probe_ids(model, 2, 9), use_cache=False, logits_to_keep=torch.tensor([3]))


def test_passes_that_are_not_compiled_fail_the_claim(model, monkeypatch):
    monkeypatch.setattr(running, "_compile", lambda some, _how: some.forward)
    how = running.install(model, Runtime(cache=Fixed(), compiled=Compiled(passes="decode", mode="default")))
    with pytest.raises(RecipeError, match="nothing was compiled"):
        readback.read(model, how, TEXT, WORKS)


def test_decode_steps_alone_leave_scoring_to_the_shared_prefix_engine(model):
    how = running.install(model, Runtime(cache=Fixed(), compiled=Compiled(passes="decode", mode="default")))
    assert fitness.refusal(model, running=how) is None
    with pytest.raises(ValueError, match="scoring is not compiled"):
        Running().scored(TEXT[None])


def test_a_machine_without_a_compiler_is_told_before_anything_is_loaded(monkeypatch):
    step = Compile(passes="decode")
    assert step.missing("cpu") is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "there is no C++ compiler: no-such-compiler is not on the PATH" in (step.missing("cpu") or "")
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda _name: "/nowhere")
    assert "/nowhere/Python.h is missing" in (step.missing("cpu") or "")


@pytest.mark.parametrize(("steps", "match"), [
    ((Compile(passes="decode"),), "needs a cache of fixed length"),
    ((StaticCache(), PromptLookup()), "only a plain growing one can be cut"),
    ((StaticCache(), StaticCache()), "two steps set the cache"),
])
def test_steps_that_do_not_go_together_are_refused_before_anything_is_loaded(steps, match):
    recipe = Recipe(id="r", title="r", description="r", dtype="float32", steps=steps)
    with pytest.raises(RecipeError, match=match):
        recipes.require_order(recipe)
