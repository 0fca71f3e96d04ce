"""A batch size of the recipe's own, and caches that take no rows in: recorded batches are computed as the variant computes."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import small

from jouleboard import building, catalogue, plan, recipes, replays, silence
from jouleboard.engines import generation, recorded, running
from jouleboard.engines.reference import ReferenceLM
from jouleboard.errors import RecipeError
from jouleboard.records import ReplayRow
from jouleboard.runtime import Fixed, Runtime


def scored(length: int, first: int = 1) -> ReplayRow:
    return ReplayRow(tokens=tuple(range(first, first + length)), requests=1, prompt_tokens=length, output_tokens=1)


def packed(length: int, first: int = 1, *, behind: bool = False) -> ReplayRow:
    return msgspec.structs.replace(scored(length, first), scored=(length - 1,), ends=(length - 1,), behind=behind)


def written(steps: int, joins: int = 0) -> ReplayRow:
    return ReplayRow(tokens=tuple(range(1, 9)), requests=1, prompt_tokens=8, output_tokens=steps, decode_steps=steps, joins=joins)


PREFIX = ReplayRow(tokens=(7, 8, 9), requests=0, prompt_tokens=0, output_tokens=0)
RECORDED = [[PREFIX], [packed(40, 1, behind=True), packed(40, 2, behind=True)], [packed(100, 3, behind=True)],
            [scored(9, 1), scored(8, 2), scored(7, 3)], [scored(6, 4)], [written(5), written(3), written(4, joins=4)]]


def as_run(batches, batch_size: int, **words):
    return replays.as_run(batches, batch_size=batch_size, **{"own_batch_size": True, "packs": True, "refills": True, **words})


def test_the_plans_batch_size_and_a_plain_cache_leave_batches_as_they_were_recorded():
    assert as_run(RECORDED, 8, own_batch_size=False) == RECORDED


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_row_is_computed_once_in_its_order_and_no_batch_is_too_large(batch_size):
    found = as_run(RECORDED, batch_size)
    rows = [msgspec.structs.replace(row, joins=0) for batch in found for row in batch]
    assert rows == [msgspec.structs.replace(row, joins=0) for batch in RECORDED for row in batch]
    for batch in found:
        if replays.is_packed(batch):
            assert len(batch) * max(len(row.tokens) for row in batch) <= 128 * batch_size
        elif not batch[0].decode_steps:
            assert len(batch) <= batch_size


def test_at_batch_1_each_row_is_computed_alone():
    found = as_run(RECORDED, 1)
    assert [[len(row.tokens) for row in batch] for batch in found[:-1]] == [[3], [40, 40], [100], [9], [8], [7], [6]]
    # One after the other: a pass for the prompt, then the steps.
    assert [row.joins for row in found[-1]] == [0, 5, 8]


def test_an_engine_that_packs_nothing_computes_sequences_whole():
    found = as_run(RECORDED, 2, packs=False)
    assert [[len(row.tokens) for row in batch] for batch in found] == [[103, 43], [43, 9], [8, 7], [6], [8, 8, 8]]
    assert not any(map(replays.is_packed, found))


def test_a_cache_that_takes_no_rows_in_lets_the_waiting_ones_begin_together():
    rows = [written(5), written(3), written(4, joins=4), written(2, joins=4)]
    found = as_run([rows], 2, own_batch_size=False, refills=False)
    assert [row.joins for row in found[0]] == [0, 0, 5, 5]
    assert as_run([[scored(5)]], 2, own_batch_size=False, refills=False) == [[scored(5)]]


class Tokens:
    """A tokenizer of which only this is asked."""

    pad_token_id = 0

    def decode(self, tokens, **_words) -> str:
        return " ".join(map(str, tokens))


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.integers(1, 9), min_size=1, max_size=14), batch_size=st.integers(1, 5), refills=st.booleans())
def test_the_schedule_is_the_one_that_answers_in_text_are_written_by(steps, batch_size, refills):
    model = _FAKE
    lm = ReferenceLM.__new__(ReferenceLM)
    lm._model, lm.tokenizer, lm.batch_size_per_gpu = model, Tokens(), batch_size
    lm.running = running.Running(runtime=Runtime() if refills else Runtime(cache=Fixed()))
    asked = [generation.Asked(text="", prompt=tuple(range(1, 9)), stops=("never",), most=most) for most in steps]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReferenceLM, "batch_size", batch_size)
        patch.setattr(ReferenceLM, "model", model)
        made = generation.write(lm, asked)
    found = as_run([[written(most) for most in steps]], batch_size, refills=refills)
    assert [row.joins for row in found[0]] == made.joins


_FAKE = small.llama(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=1, num_key_value_heads=1, vocab_size=40,
                    eos_token_id=None)


def test_a_recorded_batch_is_replayed_by_a_variant_whose_cache_takes_no_rows_in():
    model = small.llama()
    rows = [msgspec.structs.replace(written(5), tokens=(1, 2, 3, 4, 5)), written(3), written(4, joins=3)]
    found = {}
    for name, runtime in (("plain", Runtime()), ("fixed", Runtime(cache=Fixed()))):
        lm = ReferenceLM.__new__(ReferenceLM)
        lm._model, lm.tokenizer, lm.running = model, Tokens(), running.Running(runtime=runtime)
        with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(ReferenceLM, "batch_size", 2)
            patch.setattr(ReferenceLM, "model", model)
            (batch,) = recorded.prepare(lm, [rows])
            found[name] = [piece.flatten().tolist() for piece in recorded.replay(lm, [batch])]
    # The same tokens in other company.
    assert sorted(chain.from_iterable(found["plain"])) == sorted(chain.from_iterable(found["fixed"]))
    assert sum(map(len, found["fixed"])) == 12
    assert len(found["fixed"]) == 5 + 4


@pytest.fixture
def family():
    chosen = catalogue.load("plans", "quick", plan.Plan)
    chosen = msgspec.structs.replace(chosen, recipes=("bf16", "bf16-batch-1"))
    (found,) = plan.families(chosen, catalogue.hardware("x86-vm"))
    return found


def test_a_variant_is_told_what_it_will_compute(family):
    works = building.works(family, family.recipes[0])
    assert {(one.batch, one.prompt_tokens, one.output_tokens) for one in works if not one.of_text} == {
        (1, 64, 0), (4, 64, 0), (1, 256, 0), (4, 256, 0), (1, 256, 16), (4, 256, 16)}
    (served,) = (one for one in works if one.of_text)
    workload = catalogue.workload("agent")
    assert (served.batch, served.prompt_tokens, served.output_tokens) == (1, workload.prompt_tokens, workload.output_tokens)


def test_every_runtime_recipe_of_the_catalogue_goes_together():
    for path in Path(plan.paths.data_folder("recipes")).glob("*.yaml"):
        recipes.require_order(recipes.load(path.stem))


def test_a_build_that_compiles_may_say_nothing_for_longer():
    assert silence.compile_s(recipes.load("bf16-compiled")) >= 600
    assert silence.compile_s(recipes.load("bf16-static-cache")) == 0


def test_other_ways_to_run_are_refused_over_several_devices():
    from jouleboard.engines import parallel
    from jouleboard.engines.place import RankPlace

    place = RankPlace(rank=0, world=2, rendezvous="nowhere")
    parallel.require_plain(Runtime(), place)
    parallel.require_plain(Runtime(cache=Fixed()), None)
    with pytest.raises(RecipeError, match="not tried over 2 devices"):
        parallel.require_plain(Runtime(cache=Fixed()), place)
