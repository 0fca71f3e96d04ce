"""Modules that structural edits put into a model (see `structure`)."""

from __future__ import annotations

import torch
from torch import nn


class LowRankLinear(nn.Module):
    """A linear layer whose matrix is a product of two: [out, rank] times [rank, in]."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Make both layers, not yet filled, on the device and in the dtype of the layer that they stand for.

        Args:
            linear: the dense layer.
            rank: width between the two.
        """
        super().__init__()
        where = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.first = nn.Linear(linear.in_features, rank, bias=False, **where)
        self.second = nn.Linear(rank, linear.out_features, bias=linear.bias is not None, **where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the first matrix, then by the second; x has the shape [..., in]."""
        found: torch.Tensor = self.second(self.first(x))
        return found
