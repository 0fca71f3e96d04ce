"""Distillation brings a student to its teacher, and comes out the same however often it was stopped."""

from __future__ import annotations

import json
import shutil

import msgspec
import pytest
import torch
from tests.recipes.tiny import UNSEEN, Tokenizer, context, distance, model, student, to_the_end, write_corpus

from jouleboard.engines import inspect
from jouleboard.errors import RecipeError, UnitError
from jouleboard.recipes import Context
from jouleboard.recipes.distil import Distil, even_map
from jouleboard.recipes.interface import Paused

STEP = Distil(corpus="tiny", steps=6, batch_size=2, accumulate=2, sequence_tokens=24, learning_rate=2e-3, seed=3)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path)


def test_the_student_comes_nearer_to_the_teacher(corpus):
    found = student()
    before, embedding = distance(found), found.model.embed_tokens.weight.detach().clone()
    facts = msgspec.structs.replace(STEP, steps=40).apply(found, context(corpus))
    assert facts["last_loss"] < facts["first_loss"] / 2
    assert distance(found) < before
    assert facts["tokens"] == 40 * 2 * 2 * 24 * 2
    assert torch.equal(found.model.embed_tokens.weight, embedding)
    assert all(weight.requires_grad and weight.grad is None for weight in found.parameters())
    assert set(facts) >= {"corpus_sha256", "trained_parameters"}
    json.dumps(facts)


def test_features_bring_the_hidden_states_nearer_too(corpus):
    teacher, ids = model(), UNSEEN

    def apart(found) -> float:
        with torch.inference_mode():
            mine = found(ids, output_hidden_states=True).hidden_states[2]
            return float((mine - teacher(ids, output_hidden_states=True).hidden_states[3]).norm())

    plain, with_features = student(), student()
    step = msgspec.structs.replace(STEP, steps=30)
    step.apply(plain, context(corpus))
    facts = msgspec.structs.replace(step, method="feature", beta=10.0, layer_map=(0, 2, 3)).apply(with_features, context(corpus))
    assert facts["layer_map"] == [0, 2, 3]
    assert apart(with_features) < apart(plain)


def test_a_narrower_student_learns_through_projections(corpus):
    found = model(layers=2, width=16)
    facts = msgspec.structs.replace(STEP, method="feature", steps=20).apply(found, context(corpus))
    assert facts["last_loss"] < facts["first_loss"]
    # One for each of two layers, and thrown away with the teacher.
    assert facts["trained_parameters"] - 2 * 32 * 16 == sum(weight.numel() for name, weight in found.named_parameters() if "embed" not in name)


def test_layers_are_spread_evenly_with_the_last_on_the_last():
    assert even_map(3, 6) == (1, 3, 5)
    assert even_map(24, 30)[-1] == 29
    assert even_map(3, 2) == (0, 0, 1)


def test_a_map_that_does_not_fit_is_refused(corpus):
    with pytest.raises(RecipeError, match="does not name one of 4 teacher layers for each of 3"):
        msgspec.structs.replace(STEP, method="feature", layer_map=(0, 1)).apply(student(), context(corpus))


@pytest.mark.parametrize("stop_after", [[1], [3], [5], [2, 2], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("method", ["response", "feature"])
def test_a_training_that_was_stopped_gives_the_same_bits(corpus, tmp_path, stop_after, method):
    step = msgspec.structs.replace(STEP, method=method)
    whole = student(torch.bfloat16)
    facts = step.apply(whole, context(corpus, torch.bfloat16))
    pieces, again, tokens = to_the_end(step, corpus, tmp_path / "state", stop_after, lambda: student(torch.bfloat16))
    assert inspect.fingerprint(pieces) == inspect.fingerprint(whole)
    assert again == facts
    assert tokens == [steps * 2 * 2 * 24 * 2 for steps in stop_after]
    assert len(list((tmp_path / "state").glob("state-*"))) == min(2, len(stop_after))


def pieces_of(corpus, folder, count: int):
    """Leave a training after `count` pieces of one step each, all of them committed."""
    for number in range(1, count + 1):
        with pytest.raises(Paused):
            STEP.apply(student(), context(corpus, state=folder, pause=lambda: True))
        (folder / "committed").write_text(str(number))


def begins_at(corpus, folder) -> int:
    steps: list[int] = []
    with pytest.raises(Paused):
        STEP.apply(student(), context(corpus, state=folder, pause=lambda: True, progress=lambda step, _of: steps.append(step)))
    return steps[0] - 1


def test_a_piece_that_nobody_committed_is_done_again(corpus, tmp_path):
    folder = tmp_path / "state"
    pieces_of(corpus, folder, 2)
    assert begins_at(corpus, folder) == 2
    assert (folder / "state-3").is_dir()
    # Its bill was not stored: the caller was killed.
    assert begins_at(corpus, folder) == 2
    (folder / "committed").unlink()
    assert begins_at(corpus, folder) == 0


@pytest.mark.parametrize("harm", [
    lambda state: (state / "note.json").unlink(),
    lambda state: (state / "note.json").write_text('{"step": 2'),
    lambda state: (state / "tensors.safetensors").write_bytes((state / "tensors.safetensors").read_bytes()[:-8]),
    lambda state: (state / "tensors.safetensors").write_bytes((state / "tensors.safetensors").read_bytes()[:-1] + b"?"),
    shutil.rmtree,
])
def test_the_newest_whole_state_wins(corpus, tmp_path, harm):
    folder = tmp_path / "state"
    pieces_of(corpus, folder, 3)
    harm(folder / "state-3")
    (folder / ".state-4").mkdir()
    assert begins_at(corpus, folder) == 2
    assert not (folder / ".state-4").exists()
    # A state that is not whole is not one of the two that are kept.
    assert sorted(path.name for path in folder.glob("state-*")) == ["state-2", "state-4"]
    assert begins_at(corpus, folder) == 2


def test_without_any_whole_state_it_begins_anew(corpus, tmp_path):
    folder = tmp_path / "state"
    pieces_of(corpus, folder, 2)
    for state in folder.glob("state-*"):
        (state / "note.json").unlink()
    assert begins_at(corpus, folder) == 0


def test_a_state_of_another_training_is_refused(corpus, tmp_path):
    folder = tmp_path / "state"
    pieces_of(corpus, folder, 1)
    with pytest.raises(RecipeError, match="other weights, text or settings"):
        msgspec.structs.replace(STEP, learning_rate=1e-3).apply(student(), context(corpus, state=folder))


def test_a_training_without_a_state_is_never_stopped(corpus):
    assert STEP.apply(student(), context(corpus, pause=lambda: True))["tokens"] == 6 * 4 * 24 * 2


def test_a_loss_that_is_not_finite_ends_the_step(corpus):
    found = student()
    with torch.no_grad():
        found.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(UnitError, match="the loss is nan") as caught:
        STEP.apply(found, context(corpus))
    assert caught.value.kind == "non-finite"


def test_float16_is_refused(corpus):
    with pytest.raises(RecipeError, match="float16"):
        STEP.apply(student(torch.float16), context(corpus, torch.float16))


def test_what_is_missing_is_named(corpus):
    bare = Context(calibration_ids=torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(RecipeError, match="no teacher"):
        STEP.apply(student(), bare)
    with pytest.raises(RecipeError, match="no text to train on: the corpus tiny"):
        STEP.apply(student(), with_teacher(bare))
    with pytest.raises(RecipeError, match="less than one sequence"):
        msgspec.structs.replace(STEP, sequence_tokens=10**6).apply(student(), context(corpus))


def with_teacher(bare: Context) -> Context:
    return Context(calibration_ids=bare.calibration_ids, tokenizer=Tokenizer(), base=model)


def test_accumulated_batches_are_one_large_batch(corpus):
    one, several = student(), student()
    msgspec.structs.replace(STEP, batch_size=4, accumulate=1).apply(one, context(corpus))
    STEP.apply(several, context(corpus))
    for left, right in zip(one.parameters(), several.parameters(), strict=True):
        assert torch.allclose(left, right, atol=2e-5)
