"""Recovery by low-rank updates (Hu et al. 2021, LoRA), which are merged into the weights at the end: nothing is left of their shape.

Example::

    steps:
      - {step: drop-layers, count: 6}
      - {step: lora-recovery, corpus: mixed-prose, rank: 16, scale: 2.0, steps: 100, learning_rate: 1.0e-3}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from jouleboard.declared import Positive
from jouleboard.recipes.interface import About
from jouleboard.recipes.linear import body_linears, require_divisible
from jouleboard.recipes.trained import Task, Taught, only, own_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context

Scale = Annotated[float, msgspec.Meta(gt=0, le=1000)]


class LoraRecovery(Taught, tag="lora-recovery", tag_field="step", frozen=True, kw_only=True):
    """Train an update W + scale x B A of every linear layer but the output head, A and B of a small rank, and merge it.

    Gradients of the weights themselves are never computed, and the optimiser's memory is a few per cent of that of `distil`. B begins
    as zero, so the training begins with the model as it was.
    """

    about: ClassVar[About] = About(stage="dense", changes=(), packages=("peft",), extra="train")

    rank: Positive
    scale: Scale = 2.0
    """PEFT's `lora_alpha` over `rank`."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Train and merge; the model has the modules and the shapes that it had before."""
        # The head would be skipped in any case; that there are layers at all is not sure.
        layers = require_divisible(model, 1)
        tuner = inject(model, rank=self.rank, scale=self.scale, seed=self.seed)
        weights = {name: weight for name, weight in model.named_parameters() if ".lora_" in name}
        with only(model, weights):
            facts = self.train(Task(model=model, weights=weights, loss=self.loss(own_logits(model), context), passes=self.passes), context)
        tuner.merge_and_unload()
        model.requires_grad_(True)
        return facts | {"merged_layers": layers}


def inject(model: PreTrainedModel, *, rank: int, scale: float, seed: int) -> Any:
    """Put a low-rank update beside every body linear, in the model itself, and return PEFT's handle of them.

    Args:
        model: dense; changed in place.
        rank: of the updates.
        scale: that they are multiplied by.
        seed: of A's first values; B is zero.
    """
    import torch  # noqa: PLC0415 - torch is imported only where tokens are computed
    from peft import LoraConfig  # noqa: PLC0415 - heavy, only in workers
    from peft.tuners.lora import LoraModel  # noqa: PLC0415

    names = [name for name, _ in body_linears(model)]
    # Whole names: a suffix would also match the head of some architectures.
    config = LoraConfig(r=rank, lora_alpha=scale * rank, lora_dropout=0.0, bias="none", target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = LoraModel(model, {"default": config}, "default")
    for name, module in model.named_modules():
        if name.endswith((".lora_A", ".lora_B")):
            # PEFT makes them float32; the optimiser has copies in float32 in any case.
            module.to(model.dtype)
    return found
