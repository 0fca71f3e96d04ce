"""Engines outside of torch give what transformers gives on the same weights, and are what they claim to be."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from tests.edge.conftest import PACKAGES, PLAIN, recipe, step, take

from jouleboard import recipes, scores
from jouleboard.engines import edge, fitness
from jouleboard.engines.caches import CacheWatch
from jouleboard.engines.edge.lm import EdgeLM
from jouleboard.engines.reference import ReferenceLM
from jouleboard.errors import RecipeError, UnitError

NATS_A_TOKEN = 1e-3
"""Largest difference of an unquantised engine from transformers in float32; seen were 1e-5."""
ENGINES = sorted(PACKAGES)
QUANTISED = [("ctranslate2", {"weights": "int8"}), ("onnx-genai", {"weights": "int8"}), ("onnx-genai", {"weights": "int4"}),
             ("onnx-genai", {"weights": "int4", "block_size": 16, "algorithm": "k_quant"}), ("llama-cpp", {"weights": "q8_0"}),
             ("llama-cpp", {"weights": "q4_0"}), ("openvino", {"weights": "int8"}), ("openvino", {"weights": "int4", "group_size": 16})]
LENGTHS = (20, 7, 13)


@pytest.fixture(scope="module", params=ENGINES)
def plain(request, folder, tmp_path_factory):
    """An engine that holds the model as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOULEBOARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        return take(folder, request.param)[0]


def prompts(lengths=LENGTHS, seed: int = 0) -> list[list[int]]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=made).tolist() for length in lengths]


def generated(model, prompt: list[int], tokens: int) -> list[int]:
    """Greedy tokens by transformers' own `generate`."""
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens,
                          eos_token_id=None, pad_token_id=0)[0, len(prompt):].tolist()


def written(runs, asked, goes, most: int) -> list[list[int]]:
    """Let rows write as long as they go on; returns the tokens of each."""
    found: list[list[int]] = [[] for _ in asked]

    def hears(row: int, token: int) -> bool:
        found[row].append(token)
        return goes(row, found[row])

    steps = [len(newest) for newest in runs.write(asked, hears, most)]
    assert sum(steps) == sum(map(len, found))
    return found


def test_the_engines_are_those_that_steps_ask_for():
    assert set(edge.ENGINES) == {name for name, technique in recipes.TECHNIQUES.items() if technique.about.exports}
    assert set(edge.ENGINES) == set(PACKAGES)


def test_logits_are_those_of_transformers(plain, dense):
    ids = torch.tensor(prompts((20, 20, 20)))
    with torch.inference_mode():
        ours, theirs = plain(ids).logits.log_softmax(-1), dense(ids).logits.log_softmax(-1)
    assert ours.shape == (3, 20, 257)
    assert (ours - theirs).abs().max() < 1e-4


def test_rows_of_different_lengths_write_the_tokens_of_generate(plain, dense):
    asked = prompts()
    found = written(plain.runs, asked, lambda _row, _tokens: True, 9)
    assert found == [generated(dense, prompt, 9) for prompt in asked]
    assert min(len(set(tokens)) for tokens in found) > 3


def test_a_row_ends_when_it_is_told_to_and_the_others_go_on(plain, dense):
    asked, ends = prompts(), (3, 9, 1)
    found = written(plain.runs, asked, lambda row, tokens: len(tokens) < ends[row], 12)
    assert found == [generated(dense, prompt, end) for prompt, end in zip(asked, ends, strict=True)]


def test_the_first_tokens_of_prompts_of_one_length_come_together(plain):
    steps = list(plain.runs.write(prompts((11, 11)), lambda _row, _token: True, 3))
    assert [tuple(newest.shape) for newest in steps] == [(2, 1)] * 3


def test_a_long_answer_is_the_same_to_its_end(plain, dense):
    (prompt,) = prompts((30,))
    assert written(plain.runs, [prompt], lambda _row, _tokens: True, 270) == [generated(dense, prompt, 270)]


def test_a_loop_that_was_left_in_the_middle_leaves_nothing_behind(plain):
    asked = prompts((15, 15))
    whole = [newest.tolist() for newest in plain.runs.write(asked, lambda _row, _token: True, 6)]
    broken = plain.runs.write(asked, lambda _row, _token: True, 6)
    next(broken)
    next(broken)
    broken.close()
    assert [newest.tolist() for newest in plain.runs.write(asked, lambda _row, _token: True, 6)] == whole


def test_what_goes_wrong_while_a_token_is_looked_at_is_raised(plain):
    def breaks(_row: int, _token: int) -> bool:
        raise KeyError("nobody knows it")

    with pytest.raises(KeyError, match="nobody knows it"):
        list(plain.runs.write(prompts(), breaks, 5))
    assert len(list(plain.runs.write(prompts((4,)), lambda _row, _token: True, 2))) == 2


def test_decode_loops_give_the_same_tokens_each_time_and_they_follow_the_prompt(plain, dense):
    (prompt,) = prompts((12,))
    loop = plain.runs.hold([prompt, prompt], 5)
    loops = [torch.cat(list(loop()), dim=1).tolist() for _ in range(3)]
    assert loops == [[generated(dense, prompt, 6)[1:]] * 2] * 3


def test_no_cache_lives_on_behind_a_loop(plain):
    with CacheWatch() as watch:
        for _ in plain.runs.write(prompts(), lambda _row, _token: True, 4):
            pass
        assert watch.held_tokens() == 0


@pytest.mark.parametrize("name", ENGINES)
def test_unquantised_log_likelihoods_of_texts_agree_with_transformers(worded, name):
    from lm_eval.api.instance import Instance
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(worded)
    reference = ReferenceLM(AutoModelForCausalLM.from_pretrained(worded, dtype=torch.float32).eval(), tokenizer, batch_size=2,
                            max_length=256)
    engine = EdgeLM(take(worded, name)[0], tokenizer, batch_size=2, max_length=256)
    pairs = [("To keep bread fresh,", " wrap it in a cloth."), ("To keep bread fresh,", " leave it in the rain."),
             ("Water boils when", " it is hot enough"), ("门锁", "已经打开")]
    asked = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index) for index, pair in enumerate(pairs)]
    ours, theirs = engine.loglikelihood(asked), reference.loglikelihood(asked)
    tokens = [target for _, target in engine.tally.request_tokens]
    assert engine.tally.computed_tokens == reference.tally.computed_tokens > sum(tokens)
    for (mine, greedy), (other, also_greedy), count in zip(ours, theirs, tokens, strict=True):
        assert abs(mine - other) < NATS_A_TOKEN * count
        assert greedy == also_greedy


@pytest.mark.parametrize(("name", "words"), QUANTISED)
def test_quantised_weights_are_read_back_from_the_engines_files(folder, dense, name, words):
    before = take(folder, name)[1]
    taken, after = take(folder, name, **words)
    bits = step(name, **words).weight_bits
    assert after.quantised_tensors >= 3 * 5 + 1
    assert after.parameters == before.parameters == sum(weight.numel() for weight in dense.parameters())
    assert after.layers == 3
    assert 8 * after.weight_bytes / after.parameters >= bits
    assert after.weight_bytes < 0.55 * before.weight_bytes
    # llama.cpp leaves the output head finer than the rest, so its tensors are of two types.
    assert sum(int(claim.partition(" ")[0]) for claim in after.claims if "tensors are" in claim) == after.quantised_tensors
    assert str(bits) in after.claims[0].split(" are ")[1]
    assert after.weights_sha256 != before.weights_sha256
    ids = torch.tensor(prompts((20, 20)))
    with torch.inference_mode():
        ours, theirs = taken(ids).logits, dense(ids).logits
    # A grid moves random weights of a small model, and its answers by less than they differ among themselves.
    assert 1e-4 < (ours - theirs).std() / theirs.std() < {8: 0.2, 4: 0.8}[bits]


@pytest.mark.parametrize("name", ENGINES)
def test_the_same_weights_have_the_same_fingerprint_and_others_another(folder, name):
    def nudge(model) -> None:
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 0.01

    first, again, other = (take(folder, name, change=change)[1] for change in (lambda _model: None, lambda _model: None, nudge))
    assert first == again
    assert other.weights_sha256 != first.weights_sha256


@pytest.mark.parametrize("name", ENGINES)
def test_an_output_head_of_its_own_is_exported_as_it_is(worded, name):
    def untie(model) -> None:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.5)

    ids = torch.tensor(prompts((20,)))
    tied, apart = take(worded, name), take(worded, name, change=untie)
    assert apart[1].parameters == tied[1].parameters + 49152 * 64
    with torch.inference_mode():
        assert torch.allclose(apart[0](ids).logits, tied[0](ids).logits * 0.5, atol=1e-5)


def test_the_torch_model_is_empty_afterwards_and_no_file_is_left(folder, monkeypatch, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path))
    asked = step("ctranslate2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    edge.take(model, AutoTokenizer.from_pretrained(folder), recipes.apply(model, [asked], None), 1)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize("name", ENGINES)
def test_weights_that_are_no_numbers_fail_as_non_finite(folder, name):
    from transformers import AutoTokenizer

    def ruin(model) -> None:
        model.model.norm.weight.fill_(float("nan"))

    taken = take(folder, name, change=ruin)[0]
    engine = EdgeLM(taken, AutoTokenizer.from_pretrained(folder), batch_size=2, max_length=64)
    with pytest.raises(UnitError, match="not finite") as caught:
        engine._loglikelihood_tokens([(("a", "b"), [1, 2], [3])])
    assert caught.value.kind == "non-finite"


@pytest.mark.parametrize("name", ENGINES)
def test_an_architecture_that_the_exporter_does_not_know_is_refused(tmp_path, folder, name):
    from transformers import AutoTokenizer, StableLmConfig, StableLmForCausalLM

    StableLmForCausalLM(StableLmConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                       num_key_value_heads=2, vocab_size=257)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"cannot (convert|export) this model: .*(No conversion|not.*support)|type stablelm.* is not written"):
        take(tmp_path, name)


def test_a_group_that_does_not_divide_a_row_is_refused(folder):
    with pytest.raises(RecipeError, match="has 64 inputs, not a multiple of the group size 128"):
        take(folder, "openvino", weights="int4", group_size=128)


def test_weights_that_an_algorithm_cannot_pack_are_refused(folder):
    # 96 inputs in blocks of 32 are three blocks, and their zero points do not fill whole bytes.
    with pytest.raises(RecipeError, match="cannot export this model: cannot reshape"):
        take(folder, "onnx-genai", weights="int4", block_size=32, algorithm="k_quant")


def test_a_repetition_penalty_is_refused(plain, folder):
    from transformers import AutoTokenizer

    engine = EdgeLM(plain, AutoTokenizer.from_pretrained(folder), batch_size=2, max_length=64)
    plain.generation_config.repetition_penalty = 1.3
    try:
        with pytest.raises(UnitError, match="repetition penalty"):
            list(engine.decode(prompts(), joins=lambda _passes, _here, waiting: waiting, stays=lambda *_words: [False], most=3))
    finally:
        plain.generation_config.repetition_penalty = 1.0


def test_the_shared_prefix_engine_refuses_it_and_says_who_computes_it(plain):
    assert fitness.refusal(plain) == f"the recipe hands the model to {plain.runs.name}, which takes no packed batches"


@pytest.mark.parametrize("name", ENGINES)
def test_a_recipe_whose_engine_is_not_installed_says_what_brings_it(name, monkeypatch):
    asked = recipe(name, installed=False)
    installed = importlib.util.find_spec(PACKAGES[name]) is not None
    assert (recipes.missing(asked, "cpu") is None) == installed
    assert "runs on CPUs only, and this device is cuda:0" in recipes.missing(asked, "cuda:0")
    monkeypatch.setattr("importlib.util.find_spec", lambda _package: None)
    said = recipes.missing(asked, "cpu")
    assert said.startswith(f"{name}: the package {PACKAGES[name]} is not installed (pip install 'jouleboard[{name}]')")
    assert ("compiled" in said) == (name == "llama-cpp")


@pytest.mark.parametrize("steps", [
    (recipes.Int8WeightOnly(), recipes.CTranslate2(weights="int8")),
    (recipes.CTranslate2(weights="int8"), recipes.OnnxGenai(weights="int4")),
])
def test_nothing_but_dense_steps_stands_beside_an_engine(steps):
    asked = recipes.Recipe(id="both", title="", description="", dtype="float32", steps=steps)
    with pytest.raises(RecipeError, match="hands dense weights to another engine"):
        recipes.require_order(asked)
    recipes.require_order(recipes.Recipe(id="fewer", title="", description="", dtype="float32",
                                         steps=(recipes.DropLayers(count=1), steps[-1])))


def test_four_bits_on_a_base_of_four_bits_are_withheld_and_eight_are_not():
    expected = {"onnx-genai-int4": 4, "onnx-genai-fp32": None, "ctranslate2-int8": 8, "ctranslate2-fp32": None, "llama-cpp-f16": None,
                "llama-cpp-q8-0": 8, "llama-cpp-q4-0": 4, "openvino-fp32": None, "openvino-int8": 8, "openvino-int4": 4}
    bits = {name: recipes.load(name).weight_bits for name in expected}
    assert bits == expected
    assert scores.base_grid(4, bits["onnx-genai-int4"]) == "base-grid"
    assert scores.base_grid(4, bits["ctranslate2-int8"]) is None


def test_onnx_runtime_writes_the_tokens_of_genais_own_generator(folder, tmp_path):
    import numpy as np
    from transformers import AutoConfig

    from jouleboard.engines.edge import onnx
    from jouleboard.engines.edge.interface import Handed

    onnx._build(Handed(dense=folder, target=tmp_path, step={"weights": "float32"}, config=AutoConfig.from_pretrained(folder), threads=1))
    import onnxruntime_genai as genai

    asked = prompts((14, 14))
    model = genai.Model(str(tmp_path))
    words = genai.GeneratorParams(model)
    words.set_search_options(batch_size=2, max_length=22, min_length=22, do_sample=False)
    generator = genai.Generator(model, words)
    generator.append_tokens(np.array(asked, np.int32))
    theirs = []
    for _ in range(8):
        generator.generate_next_token()
        theirs.append(generator.get_next_tokens().tolist())
    runs = take(folder, "onnx-genai")[0].runs
    assert [newest[:, 0].tolist() for newest in runs.write(asked, lambda _row, _token: True, 8)] == theirs
    # Neither package tells its maker how it is used.
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_every_engine_has_a_plain_form():
    assert set(PLAIN) == set(PACKAGES)
