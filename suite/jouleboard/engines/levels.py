"""Counts the distinct values of weights that a simulated quantiser left dense, for the claim `claimed_levels`.

Example: 4 bits in groups of 32 leave at most 16 distinct values in any 32 neighbours of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from jouleboard.errors import RecipeError

ROWS = 4096
"""Groups that are sorted at once: sorting needs several times their memory."""


def verify(model: nn.Module, step: Mapping[str, Any]) -> str:
    """Hold a step's claim against every dense linear weight outside the output head.

    Rounding to bfloat16 or float16, in which the values are stored, can merge two of them and never parts one.

    Args:
        model: as built.
        step: with `claimed_levels`, and the `granularity` and `group_size` that it declares.

    Returns:
        What was found to be so.

    Raises:
        RecipeError: a unit has more distinct values, or no dense weight is left to be looked at.
    """
    claimed, granularity, group_size = int(step["claimed_levels"]), str(step["granularity"]), step.get("group_size")
    most, where = 0, ""
    for name, module in dense_linears(model):
        found = most_distinct(units(module.weight.detach(), granularity, group_size))
        most, where = max((most, where), (found, name))
    if not where or most > claimed:
        what = f"{most} distinct values in one unit of {where}" if where else "no dense linear weight"
        raise RecipeError(f"{step['step']} claims at most {claimed} distinct values per {granularity.removeprefix('per-')}, the built "
                          f"model has {what}", field="realised", remedy="let no later step change these weights; if none does, report it")
    return f"at most {most} distinct values per {granularity.removeprefix('per-')}"


def dense_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield name and module of each linear layer outside the output head whose weights are dense."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter and name.rpartition(".")[2] != "lm_head":
            yield name, module


def units(weight: torch.Tensor, granularity: str, group_size: int | None) -> torch.Tensor:
    """View a weight as its units, shape [units, values a unit]: the tensor, its rows, or groups of neighbours in a row."""
    if granularity == "per-tensor":
        return weight.reshape(1, -1)
    return weight if granularity == "per-channel" else weight.reshape(-1, int(group_size or 1))


def most_distinct(values: torch.Tensor) -> int:
    """Return the largest number of distinct values in a row.

    Args:
        values: shape [rows, values].
    """
    most = 0
    for piece in values.chunk(-(-len(values) // ROWS)):
        ordered = piece.sort(dim=1).values
        most = max(most, 1 + int((ordered[:, 1:] != ordered[:, :-1]).sum(dim=1).max()))
    return most
