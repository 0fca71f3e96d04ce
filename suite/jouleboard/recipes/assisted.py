"""Speculative decoding with drafts by the model's own layers, some of them left out (Zhang et al. 2024, arXiv:2309.08168)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard.declared import Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.depth import block_influence
from jouleboard.recipes.interface import About, Declaration
from jouleboard.runtime import Draft, Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class Assisted(Declaration, tag="assisted", tag_field="step", frozen=True, kw_only=True):
    """Up to `most` tokens are drafted without the `drop` layers of least block influence (see `drop-layers`), and then verified.

    Both use the same weights; the draft has a key-value cache of its own. As with `prompt-lookup` tokens are those of plain greedy
    decoding, for one sequence at a time.
    """

    about: ClassVar[About] = About(stage="runtime", changes=("work",), sets="speculation")

    drop: Positive
    most: Positive = 3

    def run_with(self, runtime: Runtime, found: Mapping[str, Any]) -> Runtime:
        """Set how drafts are made."""
        return runtime.replaced(speculation=Draft(dropped=tuple(found.get("left_out", ())), most=self.most))

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Find the layers that drafts do without; the model stays as it is."""
        count = len(model.model.layers)
        if self.drop >= count:
            raise RecipeError(f"the model has {count} layers, drafts cannot do without {self.drop}", field="steps.drop",
                              remedy="leave fewer layers out")
        influence = block_influence(model, context.calibration_ids)
        # The first layer stays: its cache tells how many tokens there are.
        others = sorted(range(1, count), key=lambda index: (influence[index], -index))
        return {"left_out": sorted(others[: self.drop]), "tokens": int(context.calibration_ids.numel())}
