"""The simulated quantisers against a plain reference in NumPy, and what must hold for every number of bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.recipes.quantised import CONTEXT, body, built, dense_weights

from jouleboard import recipes, residency
from jouleboard.engines import inspect, levels
from jouleboard.errors import DataFileError, RecipeError
from jouleboard.recipes import LinearMinMax, Nonlinear, Recipe, grids
from jouleboard.strictyaml import convert

QUICK = settings(max_examples=60, deadline=None)
BITS = st.integers(1, 16)
ROWS = arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)),
                     elements=st.floats(-100, 100, width=32, allow_subnormal=False))


def linear_reference(row: np.ndarray, bits: int) -> np.ndarray:
    low, high = float(row.min()), float(row.max())
    if low == high:
        return row.copy()
    scale = (high - low) / (2**bits - 1)
    return np.array([low + scale * np.rint((value - low) / scale) for value in row.tolist()])


def lloyd_reference(row: np.ndarray, bits: int) -> np.ndarray:
    """One weight and one level after another."""
    values = row.astype(np.float64).tolist()
    if len(set(values)) <= 2**bits:
        return np.array(values)
    table = np.linspace(min(values), max(values), 2**bits).tolist()

    def nearest(value: float) -> int:
        # Of two that are as near the upper one.
        return max(range(len(table)), key=lambda index: (-abs(value - table[index]), index))

    for _ in range(grids.LLOYD_ROUNDS):
        members: dict[int, list[float]] = {}
        for value in values:
            members.setdefault(nearest(value), []).append(value)
        table = [sum(members[index]) / len(members[index]) if index in members else level for index, level in enumerate(table)]
    return np.array([table[nearest(value)] for value in values])


def rounded(how, values: np.ndarray, bits: int) -> np.ndarray:
    """Round rows of float32 as a recipe does: in float64, stored in float32."""
    return how(torch.from_numpy(values).double(), bits).float().numpy()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize(("granularity", "group_size"), [("per-tensor", None), ("per-channel", None), ("group", 16)])
def test_an_even_grid_agrees_with_the_reference(tiny_model, bits, granularity, group_size):
    model = tiny_model.float()
    dense = dense_weights(model)
    recipes.apply(model, [LinearMinMax(bits=bits, granularity=granularity, group_size=group_size)], CONTEXT)
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"):
        units = levels.units(dense[name], granularity, group_size).numpy()
        reference = np.stack([linear_reference(row, bits) for row in units]).reshape(dense[name].shape)
        assert np.abs(model.get_submodule(name).weight.detach().numpy() - reference).max() < 1e-6


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_fitted_levels_agree_with_the_reference(bits):
    values = np.random.default_rng(bits).standard_normal((3, 90)).astype(np.float32)
    reference = np.stack([lloyd_reference(row, bits) for row in values])
    assert np.abs(rounded(grids.nonlinear, values, bits) - reference).max() < 1e-6


@QUICK
@given(ROWS, BITS)
def test_no_weight_moves_by_more_than_half_a_step_and_the_ends_stay(values, bits):
    found = rounded(grids.linear, values, bits).astype(np.float64)
    low, high = values.min(1, keepdims=True).astype(np.float64), values.max(1, keepdims=True).astype(np.float64)
    scale = (high - low) / (2**bits - 1)
    # What float32 cannot hold is lost besides.
    assert (np.abs(found - values) <= scale / 2 + np.abs(found) * 2**-24).all()
    assert (found.min(1, keepdims=True) == low).all()
    assert (found.max(1, keepdims=True) == high).all()


@QUICK
@given(ROWS, BITS, st.sampled_from([grids.linear, grids.nonlinear]))
def test_rounding_again_changes_nothing(values, bits, how):
    once = rounded(how, values, bits)
    assert (rounded(how, once, bits) == once).all()


@QUICK
@given(ROWS, BITS, st.sampled_from([grids.linear, grids.nonlinear]))
def test_levels_are_few_and_keep_the_order_of_the_weights(values, bits, how):
    found = rounded(how, values, bits)
    assert levels.most_distinct(torch.from_numpy(found)) <= 2**bits
    order = np.argsort(values, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(found, order, axis=1), axis=1) >= 0).all()


@QUICK
@given(ROWS, BITS)
def test_fitted_levels_are_never_worse_than_even_ones(values, bits):
    errors = [((how(torch.from_numpy(values).double(), bits).numpy() - values) ** 2).sum(1) for how in (grids.nonlinear, grids.linear)]
    assert (errors[0] <= errors[1] * (1 + 1e-9) + 1e-20).all()


@pytest.mark.parametrize("how", [grids.linear, grids.nonlinear])
def test_each_further_bit_makes_the_error_smaller(how):
    values = torch.randn(64, 576, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = [float((how(values, bits) - values).square().mean()) for bits in range(1, 11)]
    # Of an even grid each halves the step, which quarters the squared error; of 2^10 levels for 576 weights none is lost.
    assert all(after < before / 2 or after == 0 for before, after in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("step", [
    LinearMinMax(bits=3, granularity="per-tensor"), LinearMinMax(bits=5, granularity="group", group_size=32),
    Nonlinear(bits=2, granularity="per-channel"), Nonlinear(bits=4, granularity="group", group_size=32),
    Nonlinear(bits=6, granularity="per-tensor")])
def test_the_built_model_has_no_more_levels_than_it_claims_and_is_as_large_as_before(tiny_model, step, dtype):
    model = tiny_model.to(dtype)
    before = inspect.realised(model, [], 3)
    done, found, error = built(model, step)
    assert (found.weight_bytes, found.dtypes, found.quantised_tensors) == (before.weight_bytes, before.dtypes, 0)
    assert done[0]["claimed_levels"] == 2**step.bits
    assert done[0]["weight_bits"] == step.weight_bits == step.bits
    assert found.claims[0].startswith("at most ")
    assert error > 0
    assert (step.about.changes, step.about.stage, step.stored_bits) == ((), "dense", None)
    assert "simulated" in step.about.control


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_rounding_to_bfloat16_merges_levels_and_never_parts_them(wide):
    values = (torch.randint(0, 4096, (8, 512), generator=torch.Generator().manual_seed(1)).to(wide) / 977 - 2)
    assert levels.most_distinct(values.bfloat16()) < levels.most_distinct(values)
    assert levels.most_distinct(torch.tensor([[-0.0, 0.0, 1.0]])) == 2


def test_a_step_that_changes_the_rounded_weights_afterwards_fails_the_variant(tiny_model):
    done = recipes.apply(tiny_model, [LinearMinMax(bits=2, granularity="per-channel")], CONTEXT)
    with torch.no_grad():
        body(tiny_model)["model.layers.1.mlp.up_proj"].weight[7, 5] += 1.0
    with pytest.raises(RecipeError, match=r"at most 4 distinct values per channel, the built model has 5 .*layers\.1\.mlp\.up_proj"):
        inspect.realised(tiny_model, done, 3)
    done = recipes.apply(tiny_model, [LinearMinMax(bits=2, granularity="group", group_size=32), recipes.Int8WeightOnly()], CONTEXT)
    with pytest.raises(RecipeError, match="no dense linear weight"):
        inspect.realised(tiny_model, done, 3)


def test_weights_that_are_no_single_piece_are_rounded_all_the_same(tiny_model):
    layer = tiny_model.model.layers[0].mlp.up_proj
    layer.weight.data = layer.weight.data.t().contiguous().t()
    built(tiny_model, LinearMinMax(bits=2, granularity="per-channel"))


@pytest.mark.parametrize(("fields", "why"), [
    ({"bits": 4, "granularity": "group"}, "group_size"), ({"bits": 4, "granularity": "per-tensor", "group_size": 8}, "group_size"),
    ({"bits": 0, "granularity": "per-tensor"}, ">= 1"), ({"bits": 17, "granularity": "per-tensor"}, "<= 16")])
@pytest.mark.parametrize("kind", ["linear-min-max", "nonlinear"])
def test_a_declaration_that_cannot_be_carried_out_is_refused(tmp_path, kind, fields, why):
    with pytest.raises(DataFileError, match=why):
        convert({"id": "x", "title": "x", "description": "x", "dtype": "bfloat16", "steps": [{"step": kind} | fields]},
                Recipe, tmp_path / "x.yaml")


def test_a_group_size_that_does_not_divide_a_layer_is_refused(tiny_model):
    with pytest.raises(RecipeError, match="not a multiple of the group size 64"):
        recipes.apply(tiny_model, [Nonlinear(bits=4, granularity="group", group_size=64)], CONTEXT)


def test_what_saves_nothing_is_not_counted_as_small_in_memory():
    recipe = Recipe(id="x", title="x", description="x", dtype="bfloat16",
                    steps=(LinearMinMax(bits=4, granularity="per-channel"),))
    assert (recipe.weight_bits, recipe.stored_bits) == (4, None)
    assert residency.need(recipe, 1000).resident_bytes == 2000
