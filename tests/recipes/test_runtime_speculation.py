"""Speculative decoding: in float32 exactly the tokens of plain greedy decoding, in fewer passes where drafts are right."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from tests import small

from jouleboard import recipes, workloads
from jouleboard.engines import fitness, kvcache, memory, readback, running
from jouleboard.engines.decoding import Rows
from jouleboard.engines.running import Running
from jouleboard.engines.speculation import Count, FromLayers, FromText, Speculation, without_layers
from jouleboard.errors import RecipeError, UnitError
from jouleboard.protocol import Work
from jouleboard.recipes import Assisted, Context, PromptLookup
from jouleboard.runtime import Draft, Lookup, Runtime

LOOKUP = Lookup(longest=3, most=5)


@pytest.fixture
def model():
    """Of weights by which texts repeat themselves, and not at once."""
    return small.llama(initializer_range=0.15)


def looking_up(most: int = 5) -> Running:
    return running.Running(speculation=Speculation(how=Lookup(longest=3, most=most)))


def drafting(model, dropped: tuple[int, ...] = (1,), most: int = 4) -> Running:
    return running.install(model, Runtime(speculation=Draft(dropped=dropped, most=most)))


def prompt_of(model, tokens: int) -> torch.Tensor:
    """A prompt that repeats itself."""
    return workloads.probe_ids(model, 1, 7).repeat(1, tokens // 7 + 1)[:, :tokens]


def served(model, prompt: torch.Tensor, tokens: int, how: Running) -> list[int]:
    with torch.inference_mode():
        return [int(piece) for piece in workloads.serve(model, prompt, tokens, how)]


@pytest.mark.parametrize("tokens", [1, 2, 3, 40, 120])
@pytest.mark.parametrize("kind", ["lookup", "layers"])
def test_served_tokens_are_exactly_those_of_plain_greedy_decoding(model, tokens, kind):
    prompt = prompt_of(model, 30)
    how = looking_up() if kind == "lookup" else drafting(model)
    plain = served(model, prompt, tokens, Running())
    assert served(model, prompt, tokens, how) == plain
    assert len(plain) == tokens


def passes_of(model) -> list[int]:
    """Tokens of each forward pass from now on, told by a layer that drafts do without."""
    fed: list[int] = []
    model.model.layers[1].register_forward_pre_hook(lambda _module, args, _kwargs: fed.append(args[0].shape[1]), with_kwargs=True)
    return fed


def test_text_that_repeats_itself_takes_fewer_passes(model):
    prompt = prompt_of(model, 30)
    plain = served(model, prompt, 120, Running())
    assert len(set(plain)) > 10
    fed = passes_of(model)
    assert served(model, prompt, 120, looking_up()) == plain
    assert len(fed) < 100
    assert max(fed[1:]) == 6
    assert fed[0] == 30


def test_no_more_is_drafted_than_is_asked_for(model, monkeypatch):
    monkeypatch.setattr(FromText, "propose", lambda _self, most: [0] * most)
    fed = passes_of(model)
    served(model, prompt_of(model, 10), 4, looking_up())
    # All drafts are wrong: three passes, the last for one token alone.
    assert fed == [10, 3, 2, 1]


def test_drafts_that_are_always_wrong_change_nothing(model, monkeypatch):
    prompt = prompt_of(model, 30)
    plain = served(model, prompt, 30, Running())
    monkeypatch.setattr(FromText, "propose", lambda _self, most: [299] * most)
    assert served(model, prompt, 30, looking_up()) == plain


def test_drafts_that_are_always_right_take_a_pass_for_each_six_tokens(model, monkeypatch):
    prompt = prompt_of(model, 30)
    plain = served(model, prompt, 31, Running())
    monkeypatch.setattr(FromText, "propose", lambda self, most: plain[len(self._tokens) - 30 :][:most])
    fed = passes_of(model)
    assert served(model, prompt, 31, looking_up()) == plain
    assert fed == [30, 6, 6, 6, 6, 6]


def test_without_taking_wrong_drafts_off_the_cache_tokens_would_be_others(model, monkeypatch):
    from transformers import DynamicCache

    prompt = prompt_of(model, 30)
    plain = served(model, prompt, 30, Running())
    monkeypatch.setattr(FromText, "propose", lambda _self, most: [299] * most)
    monkeypatch.setattr(DynamicCache, "crop", lambda _self, _tokens: None)
    assert served(model, prompt, 30, looking_up()) != plain


def test_what_followed_the_longest_known_ending_last_is_proposed():
    drafts = FromText(LOOKUP)
    drafts.add([1, 2, 3, 4, 5, 2, 3, 9, 7, 2, 3])
    assert drafts.propose(2) == [9, 7]
    assert drafts.propose(9) == [9, 7, 2, 3]
    drafts.add([4])
    assert drafts.propose(3) == [5, 2, 3]
    drafts.add([8])
    assert drafts.propose(3) == []
    assert drafts.propose(0) == []


def test_a_draft_of_all_layers_is_always_right(model):
    prompt, count = prompt_of(model, 30), Count()
    how = Speculation(how=Draft(dropped=(), most=4), draft=without_layers(model, ()))
    with torch.inference_mode():
        cache = workloads.new_cache(model)
        first = workloads.advance(model, prompt, cache)
        rest = [int(one) for one in islice(how.decode(model, cache, prompt, first, count=count), 50)]
    assert [int(first), *rest] == served(model, prompt, 51, Running())
    assert (count.passes, count.drafted, count.accepted) == (10, 40, 40)


def test_a_draft_shares_its_weights_and_leaves_the_model_as_it_is(model):
    prompt = prompt_of(model, 12)
    with torch.inference_mode():
        before = model(prompt).logits
        draft = without_layers(model, (1,))
        shorter = draft(prompt).logits
        assert torch.equal(model(prompt).logits, before)
        assert not torch.equal(shorter, before)
    assert len(model.model.layers) == 3
    assert len(draft.model.layers) == 2
    assert draft.model.layers[1] is model.model.layers[2]
    assert draft.lm_head is model.lm_head


def test_the_drafts_cache_follows_the_text(model):
    drafts = FromLayers(without_layers(model, (1,)))
    drafts.add(list(range(10)))
    with torch.inference_mode():
        first = drafts.propose(3)
        fresh = FromLayers(without_layers(model, (1,)))
        for taken in (0, 2, 3):
            # So many of the drafts were right, then came another token.
            drafts.add([*first[:taken], 250 + taken])
            fresh = FromLayers(without_layers(model, (1,)))
            fresh.add(list(drafts._tokens))
            first = drafts.propose(3)
            assert first == fresh.propose(3), taken


@pytest.mark.parametrize("kind", ["lookup", "layers"])
def test_a_row_alone_is_written_as_plain_rows_are(model, kind):
    how = looking_up() if kind == "lookup" else drafting(model)
    prompts = [prompt_of(model, length)[0].tolist() for length in (30, 12)]

    def written(running_: Running) -> list[list[int]]:
        rows, found = Rows(model, pad=0, running=running_), []
        with torch.inference_mode():
            for prompt in prompts:
                rows.join([prompt])
                mine = [int(rows.tokens)]
                for _ in range(25):
                    rows.step()
                    mine.append(int(rows.tokens))
                rows.keep([])
                found.append(mine)
        return found

    fed = passes_of(model)
    plain = written(Running())
    steps = len(fed)
    assert written(how) == plain
    assert len(fed) - steps < steps


def test_several_rows_at_a_time_are_decoded_without_drafts(model):
    how = looking_up()
    prompts = [prompt_of(model, length)[0].tolist() for length in (30, 12)]
    found = []
    for running_ in (Running(), how):
        rows = Rows(model, pad=0, running=running_)
        with torch.inference_mode():
            rows.join(prompts)
            rows.step()
        found.append(rows.tokens.tolist())
    assert found[0] == found[1]
    assert len(found[1]) == 2
    assert how.alone(1) is how
    assert how.alone(4).speculation is None


def test_logits_that_are_no_numbers_are_told(model):
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UnitError, match="not finite"):
        served(model, prompt_of(model, 10), 5, looking_up())


def test_layers_of_least_influence_are_left_out_and_never_the_first(model):
    with torch.no_grad():
        for index in (0, 2):
            model.model.layers[index].self_attn.o_proj.weight.zero_()
            model.model.layers[index].mlp.down_proj.weight.zero_()
    recipe = recipes.Recipe(id="a", title="a", description="a", dtype="float32", steps=(Assisted(drop=1),))
    steps = recipes.apply(model, recipe.steps, Context(calibration_ids=torch.arange(64)[None]))
    assert steps[0]["left_out"] == [2]
    assert recipes.runtime(recipe, steps).speculation == Draft(dropped=(2,), most=3)
    with pytest.raises(RecipeError, match="drafts cannot do without 3"):
        recipes.apply(model, [Assisted(drop=3)], Context(calibration_ids=torch.arange(64)[None]))


def test_the_estimate_counts_the_drafts_cache_too(model):
    how = drafting(model)
    prompt = prompt_of(model, 20)
    with torch.inference_mode():
        cache = workloads.new_cache(model, how)
        first = workloads.advance(model, prompt, cache, how)
        drafts = how.speculation.drafts()
        drafts.add([*prompt[0].tolist(), int(first)])
        drafts.propose(1)
    # The first output token is in the draft's cache before it is in the model's.
    held = kvcache.held_bytes(cache) + kvcache.held_bytes(drafts._cache) * 20 // 21
    wanted = memory.need(model, torch.float32, batch=1, prompt_tokens=20, output_tokens=0, runtime=how.runtime)
    assert wanted.cache_bytes == held


def test_what_drafts_came_to_is_read_back(model):
    how = looking_up()
    works = [Work(batch=1, prompt_tokens=60, output_tokens=99, of_text=True), Work(batch=1, prompt_tokens=64, output_tokens=9, of_text=True),
             Work(batch=2, prompt_tokens=30, output_tokens=9, of_text=True), Work(batch=1, prompt_tokens=30, output_tokens=9)]
    found = readback.read(model, how, torch.arange(7).repeat(9), works)["speculation"]
    (judged,) = found.facts["judged"]
    assert judged["same_tokens"] == judged["output_tokens"] == 64
    assert 0 < judged["accepted"] <= judged["drafted"]
    assert judged["passes"] + judged["accepted"] == 63
    assert found.claims[0].startswith(f"behind 60 tokens of text 63 tokens took {judged['passes']} passes: ")
    assert fitness.refusal(model, running=how) is None
    (judged,) = readback.read(model, how, torch.arange(7).repeat(9), works[1:])["speculation"].facts["judged"]
    assert judged["prompt_tokens"] == 63


def test_serving_several_and_probes_without_text_are_refused():
    how = looking_up()
    assert how.refusal(1, prompt_tokens=50, text_tokens=50) is None
    assert how.refusal(3, prompt_tokens=50, text_tokens=50) == "drafts are made for one sequence at a time, not for 3"
    assert "a probe has none" in (how.refusal(1, prompt_tokens=50, text_tokens=0) or "")
    assert "prompts of 51 tokens repeat their text of 50" in (how.refusal(1, prompt_tokens=51, text_tokens=50) or "")
    assert Running().refusal(3, prompt_tokens=51, text_tokens=0) is None


def test_a_recipe_says_how_drafts_are_made():
    recipe = recipes.Recipe(id="l", title="l", description="l", dtype="float32", steps=(PromptLookup(longest=2, most=7),))
    assert recipes.runtime(recipe) == Runtime(speculation=Lookup(longest=2, most=7))
