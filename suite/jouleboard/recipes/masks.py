"""Which weights become zero: the smallest ones of one or more tensors, exactly as many as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HIGH_BITS, LOW_BITS = 15, 16


def zero_smallest(weights: Sequence[torch.Tensor], count: int) -> None:
    """Set the `count` weights of least magnitude to zero, in place; of equal ones the first go.

    Magnitudes are compared by the bits of their float32 values, which stand in the same order; two histograms find the last one
    that goes. So nothing is sorted, and no copy of all weights is made.

    Args:
        weights: float tensors of any shape, compared with each other.
        count: of all of them together.
    """
    import torch  # noqa: PLC0415 - torch is imported only where tokens are computed

    if count == 0:
        return
    high = torch.zeros(1 << HIGH_BITS, dtype=torch.int64, device=weights[0].device)
    for weight in weights:
        high += torch.bincount(_keys(weight).flatten() >> LOW_BITS, minlength=len(high))
    bucket, below = _reach(high, count)
    low = torch.zeros(1 << LOW_BITS, dtype=torch.int64, device=weights[0].device)
    for weight in weights:
        keys = _keys(weight)
        low += torch.bincount(keys[keys >> LOW_BITS == bucket] & (len(low) - 1), minlength=len(low))
    rest, also_below = _reach(low, count - below)
    last = bucket << LOW_BITS | rest
    equal = count - below - also_below
    for weight in weights:
        keys = _keys(weight)
        weight[keys < last] = 0
        ties = (keys == last).nonzero()[:equal]
        weight[tuple(ties.T)] = 0
        equal -= len(ties)


def _keys(weight: torch.Tensor) -> torch.Tensor:
    """Return integers in the order of the magnitudes, in the shape of the weight."""
    import torch  # noqa: PLC0415

    return weight.detach().abs().float().contiguous().view(torch.int32)


def _reach(histogram: torch.Tensor, count: int) -> tuple[int, int]:
    """Return the bin in which a running count reaches `count`, and the count before this bin."""
    running = histogram.cumsum(0)
    place = int((running < count).sum())
    return place, int(running[place - 1]) if place else 0
