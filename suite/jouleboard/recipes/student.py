"""A student that begins with some of the base's layers (Sanh et al. 2019, DistilBERT), to be distilled afterwards.

Example::

    steps:
      - {step: student, keep: 2}
      - {step: distil, method: response, corpus: mixed-prose, steps: 150, learning_rate: 5.0e-4}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from jouleboard import structure
from jouleboard.declared import Count
from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class Student(Declaration, tag="student", tag_field="step", frozen=True, kw_only=True):
    """Keep every k-th layer, or chosen ones, without a look at what they do (`drop-layers` looks)."""

    about: ClassVar[About] = About(stage="dense", changes=("memory", "work"))

    keep: Annotated[int, msgspec.Meta(ge=2)] | Annotated[tuple[Count, ...], msgspec.Meta(min_length=1)]
    """A number: every so-manieth layer, from the first one on; a list: the layers of these numbers, counted from 0."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:  # noqa: ARG002 - needs no data
        """Leave the chosen layers, and renumber them."""
        count = len(structure.layers(model))
        kept = list(range(0, count, self.keep)) if isinstance(self.keep, int) else list(self.keep)
        if kept != sorted(set(kept)) or kept[-1] >= count or len(kept) == count:
            raise RecipeError(f"{kept} are no ascending choice of some of {count} layers", field="steps.keep",
                              remedy=f"name fewer than {count} layers, from 0 to {count - 1}")
        structure.keep_layers(model, kept)
        return {"kept_layers": kept, "claimed_layers": len(kept), "claimed_parameters": parameters(model),
                "claimed_modules": structure.own_modules(model)}
