"""Recovery by bottleneck adapters (Houlsby et al. 2019): small trained layers are put between those of the model, which stay as they are.

Example::

    steps:
      - {step: drop-layers, count: 6}
      - {step: adapters, corpus: mixed-prose, width: 32, steps: 150, learning_rate: 1.0e-3}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jouleboard import structure
from jouleboard.declared import Positive
from jouleboard.recipes.interface import About
from jouleboard.recipes.linear import parameters
from jouleboard.recipes.trained import Task, Taught, only, own_logits
from jouleboard.structure_tuned import Adapter

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context

Place = Literal["self_attn.o_proj", "mlp.down_proj"]
FIRST_SPREAD = 1e-3
"""Standard deviation of the bottlenecks' first weights; the wide layers begin as zero, so the model begins as it was."""


class Adapters(Taught, tag="adapters", tag_field="step", frozen=True, kw_only=True):
    """Train a bottleneck behind the attention and behind the MLP of every layer; it stays, and is a little more work and memory."""

    about: ClassVar[About] = About(stage="dense", changes=("memory", "work"))

    width: Positive
    places: tuple[Place, ...] = ("self_attn.o_proj", "mlp.down_proj")

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Insert the adapters and train them."""
        added = insert(model, self.places, width=self.width, seed=self.seed)
        with only(model, added):
            facts = self.train(Task(model=model, weights=added, loss=self.loss(own_logits(model), context), passes=self.passes), context)
        return facts | {"claimed_parameters": parameters(model), "claimed_modules": structure.own_modules(model)}


def insert(model: PreTrainedModel, places: tuple[Place, ...], *, width: int, seed: int) -> dict[str, nn.Parameter]:
    """Put an adapter at each place of each layer, and return the new weights by name.

    Args:
        model: dense; changed in place, and its configuration records what was changed.
        places: the linear layers that adapters stand behind.
        width: of each bottleneck.
        seed: of the first values.
    """
    import torch  # noqa: PLC0415 - torch is imported only where tokens are computed

    # A layer that computes with another one's weights gets that one's adapters, too.
    sharing = {edit.layer for edit in structure.edits(model.config) if isinstance(edit, structure.SharedLayer)}
    for layer in (number for number in range(len(structure.layers(model))) if number not in sharing):
        for place in places:
            structure.make(model, Adapter(layer=layer, module=place, width=width))
    added = {name: weight for name, weight in model.named_parameters()
             if name.split(".")[-2] in {"down", "up"} and any(place in name for place in places)}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in added.items():
            narrow = name.endswith(".down.weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) * FIRST_SPREAD if narrow else torch.zeros(()))
    return added
