"""A student is made of some of the base's layers, and is the base where these are computed."""

from __future__ import annotations

import msgspec
import pytest
import torch
from tests.recipes.tiny import CALIBRATION, UNSEEN, model

from jouleboard.engines import inspect
from jouleboard.errors import RecipeError
from jouleboard.recipes import Context, Student

CONTEXT = Context(calibration_ids=CALIBRATION)


@pytest.mark.parametrize(("keep", "kept"), [(2, [0, 2]), (3, [0, 3]), ((0, 1, 3), [0, 1, 3])])
def test_the_layers_that_are_kept_are_the_bases(keep, kept):
    base, found = model(), model()
    facts = Student(keep=keep).apply(found, CONTEXT)
    assert facts["kept_layers"] == kept
    for new, old in enumerate(kept):
        for left, right in zip(found.model.layers[new].parameters(), base.model.layers[old].parameters(), strict=True):
            assert torch.equal(left, right)
    assert inspect.realised(found, [{"step": "student"} | facts], found.config.num_hidden_layers).layers == len(kept)
    with torch.inference_mode():
        assert found(UNSEEN, use_cache=True).past_key_values.get_seq_length() == UNSEEN.shape[1]


@pytest.mark.parametrize("keep", [(0, 4), (1, 0), (1, 1), (0, 1, 2, 3)])
def test_what_is_no_choice_of_layers_is_refused(keep):
    with pytest.raises(RecipeError, match="no ascending choice of some of 4 layers"):
        Student(keep=keep).apply(model(), CONTEXT)


def test_it_reads_a_number_and_a_list():
    assert msgspec.convert({"step": "student", "keep": 2}, Student) == Student(keep=2)
    assert msgspec.convert({"step": "student", "keep": [0, 3]}, Student) == Student(keep=(0, 3))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"step": "student", "keep": 1}, Student)
