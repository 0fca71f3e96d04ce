"""Prompt tuning (Lester et al. 2021): a few virtual tokens before every text, whose embeddings are learned.

Their keys and values are computed once, at the positions before 0, and stand in every layer's attention from then on: a request
pays for looking at them, and not for computing them. Real tokens keep their positions, and the key-value cache holds real tokens
only, so every engine computes such a model as any other.

Example::

    steps:
      - {step: drop-layers, count: 6}
      - {step: prompt-tuning, corpus: mixed-prose, tokens: 16, steps: 150, learning_rate: 3.0e-2}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from jouleboard import structure
from jouleboard.declared import Positive
from jouleboard.errors import RecipeError
from jouleboard.recipes.interface import About
from jouleboard.recipes.linear import parameters
from jouleboard.recipes.trained import Logits, Task, Taught, only
from jouleboard.structure_tuned import Prefix, unfit_for_prefix

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from jouleboard.recipes.interface import Context


class PromptTuning(Taught, tag="prompt-tuning", tag_field="step", frozen=True, kw_only=True):
    """Learn the embeddings of virtual tokens; the model's own weights stay as they are."""

    about: ClassVar[About] = About(stage="dense", changes=("memory", "work"))

    tokens: Positive
    """Virtual ones."""

    def apply(self, model: PreTrainedModel, context: Context) -> dict[str, Any]:
        """Train the virtual tokens and build their keys and values in."""
        why = unfit_for_prefix(model)
        if why is not None:
            raise RecipeError(why, field="steps", remedy="use another recipe for this model, such as lora-recovery")
        prompt = first_prompt(model, context.calibration_ids, self.tokens)
        weights = {"prompt": prompt}
        with only(model, weights):
            facts = self.train(Task(model=model, weights=weights, loss=self.loss(_behind(model, prompt), context), passes=self.passes), context)
        build_in(model, prompt.detach())
        return facts | {"claimed_parameters": parameters(model)}


def first_prompt(model: PreTrainedModel, ids: torch.Tensor, tokens: int) -> nn.Parameter:
    """Return the embeddings of a text's first tokens, shape [tokens, width]: real ones are a better beginning than random ones.

    Args:
        model: whose embedding is looked up.
        ids: of the text, shape [sequences, tokens]; read again from the beginning where it is too short.
        tokens: how many virtual ones.
    """
    import torch  # noqa: PLC0415 - torch is imported only where tokens are computed
    from torch import nn  # noqa: PLC0415

    flat = ids.flatten()
    chosen = flat[torch.arange(tokens) % len(flat)].to(model.device)
    with torch.no_grad():
        return nn.Parameter(model.get_input_embeddings()(chosen).clone())


def _behind(model: PreTrainedModel, prompt: nn.Parameter) -> Logits:
    """Return the logits of texts behind the virtual tokens, which are computed with every batch while they are trained."""
    import torch  # noqa: PLC0415

    def logits(ids: torch.Tensor) -> torch.Tensor:
        embedded = torch.cat([prompt.expand(len(ids), -1, -1), model.get_input_embeddings()(ids)], dim=1)
        found: torch.Tensor = model(inputs_embeds=embedded, use_cache=False).logits[:, len(prompt):]
        return found

    return logits


def build_in(model: PreTrainedModel, prompt: torch.Tensor) -> None:
    """Compute the keys and values of virtual tokens, and put them into every layer's attention.

    Args:
        model: changed in place, and its configuration records what was changed.
        prompt: embeddings, shape [tokens, width].
    """
    import torch  # noqa: PLC0415
    from transformers import DynamicCache  # noqa: PLC0415

    from jouleboard.structure_tuned_modules import KEY, VALUE  # noqa: PLC0415 - imports torch

    tokens, cache = len(prompt), DynamicCache(config=model.config)
    places = torch.arange(-tokens, 0, device=prompt.device)[None]
    with torch.no_grad():
        model.model(inputs_embeds=prompt[None], position_ids=places, past_key_values=cache, use_cache=True)
        for number, layer in enumerate(structure.layers(model)):
            structure.make(model, Prefix(layer=number, tokens=tokens))
            held = cache.layers[number]
            getattr(layer.self_attn, KEY).copy_(held.keys[0])
            getattr(layer.self_attn, VALUE).copy_(held.values[0])
