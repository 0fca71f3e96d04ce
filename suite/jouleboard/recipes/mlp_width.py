"""Width pruning: MLPs keep the intermediate channels that matter most, in really smaller matrices (as Minitron, Muralidharan et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard.declared import Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.activations import contributions
from jouleboard.recipes.decoder import keep_inputs, keep_outputs, mlps, require_config
from jouleboard.recipes.interface import About, Declaration
from jouleboard.recipes.linear import parameters
from jouleboard.recipes.magnitude import Rate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class PruneMlpWidth(Declaration, tag="prune-mlp-width", tag_field="step", frozen=True, kw_only=True):
    """Keep a share of every MLP's intermediate channels.

    Those of largest activation norm times weight norm in `down_proj` stay. All layers keep equally many, so that the model has
    one `intermediate_size` and loads like any other.
    """

    about: ClassVar[About] = About(stage="dense", changes=("memory", "work"))

    keep: Rate
    """Share of the channels that stays."""
    multiple_of: Positive = 32
    """The number that stays is rounded to a multiple of this, so that a quantiser's groups still divide it."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Measure all MLPs in one pass of the whole model, then cut them."""
        blocks = mlps(model)
        width = int(model.config.intermediate_size)
        kept_width = max(round(width * self.keep / self.multiple_of), 1) * self.multiple_of
        if kept_width >= width:
            raise RecipeError(f"{self.keep:.1%} of {width} channels, in multiples of {self.multiple_of}, are all of them",
                              field="steps.keep", remedy="keep fewer, or choose a smaller multiple_of")
        require_config(model, {"intermediate_size": kept_width})
        before = parameters(model)
        names = {str(index): block.down_proj for index, block in enumerate(blocks)}
        importances = contributions(model, context.calibration_ids, names, groups=width)
        for block, importance in zip(blocks, importances.values(), strict=True):
            # The channels stay in their order; of equally important ones the first stay.
            kept = importance.argsort(descending=True, stable=True)[:kept_width].sort().values
            for linear in (block.gate_proj, block.up_proj):
                keep_outputs(linear, kept)
            keep_inputs(block.down_proj, kept)
            if hasattr(block, "intermediate_size"):
                block.intermediate_size = kept_width
        model.config.intermediate_size = kept_width
        removed = sum((width - kept_width) * _channel_parameters(block) for block in blocks)
        return {"tokens": int(context.calibration_ids.numel()), "claimed_parameters": before - removed,
                "claimed_config": {"intermediate_size": kept_width}}


def _channel_parameters(block: Any) -> int:
    """Return how many weights one intermediate channel has: a row in two matrices, a column in the third, and biases."""
    biases = sum(linear.bias is not None for linear in (block.gate_proj, block.up_proj))
    return int(block.gate_proj.in_features + block.up_proj.in_features + block.down_proj.out_features) + biases
