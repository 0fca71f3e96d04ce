"""Simulated quantisers of any number of bits, on an even grid and on one that fits the weights: rounded weights stay dense.

They show what a number of bits does to quality, apart from any kernel. Nothing is saved: each rounded weight is kept in the
recipe's dtype, which for many bits is coarser than the grid (bfloat16 has eight bits of mantissa).

Example: 2 bits over a row from -1 to 2 have the levels -1, 0, 1 and 2; -0.4 becomes 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from jouleboard.declared import Positive
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import body_linears, require_divisible

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context

Bits = Annotated[int, msgspec.Meta(ge=1, le=16)]
Granularity = Literal["per-tensor", "per-channel", "group"]
CONTROL = "simulated: weights are rounded to the levels of so many bits and stored as densely as before, so it costs what the base costs"
LLOYD_ROUNDS = 25
"""So often levels move at most; the error hardly falls after that."""
ROWS = 1024
"""Units that are rounded at once: their float64 copies take several times their memory."""


class _Grid(Declaration, frozen=True, kw_only=True):
    """What both quantisers declare."""

    about: ClassVar[About] = About(stage="dense", changes=(), control=CONTROL)

    bits: Bits
    granularity: Granularity
    """What has levels of its own: each weight matrix, each row of it (an output channel), or neighbours along a row."""
    group_size: Positive | None = None
    """How many neighbours; only with `granularity: group`."""

    def __post_init__(self) -> None:
        """Refuse a group without a size, and a size without groups."""
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("`group_size` is declared with `granularity: group`, and only with it")

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight."""
        return self.bits

    @property
    def stored_bits(self) -> int | None:
        """Bits that a weight takes in memory: as many as before."""
        return None

    def _round(self, model: PreTrainedModel, rounded: Callable[[torch.Tensor, int], torch.Tensor]) -> dict[str, Any]:
        """Round the weights of every body linear in place, unit by unit."""
        require_divisible(model, self.group_size or 1)
        for _, module in body_linears(model):
            # In one piece, so that its units are views of it.
            module.weight.data = weight = module.weight.data.contiguous()
            width = weight.numel() if self.granularity == "per-tensor" else self.group_size or module.in_features
            units = weight.view(-1, width)
            for piece in units.chunk(-(-len(units) // ROWS)):
                piece.copy_(rounded(piece.double(), self.bits))
        return {"claimed_levels": 2**self.bits}


class LinearMinMax(_Grid, tag="linear-min-max", tag_field="step", frozen=True, kw_only=True):
    """The textbook affine quantiser: 2^bits even levels from the least to the largest weight of a unit.

    scale = (max - min) / (2^bits - 1), zero = min, q = round((w - zero) / scale), w' = zero + scale q. The zero point is the real
    minimum and no integer, so both ends are kept, no weight moves by more than scale / 2, and rounding again changes nothing;
    kernels round it to an integer instead, so that 0 is a level. Source: Jacob et al. 2018, section 2.1, but for the zero point.
    """

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Round every body linear."""
        return self._round(model, linear)


class Nonlinear(_Grid, tag="nonlinear", tag_field="step", frozen=True, kw_only=True):
    """Levels that fit a unit's own weights, by Lloyd's algorithm (one-dimensional k-means): dense where weights are dense.

    It begins with the levels of `linear-min-max`. Then each weight goes to the nearest level and each level to the mean of its
    weights, again and again, which never raises the squared error: so no unit's is above that of the even grid. Ties go to the
    upper level. Sources: Lloyd 1982 (Least squares quantization in PCM), Max 1960.
    """

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Round every body linear."""
        return self._round(model, nonlinear)


def linear(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Round each row to 2^bits even levels from its least to its largest value.

    Args:
        values: float64, shape [units, values].
        bits: 1...16.

    Returns:
        The rounded values, of the same shape; the ends of each row are exactly what they were.
    """
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    # A row of equal values has no scale: all of it is its own least value.
    steps = ((values - low) / scale.where(scale > 0, 1.0)).round()
    rounded: torch.Tensor = low + scale * steps
    return rounded.where(steps < 2**bits - 1, high)


def nonlinear(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Round each row to 2^bits levels that Lloyd's algorithm finds for it.

    Args:
        values: float64, shape [units, values].
        bits: 1...16.

    Returns:
        The rounded values, of the same shape; a row that has no more distinct values than levels stays as it is.
    """
    ordered = values.sort(dim=1).values
    distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1, keepdim=True)
    if not bool((distinct > 2**bits).any()):
        return values
    levels = lloyd(ordered, 2**bits)
    # Ties go to the upper level, here as in `lloyd`.
    nearest = _searched(_between(levels), values)
    return levels.gather(1, nearest).where(distinct > 2**bits, values)


def lloyd(ordered: torch.Tensor, count: int) -> torch.Tensor:
    """Find levels for each row of sorted values, shape [units, values]; returns them in order, shape [units, count]."""
    import torch  # noqa: PLC0415 - torch is imported only where tokens are computed

    units, width = ordered.shape
    low, high = ordered[:, :1], ordered[:, -1:]
    levels = low + (high - low) * torch.linspace(0, 1, count, device=ordered.device, dtype=torch.float64)
    # Sums of the first 0, 1, 2, ... values of a row: the sum between two borders is one subtraction.
    sums = torch.cat([ordered.new_zeros(units, 1), ordered.cumsum(dim=1)], dim=1)
    for _ in range(LLOYD_ROUNDS):
        borders = torch.searchsorted(ordered, _between(levels))
        borders = torch.cat([borders.new_zeros(units, 1), borders, borders.new_full((units, 1), width)], dim=1)
        members = borders.diff(dim=1)
        # A level that no value is nearest to stays where it is.
        moved = (sums.gather(1, borders).diff(dim=1) / members.clamp(min=1)).where(members > 0, levels)
        if torch.equal(moved, levels):
            break
        levels = moved
    return levels


def _between(levels: torch.Tensor) -> torch.Tensor:
    """Return the borders half-way between neighbouring levels, shape [units, levels - 1]."""
    return (levels[:, 1:] + levels[:, :-1]) / 2


def _searched(borders: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the index of each value's level: a value at a border belongs to the upper one."""
    import torch  # noqa: PLC0415

    return torch.searchsorted(borders.contiguous(), values.contiguous(), right=True)
