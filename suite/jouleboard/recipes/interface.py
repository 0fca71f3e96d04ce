"""What every compression technique has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a step may need besides the model."""

    calibration_ids: torch.Tensor
    """Token ids of the calibration text, shape [sequences, tokens], int64; never taken from eval items."""


class Technique(Protocol):
    """One compression step: parameters are its fields."""

    @property
    def weight_bits(self) -> int | None:
        """Bits a weight after this step, or None where weights are not quantised."""

    def check(self) -> None:
        """Raise a `RecipeError` naming what is missing where the step cannot run here."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Change the model in place and return what was found out (plain JSON values)."""
