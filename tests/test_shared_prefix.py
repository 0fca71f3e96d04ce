"""The shared-prefix engine against lm-eval's own `hf` model, on small random models in float32."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch

from jouleboard import replays, workloads
from jouleboard.engines import fitness, packed, prefixes, recorded, rows, selfcheck
from jouleboard.engines.reference import ReferenceLM
from jouleboard.engines.shared import SharedPrefixLM, replay_rows
from jouleboard.errors import UnitError
from jouleboard.journal import Journal

MAX_LENGTH = 96
OF = hashlib.sha256(b"unit").hexdigest()
VOCABULARY = 300


@pytest.fixture(scope="module")
def tokenizer(dense_model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(dense_model)


def small(family: str = "Llama", **changes):
    """A random model of a family, in float32; its weights are large enough that masks and positions matter."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCABULARY, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    } | changes)
    made = transformers.GPT2LMHeadModel if family == "GPT2" else getattr(transformers, f"{family}ForCausalLM")
    model = made(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(6)
    return model


def engine(kind, model, tokenizer, *, batch_size: int = 4, **words):
    return kind(model, tokenizer, batch_size=batch_size, max_length=MAX_LENGTH, **words)


def requests(seed: int = 0, *, shots: int = 0, items: int = 12, longest: int = 40) -> list:
    """Items of up to four choices: long ones, single tokens, choices that begin alike, contexts that continue each other."""
    draw = random.Random(seed)

    def text(length: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(length)]

    head, found = text(shots), []
    for number in range(items):
        context = head + text(draw.randint(1, longest))
        stem = text(draw.randint(0, 3))
        found += [((f"c{number}", "x" * draw.randint(1, 9)), context, stem + text(draw.randint(1, 6)))
                  for _ in range(draw.randint(1, 4))]
    # A duplicate, a choice that another one continues, and one context that continues another.
    found.append(found[0])
    found.append((found[1][0], found[1][1], [*found[1][2], *text(2)]))
    found.append((found[2][0], found[2][1] + found[2][2], text(2)))
    return found


def expected(model, tokenizer, asked, *, batch_size: int = 4):
    """What lm-eval's own model class says."""
    from lm_eval.models.huggingface import HFLM

    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=MAX_LENGTH, softmax_dtype="float32")
    return stock._loglikelihood_tokens(asked, disable_tqdm=True)


def assert_equal(found, wanted, tolerance: float = 1e-4) -> None:
    assert len(found) == len(wanted)
    for (value, greedy), (other, other_greedy) in zip(found, wanted, strict=True):
        assert abs(value - other) <= tolerance
        assert greedy == other_greedy


def greedy_target(model, context: list[int], tokens: int) -> list[int]:
    whole = list(context)
    for _ in range(tokens):
        with torch.no_grad():
            whole.append(int(model(torch.tensor([whole])).logits[0, -1].argmax()))
    return whole[len(context):]


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPTNeoX", "GPT2", "OPT", "Phi", "Cohere", "Granite", "StableLm"])
def test_log_likelihoods_equal_those_of_lm_evals_hf_model(tokenizer, family):
    words = {"GPT2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}, "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},
             "Granite": {"logits_scaling": 3.0}, "Cohere": {"logit_scale": 0.25}}
    model = small(family, **words.get(family, {}))
    assert fitness.refusal(model) is None
    asked = requests()
    asked.append((("", "g"), asked[0][1], greedy_target(model, asked[0][1], 3)))
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    found = lm._loglikelihood_tokens(asked)
    assert_equal(found, expected(model, tokenizer, asked))
    assert found[-1][1] is True
    assert lm.tally.computed_tokens < sum(len(context) + len(target) - 1 for _, context, target in asked)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cost", [0, 1024])
def test_a_shared_prefix_gives_the_same(tokenizer, monkeypatch, attention, cost):
    monkeypatch.setattr(prefixes, "PREFIX_COST", cost)
    model = small()
    model.set_attn_implementation(attention)
    asked = requests(shots=40)
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    assert_equal(lm._loglikelihood_tokens(asked), expected(model, tokenizer, asked))
    heads = [batch for batch in lm.tally.batches if replays.is_prefix(batch)]
    assert bool(heads) == (cost == 0)
    fed = sum(len(row.tokens) for batch in lm.tally.batches for row in batch)
    assert lm.tally.least_tokens <= fed <= lm.tally.computed_tokens
    if heads:
        assert fed < 1.3 * lm.tally.least_tokens


def test_contexts_too_long_are_cut_from_the_left_as_lm_eval_cuts_them(tokenizer):
    model = small()
    draw = random.Random(3)
    asked = []
    for length in (MAX_LENGTH - 3, MAX_LENGTH - 2, MAX_LENGTH - 1, MAX_LENGTH, MAX_LENGTH + 1, 3 * MAX_LENGTH):
        context = [draw.randrange(3, VOCABULARY) for _ in range(length)]
        asked += [(("", "a"), context, [draw.randrange(3, VOCABULARY) for _ in range(tokens)]) for tokens in (1, 2, 4)]
    asked.append((("", "a"), asked[0][1], [draw.randrange(3, VOCABULARY) for _ in range(MAX_LENGTH)]))
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    assert_equal(lm._loglikelihood_tokens(asked), expected(model, tokenizer, asked), tolerance=3e-4)


@pytest.mark.parametrize(("context", "target"), [([], [5]), ([5], []), ([5], [6] * (MAX_LENGTH + 1))])
def test_requests_that_lm_eval_would_stumble_over_are_refused(tokenizer, context, target):
    lm = engine(SharedPrefixLM, small(), tokenizer)
    lm.start_tally()
    with pytest.raises(UnitError, match="scored tokens"):
        lm._loglikelihood_tokens([(("", ""), context, target)])


def instances(tokenizer, texts: list[tuple[str, list[str]]]) -> list:
    """Requests as `lm_eval.evaluate` makes them."""
    return [SimpleNamespace(args=(context, choice), doc_id=number)
            for number, (context, choices) in enumerate(texts) for choice in choices]


TEXTS = [("", [" an empty context", " has only the first token"]), ("One token", [" a", " b"]), ("Trailing space ", ["goes", "along"]),
         *((f"Item {number} of a list has these", [" choices", " words to choose", " words"]) for number in range(9))]


def test_texts_take_the_way_of_lm_eval_to_the_same_numbers(tiny_model, tokenizer):
    from lm_eval.models.huggingface import HFLM

    model = tiny_model.float()
    asked = instances(tokenizer, TEXTS)
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=MAX_LENGTH, softmax_dtype="float32")
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    assert_equal(lm.loglikelihood(asked, disable_tqdm=True), stock.loglikelihood(asked, disable_tqdm=True))
    assert lm.tally.self_check is None
    assert len(lm.tally.request_tokens) == len(asked)


def test_texts_of_a_perplexity_task_go_the_way_of_the_reference_engine(tiny_model, tokenizer):
    model = tiny_model.float()
    asked = [SimpleNamespace(args=("A long text. " * count,)) for count in (3, 60)]
    counts = []
    for kind in (ReferenceLM, SharedPrefixLM):
        lm = engine(kind, model, tokenizer)
        lm.start_tally()
        counts.append((lm.loglikelihood_rolling(asked, disable_tqdm=True), lm.tally.batches, lm.tally.computed_tokens))
        assert lm.tally.least_tokens is None
        assert not any(map(replays.is_packed, lm.tally.batches))
    assert counts[0] == counts[1]


def test_both_engines_count_the_same_least(tokenizer):
    asked, model = requests(shots=20), small()
    every = {tuple((context + target)[:length]) for _, context, target in asked for length in range(1, len(context + target))}
    for kind in (ReferenceLM, SharedPrefixLM):
        lm = engine(kind, model, tokenizer)
        lm.start_tally()
        lm._loglikelihood_tokens(asked)
        assert lm.tally.least_tokens == len(every)
        assert lm.tally.computed_tokens >= len(every)


class StoppedError(Exception):
    """A kill in the middle."""


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_run_that_goes_on_gives_the_same_bytes(tokenizer, monkeypatch, tmp_path, stop):
    monkeypatch.setattr(prefixes, "PREFIX_COST", 0)
    model, asked = small(), [*requests(shots=30), *requests(seed=9, shots=25)]

    def run(path: Path, on_batch=lambda _rows: None):
        lm = engine(SharedPrefixLM, model, tokenizer, batch_size=1, on_batch=on_batch)
        journal = Journal(path, OF)
        lm.start_tally(journal)
        try:
            return lm._loglikelihood_tokens(asked), lm.tally
        finally:
            journal.close()

    whole, tally = run(tmp_path / "whole")
    done = []

    def stop_there(_rows: int) -> None:
        done.append(1)
        if len(done) == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path / "cut", stop_there)
    again, resumed = run(tmp_path / "cut")
    assert again == whole
    assert resumed.resumed_batches == stop
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert dataclasses.replace(resumed, resumed_batches=0) == tally
    assert len(tally.batches) > stop + 1


def test_a_journal_of_other_requests_is_not_used(tokenizer, tmp_path):
    model = small()
    lm = engine(SharedPrefixLM, model, tokenizer)
    for seed in (1, 2):
        lm.start_tally(Journal(tmp_path / "journal", OF))
        found = lm._loglikelihood_tokens(requests(seed))
        assert lm.tally.resumed_batches == 0
    lm.start_tally(None)
    assert lm._loglikelihood_tokens(requests(2)) == found


def written(lm, path: Path, by=None) -> list:
    path.write_bytes(msgspec.json.encode(lm.tally.batches))
    return recorded.prepare(by or lm, recorded.read_batches(path))


def test_a_replay_computes_what_scoring_computed(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(prefixes, "PREFIX_COST", 0)
    model = small()
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    fed: list[tuple[torch.Tensor, int]] = []
    logits: list[torch.Tensor] = []
    monkeypatch.setattr(packed, "forward", lambda model, batch, cache, forward=packed.forward: _told(
        fed, logits, batch, cache, forward(model, batch, cache)))
    lm._loglikelihood_tokens([*requests(shots=30), *requests(seed=5, shots=35)])
    scoring, computed, known = list(logits), list(fed), sum(len(batch) for batch in fed)
    logits.clear()
    fed.clear()
    ready = written(lm, tmp_path / "batches.json")
    with torch.inference_mode():
        pieces = list(recorded.replay(lm, ready))
    assert len(logits) == len(scoring) > len(pieces) > 2
    assert all(torch.equal(one, other) for one, other in zip(logits, scoring, strict=True))
    assert all(one[1] == other[1] and torch.equal(one[0], other[0]) for one, other in zip(fed, computed, strict=True))
    assert known == sum(len(batch) for batch in fed)
    scored = [one for one, (_, is_prefix) in zip(scoring, computed, strict=True) if not is_prefix]
    assert all(torch.equal(one.argmax(-1), piece) for one, piece in zip(scored, pieces, strict=True))


def _told(fed, logits, batch, _cache, found):
    fed.append((batch.ids, batch.is_prefix))
    logits.append(found.clone())
    return found


def test_a_replay_in_loops_begins_with_empty_caches(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(prefixes, "PREFIX_COST", 0)
    lm = engine(SharedPrefixLM, small(), tokenizer)
    lm.start_tally()
    lm._loglikelihood_tokens(requests(shots=40))
    ready = written(lm, tmp_path / "batches.json")
    calls = []
    monkeypatch.setattr(packed, "hold", lambda *args, hold=packed.hold: calls.append(1) or hold(*args))
    ends = iter([False, False, True, True])
    found = workloads.run(lambda: recorded.replay(lm, ready), torch.device("cpu"), go=lambda: None, window_s=1.0,
                          decide=lambda _mine: not next(ends))
    assert len(found.loop_ends_s) == 3
    assert found.cached_tokens == 0
    assert found.loops_changed == 0
    # Once a loop.
    assert len(calls) == 3


def test_what_is_recorded_counts_what_is_computed(tokenizer, monkeypatch):
    monkeypatch.setattr(prefixes, "PREFIX_COST", 0)
    model, seen = small(), []
    model.register_forward_pre_hook(lambda _module, args, _kwargs: seen.append(args[0].numel()), with_kwargs=True)
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    asked = requests(shots=40)
    lm._loglikelihood_tokens(asked)
    assert sum(seen) == lm.tally.computed_tokens == sum(map(replays.computed_tokens, lm.tally.batches))
    kept = [row for batch in lm.tally.batches for row in batch]
    assert sum(row.requests for row in kept) == len(asked)
    assert sum(row.prompt_tokens for row in kept) == sum(len(context) for _, context, _ in asked)
    assert sum(row.output_tokens for row in kept) == sum(len(target) for _, _, target in asked)


def test_the_reference_engine_replays_packed_batches_in_its_own_way(tokenizer, tmp_path):
    """A variant that falls back is measured on the same requests as the others, as lm-eval computes them."""
    model, asked = small(), requests()
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    lm._loglikelihood_tokens(asked)
    reference = engine(ReferenceLM, model, tokenizer)
    ready = written(lm, tmp_path / "batches.json", reference)
    assert all(isinstance(batch, torch.Tensor) for batch in ready)
    assert len(list(recorded.replay(reference, ready))) == len(ready)
    reference.start_tally()
    reference._loglikelihood_tokens(asked)
    fed = {row.tokens for batch in replays.plain(lm.tally.batches, 4) for row in batch}
    assert fed == {row.tokens for batch in reference.tally.batches for row in batch}


def checked(model, tokenizer, texts=TEXTS):
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    lm.check_first = True
    lm.loglikelihood(instances(tokenizer, texts), disable_tqdm=True)
    return lm.tally


def test_the_first_items_are_held_against_the_reference_engine_and_not_counted(tiny_model, tokenizer):
    model = tiny_model.float()
    tally = checked(model, tokenizer)
    assert tally.self_check.items == 8
    assert 0 < tally.self_check.largest_difference < 1e-4
    assert tally.self_check.same_answers
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    lm.loglikelihood(instances(tokenizer, TEXTS), disable_tqdm=True)
    assert dataclasses.replace(tally, self_check=None) == lm.tally


def test_all_items_are_checked_where_there_are_fewer(tiny_model, tokenizer):
    assert checked(tiny_model.float(), tokenizer, TEXTS[:3]).self_check.items == 3


BROKEN = {
    "a mask of booleans as numbers": lambda prepared: {"mask": (prepared.mask == 0).to(prepared.mask.dtype)},
    "branches that see each other": lambda prepared: {
        "mask": torch.full_like(prepared.mask, torch.finfo(prepared.mask.dtype).min).triu(1)},
    "positions one after the other": lambda prepared: {
        "positions": torch.arange(prepared.ids.shape[1]).expand(prepared.ids.shape)},
    "logits one place too late": lambda prepared: {"scored": (prepared.scored + 1).clamp(max=prepared.ids.numel() - 1)},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", BROKEN)
def test_the_self_check_finds_an_engine_that_is_wrong(tokenizer, dense_model, monkeypatch, fault, dtype):
    """Random weights look at no token much, so only float32 could tell here; they are made to."""
    model = small(vocab_size=49152).to(dtype)

    def prepare(*args, made=packed.prepare, **words):
        prepared = made(*args, **words)
        return dataclasses.replace(prepared, **BROKEN[fault](prepared))

    texts = [(f"Item {number} of a list has these", [" choices", " words to choose", " other words"]) for number in range(9)]
    checked(model, tokenizer, texts)
    monkeypatch.setattr(packed, "prepare", prepare)
    with pytest.raises(UnitError, match="nats apart"):
        checked(model, tokenizer, texts)


def test_in_lower_precision_a_difference_is_recorded():
    expected_ = {0: selfcheck.Checked(item=0, place=0, tokens=4, chars=3, answer=(-9.0, False)),
                 1: selfcheck.Checked(item=0, place=1, tokens=4, chars=3, answer=(-9.1, False)),
                 2: selfcheck.Checked(item=1, place=2, tokens=1, chars=3, answer=(-2.0, True))}
    checker = selfcheck.Checker(expected=expected_, is_float32=False)
    checker.add({0: (-9.3, False), 1: (-9.05, False), 7: (-1e9, False)})
    checker.add({2: (-2.4, True)})
    found = checker.result()
    assert (found.items, found.same_answers) == (2, False)
    assert found.largest_difference == pytest.approx(0.4)
    for place, wrong in ((2, -2.6), (0, -11.5), (1, float("nan"))):
        with pytest.raises(UnitError, match="--engine reference"):
            selfcheck.Checker(expected=expected_, is_float32=False).add({place: (wrong, False)})
    with pytest.raises(UnitError, match="nats apart, 0"):
        selfcheck.Checker(expected=expected_, is_float32=True).add({0: (-9.0011, False)})


def test_numbers_that_are_none_fail_the_unit(tokenizer):
    model = small()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    with pytest.raises(UnitError, match="not finite"):
        lm._loglikelihood_tokens(requests())


SSM = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
REFUSED = {
    "sliding": ("Mistral", {"sliding_window": 16}, "sliding window of 16|sliding_attention"),
    "mixed": ("Gemma2", {"head_dim": 16}, "sliding_attention"),
    "state space": ("Mamba", SSM, "linear_attention|state"),
    "linear": ("Mamba2", {**SSM, "num_heads": 4, "head_dim": 16, "n_groups": 1}, "linear_attention|state"),
    "hybrid": ("Lfm2", {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, "conv"),
    "alibi": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "takes no positions"),
    "falcon": ("Falcon", {"alibi": True}, "ALiBi"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_it_cannot_compute_are_refused_with_the_reason(name):
    import transformers

    family, words, reason = REFUSED[name]
    config = getattr(transformers, f"{family}Config")(**{
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | words)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    assert re.search(reason, fitness.refusal(model) or "computed")


def test_attention_that_ignores_the_mask_several_devices_and_rounded_activations_are_refused():
    model = small()
    assert fitness.refusal(model) is None
    assert "2 devices" in fitness.refusal(model, ranks=2)
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in fitness.refusal(model)
    rounded = torch.ao.quantization.quantize_dynamic(small(), {torch.nn.Linear}, dtype=torch.qint8)
    assert "activations" in fitness.refusal(rounded)


def test_activations_that_torchao_rounds_are_refused_and_weights_are_not():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    model = small().to(torch.bfloat16)
    quantize_(model, Int8WeightOnlyConfig())
    assert fitness.refusal(model) is None
    model = small().to(torch.bfloat16)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    assert "activations are quantised dynamically" in fitness.refusal(model)


def test_a_mistral_without_a_window_is_computed(tokenizer):
    model = small("Mistral", sliding_window=None)
    assert fitness.refusal(model) is None
    lm = engine(SharedPrefixLM, model, tokenizer)
    lm.start_tally()
    asked = requests()
    assert_equal(lm._loglikelihood_tokens(asked), expected(model, tokenizer, asked))


def test_chains_without_a_prefix_need_no_mask(tokenizer):
    asks = [rows.Ask(context=tuple(range(index, index + 70)), target=(3,)) for index in range(5)]
    (batch,) = prefixes.plan(asks, batch_size=8, max_length=99).batches
    prepared = packed.prepare(replay_rows(batch, asks), 0, device=torch.device("cpu"), dtype=torch.float32)
    assert prepared.mask is prepared.positions is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows_", [1, packed.SOFTMAX_ROWS["cpu"], 2 * packed.SOFTMAX_ROWS["cpu"] + 3])
def test_scores_are_the_log_softmax_of_each_row_in_float32(dtype, rows_):
    torch.manual_seed(rows_)
    logits = (torch.randn(rows_, VOCABULARY) * 4 - 60).to(dtype)
    # Of two that are equally likely the first is the most likely one.
    logits[-1, 7] = logits[-1, 5] = 9.0
    before, draw = logits.clone(), random.Random(rows_)
    # Some rows are asked for several tokens, some for none.
    wanted = sorted({(row, draw.randrange(VOCABULARY)) for row in range(rows_) for _ in range(row % 3)} | {(rows_ - 1, 0)})
    values, most_likely = packed.score(logits, wanted, torch.float32)
    expected_ = torch.log_softmax(before, dim=-1, dtype=torch.float32)
    assert values == [float(expected_[row, token]) for row, token in wanted]
    assert most_likely.tolist() == expected_.argmax(dim=-1).tolist()
    assert most_likely[-1] == 5
    assert torch.equal(logits, before)
    nothing, same = packed.score(logits, [], torch.float32)
    assert nothing == []
    assert torch.equal(same, most_likely)
