"""Ready-made checkpoints: each really saved, taken in the base's place and computed; what is another model is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tests.recipes import checkpoints
from tests.recipes.quantised import BODY, IDS, body, logits
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from jouleboard import recipes, sources
from jouleboard.check_grid import step_bits
from jouleboard.declared import HubSource, PackageSource, PathSource
from jouleboard.engines import fitness, inspect
from jouleboard.engines.reference import ReferenceLM
from jouleboard.errors import DataFileError, RecipeError
from jouleboard.recipes import Checkpoint, CompressedTensors, Context, Gguf, Int8WeightOnly, Recipe
from jouleboard.strictyaml import convert

COMMIT = "0123456789abcdef0123456789abcdef01234567"


SIZE = 1000
"""Tokens of the vocabulary: the first of the real one, so that tokenizers are made quickly."""


@pytest.fixture(scope="module")
def small(dense_model, tmp_path_factory) -> Path:
    """A folder with a random model and a small tokenizer, and the model in GGUF beside it."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=SIZE,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2)).to(torch.bfloat16)
    model.save_pretrained(folder)
    checkpoints.gguf(model, folder / "model.gguf", "Q8_0", checkpoints.vocabulary(dense_model, SIZE))
    AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(dense_model):
    return checkpoints.vocabulary(dense_model, SIZE)


@pytest.fixture(scope="module")
def published(small, tmp_path_factory) -> Path:
    return checkpoints.bitsandbytes(small, tmp_path_factory.mktemp("published") / "tiny-bnb-4bit", 4)


@pytest.fixture
def four(published, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(published, tmp_path / "tiny-bnb-4bit"))


@pytest.fixture
def base(small):
    return AutoModelForCausalLM.from_pretrained(small, dtype=torch.bfloat16).eval()


@pytest.fixture
def context(small):
    tokenizer = AutoTokenizer.from_pretrained(small)
    return lambda place: Context(calibration_ids=IDS, tokenizer=tokenizer, checkpoint=place)


def named(place: Path) -> PathSource:
    return PathSource(path=str(place))


def taken(model, step, context):
    """Apply a step and hold the model against what it claims."""
    done = recipes.apply(model, [step], context)
    return done[0], inspect.realised(model, done, 3)


@pytest.mark.parametrize(("bits", "kind"), [(4, "Params4bit"), (8, "Int8Params")])
def test_a_checkpoint_of_bitsandbytes_is_computed_as_it_was_saved(base, context, small, tmp_path, bits, kind):
    place = checkpoints.bitsandbytes(small, tmp_path / f"tiny-bnb-{bits}bit", bits)
    alone = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16, device_map={"": "cpu"}).eval()
    for module in alone.modules():
        module.support_avx512bf16_for_cpu = False
    wanted = logits(alone)
    dense = logits(base)
    before, embedding = inspect.realised(base, [], 3), base.model.embed_tokens.weight.clone()
    step, found = taken(base, Checkpoint(format="bitsandbytes", bits=bits, source=named(place)), context(place))
    assert found.claims == (f"{BODY} weights are {kind}",)
    assert (found.quantised_tensors, found.parameters) == (BODY, before.parameters)
    assert found.weight_bytes < before.weight_bytes
    # Scales that are quantised themselves, with scales of their own.
    assert sum(part.name.endswith(".state2.absmax") for part in inspect.parts(base)) == (BODY if bits == 4 else 0)
    assert torch.equal(logits(base), wanted)
    assert not torch.equal(wanted, dense)
    assert torch.equal(base.model.embed_tokens.weight, embedding)
    # The embedding and seven norms are what they were.
    assert step["dense_tensors"] == step["dense_tensors_as_in_base"] == 8
    assert step["source"] == {"kind": "path", "path": place.name, "sha256": None}
    assert (step["weight_bits"], step_bits(step)) == (bits, bits)
    assert base.generate(IDS[:, :5], max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (2, 7)
    assert (fitness.refusal(base) is None) == (bits == 4)


def test_the_reference_engine_takes_it_and_leaves_its_weights_alone(base, context, small, four):
    taken(base, Checkpoint(format="bitsandbytes", bits=4, source=named(four)), context(four))
    before = inspect.fingerprint(base)
    lm = ReferenceLM(base, AutoTokenizer.from_pretrained(small), batch_size=2, max_length=64)
    found = lm._loglikelihood_tokens([(("a", "b"), [3, 4, 5], [6, 7])])
    assert found[0][0] < 0
    assert inspect.fingerprint(base) == before


@pytest.mark.parametrize(("bits", "activations"), [(4, False), (8, True)])
def test_a_checkpoint_of_compressed_tensors_computes_what_its_maker_computed(base, context, small, tmp_path, bits, activations):
    pytest.importorskip("compressed_tensors")
    place, made = checkpoints.compressed(small, tmp_path / "tiny-ct", bits, activations=activations)
    before = inspect.realised(base, [], 3)
    step, found = taken(base, CompressedTensors(bits=bits, source=named(place)), context(place))
    assert torch.allclose(logits(base), logits(made), atol=0.02)
    assert step["unpacked_layers"] == BODY
    assert step["layers_with_rounded_activations"] == (BODY if activations else 0)
    assert (found.weight_bytes, found.parameters, found.quantised_tensors) == (before.weight_bytes, before.parameters, 0)
    assert inspect.fingerprint(base) == found.weights_sha256, "something was unpacked in the first forward pass"
    assert ("quantised dynamically" in (fitness.refusal(base) or "")) is activations
    if not activations:
        layer = base.model.layers[0].mlp.up_proj
        assert type(layer).forward == layer.forward.__func__
        assert all(len(group.unique()) <= 16 for group in layer.weight.detach().reshape(-1, 32))
    assert CompressedTensors.about.control


@pytest.mark.parametrize(("field", "value", "why"), [
    ("kv_cache_scheme", {"num_bits": 8}, "a quantised key-value cache"), ("transform_config", {"config_groups": {}}, "transformed weights"),
    ("sparsity_config", {"format": "sparse-24-bitmask"}, "a sparse format"),
    ("quantization_status", "frozen", "would take its codes for weights")])
def test_what_transformers_would_leave_out_in_silence_is_refused(base, context, small, tmp_path, field, value, why):
    quantisation = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 8}}},
                    "quantization_status": "compressed", field: value}
    place = checkpoints.config_only(tmp_path / "odd", small, quantisation, {"a": np.zeros(1, np.float32)})
    with pytest.raises(RecipeError, match=why):
        recipes.apply(base, [CompressedTensors(bits=8, source=named(place))], context(place))


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q8_0", 8)])
def test_a_gguf_file_is_dequantised_to_the_very_values_in_it(base, context, words, tmp_path, kind, bits):
    place = tmp_path / f"tiny.{kind}.gguf"
    held = checkpoints.gguf(base, place, kind, words)
    before = inspect.realised(base, [], 3)
    step, found = recipes.apply(base, [Gguf(bits=bits, source=named(place))], context(place))[0], inspect.realised(base, [], 3)
    for name, tensor in base.named_parameters():
        assert torch.equal(tensor, held[name].bfloat16()), name
    assert (found.weight_bytes, found.quantised_tensors) == (before.weight_bytes, 0)
    assert step["weights_sha256"] == hashlib.sha256(place.read_bytes()).hexdigest()
    assert step["weight_bits"] == bits
    assert fitness.refusal(base) is None
    assert torch.isfinite(logits(base)).all()
    base.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert inspect.fingerprint(again) == found.weights_sha256
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize(("name", "package"), [("awq", "gptqmodel"), ("gptq", "gptqmodel")])
def test_a_format_whose_package_is_missing_is_refused_by_the_packages_name(base, context, small, tmp_path, monkeypatch, name, package):
    from jouleboard.recipes import checkpoint

    monkeypatch.setattr(checkpoint, "is_installed", lambda _name: False)
    quantisation = {"quant_method": name, "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True, "desc_act": False}
    layer = "model.layers.0.mlp.up_proj"
    place = checkpoints.config_only(tmp_path / "tiny-4bit", small, quantisation, {
        f"{layer}.qweight": np.zeros((8, 96), np.int32), f"{layer}.scales": np.zeros((2, 96), np.float16)})
    step = Checkpoint(format=name, bits=4, source=named(place))
    assert step.missing("cpu") == f"the package {package} is not installed (pip install {package}), and {name} checkpoints are loaded with it"
    recipe = Recipe(id="x", title="x", description="x", dtype="bfloat16", steps=(step,))
    assert recipes.missing(recipe, "cuda:0").startswith("checkpoint: the package gptqmodel")
    before = inspect.fingerprint(base)
    # Asked for all the same, it says what transformers says, which names what it lacks.
    with pytest.raises(RecipeError, match=r"cannot be loaded \(.*(gptqmodel|optimum)"):
        recipes.apply(base, [step], context(place))
    assert inspect.fingerprint(base) == before


def test_codes_in_buffers_are_counted_as_awqs_and_gptqs_modules_keep_them(tiny_model):
    """A stand-in for gptqmodel's module: what is read back goes by the names of its buffers."""

    class PackedLinear(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.register_buffer("qweight", torch.ones(self.in_features // 8, self.out_features, dtype=torch.int32))
            self.register_buffer("scales", torch.ones(self.in_features // 32, self.out_features, dtype=torch.float16))

    before = inspect.realised(tiny_model, [], 3)
    for name, module in body(tiny_model).items():
        tiny_model.set_submodule(name, PackedLinear(module))
    claims = [{"step": "checkpoint", "claimed_quantised_tensors": BODY, "claimed_tensor_class": "PackedLinear"}]
    found = inspect.realised(tiny_model, claims, 3)
    assert (found.quantised_tensors, found.parameters) == (BODY, before.parameters)
    assert found.dtypes["int32"] * 2 == before.parameters - 49152 * 64 - 7 * 64, "two weights a byte"


# --- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "field", "why"), [
    ({"bits": 8}, "steps.bits", "the checkpoint's is 4, declared is 8"),
    ({"format": "gptq"}, "steps.format", "the checkpoint's is bitsandbytes, declared is gptq"),
    ({"weights_sha256": "0" * 64}, "steps.weights_sha256", "declared is 0000")])
def test_what_is_declared_is_held_against_the_checkpoint(base, context, four, fields, field, why):
    step = Checkpoint(**({"format": "bitsandbytes", "bits": 4, "source": named(four)} | fields))
    with pytest.raises(RecipeError, match=why) as caught:
        recipes.apply(base, [step], context(four))
    assert caught.value.field == field
    assert caught.value.file == four.name


def test_the_fused_kernel_is_refused_for_layers_that_it_does_not_take(base, context, four):
    step = Checkpoint(format="bitsandbytes", bits=4, source=named(four), cpu_kernel="fused")
    with pytest.raises(RecipeError, match=r"AVX-512|down_proj has 96 inputs and 64 outputs; .* multiples of 64 and 32"):
        recipes.apply(base, [step], context(four))


def test_the_digest_is_what_coreutils_print(base, context, four):
    lines = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(four.glob("*.safetensors")))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    step, _ = taken(base, Checkpoint(format="bitsandbytes", bits=4, source=named(four), weights_sha256=digest), context(four))
    assert step["weights_sha256"] == digest


def test_pickles_are_refused_by_their_names(base, context, four):
    next(four.glob("*.safetensors")).unlink()
    (four / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(RecipeError, match=r"its weights are pickles \(pytorch_model\.bin\), which can run code"):
        recipes.apply(base, [Checkpoint(format="bitsandbytes", bits=4, source=named(four))], context(four))


@pytest.mark.parametrize(("change", "why"), [
    ({"num_hidden_layers": 2}, "num_hidden_layers is 2, the base's is 3"),
    ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "it is a MistralForCausalLM, the base is a LlamaForCausalLM"),
    ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}, "cannot be loaded")])
def test_another_model_is_refused_and_no_program_is_run(base, context, four, change, why):
    (four / "modeling_own.py").write_text("raise SystemExit('it was run')")
    config = json.loads((four / "config.json").read_text()) | change
    (four / "config.json").write_text(json.dumps(config))
    before = inspect.fingerprint(base)
    with pytest.raises(RecipeError, match=why):
        recipes.apply(base, [Checkpoint(format="bitsandbytes", bits=4, source=named(four))], context(four))
    assert inspect.fingerprint(base) == before


def test_a_checkpoint_that_lacks_weights_is_refused(base, context, four):
    from safetensors.torch import load_file, save_file

    file = next(four.glob("*.safetensors"))
    held = load_file(file)
    save_file({name: tensor for name, tensor in held.items() if name != "model.layers.1.input_layernorm.weight"}, file,
              metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"lacks 1 tensors, model\.layers\.1\.input_layernorm\.weight among them"):
        recipes.apply(base, [Checkpoint(format="bitsandbytes", bits=4, source=named(four))], context(four))


def test_another_tokenizer_is_refused(base, context, four):
    file = four / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["Ġthe"], content["model"]["vocab"]["Ġand"] = (
        content["model"]["vocab"]["Ġand"], content["model"]["vocab"]["Ġthe"])
    file.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match="its vocabulary has the digest"):
        recipes.apply(base, [Checkpoint(format="bitsandbytes", bits=4, source=named(four))], context(four))
    for name in checkpoints.TOKENIZER:
        (four / name).unlink(missing_ok=True)
    with pytest.raises(RecipeError, match="its tokenizer cannot be read"):
        recipes.apply(base, [Checkpoint(format="bitsandbytes", bits=4, source=named(four))], context(four))


def test_dense_weights_and_unknown_methods_are_no_checkpoint(base, context, small, tmp_path):
    step = Checkpoint(format="bitsandbytes", bits=4, source=named(small))
    with pytest.raises(RecipeError, match="has no quantization_config"):
        recipes.apply(base, [step], context(small))
    odd = checkpoints.config_only(tmp_path / "odd", small, {"quant_method": "quip"}, {"a": np.zeros(1, np.float32)})
    with pytest.raises(RecipeError, match=r"does not say of how many bits its weights are \(quant_method: quip\)"):
        recipes.apply(base, [step], context(odd))
    (tmp_path / "no.gguf").write_bytes(b"no such file")
    with pytest.raises(RecipeError, match="it is no GGUF file"):
        recipes.apply(base, [Gguf(bits=4, source=named(tmp_path / "no.gguf"))], context(tmp_path / "no.gguf"))


def test_without_its_files_or_the_bases_tokenizer_nothing_is_taken(base, context, four):
    step = Checkpoint(format="bitsandbytes", bits=4, source=named(four))
    with pytest.raises(RecipeError, match="was not fetched"):
        recipes.apply(base, [step], context(None))
    with pytest.raises(RecipeError, match="tokenizer is not known"):
        recipes.apply(base, [step], Context(calibration_ids=IDS, checkpoint=four))


# --- declared ----------------------------------------------------------------------------------------------------------


def declared(*steps: dict[str, object]) -> Recipe:
    return convert({"id": "x", "title": "x", "description": "x", "dtype": "bfloat16", "steps": list(steps)}, Recipe, Path("recipes/x.yaml"))


HUB = {"kind": "hub", "repo": "org/model-4bit", "revision": COMMIT}


def test_a_checkpoint_comes_first(four):
    ready = {"step": "checkpoint", "format": "gptq", "bits": 4, "source": HUB}
    recipes.require_order(declared(ready))
    recipe = declared({"step": "drop-layers", "count": 1}, ready)
    with pytest.raises(RecipeError, match="replaces the model") as caught:
        recipes.require_order(recipe)
    assert caught.value.field == "steps[1]"
    # A dense one may be compressed further.
    recipes.require_order(declared({"step": "checkpoint-gguf", "bits": 8, "source": HUB | {"file": "model.Q8_0.gguf"}},
                                   {"step": "drop-layers", "count": 1}, {"step": "torchao-int8-weight-only"}))


@pytest.mark.parametrize(("step", "why"), [
    ({"step": "checkpoint-gguf", "bits": 8, "source": HUB}, "names no .gguf file"),
    ({"step": "checkpoint-gguf", "bits": 8, "source": {"kind": "path", "path": "a.bin"}}, "names no .gguf file"),
    ({"step": "checkpoint", "format": "awq", "bits": 4, "source": HUB | {"subset": "a"}}, "has no subset"),
    ({"step": "checkpoint", "format": "awq", "bits": 4, "source": HUB | {"revision": "main"}}, "source.revision"),
    ({"step": "checkpoint", "format": "awq", "bits": 0, "source": HUB}, ">= 1"),
    ({"step": "checkpoint", "format": "onnx", "bits": 4, "source": HUB}, "onnx")])
def test_a_declaration_that_cannot_be_carried_out_is_refused(step, why):
    with pytest.raises(DataFileError) as caught:
        declared(step)
    assert why in str(caught.value)


def test_the_driver_is_told_what_to_fetch_and_a_report_keeps_it():
    recipe = declared({"step": "checkpoint", "format": "awq", "bits": 4, "source": HUB})
    (step,) = recipe.steps
    assert step.needs_source == HubSource(repo="org/model-4bit", revision=COMMIT)
    assert (recipe.weight_bits, recipe.stored_bits) == (4, 4)
    assert Int8WeightOnly().needs_source is None
    recorded = msgspec.to_builtins(step) | {"weight_bits": 4, "weights_sha256": "0" * 64, "dense_tensors": 9}
    assert step_bits(recorded) == 4
    gguf = recipes.load("gguf-smollm2-135m-q4_1")
    assert isinstance(gguf.steps[0].needs_source, PackageSource)
    assert (gguf.weight_bits, gguf.stored_bits) == (4, None)


def test_a_checkpoint_of_a_path_is_given_as_it_lies_there(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"a")
    assert sources.checkpoint(named(tmp_path / "a.gguf"), used_by="recipe x") == tmp_path / "a.gguf"
    shutil.rmtree(tmp_path / "b", ignore_errors=True)
    with pytest.raises(sources.SourceError, match=r"recipe x needs .*/b, which does not exist"):
        sources.checkpoint(named(tmp_path / "b"), used_by="recipe x")


@pytest.mark.slow
def test_the_default_models_own_file_gives_the_very_weights_that_it_was_made_from(dense_model):
    recipe = recipes.load("gguf-smollm2-135m-q4_1")
    model = AutoModelForCausalLM.from_pretrained(dense_model, dtype=torch.bfloat16).eval()
    before = inspect.fingerprint(model)
    file = sources.checkpoint(recipe.steps[0].needs_source, used_by=f"recipe {recipe.id}")
    step = recipes.apply(model, recipe.steps, Context(
        calibration_ids=IDS, tokenizer=AutoTokenizer.from_pretrained(dense_model), checkpoint=file))[0]
    assert inspect.fingerprint(model) == before
    assert step["dense_tensors"] == step["dense_tensors_as_in_base"] == 272
